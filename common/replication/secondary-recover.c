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
 * The note is one sector:
 *
 *   offset 0   "blkreplication\n" and a zero byte
 *          16  state, 32 bits, little-endian
 *          32  boot id of the machine, text of 36 bytes, zero bytes
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "byteorder.h"
#include "cleanup.h"
#include "message.h"
#include "secondary-state.h"

#define NOTE_MAGIC "blkreplication\n"
#define NOTE_STATE 16
#define NOTE_BOOT_ID 32

#define BOOT_ID_FILE "/proc/sys/kernel/random/boot_id"
#define BOOT_ID_LEN 36

/* ---- The note */

/* Where there is no such thing all boots are the same one. */
static void
read_boot_id (uint8_t id[BOOT_ID_LEN])
{
  FILE *fp = fopen (BOOT_ID_FILE, "re");

  memset (id, 0, BOOT_ID_LEN);
  if (fp == NULL)
    return;
  if (fread (id, 1, BOOT_ID_LEN, fp) != BOOT_ID_LEN)
    memset (id, 0, BOOT_ID_LEN);
  fclose (fp);
}

int
secondary_put_state (struct secondary *s, enum buffers_state state)
{
  uint8_t note[QED_NOTE_LEN] = { 0 };

  if (state != BUFFERS_UNUSED) {
    memcpy (note, NOTE_MAGIC, sizeof NOTE_MAGIC);
    put_le32 (note + NOTE_STATE, state);
    read_boot_id (note + NOTE_BOOT_ID);
  }
  return qed_buffer_put_note (s->hidden, note);
}

static int
get_state (struct secondary *s, enum buffers_state *state, bool *same_boot)
{
  uint8_t note[QED_NOTE_LEN], id[BOOT_ID_LEN];
  uint32_t value;

  *state = BUFFERS_UNUSED;
  *same_boot = true;
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
  read_boot_id (id);
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

/* ---- Damaged buffers */

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

/* What cannot be read any more can still be discarded, unless the guest's
 * data is in it.
 */
static int
mend_buffers (struct secondary *s, enum buffers_state state)
{
  if (!s->active->read_only && !s->hidden->read_only)
    return 0;
  if (s->recover != RECOVER_DISCARD || state == BUFFERS_FAILOVER) {
    errno = EINVAL;
    msg_error ("%s: the buffer is damaged%s",
               s->active->read_only ? s->active_name : s->hidden_name,
               state == BUFFERS_FAILOVER
               ? "; qed-img check -r all may repair it"
               : "; replication-recover=discard keeps the disk as it is and "
               "empties both buffers");
    return -1;
  }
  if (s->active->read_only &&
      reopen_empty (&s->active, s->active_name) == -1)
    return -1;
  if (s->hidden->read_only &&
      reopen_empty (&s->hidden, s->hidden_name) == -1)
    return -1;
  qed_buffer_set_backing (s->hidden, s->disk, true);
  qed_buffer_set_backing (s->active, s->hidden, false);
  return 0;
}

/* ---- What to do */

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

static int
rollback (struct secondary *s)
{
  if (secondary_copy_back (s, s->hidden, NULL) == -1 ||
      secondary_put_state (s, BUFFERS_OBSOLETE) == -1)
    return -1;
  return secondary_clean_buffers (s);
}

static int
finish_failover (struct secondary *s)
{
  if (s->recover == RECOVER_FAIL)
    return refuse_to_finish (s);
  if (secondary_copy_back (s, s->active, s->hidden) == -1 ||
      secondary_put_state (s, BUFFERS_OBSOLETE) == -1 ||
      secondary_clean_buffers (s) == -1)
    return -1;
  atomic_store (&s->failed_over, true);
  atomic_store (&s->stage, REPLICATION_DONE);
  return 0;
}

int
secondary_do_recover (struct secondary *s)
{
  enum buffers_state state;
  bool same_boot, empty;

  if (get_state (s, &state, &same_boot) == -1 ||
      mend_buffers (s, state) == -1)
    return -1;
  if (state == BUFFERS_FAILOVER)
    return finish_failover (s);

  empty = qed_buffer_nr_held (s->active) == 0 &&
    qed_buffer_nr_held (s->hidden) == 0;
  if (state == BUFFERS_RUNNING && !same_boot) {
    if (s->recover != RECOVER_DISCARD)
      return refuse_after_boot (s);
  }
  else if (state != BUFFERS_OBSOLETE && !empty) {
    if (s->recover == RECOVER_FAIL)
      return refuse_to_guess (s);
    if (s->recover == RECOVER_ROLLBACK)
      return rollback (s);
  }
  return secondary_clean_buffers (s);
}
