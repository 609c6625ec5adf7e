/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See nbd-linger.h. */

#include <config.h>

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "node/nbd-linger.h"
#include "utils/cleanup.h"

/* Protects the list and the waiters in it.  No other lock is taken under
 * it.  Sockets are read and closed under it, without waiting for anything
 * to come.
 */
static pthread_mutex_t lingering_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lingering *all_lingering;

/* A server that is gone ends its connection some time, too. */
static void
watch_peer (int fd, unsigned timeout)
{
  const int yes = 1, idle = 10, interval = 5, count = 4;

  /* All of these fail on a Unix socket, whose peer is never gone. */
  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  setsockopt (fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

void
linger_begin (const char *uri, int fd, unsigned timeout)
{
  struct lingering *l = malloc (sizeof *l + strlen (uri) + 1);

  if (l == NULL) {
    close (fd);
    return;
  }
  watch_peer (fd, timeout);
  l->fd = fd;
  l->waiters = 0;
  strcpy (l->uri, uri);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lingering_lock);
  l->next = all_lingering;
  all_lingering = l;
}

/* Has the server closed it?  What it answered is thrown away. */
static bool
is_at_end (int fd)
{
  char buf[4096];
  ssize_t r;

  do
    r = recv (fd, buf, sizeof buf, MSG_DONTWAIT);
  while (r > 0 || (r == -1 && errno == EINTR));
  return r == 0 || errno != EAGAIN;
}

/* Sockets that are at their end are forgotten here. */
struct lingering *
linger_find (const char *uri)
{
  struct lingering **p = &all_lingering, *found = NULL;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lingering_lock);
  while (*p) {
    struct lingering *l = *p;

    if (!is_at_end (l->fd)) {
      if (strcmp (l->uri, uri) == 0)
        found = l;
    }
    else if (l->waiters == 0) {
      *p = l->next;
      close (l->fd);
      free (l);
      continue;
    }
    p = &l->next;
  }
  if (found)
    found->waiters++;
  return found;
}

void
linger_leave (struct lingering *l)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lingering_lock);
  l->waiters--;
}
