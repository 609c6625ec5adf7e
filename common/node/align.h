/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Alignment: a node over one that only takes aligned requests.  Reads
 * are widened; writes, zeroes and discards read, change and write back
 * the blocks at their edges, under a claim on these blocks.
 * Specification: block-layer.md, "The request core", alignment.
 */

#ifndef BLOCKDRIVERS_ALIGN_H
#define BLOCKDRIVERS_ALIGN_H

#include "node/node.h"

/* Wrap a node whose align is more than 1; owns inner from then on.  A
 * size that is no multiple of align is served rounded down, unless the
 * node can grow; then inner takes requests up to its end.  Returns
 * NULL (with errno, inner is untouched) if out of memory.
 */
extern struct node *align_node (struct node *inner);

/* node_open, and align_node where that is needed: what formats use. */
extern struct node *align_open (const char *name,
                                const struct node_open_options *options);

#endif /* BLOCKDRIVERS_ALIGN_H */
