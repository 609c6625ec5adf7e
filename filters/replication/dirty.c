/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See dirty.h. */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "filters/replication/dirty.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define BLOCKS (DIRTY_AREA / DIRTY_BLOCK)

static bool
has (const uint64_t *map, uint64_t area)
{
  return map[area / 64] >> (area % 64) & 1;
}

static void
set (uint64_t *map, uint64_t area)
{
  map[area / 64] |= UINT64_C (1) << (area % 64);
}

static void
clear (uint64_t *map, uint64_t area)
{
  map[area / 64] &= ~(UINT64_C (1) << (area % 64));
}

static uint64_t
nr_words (const struct dirty *d)
{
  return div_round_up (d->nr_areas, 64);
}

/* The blocks of an area that are on the disk. */
static uint16_t
all_blocks (const struct dirty *d, uint64_t area)
{
  const uint64_t bytes = MIN (d->size - area * DIRTY_AREA,
                              (uint64_t) DIRTY_AREA);

  return DIRTY_ALL >> (BLOCKS - div_round_up (bytes, DIRTY_BLOCK));
}

static void
add_blocks (struct dirty *d, uint64_t area, uint16_t blocks)
{
  const uint16_t new = blocks & ~d->blocks[area];

  if (new == 0)
    return;
  set (d->dirty, area);
  d->blocks[area] |= new;
  d->nr_dirty += __builtin_popcount (new);
}

/* Memory that is not touched is not used, so maps may be large. */
static int
allocate (struct dirty *d)
{
  const uint64_t n = MAX (nr_words (d), UINT64_C (1));

  d->blocks = calloc (n * 64, sizeof *d->blocks);
  d->dirty = calloc (n, sizeof *d->dirty);
  d->busy = calloc (n, sizeof *d->busy);
  d->unsure = calloc (n, sizeof *d->unsure);
  d->settling = calloc (n, sizeof *d->settling);
  if (d->file) {
    d->in_file = calloc (n, sizeof *d->in_file);
    d->file_map = calloc (n, sizeof *d->file_map);
  }
  if (d->blocks && d->dirty && d->busy && d->unsure && d->settling &&
      ((d->in_file && d->file_map) || !d->file))
    return 0;
  errno = ENOMEM;
  msg_error ("map of dirty areas: %m");
  return -1;
}

int
dirty_init (struct dirty *d, uint64_t size, struct dirty_file *file)
{
  *d = (struct dirty) {
    .size = size, .nr_areas = div_round_up (size, DIRTY_AREA), .file = file,
  };
  pthread_mutex_init (&d->lock, NULL);
  pthread_mutex_init (&d->file_lock, NULL);
  if (allocate (d) == -1)
    return -1;
  if (file == NULL)
    return 0;
  if (dirty_file_begin (file, size, d->in_file) == -1)
    return -1;
  memcpy (d->file_map, d->in_file, nr_words (d) * sizeof *d->file_map);
  dirty_file_get_history (file, &d->history);
  dirty_file_get_parted (file, &d->parted);
  for (uint64_t area = 0; area < d->nr_areas; ++area)
    if (has (d->in_file, area))
      add_blocks (d, area, all_blocks (d, area));
  return 0;
}

void
dirty_destroy (struct dirty *d)
{
  free (d->blocks);
  free (d->dirty);
  free (d->busy);
  free (d->unsure);
  free (d->settling);
  free (d->in_file);
  free (d->file_map);
  pthread_mutex_destroy (&d->file_lock);
  pthread_mutex_destroy (&d->lock);
}

/* A change of the file has ended so.  After the first failure nothing is
 * written any more but that it is not to be trusted, until it says so.  Called
 * with the file's lock.
 */
static int
note_file (struct dirty *d, int r)
{
  d->file_failed = r == -1;
  return r;
}

/* Write what has changed between two words of the file's map.  Called with the
 * file's lock.
 */
static int
write_file (struct dirty *d, uint64_t first, uint64_t last)
{
  if (d->file_failed)
    return dirty_file_tell (d->file);
  return note_file (d, dirty_file_write (d->file, d->file_map, first, last));
}

/* The bits of a word that are those of areas first..last. */
static uint64_t
bits_of (uint64_t word, uint64_t first, uint64_t last)
{
  return (word == first / 64 ? UINT64_MAX << first % 64 : UINT64_MAX) &
    (word == last / 64 ? UINT64_MAX >> (63 - last % 64) : UINT64_MAX);
}

