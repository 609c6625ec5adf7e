/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One checkpoint of several disks at one moment. */

#ifndef BLOCKDRIVERS_CHECKPOINT_H
#define BLOCKDRIVERS_CHECKPOINT_H

/* Make one checkpoint of the disks behind nr sockets, or of none of them.
 * Returns the exit status, after messages.  From the first commit on signals
 * are blocked, and stay so.
 */
extern int checkpoint_together (char *sockets[], int nr);

#endif /* BLOCKDRIVERS_CHECKPOINT_H */
