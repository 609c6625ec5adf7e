/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A forwarder passes writes on to its disk, which is the way to the
 * secondary (forward.c, so that a secondary that hangs holds nobody up),
 * keeps their errors to itself, and has nothing to read.
 *
 * With a remote, a write of the guest marks its range dirty and goes to
 * the disk, under a shared claim of the range; all else is done behind
 * its back by the mirror (mirror.c).  So the guest never waits for the
 * remote, except while a checkpoint holds its writes.
 *
 * Ranges are marked from the start on, after a stop too, since what is
 * written then is missing on the remote just the same; with a bitmap file,
 * which remembers the last run, also before the start.
 *
 * A checkpoint first copies while the guest goes on, until little is
 * left; then it drains the guest's writes, copies that, and has the
 * remote flush.  At this moment the remote equals the disk.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "request/claim.h"
#include "utils/cleanup.h"
#include "filters/replication/dirty.h"
#include "request/drain.h"
#include "filters/replication/meeting.h"
#include "filters/replication/primary/forward.h"
#include "utils/message.h"
#include "filters/replication/primary/mirror.h"
#include "filters/replication/primary/primary.h"
#include "filters/replication/primary/requests.h"
#include "filters/replication/primary/state.h"
#include "filters/replication/report.h"
#include "filters/replication/stages.h"
#include "utils/rounding.h"

/* Milliseconds that a stop or the end give the remote before writes are
 * held.
 */
#define FAREWELL 5000

/* And for which they wait for answers to what has been sent. */
#define SETTLE 1000

struct node *
primary_node (struct primary *p)
{
  return &p->node;
}

static int
check_options (const struct primary_options *options)
{
  errno = EINVAL;
  if (options->remote && !node_is_uri (options->remote)) {
    msg_error ("%s: the remote must be given as an NBD URI",
               options->remote);
    return -1;
  }
  if (options->bitmap && !options->remote) {
    msg_error ("%s: a bitmap makes sense only with a remote: a primary "
               "that forwards has no disk to copy from", options->bitmap);
    return -1;
  }
  return 0;
}

struct primary *
primary_open (const struct primary_options *options)
{
  struct primary *p;

  if (check_options (options) == -1)
    return NULL;
  p = calloc (1, sizeof *p);
  if (p == NULL ||
      (options->remote && (p->remote = strdup (options->remote)) == NULL)) {
    msg_error ("replication primary: %m");
    free (p);
    return NULL;
  }
  if (options->bitmap &&
      (p->file = dirty_file_open (options->bitmap)) == NULL) {
    const int err = errno;

    free (p->remote);
    free (p);
    errno = err;
    return NULL;
  }
  atomic_init (&p->tracking, p->file != NULL);
  p->sync_rate = options->sync_rate;
  p->timeout = options->timeout ? options->timeout
    : p->remote ? REPLICATION_TIMEOUT : FORWARD_TIMEOUT;
  claims_init (&p->claims);
  drain_init (&p->drain);
  replication_limit_init (&p->refusals);
  replication_error_init (&p->error, options->events);
  p->events = options->events;
  pthread_mutex_init (&p->command_lock, NULL);
  pthread_mutex_init (&p->moment_lock, NULL);
  return p;
}

/* The export looks like the disk. */
static void
set_node (struct primary *p, struct node *disk)
{
  p->disk = disk;
  p->node = *disk;
  p->node.ops = &primary_ops;
}

static int
begin_mirror (struct primary *p)
{
  const struct mirror_options options = {
    .uri = p->remote, .timeout = p->timeout, .sync_rate = p->sync_rate,
    .disk = p->disk,
    .dirty = &p->dirty, .claims = &p->claims, .error = &p->error,
    .self = &p->self, .equal = p->file != NULL, .events = p->events,
  };

  if (dirty_init (&p->dirty, node_size (p->disk), p->file) == -1 ||
      dirty_get_self (&p->dirty, &p->self) == -1)
    return -1;
  p->mirror = mirror_open (&options);
  return p->mirror ? 0 : -1;
}

void
primary_set_below (struct primary *p, const struct below *below)
{
  if (p->file)
    dirty_file_set_below (p->file, below);
}

int
primary_begin (struct primary *p, struct node *disk)
{
  if (disk->read_only) {
    errno = EROFS;
    msg_error ("%s: a replication primary cannot be read-only", disk->name);
    return -1;
  }
  set_node (p, disk);
  if (p->remote)
    return begin_mirror (p);
  p->forward = forward_open (disk, p->timeout, &p->error);
  return p->forward ? 0 : -1;
}

