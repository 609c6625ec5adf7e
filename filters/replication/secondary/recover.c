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
 * The note also keeps the history of the disk (history.h), between runs
 * too.  It is changed before the disk is.  A hidden buffer that is new, or
 * the wrong one, begins a new history; to discard what the buffers have does
 * not, since the disk then stays as the primary made it.
 *
 * The note is one sector:
 *
 *   offset 0   "blkreplication\n" and a zero byte
 *          16  state, 32 bits, little-endian
 *          32  boot id of the machine, text of 36 bytes, zero bytes
 *          80  history of the disk, text of 32 bytes, zero bytes
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "utils/bootid.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "filters/replication/secondary/state.h"

#define NOTE_MAGIC "blkreplication\n"
#define NOTE_STATE 16
#define NOTE_BOOT_ID 32
#define NOTE_HISTORY 80

/* ---- The note */

/* Called with the note's lock. */
static int
put_note (struct secondary *s, enum buffers_state state,
          const struct history *history)
{
  uint8_t note[QED_NOTE_LEN] = { 0 };

  memcpy (note, NOTE_MAGIC, sizeof NOTE_MAGIC);
  put_le32 (note + NOTE_STATE, state);
  boot_id_read (note + NOTE_BOOT_ID);
  memcpy (note + NOTE_HISTORY, history->text, HISTORY_LEN);
  if (qed_buffer_put_note (s->hidden, note) == -1)
    return -1;
  s->noted = state;
  s->history = *history;
  return 0;
}

int
secondary_put_state (struct secondary *s, enum buffers_state state)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->note_lock);

  return put_note (s, state, &s->history);
}

int
secondary_put_history (struct secondary *s, enum buffers_state state)
{
  struct history history;

  if (history_make (&history) == -1)
    return -1;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->note_lock);
  return put_note (s, state, &history);
}

int
secondary_new_history (struct secondary *s)
{
  struct history history;

  if (history_make (&history) == -1)
    return -1;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->note_lock);
  return put_note (s, s->noted, &history);
}

/* A hidden buffer that is missing says nothing. */
static int
get_state (struct secondary *s, enum buffers_state *state, bool *same_boot)
{
  uint8_t note[QED_NOTE_LEN], id[BOOT_ID_LEN];
  uint32_t value;

  *state = BUFFERS_UNUSED;
  *same_boot = true;
  if (s->hidden == NULL)
    return 0;
  if (qed_buffer_get_note (s->hidden, note) == -1)
    return -1;
  if (memcmp (note, NOTE_MAGIC, sizeof NOTE_MAGIC) != 0)
    return 0;
  value = get_le32 (note + NOTE_STATE);
  if (value > BUFFERS_OBSOLETE) {
    errno = EINVAL;
    msg_error ("%s: the note in the header has an unknown state %u",
               s->hidden_name, value);
    return -1;
  }
  *state = value;
  history_set (&s->history, note + NOTE_HISTORY);
  boot_id_read (id);
  *same_boot = memcmp (id, note + NOTE_BOOT_ID, sizeof id) == 0;
  return 0;
}

int
secondary_clean_buffers (struct secondary *s)
{
  if (qed_buffer_clean (s->active) == -1 ||
      qed_buffer_clean (s->hidden) == -1)
    return -1;
  return secondary_put_state (s, BUFFERS_UNUSED);
}

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
  uint8_t note[QED_NOTE_LEN];

  if (s->active == NULL)
    return 0;
  if (qed_buffer_get_note (s->active, note) == -1)
    return -1;
  if (memcmp (note, NOTE_MAGIC, sizeof NOTE_MAGIC) != 0 ||
      get_le32 (note + NOTE_STATE) == BUFFERS_UNUSED)
    return 0;
  errno = EINVAL;
  msg_error ("%s: this file was in use as a hidden buffer, so it cannot be "
             "the active one: are replication-active and replication-hidden "
             "exchanged?", s->active_name);
  return -1;
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
  bool same_boot;

  if (check_active (s) == -1 ||
      get_state (s, &s->left, &same_boot) == -1)
    return -1;
  if (damaged &&
      (s->recover != RECOVER_DISCARD || s->left == BUFFERS_FAILOVER))
    return refuse_damaged (s);
  if (s->left == BUFFERS_FAILOVER && s->active == NULL)
    return refuse_without_active (s);
  if (s->left == BUFFERS_FAILOVER)
    return s->recover == RECOVER_FAIL ? refuse_to_finish (s) : 0;
  if (s->recover == RECOVER_DISCARD || s->left == BUFFERS_OBSOLETE)
    return 0;
  if (s->left == BUFFERS_RUNNING && !same_boot)
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
  if (qed_buffer_nr_held (s->hidden) > 0 &&
      secondary_put_history (s, BUFFERS_RUNNING) == -1)
    return -1;
  if (secondary_copy_back (s, s->hidden, NULL) == -1 ||
      secondary_put_state (s, BUFFERS_OBSOLETE) == -1)
    return -1;
  return secondary_clean_buffers (s);
}

static int
finish_failover (struct secondary *s)
{
  if (secondary_copy_back (s, s->active, s->hidden) == -1 ||
      secondary_put_state (s, BUFFERS_OBSOLETE) == -1 ||
      secondary_clean_buffers (s) == -1)
    return -1;
  atomic_store (&s->failed_over, true);
  atomic_store (&s->stage, REPLICATION_DONE);
  return 0;
}

/* Does the hidden buffer know the disk's history? */
static bool
has_history (const struct secondary *s, bool empty)
{
  return s->history.text[0] && (s->left != BUFFERS_UNUSED || empty);
}

int
secondary_do_recover (struct secondary *s)
{
  const bool empty = are_empty (s);

  if (mend_buffers (s) == -1 ||
      (!has_history (s, empty) && history_make (&s->history) == -1))
    return -1;
  if (s->left == BUFFERS_FAILOVER)
    return finish_failover (s);
  if (s->left == BUFFERS_RUNNING && s->recover == RECOVER_ROLLBACK)
    return rollback (s);
  return secondary_clean_buffers (s);
}
