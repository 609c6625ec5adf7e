/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Checkpoints of a secondary (replication.md, "The picture", "Whose data is
 * right").
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
 * One of several disks has three steps: prepare, commit (the switch, which
 * can be undone while requests wait) and release.  No member is released
 * before all have committed.  So one whose client is gone knows when it has
 * only prepared that nobody went on, and gives the checkpoint up.  When it
 * has committed it cannot know: the others are where it is, or one gave it
 * up.  Then it goes on from the checkpoint, but keeps the one before: what
 * the hidden buffer held stays in its file, under another name, and a new
 * buffer takes its place.  The disk of the checkpoint before is the kept
 * buffer over the hidden one over the disk; that is what an active buffer is,
 * so to go back at a failover the kept one becomes the active one.  If the
 * guest had written, or has since, it would lose that: then nothing is kept,
 * or there is no way back.
 *
 * The note names the checkpoint before it is made (prepared) and afterwards
 * (made).  Of a process that died in between the hidden buffer tells: if it
 * holds nothing, the disk is that of both.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "filters/replication/secondary/buffers.h"
#include "filters/replication/secondary/checkpoint.h"
#include "utils/cleanup.h"
#include "utils/message.h"

static int
emptied (struct secondary *s, int r)
{
  if (r == -1)
    secondary_note_error (s, "emptying the buffers");
  return r;
}

static int
refuse_emptying (struct replication_refusal *refusal)
{
  return secondary_refuse_errno (refusal, "Cannot empty the buffers");
}

/* ---- Consistency */

int
checkpoint_begin_consistency (struct secondary *s)
{
  const struct note_change change = { .set_flags = NOTE_INCONSISTENT };

  if (!atomic_load (&s->changed) ||
      (note_flags (&s->note) & NOTE_INCONSISTENT))
    return 0;
  return note_put (&s->note, s->hidden, &change);
}

/* If this cannot be noted the disk counts as inconsistent for longer. */
void
checkpoint_end_consistency (struct secondary *s)
{
  const unsigned is = note_flags (&s->note) & NOTE_EVIDENCE;
  const struct note_change change = {
    .clear_flags = NOTE_INCONSISTENT,
    .set_flags = atomic_load (&s->proved) ? NOTE_PROVED : 0
  };

  if (!atomic_load (&s->changed) &&
      ((is & NOTE_INCONSISTENT) || (change.set_flags & ~is)))
    note_put (&s->note, s->hidden, &change);
}

/* ---- Making one, while drained */

static int
note_made (struct secondary *s, const struct moment *m,
           const struct history *earlier)
{
  const struct note_change change = {
    .made = m, .earlier = earlier, .weak = true
  };

  atomic_store (&s->has_moment, true);
  return note_put (&s->note, s->hidden, &change);
}

/* The note as it was before, flags too. */
static void
note_last (struct secondary *s)
{
  const unsigned was = s->last.flags & NOTE_EVIDENCE;
  const unsigned is = note_flags (&s->note) & NOTE_EVIDENCE;
  const struct note_change change = {
    .made = &s->last.made, .earlier = &s->last.earlier,
    .set_flags = was, .clear_flags = was ^ NOTE_EVIDENCE,
    .weak = was == is
  };

  note_put (&s->note, s->hidden, &change);
}

/* What can be undone. */
static int
commit (struct secondary *s, const struct moment *m)
{
  note_get (&s->note, &s->last);
  if (checkpoint_begin_consistency (s) == -1 ||
      buffers_empty_switch (s) == -1)
    return -1;
  if (note_made (s, m, &s->last.made.id) == 0)
    return 0;

  const int err = errno;

  if (buffers_empty_back (s) == 0)
    note_last (s);
  else
    buffers_empty_finish (s);   /* as their headers say */
  errno = err;
  return -1;
}

/* The primary has said that the disk is as its own, after whatever failed. */
static bool
is_well (struct secondary *s)
{
  struct note_text text;

  note_get (&s->note, &text);
  return text.partner.text[0] && !atomic_load (&s->changed) &&
    !atomic_load (&s->note.unknown);
}

static void
count_checkpoint (struct secondary *s)
{
  if (is_well (s))
    replication_error_settle (&s->error);
  checkpoint_end_consistency (s);
  atomic_fetch_add (&s->checkpoints, 1);
}

static void
finish (struct secondary *s)
{
  const struct note_change alone = {
    .earlier = &(struct history) { "" }, .weak = true
  };

  buffers_empty_finish (s);
  buffers_drop_kept (s);
  note_put (&s->note, s->hidden, &alone);
  count_checkpoint (s);
}

/* ---- At once */

int
checkpoint_moment (struct secondary *s, struct moment *m)
{
  struct note_text text;

  note_get (&s->note, &text);
  if (text.made.id.text[0] == '\0' || qed_buffer_nr_held (s->hidden) > 0)
    return moment_make (m);
  *m = text.made;
  return 0;
}

/* This one. */
static int
make_now (struct secondary *s, const struct moment *m)
{
  if (emptied (s, buffers_empty_prepare (s)) == -1 ||
      emptied (s, commit (s, m)) == -1)
    return -1;
  finish (s);
  return 0;
}

int
checkpoint_now (struct secondary *s)
{
  struct moment m;

  return moment_make (&m) == -1 ? -1 : make_now (s, &m);
}

int
checkpoint_last (struct secondary *s)
{
  struct moment m;

  return checkpoint_moment (s, &m) == -1 ? -1 : make_now (s, &m);
}

/* ---- The commands */

static int
can_checkpoint (struct secondary *s, struct replication_refusal *refusal)
{
  if (s->prepared == PREPARED || s->prepared == COMMITTED)
    return replication_refuse (refusal, "A checkpoint is being prepared");
  return secondary_check (s, COMMAND_CHECKPOINT, refusal);
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
  return r == -1 ? refuse_emptying (refusal) : 0;
}

/* Drained. */
static int
prepare (struct secondary *s)
{
  const struct note_change change = {
    .prepared = &s->pending, .weak = true
  };

  if (buffers_empty_prepare (s) == -1)
    return -1;
  return s->joint ? note_put (&s->note, s->hidden, &change) : 0;
}

/* One that nobody has named gets a name of its own. */
static int
set_pending (struct secondary *s, const struct moment *moment)
{
  s->joint = moment != NULL;
  if (s->joint)
    s->pending = *moment;
  return s->joint ? 0 : moment_make (&s->pending);
}

int
secondary_checkpoint_prepare (struct secondary *s,
                              const struct moment *moment,
                              struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  const int r = can_checkpoint (s, refusal);

  if (r == -1)
    return -1;
  if (r == 0 && moment)
    return replication_refuse (refusal, "Block replication is done here, so "
                               "there is no checkpoint of several disks");
  if (r == 0) {
    s->prepared = PREPARED_NOTHING;
    return 0;
  }
  drain_begin (&s->requests);
  if (set_pending (s, moment) == -1 || emptied (s, prepare (s)) == -1) {
    drain_end (&s->requests);
    return refuse_emptying (refusal);
  }
  s->prepared = PREPARED;
  return 0;
}

int
secondary_checkpoint_commit (struct secondary *s,
                             struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);

  if (s->prepared == NOT_PREPARED || s->prepared == COMMITTED)
    return replication_refuse (refusal, "No checkpoint is prepared");
  if (s->prepared == PREPARED_NOTHING)
    return 0;
  if (emptied (s, commit (s, &s->pending)) == 0) {
    s->prepared = COMMITTED;
    return 0;
  }
  s->prepared = NOT_PREPARED;
  drain_end (&s->requests);
  return refuse_emptying (refusal);
}