/* Does the file have the bits of areas first..last?  Called with the lock. */
static bool
is_in_file (const struct dirty *d, uint64_t first, uint64_t last)
{
  for (uint64_t w = first / 64; w <= last / 64; ++w)
    if (bits_of (w, first, last) & ~d->in_file[w])
      return false;
  return true;
}

/* Give the file the bits of areas first..last.  As long as it neither has them
 * nor says that it lacks something each write of these areas comes here.
 */
static int
put_in_file (struct dirty *d, uint64_t first, uint64_t last)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);
  int r, err;

  for (uint64_t w = first / 64; w <= last / 64; ++w)
    d->file_map[w] |= bits_of (w, first, last);
  r = write_file (d, first / 64, last / 64);
  err = errno;
  if (!dirty_file_is_wrong (d->file)) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
    d->doubtful = false;
    for (uint64_t w = first / 64; w <= last / 64; ++w)
      d->in_file[w] |= bits_of (w, first, last);
  }
  errno = err;
  return r;
}

/* These bytes become dirty.  Returns whether the file knows it. */
static bool
add_range (struct dirty *d, uint64_t offset, uint64_t count)
{
  const uint64_t first = offset / DIRTY_AREA;
  const uint64_t last = (offset + count - 1) / DIRTY_AREA;
  const unsigned skip = offset % DIRTY_AREA / DIRTY_BLOCK;
  const unsigned end = (offset + count - 1) % DIRTY_AREA / DIRTY_BLOCK;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  for (uint64_t area = first; area <= last; ++area) {
    uint16_t blocks = DIRTY_ALL;

    if (area == first)
      blocks &= DIRTY_ALL << skip;
    if (area == last)
      blocks &= DIRTY_ALL >> (BLOCKS - 1 - end);
    add_blocks (d, area, blocks);
  }
  return !d->file || (!d->doubtful && is_in_file (d, first, last));
}

int
dirty_mark (struct dirty *d, uint64_t offset, uint64_t count)
{
  if (count == 0 || add_range (d, offset, count))
    return 0;
  return put_in_file (d, offset / DIRTY_AREA,
                      (offset + count - 1) / DIRTY_AREA);
}

int
dirty_get_self (struct dirty *d, struct history *self)
{
  if (d->file == NULL)
    return history_make (self);
  dirty_file_get_self (d->file, self);
  return 0;
}

void
dirty_get_history (struct dirty *d, struct history *history)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  *history = d->history;
}

int
dirty_set_history (struct dirty *d, const struct history *history)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
    d->history = *history;
    d->parted = (struct pairing) { .primary.text = "" };
  }
  if (d->file == NULL)
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);
  if (d->file_failed)
    return 0;
  return note_file (d, dirty_file_put_partner (d->file, history, NULL));
}

void
dirty_get_parted (struct dirty *d, struct pairing *parted)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  *parted = d->parted;
}

bool
dirty_disk_was_changed (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);

  return d->file && dirty_file_disk_was_changed (d->file);
}

bool
dirty_has_failed (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);

  return d->file_failed;
}

bool
dirty_is_wrong (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);

  return d->file && dirty_file_is_wrong (d->file);
}

int
dirty_tell (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);

  return d->file ? dirty_file_tell (d->file) : 0;
}

size_t
dirty_nr_words (const struct dirty *d)
{
  return nr_words (d);
}

void
dirty_get_words (struct dirty *d, uint64_t *words)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  memcpy (words, d->in_file, nr_words (d) * sizeof *words);
}

/* Give the file another map: these words (NULL: all bits), about another disk.
 * Whoever dies meanwhile leaves one of which all counts as dirty.
 */
static int
replace (struct dirty *d, const uint64_t *words, const struct pairing *parted)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);
  const uint64_t n = nr_words (d);
  int r;

  for (uint64_t w = 0; w < n; ++w)
    d->file_map[w] = words ? words[w] : bits_of (w, 0, d->nr_areas - 1);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
    d->history.text[0] = '\0';
    d->parted = parted ? *parted : (struct pairing) { .primary.text = "" };
  }
  r = dirty_file_distrust (d->file);
  if (r == 0 && n > 0)
    r = dirty_file_write (d->file, d->file_map, 0, n - 1);
  if (r == 0)
    r = dirty_file_put_partner (d->file, NULL, parted);
  note_file (d, r);

  const int err = errno;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  memcpy (d->in_file, d->file_map, n * sizeof *d->in_file);
  d->doubtful = dirty_file_is_wrong (d->file);
  errno = err;
  return r;
}