static void
set_stage (struct primary *p, enum replication_stage stage)
{
  atomic_store (&p->stage, stage);
  report_stage (p->events, stage, "primary");
}

/* What this command does now: as stages_check. */
static int
check (struct primary *p, enum stage_command command,
       struct replication_refusal *refusal)
{
  return stages_check (stages_answer (SIDE_PRIMARY, command, stage_of (p)),
                       &p->error, refusal);
}

/* The checkpoint that was prepared is over. */
static void
release (struct primary *p)
{
  if (p->held)
    drain_end (&p->drain);
  p->held = p->prepared = false;
}

static void
warn_of_last_writes (const struct primary *p)
{
  msg_warning ("%s: no answer to the last writes: they may arrive there "
               "later", p->remote ? p->remote : p->disk->name);
}

/* Give the remote what it lacks, if it takes it soon, and leave RUNNING.
 * Called with the command lock.
 */
static void
stop_mirror (struct primary *p)
{
  struct replication_refusal refusal = { "" };
  int r = mirror_approach (p->mirror, FAREWELL, &refusal);

  drain_begin (&p->drain);
  if (r == 0)
    r = mirror_complete (p->mirror, &refusal);
  if (r == 0 && mirror_tell_synced (p->mirror, &refusal) == -1)
    replication_error_set (&p->error, "%s", refusal.desc);
  set_stage (p, REPLICATION_DONE);
  drain_end (&p->drain);
  if (r == -1 && dirty_bytes (&p->dirty) > 0)
    replication_error_set (&p->error, "stopped when the remote lacked "
                           "%" PRIu64 " bytes: %.150s",
                           dirty_bytes (&p->dirty), refusal.desc);
  if (!mirror_disconnect (p->mirror, SETTLE))
    warn_of_last_writes (p);
}

/* Let the secondary get what is under way to it, and leave RUNNING.  If it
 * does not, that has been recorded.
 */
static void
stop_forwarder (struct primary *p)
{
  drain_begin (&p->drain);
  forward_drain (p->forward);
  set_stage (p, REPLICATION_DONE);
  drain_end (&p->drain);
}

/* Save what the bitmap's file must know: it promises that the rest is
 * equal, so the disk must have it.
 */
static void
end_file (struct primary *p)
{
  if (p->disk && node_flush (p->disk) == -1) {
    dirty_file_abandon (p->file);
    return;
  }
  dirty_file_end (p->file);
}

bool
primary_close (struct primary *p)
{
  if (p == NULL)
    return true;
  release (p);
  if (!forward_close (p->forward))
    return false;
  if (p->mirror) {
    if (stage_of (p) == REPLICATION_RUNNING &&
        mirror_is_connected (p->mirror))
      stop_mirror (p);
    mirror_close (p->mirror);
  }
  if (p->file)
    end_file (p);
  if (p->remote && p->disk)
    dirty_destroy (&p->dirty);
  pthread_mutex_destroy (&p->moment_lock);
  pthread_mutex_destroy (&p->command_lock);
  replication_error_destroy (&p->error);
  drain_destroy (&p->drain);
  replication_limit_destroy (&p->refusals);
  claims_destroy (&p->claims);
  free (p->remote);
  free (p);
  return true;
}

/* Also begin to record errors: what connecting finds belongs to what
 * begins now.  If it fails all is as before.
 */
static int
connect_remote (struct primary *p, bool full_sync, bool command,
                struct replication_refusal *refusal)
{
  struct replication_status before;

  replication_error_get (&p->error, &before);
  replication_error_clear (&p->error);
  if (p->remote == NULL ||
      mirror_connect (p->mirror, full_sync, command && !full_sync, refusal)
      == 0)
    return 0;
  if (before.error)
    replication_error_replace (&p->error, "%s", before.desc);
  return -1;
}

static void
enter_running (struct primary *p)
{
  atomic_store (&p->checkpoints, 0);
  drain_begin (&p->drain);
  set_stage (p, REPLICATION_RUNNING);
  drain_end (&p->drain);
}

/* Note what the guest writes, or no longer. */
static void
track (struct primary *p, bool tracking)
{
  if (atomic_load (&p->tracking) == tracking)
    return;
  drain_begin (&p->drain);
  atomic_store (&p->tracking, tracking);
  drain_end (&p->drain);
}

