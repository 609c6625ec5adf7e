/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A mirror's connection to its remote.  All but link_prolong_call and the
 * thread are called with the mirror's lock.
 */

#ifndef BLOCKDRIVERS_LINK_H
#define BLOCKDRIVERS_LINK_H

#include "filters/replication/primary/mirror-state.h"

/* The state has changed, for everybody. */
extern void link_announce (struct mirror *m);

/* May the remote be asked for more? */
extern bool link_is_usable (const struct mirror *m);

/* Its state, in the words of query-replication. */
extern const char *link_name (const struct mirror *m);

/* The time to wait after another attempt that failed, in milliseconds. */
extern int64_t link_next_delay (int64_t delay);

/* An attempt has failed, as status and whoever waits shall know. */
extern void link_note_failure (struct mirror *m, const char *fs, ...)
  __attribute__ ((format (printf, 2, 3)));

/* Bracket the use of the remote.  NULL if there is none just now. */
extern struct node *link_begin_call (struct mirror *m, struct call *call);
extern void link_end_call (struct mirror *m, struct call *call);

/* The remote has answered, and is asked for more. */
extern void link_prolong_call (struct mirror *m, struct call *call);

/* Note that the remote lacks the whole disk.  Without the lock. */
extern void link_mark_all (struct mirror *m);

/* The thread, of which opaque is the mirror. */
extern int link_thread (struct job *job, void *opaque);

#endif /* BLOCKDRIVERS_LINK_H */
