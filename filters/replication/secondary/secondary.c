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
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "filters/replication/secondary/state.h"

#define NOT_RUNNING "Block replication is not running"
#define RUNNING_OR_DONE "Block replication is running or done"

void
secondary_note_error (struct secondary *s, const char *what)
{
  const int err = errno;

  replication_error_set (&s->error, "%s: %s", what, strerror (err));
  errno = err;
}

/* ---- Opening */

/* Is there a file that is not empty? */
static bool
is_there (const char *name)
{
  struct stat st;

  return stat (name, &st) == 0 && !(S_ISREG (st.st_mode) && st.st_size == 0);
}

/* The folder in which a file is to be made, to be freed. */
static char *
folder_of (const char *name)
{
  CLEANUP_FREE char *copy = strdup (name);

  return copy ? realpath (dirname (copy), NULL) : NULL;
}

static int
check_folder (const char *name)
{
  CLEANUP_FREE char *folder = folder_of (name);

  if (folder && access (folder, W_OK) == 0)
    return 0;
  msg_error ("%s: the buffer cannot be created: %m", name);
  return -1;
}

static bool
is_same_file (const char *a, const char *b)
{
  CLEANUP_FREE char *folder_a = NULL;
  CLEANUP_FREE char *folder_b = NULL;
  const char *base_a, *base_b;
  struct stat st_a, st_b;

  if (stat (a, &st_a) == 0 && stat (b, &st_b) == 0)
    return st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino;
  folder_a = folder_of (a);
  folder_b = folder_of (b);
  base_a = strrchr (a, '/');
  base_b = strrchr (b, '/');
  return folder_a && folder_b && strcmp (folder_a, folder_b) == 0 &&
    strcmp (base_a ? base_a + 1 : a, base_b ? base_b + 1 : b) == 0;
}

/* Open a buffer if it is there; otherwise it must be possible to make
 * one.
 */
static int
open_if_there (const char *name, struct node **buffer)
{
  if (!is_there (name))
    return check_folder (name);
  *buffer = qed_buffer_open (name);
  return *buffer ? 0 : -1;
}

static int
check_size (const struct node *a, uint64_t size, const char *other)
{
  if (a == NULL || node_size (a) == size)
    return 0;
  errno = EINVAL;
  msg_error ("%s: the buffer has %" PRIu64 " bytes, but %s has %" PRIu64
             "; active buffer, hidden buffer and disk must have the same "
             "size", a->name, node_size (a), other, size);
  return -1;
}

static int
open_buffers (struct secondary *s)
{
  if (is_same_file (s->active_name, s->hidden_name)) {
    errno = EINVAL;
    msg_error ("%s: the active and the hidden buffer are the same file",
               s->active_name);
    return -1;
  }
  if (open_if_there (s->active_name, &s->active) == -1 ||
      open_if_there (s->hidden_name, &s->hidden) == -1)
    return -1;
  return s->hidden ? check_size (s->active, node_size (s->hidden),
                                 s->hidden_name) : 0;
}

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
  pthread_mutex_destroy (&s->note_lock);
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
  replication_error_init (&s->error);
  pthread_mutex_init (&s->command_lock, NULL);
  pthread_mutex_init (&s->note_lock, NULL);
  s->active_name = strdup (options->active);
  s->hidden_name = strdup (options->hidden);
  if (s->active_name == NULL || s->hidden_name == NULL) {
    msg_error ("replication: %m");
    free_secondary (s);
    return NULL;
  }
  if (open_buffers (s) == -1 || secondary_check_buffers (s) == -1) {
    free_secondary (s);
    return NULL;
  }
  return s;
}

/* QED images have whole sectors; what is behind the disk's end in the
 * last one reads as zeroes and is never written.
 */
static int
need_buffer (struct secondary *s, const char *name, struct node **buffer)
{
  const uint64_t size = round_up (node_size (s->disk), 512);

  if (*buffer == NULL) {
    if (qed_buffer_create (name, size) == -1)
      return -1;
    *buffer = qed_buffer_open (name);
    if (*buffer == NULL)
      return -1;
  }
  return check_size (*buffer, size, "the disk");
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
  if (need_buffer (s, s->active_name, &s->active) == -1 ||
      need_buffer (s, s->hidden_name, &s->hidden) == -1)
    return -1;
  s->unit = MAX (qed_buffer_cluster_size (s->active),
                 qed_buffer_cluster_size (s->hidden));
  secondary_init_exports (s);
  if (secondary_do_recover (s) == -1)
    return -1;
  return node_start (s->hidden) == -1 ? -1 : node_start (s->active);
}

struct node *
secondary_guest_node (struct secondary *s)
{
  return &s->guest.node;
}

