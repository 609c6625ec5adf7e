/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The two buffers of a secondary.  All print a message when they return -1. */

#ifndef BLOCKDRIVERS_REPLICATION_BUFFERS_H
#define BLOCKDRIVERS_REPLICATION_BUFFERS_H

#include "filters/replication/secondary/state.h"

/* Open those that are there, before the disk is known; it must be possible to
 * make others.  Changes nothing.
 */
extern int buffers_open (struct secondary *s);

/* Make those that are missing; all have the disk's size. */
extern int buffers_make (struct secondary *s);

/* Empty both while requests are drained: first what may fail, then the switch,
 * which changes both or none.
 */
extern int buffers_empty_prepare (struct secondary *s);
extern int buffers_empty_switch (struct secondary *s);

/* After the switch one of these: undo it, if the headers can be written; or
 * forget what they held.
 */
extern int buffers_empty_back (struct secondary *s);
extern void buffers_empty_finish (struct secondary *s);

/* After the switch, in place of finish: keep what the hidden buffer held of
 * the checkpoint before, which has this identifier, as s->kept.  Its file gets
 * another name, and a new one takes its place.  After -1 nothing is kept, as
 * after finish.
 */
extern int buffers_keep (struct secondary *s, const struct history *id);
extern void buffers_drop_kept (struct secondary *s);

/* Let it be the active buffer, in place of one that is empty: so the guest
 * sees the disk of that checkpoint.  After -1 all is as before.
 */
extern int buffers_use_kept (struct secondary *s);

/* Remove the file that a dead process has kept. */
extern void buffers_forget_kept (struct secondary *s,
                                 const struct history *id);

/* The files have their names, also after a power loss. */
extern int buffers_sync_names (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_BUFFERS_H */