int
dirty_forget (struct dirty *d)
{
  return replace (d, NULL, NULL);
}

int
dirty_part (struct dirty *d, const uint64_t *words,
            const struct pairing *parted)
{
  return replace (d, words, parted);
}

/* The next area from this one on that is dirty and not busy, or the
 * number of areas.
 */
static uint64_t
find_ready (const struct dirty *d, uint64_t from)
{
  uint64_t mask = UINT64_MAX << (from % 64);

  if (d->nr_dirty == 0)
    return d->nr_areas;
  for (uint64_t w = from / 64; w < nr_words (d); ++w, mask = UINT64_MAX) {
    const uint64_t ready = d->dirty[w] & ~d->busy[w] & mask;

    if (ready)
      return w * 64 + __builtin_ctzll (ready);
  }
  return d->nr_areas;
}

size_t
dirty_take (struct dirty *d, uint64_t *areas, size_t max, bool *end)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  uint64_t area = find_ready (d, d->next);
  size_t n = 0;

  while (n < max && area < d->nr_areas) {
    set (d->busy, area);
    areas[n++] = area;
    area = find_ready (d, area + 1);
  }
  *end = area == d->nr_areas;
  d->next = *end ? 0 : area;
  return n;
}

uint16_t
dirty_begin_copy (struct dirty *d, uint64_t area)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  const uint16_t blocks = d->blocks[area];

  assert (has (d->busy, area));
  d->blocks[area] = 0;
  clear (d->dirty, area);
  d->nr_dirty -= __builtin_popcount (blocks);
  d->nr_taken += __builtin_popcount (blocks);
  return blocks;
}

void
dirty_end_copy (struct dirty *d, uint64_t area, uint16_t blocks, bool ok)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  d->nr_taken -= __builtin_popcount (blocks);
  if (!ok)
    add_blocks (d, area, blocks);
  else if (blocks && !has (d->unsure, area)) {
    set (d->unsure, area);
    d->nr_unsure++;
  }
  clear (d->busy, area);
}

void
dirty_begin_flush (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  uint64_t *const empty = d->settling;

  d->settling = d->unsure;
  d->unsure = empty;
  d->nr_unsure = 0;
}

/* The words of the file that are to be written: first..last. */
struct words {
  uint64_t first, last;
};

/* The areas that were settling are clean, unless they have changed
 * again.  Called with the file's lock.
 */
static struct words
settle (struct dirty *d)
{
  struct words changed = { UINT64_MAX, 0 };

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  for (uint64_t w = 0; w < nr_words (d); ++w) {
    const uint64_t settled = d->settling[w] &
      ~(d->dirty[w] | d->busy[w] | d->unsure[w]);

    if (d->settling[w] == 0)
      continue;
    d->settling[w] = 0;
    /* Who changes them from now on waits until the file is written, and
     * writes it again.
     */
    if (d->file && (d->file_map[w] & settled)) {
      d->in_file[w] &= ~settled;
      d->file_map[w] &= ~settled;
      changed.first = MIN (changed.first, w);
      changed.last = w;
    }
  }
  return changed;
}

static int
clean (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->file_lock);
  const struct words changed = settle (d);

  return changed.first <= changed.last
    ? write_file (d, changed.first, changed.last) : 0;
}

/* The areas that were settling are dirty again. */
static void
unsettle (struct dirty *d, uint64_t *map)
{
  for (uint64_t w = 0; w < nr_words (d); ++w) {
    for (; map[w]; map[w] &= map[w] - 1) {
      const uint64_t area = w * 64 + __builtin_ctzll (map[w]);

      add_blocks (d, area, all_blocks (d, area));
    }
  }
}

int
dirty_end_flush (struct dirty *d, bool ok)
{
  if (ok)
    return clean (d);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  unsettle (d, d->settling);
  return 0;
}

void
dirty_lost (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  unsettle (d, d->unsure);
  d->nr_unsure = 0;
}

bool
dirty_is_unsure (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  return d->nr_unsure > 0;
}

bool
dirty_is_clean (struct dirty *d, uint64_t area)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  return !has (d->dirty, area) && !has (d->busy, area);
}

uint64_t
dirty_bytes (struct dirty *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  return MIN ((d->nr_dirty + d->nr_taken) * DIRTY_BLOCK, d->size);
}
