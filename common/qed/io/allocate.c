/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Where the mapping is unallocated or zero, whole clusters of the disk are
 * claimed, looked up again (somebody may have been there first), and
 * allocated: space is reserved, what the request leaves untouched is
 * filled in, the data is written, and last the L2 entries.  So clusters
 * side by side, or in different places, are allocated by many threads at
 * once.
 *
 * Filling in costs nothing where the backing image has zeroes and the
 * new space reads as zeroes anyway; both are common.
 *
 * Copies of what is below are read once, in pieces; clusters of zeroes
 * become zero markers, others are written side by side.  A cluster of which
 * a part is written is read and written as a whole, unless the backing image
 * can tell at once that it has zeroes there.  Since a copy is made under the
 * claim that every allocation takes, of two who want the same cluster one
 * copies, and the other finds it.  So who overwrites the backing image of a
 * buffer, and does so only when his clusters are mapped, leaves each
 * unallocated cluster as old as the buffer (see backing_unchanged for those
 * who read).
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qed/image/cache.h"
#include "qed/image/file.h"
#include "qed/image/map.h"
#include "qed/image/need-check.h"
#include "qed/image/space.h"
#include "qed/image/table.h"
#include "qed/io/allocate.h"
#include "qed/io/backing.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Backing data is copied, and clusters are allocated at once, in pieces
 * of at most this many bytes (or of one cluster).
 */
#define COPY_PIECE ((uint64_t) 256 * 1024)
#define ALLOCATE_PIECE ((uint64_t) 32 * 1024 * 1024)

/* One allocation: n clusters, all in one slice, of which the range
 * offset..offset+count is meant.
 */
struct allocation {
  enum allocate_kind kind;
  const void *buf;
  enum map_kind before;
  uint64_t count, offset, n;
};

/* ---- Memory for copies
 *
 * Kept for the next copy: there are as many pieces as there have ever been
 * copies at the same time.
 */

struct scratch {
  struct scratch *next;
  uint8_t data[COPY_PIECE];
};

static struct scratch *
scratch_get (struct qed *s)
{
  struct scratch *scratch;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->scratch_lock);
    scratch = s->scratch;
    if (scratch) {
      s->scratch = scratch->next;
      return scratch;
    }
  }
  scratch = malloc (sizeof *scratch);
  if (scratch == NULL)
    msg_error ("%s: copying from the backing image: %m", s->node.name);
  return scratch;
}

static void
scratch_put (struct qed *s, struct scratch *scratch)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->scratch_lock);
  scratch->next = s->scratch;
  s->scratch = scratch;
}

void
allocate_forget (struct qed *s)
{
  while (s->scratch) {
    struct scratch *next = s->scratch->next;

    free (s->scratch);
    s->scratch = next;
  }
}

/* ---- Filling new clusters */

/* Make new space in the file read as zeroes. */
static int
fill_zero (struct qed *s, uint64_t count, uint64_t file_offset)
{
  if (count == 0 || space_is_zero (s, file_offset))
    return 0;
  return file_zero (s, count, file_offset, NODE_MAY_TRIM);
}

static int
copy_piece (struct qed *s, uint8_t *buf, uint64_t count, uint64_t offset,
            uint64_t file_offset)
{
  if (node_pread_padded (s->backing, buf, count, offset) == -1)
    return -1;
  return is_zero (buf, count) ? fill_zero (s, count, file_offset)
    : file_pwrite (s, buf, count, file_offset);
}

/* Copy what the backing image has into new space. */
static int
fill_backing (struct qed *s, uint64_t count, uint64_t offset,
              uint64_t file_offset)
{
  struct scratch *scratch = NULL;
  int r = 0;

  while (r == 0 && count > 0) {
    uint64_t skip, length;

    if (backing_data (s, count, offset, &skip, &length) == -1 ||
        fill_zero (s, skip, file_offset) == -1) {
      r = -1;
      break;
    }
    length = MIN (length, COPY_PIECE);
    if (length > 0) {
      if (scratch == NULL)
        scratch = scratch_get (s);
      r = scratch == NULL ? -1
        : copy_piece (s, scratch->data, length, offset + skip,
                      file_offset + skip);
    }
    count -= skip + length;
    offset += skip + length;
    file_offset += skip + length;
  }
  if (scratch)
    scratch_put (s, scratch);
  return r;
}

/* Fill a part of a new cluster that the request leaves untouched with
 * what was there before.
 */
static int
fill (struct qed *s, const struct allocation *a, uint64_t count,
      uint64_t offset, uint64_t file_offset)
{
  if (a->before == MAP_UNALLOCATED && s->backing)
    return fill_backing (s, count, offset, file_offset);
  return fill_zero (s, count, file_offset);
}

/* Write one new cluster, and around the data what was there before: as a
 * whole, unless that is all zero anyway.
 */
