/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a crash has left in the buffers, and what becomes of it
 * (replication.md, "Beyond QEMU").
 *
 * Notes on the design
 *
 * The hidden buffer carries a note that says what the buffers are for:
 *
 *   running    the hidden one has what the disk was at the last
 *              checkpoint, wherever the disk is different.  That holds
 *              at every moment of the process, but nothing of it is
 *              flushed; so the note names the boot of the machine, and
 *              after another one the buffers can only be discarded.  The
 *              disk then is what the primary had flushed, as after a
 *              power loss of its own.
 *   failover   what the guest sees is to be committed.  This holds after
 *              a power loss too, since the buffers were flushed before
 *              the note was written.
 *   obsolete   the disk is right, whatever is in the buffers.
 *
 * Without one of these nothing has been put into the buffers: it is written
 * before the first request, and wiped when both are empty.  A buffer that
 * holds something all the same has the wrong file at its side.
 *
 * The note also keeps the history of the disk (history.h), its role, and
 * whether it is consistent, between runs too.  It is changed before the disk
 * is.  A hidden buffer that is new, or the wrong one, begins a new history; to
 * discard what the buffers have does not, since the disk then stays as the
 * primary made it.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "utils/message.h"
#include "filters/replication/secondary/buffers.h"
#include "filters/replication/secondary/commit.h"
#include "filters/replication/secondary/recover.h"

/* ---- What is refused */

static bool
is_damaged (const struct node *buffer)
{
  return buffer && buffer->read_only;
}

/* What cannot be read any more can still be discarded, unless the guest's
 * data is in it.
 */
static int
refuse_damaged (struct secondary *s)
{
  errno = EINVAL;
  msg_error ("%s: the buffer is damaged%s",
             is_damaged (s->active) ? s->active_name : s->hidden_name,
             s->left == BUFFERS_FAILOVER
             ? "; it is that of a failover that was interrupted, of which "
             "data of the guest may be lost; qed-img check -r all may repair "
             "it"
             : "; replication-recover=discard keeps the disk as it is and "
             "empties both buffers");
  return -1;
}

static int
refuse_to_guess (struct secondary *s)
{
  errno = EBUSY;
  msg_error ("the buffers %s and %s are not empty: replication was "
             "interrupted; replication-recover=rollback restores the disk "
             "of the last checkpoint, replication-recover=discard keeps the "
             "disk as it is",
             s->active_name, s->hidden_name);
  return -1;
}

/* We leave no such buffers: the hidden one says that it is in use before
 * anything is put into either, and that it is not when both are empty.
 */
static int
refuse_unused (struct secondary *s)
{
  errno = EBUSY;
  msg_error ("the buffers %s and %s are not both empty, but the hidden "
             "buffer %s holds no checkpoint to roll back to: is it the right "
             "file?  replication-recover=discard keeps the disk as it is and "
             "empties both buffers",
             s->active_name, s->hidden_name, s->hidden_name);
  return -1;
}

static int
refuse_after_boot (struct secondary *s)
{
  errno = EBUSY;
  msg_error ("the machine was restarted while the buffers %s and %s were in "
             "use, so they may lack what had not reached the medium: the "
             "last checkpoint cannot be restored; "
             "replication-recover=discard keeps the disk as it is",
             s->active_name, s->hidden_name);
  return -1;
}

static int
refuse_to_finish (struct secondary *s)
{
  errno = EBUSY;
  msg_error ("the buffers %s and %s are those of a failover that was "
             "interrupted; with replication-recover=rollback or =discard it "
             "is finished",
             s->active_name, s->hidden_name);
  return -1;
}

/* The guest's writes are in it, so it was there. */
static int
refuse_without_active (struct secondary *s)
{
  errno = ENOENT;
  msg_error ("%s: the active buffer is missing: by what the hidden buffer %s "
             "says it holds what the guest wrote before a failover that was "
             "interrupted", s->active_name, s->hidden_name);
  return -1;
}

/* Only hidden buffers have notes.  With the two files exchanged, or that of
 * another disk, discard would drop the data of a failover, and a rollback
 * later take what a guest wrote for old content.
 */
static int
check_active (const struct secondary *s)
{
  struct note note;
  bool same_boot;
  int r;

  note_init (&note);
  r = note_read (&note, s->active, &same_boot);
  note_destroy (&note);
  if (r == -1 || note.text.state == BUFFERS_UNUSED)
    return r;
  errno = EINVAL;
  msg_error ("%s: this file was in use as a hidden buffer, so it cannot be "
             "the active one: are replication-active and replication-hidden "
             "exchanged?", s->active_name);
  return -1;
}

/* Has the operator said that the disk is right without the buffers? */
static bool
may_drop (const struct secondary *s)
{
  return s->recover == RECOVER_DISCARD || s->recover == RECOVER_RESET;
}

static bool
are_empty (const struct secondary *s)
{
  return (s->active == NULL || qed_buffer_nr_held (s->active) == 0) &&
    (s->hidden == NULL || qed_buffer_nr_held (s->hidden) == 0);
}

