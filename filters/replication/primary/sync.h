/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How far a first copy or a resynchronisation is, and its speed limit
 * (interfaces.md, replication-sync-rate).  All are called with the mirror's
 * lock.
 */

#ifndef BLOCKDRIVERS_SYNC_H
#define BLOCKDRIVERS_SYNC_H

#include "filters/replication/primary/mirror-state.h"

/* There may be something that is to be copied. */
extern void sync_begin (struct mirror *m);

/* So much was sent. */
extern void sync_sent (struct mirror *m, uint64_t bytes);

/* When may the next batch be sent, and how many areas at most? */
extern int64_t sync_send_at (const struct mirror *m);
extern size_t sync_areas (const struct mirror *m, size_t limit);

extern void sync_query (struct mirror *m,
                        struct replication_progress *progress);

#endif /* BLOCKDRIVERS_SYNC_H */