static int
write_around (struct qed *s, const struct allocation *a, uint8_t *buf,
              uint64_t file_offset)
{
  const uint64_t head = a->offset & (s->cluster_size - 1);
  const uint64_t after = head + a->count;

  if (node_pread_padded (s->backing, buf, s->cluster_size,
                         a->offset - head) == -1)
    return -1;
  if (space_is_zero (s, file_offset) && is_zero (buf, head) &&
      is_zero (buf + after, s->cluster_size - after))
    return file_pwrite (s, a->buf, a->count, file_offset + head);
  memcpy (buf + head, a->buf, a->count);
  return file_pwrite (s, buf, s->cluster_size, file_offset);
}

static int
write_one_cluster (struct qed *s, const struct allocation *a,
                   uint64_t file_offset)
{
  const uint64_t head = a->offset & (s->cluster_size - 1);
  uint64_t skip, length;
  struct scratch *scratch;
  int r;

  if (backing_data (s, s->cluster_size, a->offset - head, &skip, &length)
      == -1)
    return -1;
  if (length == 0 && space_is_zero (s, file_offset))
    return file_pwrite (s, a->buf, a->count, file_offset + head);
  scratch = scratch_get (s);
  if (scratch == NULL)
    return -1;
  r = write_around (s, a, scratch->data, file_offset);
  scratch_put (s, scratch);
  return r;
}

/* Write all of the clusters, which have been reserved. */
static int
write_clusters (struct qed *s, const struct allocation *a,
                uint64_t file_offset)
{
  const uint64_t start = round_down (a->offset, s->cluster_size);
  const uint64_t head = a->offset - start;
  const uint64_t tail = (a->n << s->cluster_bits) - head - a->count;

  if (a->n == 1 && a->kind == ALLOCATE_DATA && head + tail > 0 &&
      a->before == MAP_UNALLOCATED && s->backing &&
      s->cluster_size <= COPY_PIECE)
    return write_one_cluster (s, a, file_offset);
  if (a->kind >= ALLOCATE_COPY)
    return fill_backing (s, a->n << s->cluster_bits, start, file_offset);
  if (fill (s, a, head, start, file_offset) == -1 ||
      fill (s, a, tail, a->offset + a->count, file_offset + head + a->count)
      == -1)
    return -1;
  file_offset += head;
  return a->kind == ALLOCATE_ZEROES ? fill_zero (s, a->count, file_offset)
    : file_pwrite (s, a->buf, a->count, file_offset);
}

/* ---- Mapping, under a claim */

static int
need_table (struct qed *s, const struct allocation *a, uint64_t *table)
{
  return table_need (s, a->offset >> s->cluster_bits, table);
}

static int
map_clusters (struct qed *s, const struct allocation *a, uint64_t table,
              uint64_t value, uint64_t stride)
{
  if (table_map (s, table, a->offset >> s->cluster_bits, a->n, value, stride)
      == -1)
    return -1;
  if (a->before == MAP_UNALLOCATED)
    atomic_fetch_add_explicit (&s->nr_mapped, a->n, memory_order_relaxed);
  return 0;
}

static int
map_zeroes (struct qed *s, const struct allocation *a)
{
  uint64_t table;

  return need_table (s, a, &table) == -1 ? -1
    : map_clusters (s, a, table, QED_ZERO, 0);
}

/* Data first, then what refers to it. */
static int
map_data (struct qed *s, const struct allocation *a)
{
  uint64_t file_offset, table;
  int r;

  if (space_reserve (s, a->n, &file_offset) == -1)
    return -1;
  r = write_clusters (s, a, file_offset);
  if (r == 0 && s->ordered)
    r = flusher_flush (&s->flusher);
  if (r == 0)
    r = need_table (s, a, &table);
  if (r == -1) {
    space_give_back (s, a->n, file_offset);
    return -1;
  }
  return map_clusters (s, a, table, file_offset, s->cluster_size);
}

static int
map_range (struct qed *s, struct allocation *a, uint64_t count,
           uint64_t offset)
{
  a->count = count;
  a->offset = offset;
  a->n = ((offset + count - 1) >> s->cluster_bits) -
    (offset >> s->cluster_bits) + 1;
  return a->kind == ALLOCATE_MARK ? map_zeroes (s, a) : map_data (s, a);
}

/* Map whole clusters to what has been read of them, zeroes and data in
 * turn.
 */
static int
map_copy (struct qed *s, struct allocation *a, uint8_t *data)
{
  const uint64_t end = a->offset + a->count;
  uint64_t offset = a->offset;

  while (offset < end) {
    const bool zero = is_zero (data, MIN (end - offset, s->cluster_size));
    uint64_t run = 0;

    do
      run = MIN (run + s->cluster_size, end - offset);
    while (run < end - offset &&
           is_zero (data + run, MIN (end - offset - run, s->cluster_size))
           == zero);
    a->kind = zero ? ALLOCATE_MARK : ALLOCATE_DATA;
    a->buf = data;
    if (map_range (s, a, run, offset) == -1)
      return -1;
    data += run;
    offset += run;
  }
  return 0;
}

