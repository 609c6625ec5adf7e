/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A place in a vector of buffers, from which one goes on towards its end.
 * The vector is borrowed and stays as it is.
 */

#ifndef BLOCKDRIVERS_IOVEC_H
#define BLOCKDRIVERS_IOVEC_H

#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#include "utils/rounding.h"

struct iov_cursor {
  const struct iovec *iov;
  size_t skip;                  /* bytes of it that are done */
};

/* Bytes that lie here in one piece, at least one.  There must be some. */
static inline size_t
iov_here (struct iov_cursor *at)
{
  while (at->iov->iov_len == at->skip) {
    at->iov++;
    at->skip = 0;
  }
  return at->iov->iov_len - at->skip;
}

/* Take the next len bytes, of those that lie here. */
static inline char *
iov_take (struct iov_cursor *at, size_t len)
{
  char *p = (char *) at->iov->iov_base + at->skip;

  at->skip += len;
  return p;
}

/* Copy the next count bytes, which there must be. */
static inline void
iov_copy (struct iov_cursor *at, void *buf, size_t count)
{
  for (size_t done = 0, len; done < count; done += len) {
    len = MIN (iov_here (at), count - done);
    memcpy ((char *) buf + done, iov_take (at, len), len);
  }
}

/* Go on by count bytes, which there must be. */
static inline void
iov_skip (struct iov_cursor *at, size_t count)
{
  for (size_t len; count > 0; count -= len) {
    len = MIN (iov_here (at), count);
    at->skip += len;
  }
}

#endif /* BLOCKDRIVERS_IOVEC_H */
