/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The primary's side of a replication: a disk whose writes also go to a
 * remote one.  Specification: replication.md; interfaces.md,
 * "nbdkit-replication-filter".
 */

#ifndef BLOCKDRIVERS_REPLICATION_PRIMARY_H
#define BLOCKDRIVERS_REPLICATION_PRIMARY_H

#include <stdbool.h>
#include <stdint.h>

#include "filters/replication/below.h"
#include "node/node.h"
#include "filters/replication/status.h"

struct primary;

struct primary_options {
  const char *remote;           /* URI of the secondary's export; NULL: a
                                   forwarder, whose disk is the way to the
                                   secondary */
  const char *bitmap;           /* file for the dirty bitmap, or NULL;
                                   needs remote */
  struct events *events;        /* borrowed, or NULL */
  uint64_t sync_rate;           /* bytes a second, 0 for no limit (with
                                   remote) */
  unsigned timeout;             /* milliseconds after which a remote, or the
                                   way of a forwarder, that does not answer
                                   is given up; 0: REPLICATION_TIMEOUT, or
                                   FORWARD_TIMEOUT */
};

/* Guests wait for this one: less than the 30 seconds after which Linux
 * gives up a request to a SCSI disk.
 */
#define FORWARD_TIMEOUT 10000

/* Check the options and open what can be opened before the fork (the
 * bitmap's file).  Strings are copied.  NULL with errno after a message.
 */
extern struct primary *primary_open (const struct primary_options *options);

/* In which file the disk is, borrowed until primary_close; before
 * primary_begin.
 */
extern void primary_set_below (struct primary *p, const struct below *below);

/* Begin to serve disk (borrowed until primary_close; started, requests
 * from any thread): threads, the connection to the remote.  Once, after
 * the fork.  A remote that is absent is no error here.
 */
extern int primary_begin (struct primary *p, struct node *disk);

/* A clean end: what is dirty is sent if the remote is there and takes it
 * soon, the bitmap is saved.  Returns false if a request to the disk of a
 * forwarder hangs: then all, the disk too, must be left as it is, but it can
 * be tried again.  NULL is ignored.
 */
extern bool primary_close (struct primary *p);

/* The export, after primary_begin.  The node belongs to p; its requests
 * keep the stage table of replication.md.  Its flush is the disk's.
 */
extern struct node *primary_node (struct primary *p);

/* The commands of replication.md, which take turns.  A checkpoint may
 * take as long as the remote goes on taking what is dirty; writes of the
 * guest wait for its last part only, at most MIRROR_HOLD (mirror.h).
 */
extern int primary_start (struct primary *p, bool full_sync,
                          struct replication_refusal *refusal);

/* The same at the launch of the server: a remote that is absent, or refused by
 * the meeting, does not keep it from running.  The primary goes on trying, and
 * remembers what the remote lacks.  Returns -1 with the reason if it does not
 * replicate yet.
 */
extern int primary_launch (struct primary *p,
                           struct replication_refusal *refusal);
extern int primary_checkpoint (struct primary *p,
                               struct replication_refusal *refusal);
extern int primary_stop (struct primary *p, bool failover,
                         struct replication_refusal *refusal);

/* Compare both disks in the background. */
extern int primary_verify (struct primary *p,
                           struct replication_refusal *refusal);
extern void primary_query (struct primary *p,
                           struct replication_status *status);

/* Is there something to make a checkpoint of?  Else -1. */
extern int primary_is_running (struct primary *p,
                               struct replication_refusal *refusal);

/* A checkpoint of several disks at one moment, which names it (NULL: of this
 * disk alone).  Prepare does all that may fail and leaves guest writes
 * waiting; after commit, or without it for one that is given up, release
 * lets them go on.
 */
extern int primary_checkpoint_prepare (struct primary *p,
                                       const struct moment *moment,
                                       struct replication_refusal *refusal);
extern int primary_checkpoint_commit (struct primary *p,
                                      struct replication_refusal *refusal);
extern void primary_checkpoint_release (struct primary *p);

/* Commands that wait for the remote are refused, now and until this is
 * taken back as often as it was called.  (Those of a forwarder soon come to
 * an end in any case.)  From any thread.
 */
extern void primary_interrupt (struct primary *p, bool interrupted);

/* A stop with failover is going to follow: a forwarder that is running
 * drops what has not been forwarded, and lets go whoever waits for that.
 * From any thread.
 */
extern void primary_expect_failover (struct primary *p);

#endif /* BLOCKDRIVERS_REPLICATION_PRIMARY_H */
