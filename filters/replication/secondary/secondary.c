/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary: opening and closing, and the commands (replication.md,
 * "Stages").
 *
 * Notes on the design
 *
 * A checkpoint empties both buffers while no request is in flight.  All
 * that may fail comes first; then the headers of the two files are
 * switched, the active buffer's before the hidden one's, and last what is
 * in memory follows.  If the second switch fails the first is undone, so
 * the guest never sees one without the other.  If the process dies
 * between the two, the hidden buffer still has all that it had, so a
 * rollback gives the checkpoint before, and nothing of what has been lost
 * with the active buffer belongs to that.
 *
 * A clean end leaves buffers that are as new and no note in them.  So it
 * does no harm that a file is emptied for good (which has to flush) only
 * when it is not needed any more: after stop and failover, and in close.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "filters/replication/secondary/buffers.h"
#include "filters/replication/secondary/commit.h"
#include "filters/replication/secondary/guest.h"
#include "filters/replication/secondary/recover.h"
#include "filters/replication/secondary/state.h"

#define NOT_RUNNING "Block replication is not running"
#define RUNNING_OR_DONE "Block replication is running or done"

/* ---- Opening */

static void
free_secondary (struct secondary *s)
{
  const int err = errno;

  node_close (s->active);
  node_close (s->hidden);
  drain_destroy (&s->requests);
  claims_destroy (&s->claims);
  replication_error_destroy (&s->error);
  pthread_mutex_destroy (&s->command_lock);
  pthread_mutex_destroy (&s->meet_lock);
  note_destroy (&s->note);
  free (s->active_name);
  free (s->hidden_name);
  free (s);
  errno = err;
}

struct secondary *
secondary_open (const struct secondary_options *options)
{
  struct secondary *s = calloc (1, sizeof *s);

  if (s == NULL) {
    msg_error ("replication: %m");
    return NULL;
  }
  s->recover = options->recover;
  drain_init (&s->requests);
  claims_init (&s->claims);
  replication_error_init (&s->error, options->events);
  s->events = options->events;
  pthread_mutex_init (&s->command_lock, NULL);
  pthread_mutex_init (&s->meet_lock, NULL);
  note_init (&s->note);
  s->active_name = strdup (options->active);
  s->hidden_name = strdup (options->hidden);
  if (s->active_name == NULL || s->hidden_name == NULL) {
    msg_error ("replication: %m");
    free_secondary (s);
    return NULL;
  }
  if (buffers_open (s) == -1 || secondary_check_buffers (s) == -1) {
    free_secondary (s);
    return NULL;
  }
  return s;
}

int
secondary_begin (struct secondary *s, struct node *disk)
{
  if (disk->read_only) {
    errno = EROFS;
    msg_error ("replication: the secondary disk is read-only");
    return -1;
  }
  s->disk = disk;
  if (buffers_make (s) == -1)
    return -1;
  s->unit = MAX (qed_buffer_cluster_size (s->active),
                 qed_buffer_cluster_size (s->hidden));
  guest_init (s);
  if (secondary_do_recover (s) == -1)
    return -1;
  atomic_store (&s->changed, note_flags (&s->note) & NOTE_INCONSISTENT);
  return node_start (s->hidden) == -1 ? -1 : node_start (s->active);
}

/* ---- Commands */

static int
emptied (struct secondary *s, int r)
{
  if (r == -1)
    secondary_note_error (s, "emptying the buffers");
  return r;
}

/* Answer a command with the error that is there. */
static int
refuse_as_left (struct secondary *s, struct replication_refusal *refusal)
{
  struct replication_status status;

  replication_error_get (&s->error, &status);
  return replication_refuse (refusal, "%s", status.desc);
}

static int
refuse_errno (struct replication_refusal *refusal, const char *what)
{
  return replication_refuse (refusal, "%s: %s", what, strerror (errno));
}

static int
refuse_prepared (struct replication_refusal *refusal)
{
  return replication_refuse (refusal, "A checkpoint is being prepared");
}

bool
secondary_is_promoted (struct secondary *s)
{
  return atomic_load (&s->stage) == REPLICATION_DONE &&
    atomic_load (&s->failed_over);
}

/* Before the guest sees the disk as it is now: may it be a mixture?  That is
 * noted before it becomes true, and that it is not any more afterwards, by
 * end_consistency.  Drained.
 */
