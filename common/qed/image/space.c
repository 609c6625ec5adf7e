/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Space.  The next cluster goes to "end".  The file's length runs ahead
 * of it in steps, so that most reservations are an addition under a
 * lock, and the last cluster is always whole.  What stands behind "end"
 * when an image is opened (left by a process that was killed) is cut
 * off before the first reservation, so that new space reads as zeroes.
 * A block device or NBD export has neither end nor zeroes: there
 * clusters are filled in by whoever reserves them.
 *
 * Order.  There are two ways to survive power loss at any point:
 *
 * - ordered (over a backing image, or on storage of fixed size): what a
 *   table entry refers to is durable before the entry is written, so
 *   the tables in the file are good whichever of the writes after the
 *   last flush have reached the medium.  At worst clusters are reserved
 *   that nothing refers to.
 *
 * - not ordered (a file without backing image): NEED_CHECK is durable
 *   in the header before the first entry is written.  An entry may then
 *   be on the medium while what it refers to is not; that is either a
 *   hole in the file, which reads as the zeroes that were there before,
 *   or lies behind the end of the file, and is removed by the repair
 *   that NEED_CHECK asks for.  Nothing that a flush has covered is
 *   concerned, since that flush covered the file's length as well.
 *
 * The death of the process alone loses nothing that was written, so the
 * order of the writes is enough for it: data, then the L2 entry; the
 * new table, then the L1 entry.
 *
 * Updates of one slice that come while it is being written wait, and
 * are written together by the first of them (group commit).  An entry
 * appears in the cache only after it has been written to the file, or
 * a write that relied on it could be acknowledged too early.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "utils/cleanup.h"
#include "qed/image/image.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* The file grows by at least this many bytes. */
#define GROW_STEP ((uint64_t) 4 * 1024 * 1024)

/* At most this many clusters are remembered after failed writes. */
#define MAX_FREED 4096

/* Writes of L1 entries are widened to this. */
#define L1_WRITE_LEN QED_SECTOR

/* ---- Space */

/* A step ahead; once a limit does not let the file have so much, just
 * what is needed.  Under space_lock.
 */
static int
grow_file (struct qed *s, uint64_t end)
{
  const uint64_t ahead =
    node_size (s->file) + round_up (GROW_STEP, s->cluster_size);

  if (ahead > end && !s->grow_exactly) {
    if (node_resize (s->file, ahead) == 0)
      return 0;
    if (errno != EFBIG && errno != ENOSPC)
      return -1;
    msg_warning ("%s: the file grows only by what is needed from here on",
                 s->node.name);
    s->grow_exactly = true;
  }
  return node_resize (s->file, end);
}

int
space_reach (struct qed *s, uint64_t end)
{
  if (s->file->fixed_size) {
    if (end + s->kept_free <= node_size (s->file))
      return 0;
    errno = ENOSPC;
    msg_error ("%s: no room for another cluster: the storage under the "
               "image ends at %" PRIu64 ", of which %" PRIu64 " bytes are "
               "kept for emptying it", s->node.name, node_size (s->file),
               s->kept_free);
    return -1;
  }

  if (!s->tail_cut) {
    if (node_size (s->file) != s->end &&
        node_resize (s->file, s->end) == -1)
      return -1;
    s->tail_cut = true;
  }
  if (end <= node_size (s->file))
    return 0;
  if (end > INT64_MAX - GROW_STEP) {
    errno = EFBIG;
    msg_error ("%s: the image file cannot grow any more", s->node.name);
    return -1;
  }
  return grow_file (s, end);
}

int
space_reserve (struct qed *s, uint64_t n, uint64_t *offset)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);

  if (n == 1 && s->nr_freed > 0) {
    *offset = s->freed[--s->nr_freed];
    return 0;
  }
  if (s->buffer)
    buffer_take_space (s, n);
  if (space_reach (s, s->end + (n << s->cluster_bits)) == -1)
    return -1;
  *offset = s->end;
  s->end += n << s->cluster_bits;
  return 0;
}

/* Let the end come back over clusters that were given back: what stands
 * behind it is used again in runs of any length, and cut off on close.
 * Under space_lock.
 */
