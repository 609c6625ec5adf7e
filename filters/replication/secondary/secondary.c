/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary: opening and closing, and the commands (replication.md,
 * "Stages").
 *
 * Notes on the design
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
#include "filters/replication/secondary/checkpoint.h"
#include "filters/replication/secondary/commit.h"
#include "filters/replication/secondary/evidence.h"
#include "filters/replication/secondary/guest.h"
#include "filters/replication/secondary/heard.h"
#include "filters/replication/secondary/map.h"
#include "filters/replication/secondary/recover.h"
#include "filters/replication/secondary/state.h"

/* ---- Opening */

static void
free_secondary (struct secondary *s)
{
  const int err = errno;

  map_end (s);
  node_close (s->active);
  node_close (s->hidden);
  drain_destroy (&s->requests);
  claims_destroy (&s->claims);
  replication_error_destroy (&s->error);
  replication_limit_destroy (&s->refusals);
  pthread_mutex_destroy (&s->command_lock);
  pthread_mutex_destroy (&s->meet_lock);
  pthread_mutex_destroy (&s->buffers_lock);
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
  s->timeout = options->timeout ? options->timeout : REPLICATION_TIMEOUT;
  drain_init (&s->requests);
  replication_limit_init (&s->refusals);
  claims_init (&s->claims);
  replication_error_init (&s->error, options->events);
  s->events = options->events;
  pthread_mutex_init (&s->command_lock, NULL);
  pthread_mutex_init (&s->meet_lock, NULL);
  pthread_mutex_init (&s->buffers_lock, NULL);
  note_init (&s->note);
  s->active_name = strdup (options->active);
  s->hidden_name = strdup (options->hidden);
  if (s->active_name == NULL || s->hidden_name == NULL) {
    msg_error ("replication: %m");
    free_secondary (s);
    return NULL;
  }
  if (buffers_open (s) == -1 || secondary_check_buffers (s) == -1 ||
      map_open (s, options->bitmap) == -1) {
    free_secondary (s);
    return NULL;
  }
  return s;
}

void
secondary_set_below (struct secondary *s, const struct below *below)
{
  if (s->map_file)
    dirty_file_set_below (s->map_file, below);
}

int
secondary_begin (struct secondary *s, struct node *disk)
{
  const bool fresh = s->note.text.history.text[0] == '\0';

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
  if (secondary_do_recover (s) == -1 || map_begin (s, fresh) == -1)
    return -1;
  atomic_store (&s->changed, note_flags (&s->note) & NOTE_INCONSISTENT);
  atomic_store (&s->proved, note_flags (&s->note) & NOTE_PROVED);
  atomic_store (&s->has_moment, s->note.text.made.id.text[0]);
  return node_start (s->hidden) == -1 || node_start (s->active) == -1 ? -1
    : heard_begin (s);
}

/* ---- Commands */

bool
secondary_is_promoted (struct secondary *s)
{
  return atomic_load (&s->stage) == REPLICATION_DONE &&
    atomic_load (&s->failed_over);
}

static int
refuse_note (struct replication_refusal *refusal)
{
  return secondary_refuse_errno (refusal, "Cannot write to the hidden buffer");
}

/* Enter RUNNING with buffers that are empty.  This is a checkpoint, too. */
static int
enter_running (struct secondary *s, struct replication_refusal *refusal)
{
  struct moment m;
  const struct note_change change = {
    .set_state = true, .state = BUFFERS_RUNNING, .made = &m
  };
  int r;

  drain_begin (&s->requests);
  r = checkpoint_moment (s, &m) == -1 ||
    checkpoint_begin_consistency (s) == -1 ? -1
    : note_put (&s->note, s->hidden, &change);
  if (r == 0) {
    atomic_store (&s->has_moment, true);
    checkpoint_end_consistency (s);
    replication_error_clear (&s->error);
    atomic_store (&s->checkpoints, 0);
    atomic_store (&s->own_history, false);
    secondary_set_stage (s, REPLICATION_RUNNING);
  }
  drain_end (&s->requests);
  return r == -1 ? refuse_note (refusal) : 0;
}

/* Both buffers were emptied by the stop, or the failover, but perhaps not for
 * good.
 */
static int
start_when_empty (struct secondary *s, struct replication_refusal *refusal)
{
  if (secondary_is_promoted (s))
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

  const int r = secondary_check (s, COMMAND_START, refusal);

  return r <= 0 ? r : start_when_empty (s, refusal);
}

/* A failover that is complete still empties the buffers, which the next start
 * is to find empty, and then nobody may empty them any more.
 */
static void
await_failover (struct secondary *s)
{
  job_wait (s->commit_job);
  s->commit_job = NULL;
}

/* A map of what has changed since the failover is of no use to anybody; one of
 * what the disk lacked as a primary's since then stays right.
 */
static int
reset_map (struct secondary *s)
{
  return atomic_load (&s->map_says) == MAP_FORMER ? 0 : map_forget (s);
}

