/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary's side of a replication: a disk that takes the
 * primary's writes, while its own guest sees it as it was at the last
 * checkpoint.  Specification: replication.md; interfaces.md,
 * "nbdkit-replication-filter".
 */

#ifndef BLOCKDRIVERS_REPLICATION_SECONDARY_H
#define BLOCKDRIVERS_REPLICATION_SECONDARY_H

#include <stdbool.h>
#include <stdint.h>

#include "filters/replication/below.h"
#include "filters/replication/history.h"
#include "filters/replication/meeting.h"
#include "node/node.h"
#include "filters/replication/status.h"

struct secondary;

enum secondary_recover {
  RECOVER_FAIL, RECOVER_ROLLBACK, RECOVER_DISCARD,
  RECOVER_RESET                 /* discard, and forget a promotion */
};

struct secondary_options {
  const char *active, *hidden;  /* the buffers' files */
  const char *bitmap;           /* file for the map, or NULL */
  enum secondary_recover recover;
  unsigned timeout;             /* milliseconds after which a primary that says
                                   who it is, and so asks when it is idle, is
                                   lost; 0: REPLICATION_TIMEOUT */
  struct events *events;        /* borrowed, or NULL */
};

/* Check the options and open the buffers as far as that is possible
 * before the fork and without the disk: those that exist are opened and
 * locked, and what a crash has left in them must be something that
 * recover allows; the folders of others must be there.  Nothing is
 * changed.  Strings are copied.  NULL with errno after a message.
 */
extern struct secondary *
secondary_open (const struct secondary_options *options);

/* In which file the disk is, borrowed until secondary_close; before
 * secondary_begin.
 */
extern void secondary_set_below (struct secondary *s,
                                 const struct below *below);

/* Begin to serve disk (borrowed until secondary_close; started, requests
 * from any thread): check sizes, make missing buffers, recover (which
 * takes time in proportion to what the buffers hold; after a failover
 * that has been finished so the stage is DONE).  Once, after the fork.
 * The other functions may be called from then on, from any thread; after
 * -1 only secondary_close.
 */
extern int secondary_begin (struct secondary *s, struct node *disk);

/* A clean end, when no requests are in flight any more.  While RUNNING it
 * is a stop without failover; a failover that is on its way is waited
 * for; one that has failed is left to be finished by the next begin.
 * NULL is ignored.
 */
extern void secondary_close (struct secondary *s);

/* The guest's export: a node that belongs to s, whose requests keep the stage
 * table.  Its alignment is the disk's.
 */
extern struct node *secondary_guest_node (struct secondary *s);

/* The same for a connection of a primary, to be disconnected before
 * secondary_close.  primary is who it says it is, "" if it says nothing.
 * One primary writes at a time: another one is refused (EBUSY, after a
 * message), at once if it says who it is, else when it begins to write.  After
 * the guest has written to the disk that they knew, connections from before
 * of one that says who it is get ESHUTDOWN for everything: it has to connect
 * again and look at the history.  NULL with errno after a message.
 */
extern struct node *secondary_connect (struct secondary *s,
                                       const struct history *primary);
extern void secondary_disconnect (struct secondary *s, struct node *n);

/* The map of what the disk lacked when it was a primary's, as EXPORT_MAP
 * serves it; the same.
 */
extern struct node *secondary_connect_map (struct secondary *s);

/* This primary, which is connected, says that what it has written so far
 * makes the disk equal to its own.  -1 with errno after a message.
 */
extern int secondary_synced (struct secondary *s,
                             const struct history *primary);

/* What a primary must know of the disk before it writes. */
extern void secondary_identity (struct secondary *s,
                                struct disk_identity *identity);

/* The commands of replication.md. */
extern int secondary_start (struct secondary *s,
                            struct replication_refusal *refusal);

/* Has it been promoted by a failover, and not been reset since? */
extern bool secondary_is_promoted (struct secondary *s);

/* Forget that: the disk may be overwritten again.  In DONE after a failover;
 * then NONE.
 */
extern int secondary_reset (struct secondary *s,
                            struct replication_refusal *refusal);
extern int secondary_checkpoint (struct secondary *s,
                                 struct replication_refusal *refusal);
/* force: fail over also to a disk that is not consistent. */
extern int secondary_stop (struct secondary *s, bool failover, bool force,
                           struct replication_refusal *refusal);

/* Always refused: it is the primary that compares. */
extern int secondary_verify (struct secondary *s,
                             struct replication_refusal *refusal);
extern void secondary_query (struct secondary *s,
                             struct replication_status *status);

/* Fail over, to this checkpoint ("": where the disk stands): refused if the
 * disk stands at another one, and cannot be brought back to it.
 */
extern int secondary_fail_over (struct secondary *s, bool force,
                                const struct history *at,
                                struct replication_refusal *refusal);

/* A checkpoint of several disks at one moment, which names it; NULL for one
 * of this disk alone, which is ignored where checkpoints are.  Prepare does
 * all that may fail and leaves requests waiting; commit makes it and leaves
 * them waiting; release lets them go on, and must not come before all of the
 * disks have committed.  From any thread.  Meanwhile other commands are
 * refused, except for a failover.
 */
extern int secondary_checkpoint_prepare (struct secondary *s,
                                         const struct moment *moment,
                                         struct replication_refusal *refusal);
extern int secondary_checkpoint_commit (struct secondary *s,
                                        struct replication_refusal *refusal);
extern void secondary_checkpoint_release (struct secondary *s);

/* Undo it, however far it is; nobody may have released.  Does nothing if
 * nothing is prepared.
 */
extern void secondary_checkpoint_abort (struct secondary *s);

/* The same when nobody knows how far the others are: what was committed stays,
 * and the checkpoint before is kept for a failover.
 */
extern void secondary_checkpoint_doubt (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_SECONDARY_H */