static void
draw_end_back (struct qed *s)
{
  for (size_t i = 0; i < s->nr_freed;) {
    if (s->freed[i] + s->cluster_size == s->end) {
      s->end = s->freed[i];
      s->freed[i] = s->freed[--s->nr_freed];
      i = 0;
    }
    else
      i++;
  }
}

void
space_give_back (struct qed *s, uint64_t n, uint64_t offset)
{
  /* It must read as zeroes again, or it is lost until a check. */
  if (!s->file->fixed_size &&
      node_zero (s->file, n << s->cluster_bits, offset,
                 NODE_MAY_TRIM | NODE_FAST) == -1)
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  /* A buffer counts on what it has taken up to its end. */
  if (!s->buffer && offset + (n << s->cluster_bits) == s->end) {
    s->end = offset;
    draw_end_back (s);
    return;
  }
  if (s->freed == NULL)
    s->freed = malloc (MAX_FREED * sizeof *s->freed);
  while (s->freed && n > 0 && s->nr_freed < MAX_FREED)
    s->freed[s->nr_freed++] = offset + (--n << s->cluster_bits);
}

/* ---- Header */

/* Under header_lock. */
int
header_write (struct qed *s)
{
  uint8_t buf[QED_HEADER_LEN];

  TRACE_META ("qed: header features=0x%" PRIx64, s->header.features);
  qed_header_encode (&s->header, buf);
  if (node_pwrite (s->file, buf, sizeof buf, 0) == -1)
    return -1;
  flusher_written (&s->flusher);
  return 0;
}

/* A buffer is not to survive power loss, so its header need not come
 * first.
 */
static int
set_need_check (struct qed *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->header_lock);

  if (s->header.features & QED_NEED_CHECK)
    return 0;
  s->header.features |= QED_NEED_CHECK;
  if (header_write (s) == -1 ||
      (s->buffer == NULL &&
       flusher_flush (&s->flusher, FLUSH_FOR_METADATA) == -1)) {
    s->header.features &= ~(uint64_t) QED_NEED_CHECK;
    return -1;
  }
  return 0;
}

int
allocation_begin (struct qed *s)
{
  request_begin (&s->allocations);
  if (!s->ordered && !atomic_load (&s->need_check)) {
    if (set_need_check (s) == -1) {
      request_end (&s->allocations);
      return -1;
    }
    atomic_store (&s->need_check, true);
  }
  settle_note_allocation (s);
  return 0;
}

void
allocation_end (struct qed *s)
{
  request_end (&s->allocations);
}

/* ---- L1 and new L2 tables */

/* Write the L1 entry, with its neighbours in the sector. */
static int
write_l1_entry (struct qed *s, uint64_t l1_index, uint64_t value)
{
  const uint64_t per_write = L1_WRITE_LEN / QED_ENTRY_LEN;
  const uint64_t first = round_down (l1_index, per_write);
  const uint64_t n = MIN (per_write, s->nr_l1 - first);
  uint8_t buf[L1_WRITE_LEN];

  for (uint64_t i = 0; i < n; ++i)
    qed_entry_put (buf, i, atomic_load (&s->l1[first + i]));
  qed_entry_put (buf, l1_index - first, value);
  TRACE_META ("qed: L1 entry %" PRIu64 " = %" PRIu64, l1_index, value);
  if (node_pwrite (s->file, buf, n * QED_ENTRY_LEN,
                   s->header.l1_table_offset + first * QED_ENTRY_LEN) == -1) {
    atomic_store (&s->metadata_failed, true);
    return -1;
  }
  flusher_written (&s->flusher);
  return 0;
}

/* Make an empty L2 table, under table_lock. */
static int
make_table (struct qed *s, uint64_t l1_index, uint64_t *table)
{
  const uint64_t bytes = qed_table_bytes (&s->header);

  if (space_reserve (s, s->header.table_size, table) == -1)
    return -1;
  TRACE_META ("qed: new L2 table at %" PRIu64, *table);
  if (!space_is_zero (s, *table) &&
      node_zero (s->file, bytes, *table, NODE_MAY_TRIM) == -1) {
    space_give_back (s, s->header.table_size, *table);
    return -1;
  }
  flusher_written (&s->flusher);
  if (s->ordered && flusher_flush (&s->flusher, FLUSH_FOR_METADATA) == -1)
    return -1;
  return write_l1_entry (s, l1_index, *table);
}