static void
go_on (struct secondary *s)
{
  if (s->prepared == PREPARED || s->prepared == COMMITTED)
    drain_end (&s->requests);
  s->prepared = NOT_PREPARED;
}

void
secondary_checkpoint_release (struct secondary *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);

  if (s->prepared == COMMITTED)
    finish (s);
  go_on (s);
}

/* Back to the one before. */
static void
undo (struct secondary *s)
{
  if (buffers_empty_back (s) == -1) {
    secondary_note_error (s, "undoing a checkpoint: it stays made");
    finish (s);
  }
  else
    note_last (s);
}

static void
abort_checkpoint (struct secondary *s)
{
  static const struct moment none;
  const struct note_change change = { .prepared = &none, .weak = true };

  if (s->prepared == COMMITTED)
    undo (s);
  else if (s->prepared == PREPARED && s->joint)
    note_put (&s->note, s->hidden, &change);
  go_on (s);
}

void
secondary_checkpoint_abort (struct secondary *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);

  abort_checkpoint (s);
}

/* ---- In doubt */

/* May, and can, the checkpoint before be kept?  *same: its disk is the same as
 * that of this one, so there is nothing to keep.
 */
static bool
keep_last (struct secondary *s, bool *same)
{
  *same = qed_buffer_nr_held (s->hidden) == 0;
  if (!s->joint || s->last.made.id.text[0] == '\0' ||
      qed_buffer_nr_held (s->active) > 0)
    return false;
  buffers_drop_kept (s);
  s->before = s->last.made;
  s->before_flags = s->last.flags;
  return *same || buffers_keep (s, &s->before.id) == 0;
}

