/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Copying the buffers into the disk of a secondary; failover. */

#ifndef BLOCKDRIVERS_REPLICATION_COMMIT_H
#define BLOCKDRIVERS_REPLICATION_COMMIT_H

#include "filters/replication/secondary/state.h"

/* Write what the top buffer has (NULL below) or what it has over the
 * one below into the disk, and make that durable.  Can be repeated.
 */
extern int secondary_copy_back (struct secondary *s, struct node *top,
                                struct node *below);

/* The failover's job. */
extern int secondary_commit (struct job *job, void *opaque);

/* Try once more to note that a failover is complete, if only that failed;
 * while there are no requests.
 */
extern void secondary_end_commit (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_COMMIT_H */
