/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A node that takes writes over one that does not: what is written goes to
 * a temporary file and is dropped with the node.
 */

#ifndef BLOCKDRIVERS_SCRATCH_H
#define BLOCKDRIVERS_SCRATCH_H

#include "node/node.h"

/* Over below, which is owned from then on, also when this fails.  What is
 * written goes to the file fd, which is borrowed: it is cut to nothing now,
 * and when the node is closed.  Takes memory by the number of places that
 * were written, not by the size of the disk.  Returns NULL with errno after
 * a message.
 */
extern struct node *scratch_open (struct node *below, int fd);

/* Why something could not be written to the file, or read from it or from
 * the node below, as an errno; 0 if nothing failed.
 */
extern int scratch_error (const struct node *n);

#endif /* BLOCKDRIVERS_SCRATCH_H */
