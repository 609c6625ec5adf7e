/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See map.h.
 *
 * Notes on the design
 *
 * The file is the one of a primary (dirtyfile.h), so that a disk keeps it
 * while its side changes.  A primary's map says: outside of me this disk is
 * equal to the remote one of this history.  As long as nobody writes to the
 * disk of that primary when it is started as a secondary, this stays true, and
 * is told to the new primary.
 *
 * At a failover the other disk is equal to this one, as the primary has
 * written it, outside of that primary's map; and what the guest then gets is
 * the buffers over it.  So with a map of what the buffers hold, and of what
 * the guest writes from then on, this disk is equal to the old primary's
 * outside of both maps together, whatever the old primary wrote and sent, or
 * did not send, before or after.
 *
 * Of a disk of which none of this is true all is dirty: a new file says so,
 * and before a primary or a guest changes the disk in another way the file is
 * made to.  The note in the hidden buffer says that each run has kept the map;
 * one without the file takes that back.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "filters/replication/secondary/map.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

static enum map_says
says (struct secondary *s)
{
  return atomic_load (&s->map_says);
}

int
map_open (struct secondary *s, const char *name)
{
  if (name == NULL)
    return 0;
  s->map_file = dirty_file_open (name);
  return s->map_file ? 0 : -1;
}

/* Note that from now on each run keeps the map, or that this one does not. */
static int
note_kept (struct secondary *s, bool kept)
{
  const struct note_change change = {
    .set_flags = kept ? NOTE_MAPPED : 0, .clear_flags = kept ? 0 : NOTE_MAPPED
  };

  if (!(note_flags (&s->note) & NOTE_MAPPED) == !kept)
    return 0;
  return note_put (&s->note, s->hidden, &change);
}

/* What the file says of a disk in this role. */
static enum map_says
read_map (struct secondary *s)
{
  struct pairing parted;
  struct history history;

  dirty_get_history (&s->map, &history);
  dirty_get_parted (&s->map, &parted);
  if (dirty_disk_was_changed (&s->map))
    return MAP_UNKNOWN;
  if (parted.primary.text[0])
    return note_flags (&s->note) & NOTE_PROMOTED ? MAP_PARTED : MAP_UNKNOWN;
  return history.text[0] ? MAP_FORMER : MAP_UNKNOWN;
}

/* A promoted disk that has been a primary's since is not any more what was
 * failed over to.  It stays promoted, as nobody has said that it may be
 * overwritten.
 */
static int
end_failover (struct secondary *s)
{
  static const struct moment none;
  const struct note_change change = { .made = &none };

  if (says (s) != MAP_FORMER || !(note_flags (&s->note) & NOTE_PROMOTED) ||
      s->note.text.made.id.text[0] == '\0')
    return 0;
  return note_put (&s->note, s->hidden, &change);
}

int
map_begin (struct secondary *s, bool fresh)
{
  const bool kept = fresh || (note_flags (&s->note) & NOTE_MAPPED);

  if (s->map_file == NULL)
    return note_kept (s, false);
  if (dirty_init (&s->map, node_size (s->disk), s->map_file) == -1)
    return -1;
  s->has_map = true;
  atomic_store (&s->map_says, kept ? read_map (s) : MAP_UNKNOWN);
  if (says (s) == MAP_UNKNOWN && map_forget (s) == -1)
    return -1;
  if (end_failover (s) == -1)
    return -1;
  return note_kept (s, true);
}

void
map_end (struct secondary *s)
{
  if (s->map_file == NULL)
    return;
  if (s->has_map && node_flush (s->disk) == -1)
    dirty_file_abandon (s->map_file);
  else
    dirty_file_end (s->map_file);
  if (s->has_map)
    dirty_destroy (&s->map);
  s->map_file = NULL;
}

void
map_get_former (struct secondary *s, struct pairing *former)
{
  *former = (struct pairing) { .primary.text = "" };
  if (!s->has_map || says (s) != MAP_FORMER)
    return;
  dirty_file_get_self (s->map_file, &former->primary);
  dirty_get_history (&s->map, &former->remote);
}

bool
map_is_forgotten (struct secondary *s)
{
  return !s->has_map || says (s) == MAP_NOTHING;
}

int
map_forget (struct secondary *s)
{
  if (map_is_forgotten (s))
    return 0;
  if (dirty_forget (&s->map) == -1) {
    atomic_store (&s->map_says, MAP_UNKNOWN);
    return -1;
  }
  atomic_store (&s->map_says, MAP_NOTHING);
  return 0;
}