static int
read_and_map (struct qed *s, struct allocation *a)
{
  struct scratch *scratch = scratch_get (s);
  int r;

  if (scratch == NULL)
    return -1;
  r = node_pread_padded (s->backing, scratch->data, a->count, a->offset);
  if (r == 0)
    r = map_copy (s, a, scratch->data);
  scratch_put (s, scratch);
  return r;
}

/* How much of a request can be allocated at once: not beyond a slice,
 * nor beyond what is sensible to hold up.
 */
static uint64_t
limit (const struct qed *s, enum allocate_kind kind, uint64_t count,
       uint64_t offset)
{
  const uint64_t slice_bytes = (uint64_t) SLICE_ENTRIES << s->cluster_bits;
  const uint64_t piece =
    MAX (kind == ALLOCATE_COPY_OR_MARK ? COPY_PIECE : ALLOCATE_PIECE,
         s->cluster_size);
  const uint64_t start = round_down (offset, s->cluster_size);

  return MIN (count, MIN (round_down (offset, slice_bytes) + slice_bytes,
                          start + piece) - offset);
}

static int
allocate_claimed (struct qed *s, struct allocation *a, uint64_t *done)
{
  struct mapping m;

  if (qed_map (s, a->count, a->offset, &m) == -1)
    return -1;
  *done = m.kind == MAP_DATA ? 0 : m.length;
  if (m.kind == MAP_DATA ||
      (m.kind == MAP_ZERO && a->kind >= ALLOCATE_COPY))
    return 0;
  a->before = m.kind;
  a->count = m.length;
  if (a->kind == ALLOCATE_COPY_OR_MARK && s->cluster_size <= COPY_PIECE)
    return read_and_map (s, a);
  return map_range (s, a, m.length, a->offset);
}

int
allocate (struct qed *s, enum allocate_kind kind, const void *buf,
          uint64_t count, uint64_t offset, uint64_t *done)
{
  struct allocation a = {
    .kind = kind, .buf = buf, .offset = offset,
    .count = limit (s, kind, count, offset)
  };
  const uint64_t start = round_down (offset, s->cluster_size);
  const uint64_t end = round_up (offset + a.count, s->cluster_size);
  struct claim claim;
  int r;

  *done = 0;
  if (need_check_begin (s) == -1)
    return -1;
  claim_acquire (&s->claims, &claim, start, end - start, CLAIM_EXCLUSIVE);
  r = allocate_claimed (s, &a, done);
  claim_release (&s->claims, &claim);
  need_check_end (s);
  return r;
}

/* ---- Copying up */

int
allocate_copy_up (struct qed *s, uint64_t count, uint64_t offset)
{
  const uint64_t end = offset + count;
  uint64_t skip, length;
  struct mapping m;

  if (s->node.read_only)
    return 0;
  while (offset < end) {
    if (qed_map (s, end - offset, offset, &m) == -1)
      return -1;
    if (m.kind == MAP_UNALLOCATED) {
      if (backing_data (s, m.length, offset, &skip, &length) == -1)
        return -1;
      m.length = skip;
      if (length > 0 && skip == 0 &&
          allocate (s, ALLOCATE_COPY, NULL, length, offset, &m.length) == -1)
        return -1;
    }
    offset += m.length;
  }
  return 0;
}

/* The beginning of a run that was found to be unallocated.  In a long one,
 * zeroes need not be read if the backing image can tell where they are.
 * It has said that there is data up to *data_end.
 */
static int
hold_run (struct qed *s, uint64_t count, uint64_t offset, uint64_t *data_end,
          uint64_t *done)
{
  uint64_t skip, length;

  if (count >= s->ask_len && offset >= *data_end) {
    if (backing_data (s, count, offset, &skip, &length) == -1)
      return -1;
    *data_end = offset + skip + length;
    if (length > 0)
      skip = round_down (skip, s->cluster_size);
    if (skip > 0)
      return allocate (s, ALLOCATE_MARK, NULL, skip, offset, done);
  }
  return allocate (s, ALLOCATE_COPY_OR_MARK, NULL, count, offset, done);
}

int
allocate_hold (struct qed *s, uint64_t count, uint64_t offset)
{
  const uint64_t end = offset + count;
  uint64_t data_end = 0;
  struct mapping m;

  while (offset < end) {
    if (qed_map (s, end - offset, offset, &m) == -1 ||
        (m.kind == MAP_UNALLOCATED &&
         hold_run (s, m.length, offset, &data_end, &m.length) == -1))
      return -1;
    offset += m.length;
  }
  return 0;
}