static int
begin_consistency (struct secondary *s)
{
  const struct note_change change = { .set_flags = NOTE_INCONSISTENT };

  if (!atomic_load (&s->changed) ||
      (note_flags (&s->note) & NOTE_INCONSISTENT))
    return 0;
  return note_put (&s->note, s->hidden, &change);
}

/* If this cannot be noted the disk counts as inconsistent for longer. */
static void
end_consistency (struct secondary *s)
{
  const struct note_change change = { .clear_flags = NOTE_INCONSISTENT };

  if (!atomic_load (&s->changed) &&
      (note_flags (&s->note) & NOTE_INCONSISTENT))
    note_put (&s->note, s->hidden, &change);
}

/* Enter RUNNING with buffers that are empty: nobody has used them since begin,
 * or the stop has emptied them.
 */
static int
enter_running (struct secondary *s, struct replication_refusal *refusal)
{
  int r;

  drain_begin (&s->requests);
  r = begin_consistency (s);
  if (r == 0)
    r = secondary_put_state (s, BUFFERS_RUNNING);
  if (r == 0) {
    end_consistency (s);
    replication_error_clear (&s->error);
    atomic_store (&s->checkpoints, 0);
    atomic_store (&s->own_history, false);
    secondary_set_stage (s, REPLICATION_RUNNING);
  }
  drain_end (&s->requests);
  return r == -1 ? refuse_errno (refusal, "Cannot write to the hidden buffer")
    : 0;
}

/* Both buffers were emptied by the stop, but perhaps not for good. */
static int
start_again (struct secondary *s, struct replication_refusal *refusal)
{
  if (atomic_load (&s->failed_over))
    return replication_refuse (refusal, "This disk was promoted by a "
                               "failover; replication-reset says that it may "
                               "be overwritten again");
  if (qed_buffer_nr_held (s->active) > 0 ||
      qed_buffer_nr_held (s->hidden) > 0)
    return replication_refuse (refusal, "The buffers are not empty");
  return enter_running (s, refusal);
}

int
secondary_start (struct secondary *s, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);

  switch (atomic_load (&s->stage)) {
  case REPLICATION_RUNNING:
    return replication_refuse (refusal, RUNNING_OR_DONE);
  case REPLICATION_FAILOVER:
    return 0;
  case REPLICATION_DONE:
    return start_again (s, refusal);
  case REPLICATION_FAILOVER_FAILED:
    return refuse_as_left (s, refusal);
  case REPLICATION_NONE:
    break;
  }
  return enter_running (s, refusal);
}

int
secondary_reset (struct secondary *s, struct replication_refusal *refusal)
{
  const struct note_change change = {
    .clear_flags = NOTE_PROMOTED | NOTE_INCONSISTENT, .new_history = true
  };
  int r;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  if (!secondary_is_promoted (s))
    return replication_refuse (refusal, "This disk is not promoted: there is "
                               "nothing to reset");
  drain_begin (&s->requests);
  r = note_put (&s->note, s->hidden, &change);
  if (r == 0) {
    secondary_outdate_primaries (s);
    atomic_store (&s->changed, false);
    atomic_store (&s->failed_over, false);
    replication_error_clear (&s->error);
    secondary_set_stage (s, REPLICATION_NONE);
  }
  drain_end (&s->requests);
  return r == -1 ? refuse_errno (refusal, "Cannot write to the hidden buffer")
    : 0;
}

/* Is there something to checkpoint?  1, or 0 where it is ignored, or -1
 * after refusing.  Under command_lock.
 */
static int
can_checkpoint (struct secondary *s, struct replication_refusal *refusal)
{
  if (s->prepared == PREPARED)
    return refuse_prepared (refusal);
  switch (atomic_load (&s->stage)) {
  case REPLICATION_NONE:
    return replication_refuse (refusal, NOT_RUNNING);
  case REPLICATION_FAILOVER_FAILED:
    return refuse_as_left (s, refusal);
  case REPLICATION_RUNNING:
    return 1;
  default:
    return 0;
  }
}

/* What a checkpoint is when all is prepared. */
static int
make_checkpoint (struct secondary *s)
{
  if (emptied (s, begin_consistency (s)) == -1 ||
      emptied (s, buffers_empty_switch (s)) == -1)
    return -1;
  end_consistency (s);
  atomic_fetch_add (&s->checkpoints, 1);
  return 0;
}