void
secondary_checkpoint_doubt (struct secondary *s)
{
  const struct moment m = s->pending;
  bool same;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->command_lock);
  if (s->prepared != COMMITTED) {
    abort_checkpoint (s);
    return;
  }
  if (keep_last (s, &same)) {
    if (same)
      buffers_empty_finish (s);
    count_checkpoint (s);
    note_made (s, &m, &s->before.id);
    msg_warning ("checkpoint %s was made here, and perhaps not on other "
                 "disks: the one before, %s, can still be had at a failover",
                 m.id.text, s->before.id.text);
  }
  else
    finish (s);
  go_on (s);
}

/* ---- Where a failover begins */

unsigned
checkpoint_evidence_at (struct secondary *s, const struct history *id)
{
  struct note_text text;

  note_get (&s->note, &text);
  if (history_equal (id, &text.made.id) || id->text[0] == '\0')
    return text.flags & NOTE_EVIDENCE;
  if (s->prepared == COMMITTED)
    return s->last.flags & NOTE_EVIDENCE;
  return history_equal (id, &text.earlier) ? s->before_flags & NOTE_EVIDENCE
    : NOTE_PROVED;              /* it will not be found */
}

/* The guest sees the disk of the checkpoint before from here on.  Drained. */
static int
go_back (struct secondary *s, struct replication_refusal *refusal)
{
  static const struct moment none;
  const struct note_change unknown = { .made = &none, .weak = true };

  if (qed_buffer_nr_held (s->active) > 0)
    return replication_refuse (refusal, "This disk is at a later checkpoint, "
                               "and its guest has written since, so it does "
                               "not go back");
  if (buffers_use_kept (s) == -1)
    return secondary_refuse_errno (refusal, "Cannot go back to the checkpoint "
                                   "before");
  note_put (&s->note, s->hidden, &unknown);
  return 0;
}

static int
stand_at_earlier (struct secondary *s, struct replication_refusal *refusal)
{
  int r = 0;

  drain_begin (&s->requests);
  if (s->kept)
    r = go_back (s, refusal);
  drain_end (&s->requests);
  if (r == 0)
    s->failover_at = s->before;
  return r;
}

int
checkpoint_stand_at (struct secondary *s, const struct history *id,
                     struct replication_refusal *refusal)
{
  struct note_text text;

  if (s->prepared == COMMITTED && !history_equal (id, &s->last.made.id)) {
    finish (s);
    go_on (s);
  }
  else
    abort_checkpoint (s);
  note_get (&s->note, &text);
  s->failover_at = text.made;
  s->failover_flags = text.flags & NOTE_EVIDENCE;
  if (id->text[0] == '\0' || history_equal (id, &text.made.id))
    return 0;
  if (history_equal (id, &text.earlier)) {
    s->failover_flags = s->before_flags & NOTE_EVIDENCE;
    return stand_at_earlier (s, refusal);
  }
  return replication_refuse (refusal, "This disk is at checkpoint %s, not at "
                             "%s", text.made.id.text, id->text);
}
