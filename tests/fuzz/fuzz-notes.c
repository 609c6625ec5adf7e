/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fuzzing what replication keeps in files: the dirty bitmap, and the note in
 * the header of the hidden buffer.  Whatever stands there, it is refused or
 * used, and what is used is written back so that it can be read again.
 */

#include <config.h>

#include "filters/replication/dirtyfile.h"
#include "filters/replication/secondary/note.h"
#include "filters/replication/secondary/secondary.h"
#include "qed/qed.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/memory-node.h"

#define MAP "map"
#define DISK_SIZE (UINT64_C (100) * DIRTY_AREA)
#define WORDS 2
#define BUFFER_SIZE (UINT64_C (256) * 1024)

static void
try_map (const uint8_t *data, size_t size)
{
  struct dirty_file *f;
  uint64_t map[WORDS] = { 0 }, again[WORDS] = { 0 };
  struct history history;

  fuzz_write (MAP, data, size);
  f = dirty_file_open (MAP);
  if (f == NULL)
    return;
  if (dirty_file_begin (f, DISK_SIZE, map) == -1) {
    dirty_file_abandon (f);
    return;
  }
  dirty_file_get_self (f, &history);
  WANT (strlen (history.text) > 0);
  dirty_file_get_history (f, &history);
  map[1] ^= 5;
  WANT (dirty_file_write (f, map, 0, WORDS - 1) == 0);
  WANT (dirty_file_end (f) == 0);

  f = dirty_file_open (MAP);
  WANT (f && dirty_file_begin (f, DISK_SIZE, again) == 0);
  WANT (memcmp (map, again, sizeof map) == 0);
  dirty_file_abandon (f);
}

static void
put_note (const uint8_t *data, size_t size)
{
  uint8_t note[QED_NOTE_LEN] = { 0 };
  struct node *n;

  unlink ("active.qed");
  unlink ("hidden.qed");
  WANT (qed_buffer_create ("active.qed", BUFFER_SIZE) == 0);
  WANT (qed_buffer_create ("hidden.qed", BUFFER_SIZE) == 0);
  n = qed_buffer_open ("hidden.qed");
  WANT (n);
  memcpy (note, data, size < sizeof note ? size : sizeof note);
  WANT (qed_buffer_put_note (n, note, true) == 0);
  WANT (node_close (n) == 0);
}

static bool
same_text (const struct note_text *a, const struct note_text *b)
{
  return a->state == b->state && a->flags == b->flags &&
    strcmp (a->history.text, b->history.text) == 0 &&
    strcmp (a->partner.text, b->partner.text) == 0 &&
    strcmp (a->before.text, b->before.text) == 0 &&
    strcmp (a->made.id.text, b->made.id.text) == 0 &&
    strcmp (a->prepared.id.text, b->prepared.id.text) == 0 &&
    strcmp (a->earlier.text, b->earlier.text) == 0;
}

/* What the note says after a change is read back. */
static void
read_back (const uint8_t *data, size_t size)
{
  struct node *hidden = qed_buffer_open ("hidden.qed");
  struct note note, again;
  bool same_boot;

  WANT (hidden);
  note_init (&note);
  note_init (&again);
  if (note_read (&note, hidden, &same_boot) == 0) {
    struct moment made;
    const struct note_change change = {
      .set_flags = size % 4, .clear_flags = ~(unsigned) (size % 4),
      .new_history = size > 30 && data[30] % 2, .made = &made,
      .weak = size > 31 && data[31] % 2,
    };

    WANT (moment_make (&made) == 0);
    WANT (note_put (&note, hidden, &change) == 0);
    WANT (note_flags (&note) == size % 4);
    WANT (note_read (&again, hidden, &same_boot) == 0 && same_boot);
    WANT (same_text (&note.text, &again.text));
  }
  note_destroy (&again);
  note_destroy (&note);
  node_close (hidden);
}

static void
try_note (const uint8_t *data, size_t size, enum secondary_recover recover)
{
  const struct secondary_options options = {
    .active = "active.qed", .hidden = "hidden.qed", .recover = recover
  };
  struct memory_node *disk = memory_node_new (BUFFER_SIZE);
  struct disk_identity id;
  struct secondary *s;

  put_note (data, size);
  s = secondary_open (&options);
  if (s && secondary_begin (s, &disk->node) == 0) {
    struct replication_refusal refusal;

    secondary_identity (s, &id);
    if (secondary_start (s, &refusal) == 0)
      secondary_stop (s, size % 2, false, &refusal);
  }
  secondary_close (s);
  node_close (&disk->node);
  put_note (data, size);
  read_back (data, size);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  fuzz_begin ();
  if (size > 0 && data[0] == 'B')
    try_map (data, size);
  else
    try_note (data, size, size > 20 ? data[20] % 4 : RECOVER_FAIL);
  return 0;
}
