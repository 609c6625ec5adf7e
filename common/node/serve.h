/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Serving a node on a Unix socket for a while, to programs that this one
 * starts.  What is to be served for longer, or to others, is a module of
 * nbdkit.
 */

#ifndef BLOCKDRIVERS_SERVE_H
#define BLOCKDRIVERS_SERVE_H

#include "node/node.h"

struct serve;

/* Serve a node, which is borrowed and must have been started, under this
 * name and every other one, on a socket that listens (socket, bind, listen),
 * which is borrowed, too.  Any number of clients may connect, and all see
 * the same disk.  Returns NULL with errno after a message.
 */
extern struct serve *serve_start (struct node *node, int listener,
                                  const char *export);

/* End all connections, and wait until nobody uses the node.  What clients
 * have not been answered yet may have been done or not.
 */
extern void serve_stop (struct serve *serve);

#endif /* BLOCKDRIVERS_SERVE_H */
