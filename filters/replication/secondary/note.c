/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See note.h.  The note is one sector; nothing else knows an offset in it:
 *
 *   offset 0   "blkreplication\n" and a zero byte
 *          16  state, 32 bits, little-endian
 *          20  flags, 32 bits, little-endian
 *          32  boot id of the machine, text of 36 bytes, zero bytes
 *          80  history of the disk, text of 32 bytes
 *         112  the primary that wrote last, text of 32 bytes
 *         144  the history from which it was rolled back, text of 32 bytes
 *         176  the checkpoint that was made, text of 32 bytes
 *         208  its time, milliseconds since the epoch, 64 bits, little-endian
 *         216  one that was prepared, and its time, in the same way
 *         256  the one before that can be had again, text of 32 bytes
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "filters/replication/secondary/note.h"
#include "qed/qed.h"
#include "utils/bootid.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/message.h"

#define NOTE_MAGIC "blkreplication\n"
#define NOTE_STATE 16
#define NOTE_FLAGS 20
#define NOTE_BOOT_ID 32
#define NOTE_HISTORY 80
#define NOTE_PARTNER 112
#define NOTE_BEFORE 144
#define NOTE_MADE 176
#define NOTE_PREPARED 216
#define NOTE_EARLIER 256

void
note_init (struct note *note)
{
  *note = (struct note) { .text.state = BUFFERS_UNUSED };
  pthread_mutex_init (&note->lock, NULL);
  pthread_mutex_init (&note->text_lock, NULL);
}

void
note_destroy (struct note *note)
{
  pthread_mutex_destroy (&note->text_lock);
  pthread_mutex_destroy (&note->lock);
}

static void
get_moment (struct moment *m, const uint8_t *bytes)
{
  history_set (&m->id, bytes);
  m->time = get_le64 (bytes + HISTORY_LEN);
}

static void
put_moment (uint8_t *bytes, const struct moment *m)
{
  memcpy (bytes, m->id.text, HISTORY_LEN);
  put_le64 (bytes + HISTORY_LEN, m->time);
}

int
note_read (struct note *note, struct node *hidden, bool *same_boot)
{
  uint8_t bytes[QED_NOTE_LEN], id[BOOT_ID_LEN];
  uint32_t state, flags;

  *same_boot = true;
  if (hidden == NULL)
    return 0;
  if (qed_buffer_get_note (hidden, bytes) == -1)
    return -1;
  if (memcmp (bytes, NOTE_MAGIC, sizeof NOTE_MAGIC) != 0)
    return 0;
  state = get_le32 (bytes + NOTE_STATE);
  flags = get_le32 (bytes + NOTE_FLAGS);
  if (state > BUFFERS_OBSOLETE ||
      (flags & ~(NOTE_PROMOTED | NOTE_EVIDENCE | NOTE_MAPPED))) {
    errno = EINVAL;
    msg_error ("%s: the note in the header has an unknown state %u or "
               "flags 0x%x", hidden->name, state, flags);
    return -1;
  }

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->text_lock);
  note->text.state = state;
  note->text.flags = flags;
  history_set (&note->text.history, bytes + NOTE_HISTORY);
  history_set (&note->text.partner, bytes + NOTE_PARTNER);
  history_set (&note->text.before, bytes + NOTE_BEFORE);
  get_moment (&note->text.made, bytes + NOTE_MADE);
  get_moment (&note->text.prepared, bytes + NOTE_PREPARED);
  history_set (&note->text.earlier, bytes + NOTE_EARLIER);
  boot_id_read (id);
  *same_boot = memcmp (id, bytes + NOTE_BOOT_ID, sizeof id) == 0;
  return 0;
}

/* Called with the lock. */
static int
write_text (struct note *note, struct node *hidden,
            const struct note_text *text, bool weak)
{
  uint8_t bytes[QED_NOTE_LEN] = { 0 };

  memcpy (bytes, NOTE_MAGIC, sizeof NOTE_MAGIC);
  put_le32 (bytes + NOTE_STATE, text->state);
  put_le32 (bytes + NOTE_FLAGS, text->flags);
  boot_id_read (bytes + NOTE_BOOT_ID);
  memcpy (bytes + NOTE_HISTORY, text->history.text, HISTORY_LEN);
  memcpy (bytes + NOTE_PARTNER, text->partner.text, HISTORY_LEN);
  memcpy (bytes + NOTE_BEFORE, text->before.text, HISTORY_LEN);
  put_moment (bytes + NOTE_MADE, &text->made);
  put_moment (bytes + NOTE_PREPARED, &text->prepared);
  memcpy (bytes + NOTE_EARLIER, text->earlier.text, HISTORY_LEN);
  if (qed_buffer_put_note (hidden, bytes, !weak) == -1) {
    atomic_store (&note->unknown, true);
    return -1;
  }
  atomic_store (&note->unknown, false);
  return 0;
}

static void
change_moments (struct note_text *text, const struct note_change *change)
{
  if (change->made) {
    text->made = *change->made;
    text->prepared = (struct moment) { .time = 0 };
    text->earlier.text[0] = '\0';
  }
  if (change->prepared)
    text->prepared = *change->prepared;
  if (change->earlier)
    text->earlier = *change->earlier;
}

int
note_put (struct note *note, struct node *hidden,
          const struct note_change *change)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  struct note_text text = note->text;

  if (change->rolled_back && text.before.text[0] == '\0')
    text.before = text.history;
  else if (!change->rolled_back && (change->new_history || change->partner))
    text.before.text[0] = '\0';
  if (change->new_history) {
    if (history_make (&text.history) == -1)
      return -1;
    pthread_mutex_lock (&note->text_lock);
    note->text.history = text.history;
    pthread_mutex_unlock (&note->text_lock);
  }
  if (change->set_state)
    text.state = change->state;
  text.flags = (text.flags | change->set_flags) & ~change->clear_flags;
  if (change->partner)
    text.partner = *change->partner;
  change_moments (&text, change);
  if (write_text (note, hidden, &text, change->weak) == -1)
    return -1;
  pthread_mutex_lock (&note->text_lock);
  note->text = text;
  pthread_mutex_unlock (&note->text_lock);
  return 0;
}

int
note_settle (struct note *note, struct node *hidden)
{
  if (!atomic_load (&note->unknown))
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  return write_text (note, hidden, &note->text, false);
}

void
note_get (struct note *note, struct note_text *text)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->text_lock);
  *text = note->text;
}

unsigned
note_flags (struct note *note)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->text_lock);
  return note->text.flags;
}