int
secondary_reset (struct secondary *s, struct replication_refusal *refusal)
{
  static const struct moment none;
  const struct note_change change = {
    .clear_flags = NOTE_PROMOTED | NOTE_EVIDENCE, .new_history = true,
    .made = &none
  };
  int r;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  if (secondary_check (s, COMMAND_RESET, refusal) == -1)
    return -1;
  if (!secondary_is_promoted (s))
    return stages_check (ANSWER_NOT_PROMOTED, &s->error, refusal);
  await_failover (s);
  drain_begin (&s->requests);
  r = reset_map (s);
  if (r == 0)
    r = note_put (&s->note, s->hidden, &change);
  if (r == 0) {
    secondary_outdate_primaries (s);
    secondary_forget_proof (s);
    atomic_store (&s->has_moment, false);
    atomic_store (&s->changed, false);
    atomic_store (&s->failed_over, false);
    replication_error_clear (&s->error);
    secondary_set_stage (s, REPLICATION_NONE);
  }
  drain_end (&s->requests);
  return r == -1 ? refuse_note (refusal) : 0;
}

/* The last checkpoint.  What is left in the files is harmless. */
static int
stop (struct secondary *s, struct replication_refusal *refusal)
{
  int r;

  drain_begin (&s->requests);
  r = checkpoint_last (s);
  if (r == 0)
    secondary_set_stage (s, REPLICATION_DONE);
  drain_end (&s->requests);
  if (r == -1)
    return secondary_refuse_errno (refusal, "Cannot empty the buffers");
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
    .set_flags = NOTE_PROMOTED | s->failover_flags,
    .clear_flags = s->failover_flags ^ NOTE_EVIDENCE,
    .new_history = true, .made = &s->failover_at
  };
  struct note_text text;
  struct pairing pair;

  note_get (&s->note, &text);
  pair = (struct pairing) { text.partner, text.history };
  map_part (s, &pair);
  return node_flush (s->disk) == -1 || buffers_sync_names (s) == -1 ||
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
    return secondary_refuse_errno (refusal, "Cannot fail over");
  }
  return 0;
}

/* One that is over is asked for once more: was it there? */
static int
check_promoted_at (struct secondary *s, const struct history *at,
                   struct replication_refusal *refusal)
{
  struct note_text text;

  note_get (&s->note, &text);
  if (at->text[0] == '\0' || ((text.flags & NOTE_PROMOTED) &&
                              history_equal (at, &text.made.id)))
    return 0;
  return replication_refuse (refusal, "This disk is not one that was failed "
                             "over to at checkpoint %s", at->text);
}

int
secondary_fail_over (struct secondary *s, bool force,
                     const struct history *at,
                     struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  const int r = secondary_check (s, COMMAND_FAIL_OVER, refusal);

  if (r == -1)
    return -1;
  if (r == 0)
    return check_promoted_at (s, at, refusal);
  if (evidence_check (s, force, at, refusal) == -1)
    return -1;
  /* Whoever wanted a checkpoint is late. */
  if (checkpoint_stand_at (s, at, refusal) == -1)
    return -1;
  evidence_tell (s);
  return fail_over (s, refusal);
}

int
secondary_stop (struct secondary *s, bool failover, bool force,
                struct replication_refusal *refusal)
{
  int r;

  if (failover)
    return secondary_fail_over (s, force, &(struct history) { "" }, refusal);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  r = secondary_check (s, COMMAND_STOP, refusal);
  if (r <= 0)
    return r;
  if (s->prepared == PREPARED || s->prepared == COMMITTED)
    return replication_refuse (refusal, "A checkpoint is being prepared");
  return stop (s, refusal);
}

int
secondary_verify (struct secondary *s, struct replication_refusal *refusal)
{
  return secondary_check (s, COMMAND_VERIFY, refusal);
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
  status->history = text.history;
  status->partner = text.partner;
  status->checkpoint = text.made;
  status->checkpoint_before = text.earlier;
  heard_query (s, status);
  evidence_query (&text, status);
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
    snprintf (status->desc, sizeof status->desc,
              "Block replication is not running");
  status->failover_progress = progress (s, status->stage);
  query_disk (s, status);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->buffers_lock);
  if (s->active)
    status->active_clusters = qed_buffer_nr_held (s->active);
  /* The guest has written, and would lose that. */
  if (s->kept && status->active_clusters > 0)
    status->checkpoint_before.text[0] = '\0';
  if (s->hidden)
    status->hidden_clusters = qed_buffer_nr_held (s->hidden);
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
  map_get_former (s, &identity->former);
}

/* ---- Closing */

void
secondary_close (struct secondary *s)
{
  struct replication_refusal refusal;

  if (s == NULL)
    return;
  heard_end (s);
  secondary_checkpoint_abort (s);
  if (atomic_load (&s->stage) == REPLICATION_RUNNING &&
      secondary_stop (s, false, false, &refusal) == -1)
    msg_error ("replication: at the end: %s", refusal.desc);
  /* A failover is finished: the guest's writes are in the buffers. */
  await_failover (s);
  if (atomic_load (&s->stage) == REPLICATION_FAILOVER_FAILED)
    secondary_end_commit (s);
  if (atomic_load (&s->stage) == REPLICATION_FAILOVER_FAILED)
    msg_warning ("the failover is not complete: the guest's data is in the "
                 "buffers %s and %s, and starting again with "
                 "replication-recover=rollback or =discard finishes it",
                 s->active_name, s->hidden_name);
  buffers_drop_kept (s);
  free_secondary (s);
}