/* Drained. */
static int
checkpoint_now (struct secondary *s)
{
  return emptied (s, buffers_empty_prepare (s)) == -1 ? -1
    : make_checkpoint (s);
}

int
secondary_checkpoint (struct secondary *s,
                      struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  int r = can_checkpoint (s, refusal);

  if (r <= 0)
    return r;
  drain_begin (&s->requests);
  r = checkpoint_now (s);
  drain_end (&s->requests);
  if (r == -1)
    return refuse_errno (refusal, "Cannot empty the buffers");
  return 0;
}

int
secondary_checkpoint_prepare (struct secondary *s,
                              struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  const int r = can_checkpoint (s, refusal);

  if (r == -1)
    return -1;
  if (r == 0) {
    s->prepared = PREPARED_NOTHING;
    return 0;
  }
  drain_begin (&s->requests);
  if (emptied (s, buffers_empty_prepare (s)) == -1) {
    drain_end (&s->requests);
    return refuse_errno (refusal, "Cannot empty the buffers");
  }
  s->prepared = PREPARED;
  return 0;
}

int
secondary_checkpoint_commit (struct secondary *s,
                             struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  const enum prepared prepared = s->prepared;
  int r;

  s->prepared = NOT_PREPARED;
  if (prepared == NOT_PREPARED)
    return replication_refuse (refusal, "No checkpoint is prepared");
  if (prepared == PREPARED_NOTHING)
    return 0;
  r = make_checkpoint (s);
  drain_end (&s->requests);
  if (r == -1)
    return refuse_errno (refusal, "Cannot empty the buffers");
  return 0;
}

/* Under command_lock. */
static void
abort_checkpoint (struct secondary *s)
{
  if (s->prepared == PREPARED)
    drain_end (&s->requests);
  s->prepared = NOT_PREPARED;
}

void
secondary_checkpoint_abort (struct secondary *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  abort_checkpoint (s);
}

/* The last checkpoint.  What is left in the files is harmless. */
static int
stop (struct secondary *s, struct replication_refusal *refusal)
{
  int r;

  drain_begin (&s->requests);
  r = checkpoint_now (s);
  if (r == 0)
    secondary_set_stage (s, REPLICATION_DONE);
  drain_end (&s->requests);
  if (r == -1)
    return refuse_errno (refusal, "Cannot empty the buffers");
  secondary_clean_buffers (s);
  return 0;
}

/* From here on the guest's writes may go to the disk, so what the guest sees
 * must be found again whatever happens: what the buffers hold, and what the
 * primary may not have flushed of the disk below them.
 */
static int
keep_all (struct secondary *s)
{
  const struct note_change change = {
    .set_state = true, .state = BUFFERS_FAILOVER,
    .set_flags = NOTE_PROMOTED, .new_history = true
  };

  return node_flush (s->disk) == -1 ||
    qed_buffer_keep (s->hidden) == -1 ||
    qed_buffer_keep (s->active) == -1 ? -1
    : note_put (&s->note, s->hidden, &change);
}

/* It could not begin, but the note may say that it has.  If that cannot be
 * put right now it is unknown, and the primary's writes have to wait for it.
 */
static void
take_failover_back (struct secondary *s)
{
  const int err = errno;

  note_settle (&s->note, s->hidden);
  errno = err;
}

static int
fail_over (struct secondary *s, struct replication_refusal *refusal)
{
  int r;

  /* Most of it while the guest goes on. */
  node_flush (s->disk);
  node_flush (s->hidden);
  node_flush (s->active);

  drain_begin (&s->requests);
  r = keep_all (s);
  if (r == -1)
    take_failover_back (s);
  else {
    /* It waits for drain_end before it changes the stage again. */
    s->commit_job = job_start ("failover", secondary_commit, s);
    secondary_set_stage (s, s->commit_job ? REPLICATION_FAILOVER
                         : REPLICATION_FAILOVER_FAILED);
    r = s->commit_job ? 0 : -1;
  }
  drain_end (&s->requests);
  if (r == -1) {
    secondary_note_error (s, "failover");
    return refuse_errno (refusal, "Cannot fail over");
  }
  return 0;
}

