/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Sockets of connections that were cut.
 *
 * A server that is cut off since it does not answer still has our
 * requests, in its socket if nowhere else, and executes them when it
 * goes on.  On another connection newer writes could be overtaken by
 * these.  So there is no new connection to the same URI, by any node of
 * the process, before the server has closed the old one, which servers do
 * when they have dealt with all that came.
 */

#ifndef BLOCKDRIVERS_NBD_LINGER_H
#define BLOCKDRIVERS_NBD_LINGER_H

/* A socket that was cut and that the server has not closed yet. */
struct lingering {
  struct lingering *next;
  int fd;
  unsigned waiters;             /* who poll fd; it is closed only when there
                                   are none */
  char uri[];
};

/* Let a socket linger, which is taken over.  timeout (milliseconds) is how
 * long a server that is gone for good is believed in.
 */
extern void linger_begin (const char *uri, int fd, unsigned timeout);

/* One that lingers on to this URI, or NULL.  Its descriptor may be polled
 * until linger_leave.
 */
extern struct lingering *linger_find (const char *uri);
extern void linger_leave (struct lingering *l);

#endif /* BLOCKDRIVERS_NBD_LINGER_H */
