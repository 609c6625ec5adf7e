/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* blkctl --watch: events as they come. */

#ifndef BLOCKDRIVERS_WATCH_H
#define BLOCKDRIVERS_WATCH_H

/* Print the events of nr sockets, each as an object in a line, with the socket
 * as another member, until SIGTERM, SIGINT or SIGHUP.  All sockets must answer
 * at first; one that goes away later is tried again and again, after a
 * message.  Returns the exit status.
 */
extern int watch_events (char *sockets[], int nr);

#endif /* BLOCKDRIVERS_WATCH_H */