/* Leave NONE, or DONE after a stop.  The copying begins with the connection,
 * so what is written is noted before there is one.  A command says that the
 * disks are equal; a server that is started with the same command line as ever
 * does not know what was written before.
 */
static int
start (struct primary *p, bool full_sync, bool command,
       struct replication_refusal *refusal)
{
  const bool tracking = atomic_load (&p->tracking);

  if (!p->remote && full_sync)
    return replication_refuse (refusal, "a full copy needs a remote: a "
                               "primary that forwards has no disk to copy "
                               "from");
  if (p->remote)
    track (p, true);
  if (connect_remote (p, full_sync, command, refusal) == -1) {
    track (p, tracking);
    return -1;
  }
  enter_running (p);
  return 0;
}

static int
refuse_prepared (struct replication_refusal *refusal)
{
  return replication_refuse (refusal, "a checkpoint has been prepared, and "
                             "neither committed nor aborted");
}

/* After a stop.  A forwarder that was given up, or cut off, stays so. */
static int
start_again (struct primary *p, bool full_sync,
             struct replication_refusal *refusal)
{
  if (p->failed_over && !full_sync)
    return replication_refuse (refusal, "replication was stopped for a "
                               "failover, so the other side may have taken "
                               "over%s", p->remote ?
                               "; " MEETING_WAY_OUT ", if that was not "
                               "promoted" : "");
  if (p->forward && forward_drain (p->forward) == -1)
    return replication_refuse (refusal, "the way to the secondary was given "
                               "up (%s): it needs a new start of the server",
                               strerror (errno));
  if (start (p, full_sync, true, refusal) == -1)
    return -1;
  p->failed_over = false;
  return 0;
}

/* A primary that has no connection, though it is running, is told what to do
 * with its remote.  That the disks are equal can be said of one that it has
 * not met.
 */
static bool
may_be_told (struct primary *p, bool full_sync)
{
  struct history known;

  if (stage_of (p) != REPLICATION_RUNNING || !p->mirror ||
      mirror_is_connected (p->mirror))
    return false;
  dirty_get_history (&p->dirty, &known);
  return full_sync || known.text[0] == '\0';
}

int
primary_start (struct primary *p, bool full_sync,
               struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  if (p->prepared)
    return refuse_prepared (refusal);
  if (may_be_told (p, full_sync))
    return connect_remote (p, full_sync, true, refusal);
  if (check (p, COMMAND_START, refusal) == -1)
    return -1;
  return stage_of (p) == REPLICATION_DONE
    ? start_again (p, full_sync, refusal)
    : start (p, full_sync, true, refusal);
}

int
primary_launch (struct primary *p, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);
  const int r = start (p, false, false, refusal);

  if (r == -1 && p->mirror) {
    track (p, true);
    enter_running (p);
    mirror_keep_trying (p->mirror);
  }
  return r;
}

/* Make what was forwarded durable, and see that nothing got lost. */
static int
complete_forwarder (struct primary *p, struct replication_refusal *refusal)
{
  struct replication_status status;

  if (forward_flush (p->forward) == -1) {
    if (errno == ECANCELED)
      return replication_refuse (refusal, "%.120s: interrupted",
                                 p->disk->name);
    replication_error_set (&p->error, "forwarding a flush: %s",
                           strerror (errno));
  }
  replication_error_get (&p->error, &status);
  if (!status.error)
    return 0;
  return replication_refuse (refusal, "the secondary lacks writes: %.200s",
                             status.desc);
}

/* Writes are held when this succeeds. */
static int
hold_forwarder (struct primary *p, struct replication_refusal *refusal)
{
  drain_begin (&p->drain);
  if (complete_forwarder (p, refusal) == 0)
    return 0;
  drain_end (&p->drain);
  return -1;
}

/* Make the remote equal.  Writes are held when this succeeds. */
static int
hold_mirror (struct primary *p, struct replication_refusal *refusal)
{
  if (mirror_approach (p->mirror, 0, refusal) == -1)
    return -1;
  drain_begin (&p->drain);
  if (mirror_complete (p->mirror, refusal) == 0 &&
      mirror_tell_synced (p->mirror, refusal) == 0) {
    /* Whatever the remote lacked, it has it now. */
    if (!dirty_has_failed (&p->dirty))
      replication_error_settle (&p->error);
    return 0;
  }
  drain_end (&p->drain);
  return -1;
}

static int
prepare (struct primary *p, const struct moment *moment,
         struct replication_refusal *refusal)
{
  int r = 0;