/* A mixture is no disk that anybody wants to run on without knowing. */
static int
refuse_inconsistent (struct replication_refusal *refusal)
{
  return replication_refuse (refusal, "The disk is not consistent: a copy "
                             "from the primary had begun, and was not "
                             "complete at the last checkpoint; "
                             "replication-stop failover=true force=true "
                             "fails over all the same");
}

int
secondary_stop (struct secondary *s, bool failover, bool force,
                struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);

  switch (atomic_load (&s->stage)) {
  case REPLICATION_NONE:
    return replication_refuse (refusal, NOT_RUNNING);
  case REPLICATION_FAILOVER:
  case REPLICATION_DONE:
    return 0;
  case REPLICATION_FAILOVER_FAILED:
    return failover ? replication_refuse (refusal, NOT_RUNNING)
      : refuse_as_left (s, refusal);
  case REPLICATION_RUNNING:
    break;
  }
  if (failover && !force && (note_flags (&s->note) & NOTE_INCONSISTENT))
    return refuse_inconsistent (refusal);
  if (s->prepared == PREPARED) {
    if (!failover)
      return refuse_prepared (refusal);
    /* Whoever wanted the checkpoint is late. */
    abort_checkpoint (s);
  }
  return failover ? fail_over (s, refusal) : stop (s, refusal);
}

/* ---- Status */

static unsigned
progress (struct secondary *s, enum replication_stage stage)
{
  const uint64_t total = atomic_load (&s->commit_total);
  const uint64_t done = atomic_load (&s->commit_done);

  if (stage == REPLICATION_DONE)
    return atomic_load (&s->failed_over) ? 100 : 0;
  if (stage < REPLICATION_FAILOVER || total == 0)
    return 0;
  return MIN (done * 100 / total, (uint64_t) 99);
}

/* What is known of the disk, and who writes to it. */
static void
query_disk (struct secondary *s, struct replication_status *status)
{
  struct note_text text;

  note_get (&s->note, &text);
  status->role = text.flags & NOTE_PROMOTED ? "promoted" : "secondary";
  status->inconsistent = text.flags & NOTE_INCONSISTENT;
  status->history = text.history;
  status->partner = text.partner;
  status->link = atomic_load (&s->nr_primaries) > 0 ? "connected" : "none";
}

void
secondary_query (struct secondary *s, struct replication_status *status)
{
  *status = (struct replication_status) {
    .stage = atomic_load (&s->stage),
    .checkpoints = atomic_load (&s->checkpoints),
  };
  replication_error_get (&s->error, status);
  if (status->stage == REPLICATION_NONE)
    snprintf (status->desc, sizeof status->desc, NOT_RUNNING);
  status->failover_progress = progress (s, status->stage);
  if (s->active)
    status->active_clusters = qed_buffer_nr_held (s->active);
  if (s->hidden)
    status->hidden_clusters = qed_buffer_nr_held (s->hidden);
  query_disk (s, status);
}

void
secondary_identity (struct secondary *s, struct disk_identity *identity)
{
  struct note_text text;

  note_get (&s->note, &text);
  *identity = (struct disk_identity) {
    .kind = text.flags & NOTE_PROMOTED ? DISK_PROMOTED : DISK_SECONDARY,
    .history = text.history, .partner = text.partner, .before = text.before,
  };
}

/* ---- Closing */

void
secondary_close (struct secondary *s)
{
  struct replication_refusal refusal;

  if (s == NULL)
    return;
  secondary_checkpoint_abort (s);
  if (atomic_load (&s->stage) == REPLICATION_RUNNING &&
      secondary_stop (s, false, false, &refusal) == -1)
    msg_error ("replication: at the end: %s", refusal.desc);
  /* A failover is finished: the guest's writes are in the buffers. */
  job_wait (s->commit_job);
  if (atomic_load (&s->stage) == REPLICATION_FAILOVER_FAILED)
    secondary_end_commit (s);
  if (atomic_load (&s->stage) == REPLICATION_FAILOVER_FAILED)
    msg_warning ("the failover is not complete: the guest's data is in the "
                 "buffers %s and %s, and starting again with "
                 "replication-recover=rollback or =discard finishes it",
                 s->active_name, s->hidden_name);
  free_secondary (s);
}
