/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Checkpoints of a secondary: see secondary.h for the commands. */

#ifndef BLOCKDRIVERS_REPLICATION_CHECKPOINT_H
#define BLOCKDRIVERS_REPLICATION_CHECKPOINT_H

#include "filters/replication/secondary/state.h"

/* Before the guest sees the disk as it is now, while drained: may it be a
 * mixture?  That is noted before it becomes true, and that it is not any more
 * afterwards, by the second.
 */
extern int checkpoint_begin_consistency (struct secondary *s);
extern void checkpoint_end_consistency (struct secondary *s);

/* Make one at once, while drained, under command_lock; -1 with errno, which
 * has been recorded.
 */
extern int checkpoint_now (struct secondary *s);

/* The same for the last one, at a stop: if the primary has written nothing
 * since the one before, it is that one still.
 */
extern int checkpoint_last (struct secondary *s);

/* Where a guest's disk stands that sees the disk as it is now: at the
 * checkpoint before, if nobody has written since, so that its time tells how
 * old the data are; else at a new one.
 */
extern int checkpoint_moment (struct secondary *s, struct moment *m);

/* For a failover, under command_lock: end what is prepared or committed, and
 * see that the guest's disk stands at this checkpoint; "": at whichever.
 */
extern int checkpoint_stand_at (struct secondary *s,
                                const struct history *id,
                                struct replication_refusal *refusal);

/* What is known of the disk there: those of NOTE_EVIDENCE. */
extern unsigned checkpoint_evidence_at (struct secondary *s,
                                        const struct history *id);

#endif /* BLOCKDRIVERS_REPLICATION_CHECKPOINT_H */