struct node *
secondary_replication_node (struct secondary *s)
{
  return &s->replication.node;
}

/* ---- Emptying the buffers */

static int
prepare_buffers (struct secondary *s)
{
  return qed_buffer_empty_prepare (s->active) == -1 ? -1
    : qed_buffer_empty_prepare (s->hidden);
}

static int
switch_buffers (struct secondary *s)
{
  if (qed_buffer_empty_switch (s->active) == -1)
    return -1;
  if (qed_buffer_empty_switch (s->hidden) == 0) {
    qed_buffer_empty_finish (s->active);
    qed_buffer_empty_finish (s->hidden);
    return 0;
  }

  const int err = errno;

  qed_buffer_empty_back (s->active);
  errno = err;
  return -1;
}

static int
emptied (struct secondary *s, int r)
{
  if (r == -1)
    secondary_note_error (s, "emptying the buffers");
  return r;
}

int
secondary_empty_buffers (struct secondary *s)
{
  return emptied (s, prepare_buffers (s) == -1 ? -1 : switch_buffers (s));
}

static void
set_stage (struct secondary *s, enum replication_stage stage)
{
  atomic_store (&s->stage, stage);
}

/* ---- Commands */

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

int
secondary_start (struct secondary *s, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);

  switch (atomic_load (&s->stage)) {
  case REPLICATION_RUNNING:
    return replication_refuse (refusal, RUNNING_OR_DONE);
  case REPLICATION_FAILOVER:
  case REPLICATION_DONE:
    return 0;
  case REPLICATION_FAILOVER_FAILED:
    return refuse_as_left (s, refusal);
  case REPLICATION_NONE:
    break;
  }
  /* The buffers are empty: nobody has used them since begin. */
  if (secondary_put_state (s, BUFFERS_RUNNING) == -1)
    return refuse_errno (refusal, "Cannot write to the hidden buffer");
  replication_error_clear (&s->error);
  atomic_store (&s->checkpoints, 0);
  drain_begin (&s->requests);
  set_stage (s, REPLICATION_RUNNING);
  drain_end (&s->requests);
  return 0;
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

int
secondary_checkpoint (struct secondary *s,
                      struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  int r = can_checkpoint (s, refusal);

  if (r <= 0)
    return r;
  drain_begin (&s->requests);
  r = secondary_empty_buffers (s);
  drain_end (&s->requests);
  if (r == -1)
    return refuse_errno (refusal, "Cannot empty the buffers");
  atomic_fetch_add (&s->checkpoints, 1);
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
  if (emptied (s, prepare_buffers (s)) == -1) {
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
  r = emptied (s, switch_buffers (s));
  drain_end (&s->requests);
  if (r == -1)
    return refuse_errno (refusal, "Cannot empty the buffers");
  atomic_fetch_add (&s->checkpoints, 1);
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
  r = secondary_empty_buffers (s);
  if (r == 0)
    set_stage (s, REPLICATION_DONE);
  drain_end (&s->requests);
  if (r == -1)
    return refuse_errno (refusal, "Cannot empty the buffers");
  atomic_fetch_add (&s->checkpoints, 1);
  secondary_clean_buffers (s);
  return 0;
}

/* From here on the guest's writes may go to the disk, so what the
 * buffers hold must be found again whatever happens.
 */
static int
keep_buffers (struct secondary *s)
{
  return qed_buffer_keep (s->hidden) == -1 ||
    qed_buffer_keep (s->active) == -1 ? -1
    : secondary_put_history (s, BUFFERS_FAILOVER);
}

static int
fail_over (struct secondary *s, struct replication_refusal *refusal)
{
  int r;

  /* Most of it while the guest goes on. */
  node_flush (s->hidden);
  node_flush (s->active);

  drain_begin (&s->requests);
  r = keep_buffers (s);
  if (r == 0) {
    /* It waits for drain_end before it changes the stage again. */
    s->commit_job = job_start ("failover", secondary_commit, s);
    set_stage (s, s->commit_job ? REPLICATION_FAILOVER
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

int
secondary_stop (struct secondary *s, bool failover,
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
}

void
secondary_history (struct secondary *s, struct history *history)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->note_lock);

  *history = s->history;
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
      secondary_stop (s, false, &refusal) == -1)
    msg_error ("replication: at the end: %s", refusal.desc);
  /* A failover is finished: the guest's writes are in the buffers. */
  job_wait (s->commit_job);
  if (atomic_load (&s->stage) == REPLICATION_FAILOVER_FAILED)
    msg_warning ("the failover is not complete: the guest's data is in the "
                 "buffers %s and %s, and starting again with "
                 "replication-recover=rollback or =discard finishes it",
                 s->active_name, s->hidden_name);
  free_secondary (s);
}