/* The areas of a run of bytes. */
static void
set_areas (uint64_t *words, uint64_t offset, uint64_t count)
{
  for (uint64_t area = offset / DIRTY_AREA;
       area <= (offset + count - 1) / DIRTY_AREA; ++area)
    words[area / 64] |= UINT64_C (1) << area % 64;
}

static int
add_buffer (struct secondary *s, struct node *buffer, uint64_t *words)
{
  const uint64_t size = node_size (s->disk);
  uint64_t length;

  for (uint64_t offset = 0; offset < size; offset += length) {
    enum qed_held held;

    if (qed_buffer_held (buffer, size - offset, offset, &held, &length) == -1)
      return -1;
    if (held != QED_HELD_NOT)
      set_areas (words, offset, length);
  }
  return 0;
}

static int
part (struct secondary *s, const struct pairing *pair)
{
  CLEANUP_FREE uint64_t *words =
    calloc (dirty_nr_words (&s->map) + 1, sizeof *words);

  if (words == NULL || pair->primary.text[0] == '\0' ||
      add_buffer (s, s->hidden, words) == -1 ||
      add_buffer (s, s->active, words) == -1)
    return -1;
  atomic_store (&s->map_says, MAP_UNKNOWN);
  return dirty_part (&s->map, words, pair);
}

void
map_part (struct secondary *s, const struct pairing *pair)
{
  if (!s->has_map)
    return;
  if (part (s, pair) == 0)
    atomic_store (&s->map_says, MAP_PARTED);
  else if (map_forget (s) == -1)
    secondary_note_error (s, "writing the bitmap");
}

int
map_mark (struct secondary *s, const struct change *c)
{
  if (!s->has_map || dirty_mark (&s->map, c->offset, c->count) == 0)
    return 0;
  secondary_note_error (s, "writing the bitmap");
  if (!dirty_is_wrong (&s->map))
    return 0;
  errno = EIO;
  return -1;
}

int
map_settle (struct secondary *s)
{
  if (!s->has_map ||
      (says (s) != MAP_UNKNOWN && !dirty_is_wrong (&s->map)))
    return 0;
  atomic_store (&s->map_says, MAP_UNKNOWN);
  return map_forget (s);
}

/* ---- Telling it to a new primary */

struct map_node {
  struct node node;             /* first */
  uint8_t *bytes;
};

static int
map_node_close (struct node *n)
{
  struct map_node *m = (struct map_node *) n;

  free (m->bytes);
  free (m);
  return 0;
}

static int
map_node_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  memcpy (buf, ((struct map_node *) n)->bytes + offset, count);
  return 0;
}

static int
map_node_flush (struct node *n)
{
  (void) n;
  return 0;
}

static int
map_node_extents (struct node *n, uint64_t count, uint64_t offset,
                  struct extent *ret)
{
  *ret = (struct extent) {
    .length = count, .flags = EXTENT_MAPPED, .where = n, .offset = offset,
  };
  return 0;
}

static const struct node_ops map_node_ops = {
  .type = "replication-map",
  .close = map_node_close,
  .pread = map_node_pread,
  .flush = map_node_flush,
  .extents = map_node_extents,
};

struct node *
map_node_open (struct secondary *s)
{
  const size_t n = s->has_map ? dirty_nr_words (&s->map) : 0;
  CLEANUP_FREE uint64_t *words = calloc (n + 1, sizeof *words);
  struct map_node *m = calloc (1, sizeof *m);
  uint8_t *bytes = malloc (n * 8 + 1);

  if (words == NULL || m == NULL || bytes == NULL ||
      says (s) != MAP_FORMER) {
    free (m);
    free (bytes);
    errno = ENOENT;
    msg_error ("replication: there is no map of a disk that was a primary's");
    return NULL;
  }
  dirty_get_words (&s->map, words);
  for (size_t i = 0; i < n; ++i)
    put_le64 (bytes + i * 8, words[i]);
  m->bytes = bytes;
  m->node = (struct node) {
    .ops = &map_node_ops, .name = (char *) "replication: the map",
    .read_only = true, .fixed_size = true, .zero_align = 1, .align = 1,
    .preferred = 4096
  };
  atomic_init (&m->node.size, n * 8);
  return &m->node;
}

bool
map_node_free (struct node *n)
{
  if (n->ops != &map_node_ops)
    return false;
  map_node_close (n);
  return true;
}
