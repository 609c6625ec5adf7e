/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* All of a message through a stream socket that blocks. */

#ifndef BLOCKDRIVERS_SOCKETS_H
#define BLOCKDRIVERS_SOCKETS_H

#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

/* 0 when all has been sent, else -1 with errno; no SIGPIPE.  flags are those
 * of send, such as MSG_MORE.
 */
static inline int
send_all (int fd, const void *buf, size_t count, int flags)
{
  const char *p = buf;

  while (count > 0) {
    const ssize_t r = send (fd, p, count, flags | MSG_NOSIGNAL);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    p += r;
    count -= r;
  }
  return 0;
}

/* 0 when so many bytes have come; -1 on an error, or if the other side hangs
 * up before.
 */
static inline int
receive_all (int fd, void *buf, size_t count)
{
  char *p = buf;

  while (count > 0) {
    const ssize_t r = recv (fd, p, count, 0);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0)
      return -1;
    p += r;
    count -= r;
  }
  return 0;
}

#endif /* BLOCKDRIVERS_SOCKETS_H */
