/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the parts of blkctl share. */

#ifndef BLOCKDRIVERS_BLKCTL_H
#define BLOCKDRIVERS_BLKCTL_H

/* Exit statuses. */
#define STATUS_FAILED 1         /* the command */
#define STATUS_NOT_SENT 2       /* the command line, or no such socket */

#define CHECKPOINT "replication-checkpoint"

/* Make one checkpoint of the disks behind nr sockets, or of none of them.
 * Returns the exit status, after messages.
 */
extern int checkpoint_together (char *sockets[], int nr);

#endif /* BLOCKDRIVERS_BLKCTL_H */
