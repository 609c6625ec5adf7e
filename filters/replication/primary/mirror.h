/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The way of a primary's writes to its remote: a connection that is made
 * again when it is lost, and threads which copy what is dirty.
 * Specification: replication.md, "Beyond QEMU".
 */

#ifndef BLOCKDRIVERS_MIRROR_H
#define BLOCKDRIVERS_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "request/claim.h"
#include "filters/replication/dirty.h"
#include "node/node.h"
#include "filters/replication/status.h"

struct mirror;

struct mirror_options {
  const char *uri;
  uint64_t sync_rate;           /* bytes a second for what a remote that was
                                   connected lacks, or 0 */
  unsigned timeout;             /* milliseconds after which a remote that
                                   does not answer is given up */

  /* All borrowed until mirror_close. */
  struct node *disk;            /* what to copy */
  struct dirty *dirty;          /* of it, what the remote lacks */
  struct claims *claims;        /* on the disk: held shared by whoever
                                   writes, taken exclusively to copy */
  struct replication_error *error; /* where failures are recorded */
  const struct history *self;   /* who the primary is; copied */
  bool equal;                   /* from the start on dirty has all that a
                                   remote lacks that it has not met */
  struct events *events;        /* or NULL */
};

/* Start the threads; the remote is left alone until mirror_connect.
 * NULL with errno after a message.
 */
extern struct mirror *mirror_open (const struct mirror_options *options);

/* End the threads and the connection, at once.  NULL is ignored. */
extern void mirror_close (struct mirror *m);

/* Connect, and from then on stay connected and copy.  If that fails, also
 * because the meeting (meeting.h) was refused, nothing has changed.
 * all_dirty: the remote is to be overwritten, whatever its history;
 * everything is dirty then.  equal: a command says that the disks are equal,
 * but for what is dirty.
 */
extern int mirror_connect (struct mirror *m, bool all_dirty, bool equal,
                           struct replication_refusal *refusal);

/* The end of this: send no more, wait for the answers to what was sent, so
 * that nothing arrives at the remote any more, but only for so many
 * milliseconds, and hang up.  Returns whether all answers have come.
 */
extern bool mirror_disconnect (struct mirror *m, unsigned ms);

extern bool mirror_is_connected (struct mirror *m);

/* Go on trying to connect, and then copy, as after mirror_connect. */
extern void mirror_keep_trying (struct mirror *m);

/* Tell the remote that its disk is equal now (after mirror_complete, while
 * writes are held still), if it is one that wants to know.
 */
extern int mirror_tell_synced (struct mirror *m,
                               struct replication_refusal *refusal);

/* What there is to say of the connection. */
extern void mirror_query (struct mirror *m,
                          struct replication_status *status);

/* Compare both disks in the background; what differs becomes dirty.  How far
 * that is, and what it found, is in the status.
 */
extern int mirror_verify (struct mirror *m,
                          struct replication_refusal *refusal);

/* Something has become dirty. */
extern void mirror_kick (struct mirror *m);

/* Wait, connecting now if need be, until copying has brought the dirty
 * bytes down so far that it makes no sense to wait for less while the
 * guest writes.  Fails when the remote does, when it cannot keep up with
 * the guest, or after a number of milliseconds; with 0 of them it takes
 * as long as there is progress.
 */
extern int mirror_approach (struct mirror *m, unsigned limit,
                            struct replication_refusal *refusal);

/* Milliseconds that writes of the guest wait for the remote at most: far
 * less than what clients wait for an answer, and long enough for a disk
 * to flush the little that mirror_approach leaves to do.
 */
#define MIRROR_HOLD 5000

/* Make the remote equal, and flush it, while nobody writes.  Fails when
 * this takes longer than MIRROR_HOLD.
 */
extern int mirror_complete (struct mirror *m,
                            struct replication_refusal *refusal);

/* Whoever waits in one of the functions above fails, until this is taken
 * back as often as it was called.
 */
extern void mirror_interrupt (struct mirror *m, bool interrupted);

#endif /* BLOCKDRIVERS_MIRROR_H */
