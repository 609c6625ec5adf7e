/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What is known of whose data a secondary's disk has (replication.md, "Whose
 * data is right", "Consistency"), for status and failover.
 */

#ifndef BLOCKDRIVERS_REPLICATION_EVIDENCE_H
#define BLOCKDRIVERS_REPLICATION_EVIDENCE_H

#include "filters/replication/secondary/state.h"

/* Fill in consistent and disk_desc; after heard_query. */
extern void evidence_query (const struct note_text *text,
                            struct replication_status *status);

/* May this checkpoint ("": where the disk stands) be failed over to?  Under
 * command_lock.
 */
extern int evidence_check (struct secondary *s, bool force,
                           const struct history *at,
                           struct replication_refusal *refusal);

/* Say so where nobody knows whose data it is; after checkpoint_stand_at. */
extern void evidence_tell (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_EVIDENCE_H */
