/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Updates of tables: L1 entries with their new L2 tables, and L2 entries
 * in slices.
 *
 * Updates of one slice that come while it is being written wait, and
 * are written together by the first of them (group commit).  An entry
 * appears in the cache only after it has been written to the file, or
 * a write that relied on it could be acknowledged too early.
 *
 * A write of a slice that fails may have been done.  So the slice is
 * doubtful, and read again; who waited for the next write of it begins
 * anew.  An L1 entry whose write has failed refers to an empty table, if
 * to anything, whose clusters are not used again.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

#include "qed/image/cache.h"
#include "qed/image/file.h"
#include "qed/image/space.h"
#include "qed/image/table.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Writes of L1 entries are widened to this. */
#define L1_WRITE_LEN QED_SECTOR

/* One update of entries of a slice: n entries from index become value,
 * value + stride, ...
 */
struct l2_update {
  unsigned index, n;
  uint64_t value, stride;

  /* Under update_lock. */
  struct l2_update *next;
  bool done;
  int error;                    /* errno of the update if it failed */
  pthread_cond_t changed;
};

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
  if (file_pwrite (s, buf, n * QED_ENTRY_LEN,
                   s->header.l1_table_offset + first * QED_ENTRY_LEN) == 0)
    return 0;
  atomic_store (&s->metadata_failed, true);
  return -1;
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
      file_zero (s, bytes, *table, NODE_MAY_TRIM) == -1) {
    space_give_back (s, s->header.table_size, *table);
    return -1;
  }
  if (s->ordered && flusher_flush (&s->flusher) == -1)
    return -1;
  return write_l1_entry (s, l1_index, *table);
}

int
table_need (struct qed *s, uint64_t cluster, uint64_t *table)
{
  const uint64_t l1_index = cluster >> s->table_bits;

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
  _Atomic uint64_t *entries = slice->entries;
  const struct l2_update *u;
  uint8_t buf[SLICE_LEN];
  unsigned i;

  for (i = 0; i < SLICE_ENTRIES; ++i)
    qed_entry_put (buf, i, atomic_load_explicit (&entries[i],
                                                 memory_order_relaxed));
  for (u = updates; u; u = u->next)
    for (i = 0; i < u->n; ++i)
      qed_entry_put (buf, u->index + i, updated_value (u, i));

  if (file_pwrite (s, buf, sizeof buf, file_offset) == -1) {
    const int err = errno;

    atomic_store (&s->metadata_failed, true);
    cache_doubt (s, slice);
    errno = err;
    return -1;
  }

  for (u = updates; u; u = u->next)
    for (i = 0; i < u->n; ++i)
      atomic_store_explicit (&entries[u->index + i], updated_value (u, i),
                             memory_order_release);
  return 0;
}

/* Write all updates that wait for this slice; AGAIN if it is doubtful.
 * Called and returns with update_lock.
 */
#define AGAIN (-1)

static void
write_pending (struct qed *s, struct slice *slice, uint64_t file_offset)
{
  struct l2_update *u, *next, *updates = slice->pending;
  int error;

  slice->pending = NULL;
  slice->writing = true;
  if (slice->doubtful)
    error = AGAIN;
  else {
    pthread_mutex_unlock (&s->update_lock);
    error = write_slice (s, slice, file_offset, updates) == 0 ? 0 : errno;
    pthread_mutex_lock (&s->update_lock);
  }
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

/* Returns 0, errno or AGAIN. */
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
  return u->error;
}

int
table_map (struct qed *s, uint64_t table, uint64_t cluster, unsigned n,
           uint64_t value, uint64_t stride)
{
  const uint64_t index = cluster & (s->table_entries - 1);
  struct l2_update update = {
    .index = cluster & (SLICE_ENTRIES - 1), .n = n,
    .value = value, .stride = stride
  };
  struct slice *slice;
  int error;

  assert (update.index + n <= SLICE_ENTRIES);
  TRACE_META ("qed: map clusters %" PRIu64 "+%u to %" PRIu64,
              cluster, n, value);
  do {
    slice = cache_pin (s, cluster, table);
    if (slice == NULL)
      return -1;
    error = update_slice (s, slice, table +
                          round_down (index, SLICE_ENTRIES) * QED_ENTRY_LEN,
                          &update);
    cache_unpin (s, slice);
  } while (error == AGAIN);
  errno = error;
  return error ? -1 : 0;
}

void
table_forget (struct qed *s)
{
  for (uint64_t i = 0; i < s->nr_l1; ++i)
    atomic_store (&s->l1[i], 0);
  cache_forget (s);
  atomic_store (&s->metadata_failed, false);
}
