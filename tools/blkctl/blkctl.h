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

#endif /* BLOCKDRIVERS_BLKCTL_H */