int
secondary_check_buffers (struct secondary *s)
{
  const bool damaged = is_damaged (s->active) || is_damaged (s->hidden);

  if (check_active (s) == -1 ||
      note_read (&s->note, s->hidden, &s->same_boot) == -1)
    return -1;
  s->left = s->note.text.state;
  /* However much of the buffers is on the medium, and in which order. */
  if (s->left == BUFFERS_OBSOLETE)
    return 0;
  if (damaged &&
      (!may_drop (s) || s->left == BUFFERS_FAILOVER))
    return refuse_damaged (s);
  if (s->left == BUFFERS_FAILOVER && s->active == NULL)
    return refuse_without_active (s);
  if (s->left == BUFFERS_FAILOVER)
    return s->recover == RECOVER_FAIL ? refuse_to_finish (s) : 0;
  if (may_drop (s))
    return 0;
  if (s->left == BUFFERS_RUNNING && !s->same_boot)
    return refuse_after_boot (s);
  if (are_empty (s))
    return 0;
  if (s->left == BUFFERS_UNUSED)
    return refuse_unused (s);
  return s->recover == RECOVER_FAIL ? refuse_to_guess (s) : 0;
}

/* ---- What is done */

static int
reopen_empty (struct node **buffer, const char *name)
{
  node_close (*buffer);
  *buffer = NULL;
  if (qed_empty_image (name, false) == -1)
    return -1;
  *buffer = qed_buffer_open (name);
  return *buffer ? 0 : -1;
}

/* Damaged buffers that were not refused are to be discarded. */
static int
mend_buffers (struct secondary *s)
{
  if (is_damaged (s->active) &&
      reopen_empty (&s->active, s->active_name) == -1)
    return -1;
  if (is_damaged (s->hidden) &&
      reopen_empty (&s->hidden, s->hidden_name) == -1)
    return -1;
  qed_buffer_set_backing (s->hidden, s->disk, true);
  qed_buffer_set_backing (s->active, s->hidden, false);
  return 0;
}

static int
rollback (struct secondary *s)
{
  const struct note_change change = {
    .new_history = true, .rolled_back = true
  };
  const struct note_change made = { .made = &s->note.text.prepared };

  if (qed_buffer_nr_held (s->hidden) > 0 &&
      note_put (&s->note, s->hidden, &change) == -1)
    return -1;
  /* There is nothing between what was prepared and what was made before. */
  if (qed_buffer_nr_held (s->hidden) == 0 &&
      s->note.text.prepared.id.text[0] &&
      note_put (&s->note, s->hidden, &made) == -1)
    return -1;
  if (secondary_copy_back (s, s->hidden, NULL) == -1 ||
      secondary_put_state (s, BUFFERS_OBSOLETE) == -1)
    return -1;
  return secondary_clean_buffers (s);
}

/* The disk is what the primary has written of late, which is anything
 * between two of its checkpoints.  Of one that has not told who it is
 * nothing can be said: its checkpoints are its own matter.
 */
static int
discard (struct secondary *s)
{
  static const struct moment none;
  const struct note_change change = {
    .made = &none,
    .set_flags = s->note.text.partner.text[0] ? NOTE_INCONSISTENT : 0
  };

  if (s->left == BUFFERS_RUNNING &&
      note_put (&s->note, s->hidden, &change) == -1)
    return -1;
  return secondary_clean_buffers (s);
}

/* In this order: whoever finds the state "failover" finishes it, and what is
 * found obsolete was promoted.
 */
static int
finish_failover (struct secondary *s)
{
  const struct note_change change = { .set_flags = NOTE_PROMOTED };

  return secondary_copy_back (s, s->active, s->hidden) == -1 ||
    note_put (&s->note, s->hidden, &change) == -1 ||
    secondary_put_state (s, BUFFERS_OBSOLETE) == -1 ||
    secondary_clean_buffers (s) == -1 ? -1 : 0;
}

/* Does the hidden buffer know the disk's history? */
static bool
has_history (const struct secondary *s, bool empty)
{
  return s->note.text.history.text[0] &&
    (s->left != BUFFERS_UNUSED || empty);
}

static int
recover_buffers (struct secondary *s)
{
  if (s->left == BUFFERS_FAILOVER)
    return finish_failover (s);
  if (s->left == BUFFERS_RUNNING && s->recover == RECOVER_ROLLBACK)
    return rollback (s);
  return may_drop (s) ? discard (s) : secondary_clean_buffers (s);
}

/* The disk's role: promoted, unless that is to be forgotten now. */
static int
recover_role (struct secondary *s)
{
  static const struct moment none;
  const struct note_change reset = {
    .clear_flags = NOTE_PROMOTED | NOTE_EVIDENCE, .new_history = true,
    .made = &none
  };

  if (s->recover == RECOVER_RESET)
    return note_put (&s->note, s->hidden, &reset);
  if (s->note.text.flags & NOTE_PROMOTED) {
    atomic_store (&s->failed_over, true);
    secondary_set_stage (s, REPLICATION_DONE);
  }
  return 0;
}

/* What was kept for a failover of that process is of no use to this one. */
static int
forget_earlier (struct secondary *s)
{
  const struct history earlier = s->note.text.earlier;
  const struct note_change change = { .earlier = &(struct history) { "" } };

  if (earlier.text[0] == '\0')
    return 0;
  if (note_put (&s->note, s->hidden, &change) == -1)
    return -1;
  buffers_forget_kept (s, &earlier);
  return 0;
}

/* Nor does it know then whose data the disk has. */
static int
begin_history (struct secondary *s)
{
  s->note.text.flags &= ~NOTE_EVIDENCE;
  moment_set (&s->note.text.made, "");
  return history_make (&s->note.text.history);
}

int
secondary_do_recover (struct secondary *s)
{
  const bool empty = are_empty (s);

  if (mend_buffers (s) == -1 ||
      (!has_history (s, empty) && begin_history (s) == -1))
    return -1;
  if (recover_buffers (s) == -1 || forget_earlier (s) == -1)
    return -1;
  return recover_role (s);
}