  if (p->prepared)
    return refuse_prepared (refusal);
  if (moment)
    p->pending = *moment;
  else if (moment_make (&p->pending) == -1)
    return replication_refuse (refusal, "no random numbers: %s",
                               strerror (errno));
  if (stage_of (p) == REPLICATION_RUNNING) {
    r = p->remote ? hold_mirror (p, refusal) : hold_forwarder (p, refusal);
    p->held = r == 0;
  }
  p->prepared = r == 0;
  return r;
}

static void
count_checkpoint (struct primary *p)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->moment_lock);

  p->last = p->pending;
  atomic_fetch_add (&p->checkpoints, 1);
}

static int
commit (struct primary *p, struct replication_refusal *refusal)
{
  if (!p->prepared)
    return replication_refuse (refusal, "no checkpoint has been prepared");
  if (p->held)
    count_checkpoint (p);
  return 0;
}

int
primary_checkpoint_prepare (struct primary *p, const struct moment *moment,
                            struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  return prepare (p, moment, refusal);
}

int
primary_checkpoint_commit (struct primary *p,
                           struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  return commit (p, refusal);
}

void
primary_checkpoint_release (struct primary *p)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  release (p);
}

int
primary_is_running (struct primary *p, struct replication_refusal *refusal)
{
  return check (p, COMMAND_CHECKPOINT, refusal) == -1 ? -1 : 0;
}

int
primary_checkpoint (struct primary *p, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  int r = prepare (p, NULL, refusal);

  if (r == 0) {
    r = commit (p, refusal);
    release (p);
  }
  return r;
}

/* See that what was sent to a forwarder's disk has been carried out. */
static void
settle_forwarder (struct primary *p)
{
  if (!forward_settle (p->forward, SETTLE))
    warn_of_last_writes (p);
}

/* The remote is taken for lost, so the guest no longer waits for it.  But
 * if it is alive, what was sent to it must not arrive after this: the next
 * thing that happens may be that it is promoted, and not all secondaries
 * refuse an old primary's writes then.
 */
static void
leave_to_fail_over (struct primary *p)
{
  set_stage (p, REPLICATION_DONE);
  if (p->forward) {
    forward_cut (p->forward);
    settle_forwarder (p);
  }
  else if (!mirror_disconnect (p->mirror, SETTLE))
    warn_of_last_writes (p);
}

/* Leave RUNNING. */
static void
stop (struct primary *p, bool failover)
{
  if (failover)
    leave_to_fail_over (p);
  else if (p->mirror)
    stop_mirror (p);
  else
    stop_forwarder (p);
}

int
primary_stop (struct primary *p, bool failover,
              struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  if (check (p, failover ? COMMAND_FAIL_OVER : COMMAND_STOP, refusal) == -1)
    return -1;
  release (p);
  p->failed_over |= failover;
  if (stage_of (p) == REPLICATION_RUNNING)
    stop (p, failover);
  else if (failover && p->forward)
    settle_forwarder (p);       /* of a stop that this one has ended */
  return 0;
}

int
primary_verify (struct primary *p, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->command_lock);

  if (check (p, COMMAND_VERIFY, refusal) == -1)
    return -1;
  return p->mirror ? mirror_verify (p->mirror, refusal)
    : stages_check (ANSWER_NO_REMOTE, &p->error, refusal);
}

void
primary_query (struct primary *p, struct replication_status *status)
{
  if (p->forward)
    forward_check (p->forward);
  *status = (struct replication_status) {
    .stage = stage_of (p), .checkpoints = atomic_load (&p->checkpoints),
    .last_heard = -1,
  };
  replication_error_get (&p->error, status);
  if (p->mirror) {
    mirror_query (p->mirror, status);
    status->dirty_bytes = dirty_bytes (&p->dirty);
    status->history = p->self;
    dirty_get_history (&p->dirty, &status->partner);
  }
  else {
    status->remote_connected = status->stage == REPLICATION_RUNNING &&
      !status->error;
    status->link = status->remote_connected ? "connected" : "none";
  }
  status->role = "primary";

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&p->moment_lock);
  status->checkpoint = p->last;
}

void
primary_interrupt (struct primary *p, bool interrupted)
{
  if (p->mirror)
    mirror_interrupt (p->mirror, interrupted);
}

void
primary_expect_failover (struct primary *p)
{
  if (p->forward && stage_of (p) == REPLICATION_RUNNING)
    forward_cut (p->forward);
}
