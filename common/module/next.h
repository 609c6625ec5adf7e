/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The node of the layer below an nbdkit filter.  It knows nbdkit's
 * filters, so these build it themselves.
 */

#ifndef BLOCKDRIVERS_NEXT_H
#define BLOCKDRIVERS_NEXT_H

#include <nbdkit-filter.h>

#include "node/node.h"

/* Open a context of the filter's own on the layer below, shared by all
 * connections and background threads: from .after_fork on, to be closed
 * by .cleanup at the latest.  The layer's default export is opened, for
 * writing if it allows that.  name stands for it in messages.
 * thread_model is what .get_ready was told: calls are made one at a
 * time unless it is parallel.  Returns NULL with errno after a message.
 */
extern struct node *next_node_open (nbdkit_backend *backend,
                                    int thread_model, const char *name);

/* The layer as one connection sees it: for .prepare, to be closed before
 * the connection is.  next is borrowed, and nbdkit serialises the calls.
 * Requests that are no multiples of the layer's blocks are handed on as
 * they are.  Returns NULL with errno after a message.
 */
extern struct node *next_node_of (nbdkit_next *next, const char *name);

#endif /* BLOCKDRIVERS_NEXT_H */
