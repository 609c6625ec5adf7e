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

/* Does a failover to this checkpoint ("": where the disk stands) have what it
 * needs?  Under command_lock.
 */
extern int evidence_check (struct secondary *s, enum failover_needs needs,
                           const struct history *at,
                           struct replication_refusal *refusal);

#endif /* BLOCKDRIVERS_REPLICATION_EVIDENCE_H */