/* The table of an L1 entry, made if there is none. */
static int
need_table (struct qed *s, uint64_t l1_index, uint64_t *table)
{
  *table = atomic_load_explicit (&s->l1[l1_index], memory_order_acquire);
  if (*table != 0)
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->table_lock);
  *table = atomic_load (&s->l1[l1_index]);
  if (*table != 0)
    return 0;
  if (make_table (s, l1_index, table) == -1)
    return -1;
  atomic_store_explicit (&s->l1[l1_index], *table, memory_order_release);
  return 0;
}

/* ---- L2 entries */

static uint64_t
updated_value (const struct l2_update *u, unsigned i)
{
  return u->value + i * u->stride;
}

/* Write a slice with a list of updates applied to it, and then let
 * lookups see them.
 */
static int
write_slice (struct qed *s, struct slice *slice, uint64_t file_offset,
             const struct l2_update *updates)
{
  _Atomic uint64_t *entries = atomic_load (&slice->entries);
  const struct l2_update *u;
  uint8_t buf[SLICE_LEN];
  unsigned i;

  for (i = 0; i < SLICE_ENTRIES; ++i)
    qed_entry_put (buf, i, atomic_load_explicit (&entries[i],
                                                 memory_order_relaxed));
  for (u = updates; u; u = u->next)
    for (i = 0; i < u->n; ++i)
      qed_entry_put (buf, u->index + i, updated_value (u, i));

  if (node_pwrite (s->file, buf, sizeof buf, file_offset) == -1) {
    atomic_store (&s->metadata_failed, true);
    return -1;
  }
  flusher_written (&s->flusher);

  for (u = updates; u; u = u->next)
    for (i = 0; i < u->n; ++i)
      atomic_store_explicit (&entries[u->index + i], updated_value (u, i),
                             memory_order_release);
  return 0;
}

/* Write all updates that wait for this slice.  Called and returns with
 * update_lock.
 */
static void
write_pending (struct qed *s, struct slice *slice, uint64_t file_offset)
{
  struct l2_update *u, *next, *updates = slice->pending;
  int error;

  slice->pending = NULL;
  slice->writing = true;
  pthread_mutex_unlock (&s->update_lock);
  error = write_slice (s, slice, file_offset, updates) == 0 ? 0 : errno;
  pthread_mutex_lock (&s->update_lock);
  slice->writing = false;

  for (u = updates; u; u = next) {
    next = u->next;             /* u may be gone once it is done */
    u->error = error;
    u->done = true;
    pthread_cond_signal (&u->changed);
  }
  /* One of those that came meanwhile goes on. */
  if (slice->pending)
    pthread_cond_signal (&slice->pending->changed);
}

static int
update_slice (struct qed *s, struct slice *slice, uint64_t file_offset,
              struct l2_update *u)
{
  u->done = false;
  pthread_cond_init (&u->changed, NULL);

  pthread_mutex_lock (&s->update_lock);
  u->next = slice->pending;
  slice->pending = u;
  while (!u->done) {
    if (slice->writing)
      pthread_cond_wait (&u->changed, &s->update_lock);
    else
      write_pending (s, slice, file_offset);
  }
  pthread_mutex_unlock (&s->update_lock);

  pthread_cond_destroy (&u->changed);
  errno = u->error;
  return u->error ? -1 : 0;
}

int
metadata_map (struct qed *s, uint64_t cluster, unsigned n,
              uint64_t value, uint64_t stride)
{
  const uint64_t index = cluster & (s->table_entries - 1);
  struct l2_update update = {
    .index = cluster & (SLICE_ENTRIES - 1), .n = n,
    .value = value, .stride = stride
  };
  struct slice *slice;
  uint64_t table;
  int r, err;

  assert (update.index + n <= SLICE_ENTRIES);
  TRACE_META ("qed: map clusters %" PRIu64 "+%u to %" PRIu64,
              cluster, n, value);
  if (need_table (s, cluster >> s->table_bits, &table) == -1)
    return -1;
  slice = cache_pin (s, cluster, table);
  if (slice == NULL)
    return -1;
  r = update_slice (s, slice, table + round_down (index, SLICE_ENTRIES) *
                    QED_ENTRY_LEN, &update);
  err = errno;
  cache_unpin (s, slice);
  errno = err;
  return r;
}
