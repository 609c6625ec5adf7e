/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the backing image has, of which this layer shows all that it does
 * not have itself.
 */

#include <config.h>

#include "qed/image/map.h"
#include "qed/io/backing.h"
#include "utils/rounding.h"

/* Less than so many bytes are a short range. */
#define SHORT_RANGE ((uint64_t) 1024 * 1024)

int
backing_extents (struct node *backing, uint64_t count, uint64_t offset,
                 struct extent *e)
{
  const uint64_t size = backing ? node_size (backing) : 0;

  if (offset < size)
    return node_extents (backing, MIN (count, size - offset), offset, e);
  *e = (struct extent) { .length = count, .flags = EXTENT_ZERO };
  return 0;
}

int
backing_zeroes (struct node *backing, uint64_t count, uint64_t offset,
                uint64_t *length)
{
  const uint64_t size = backing ? node_size (backing) : 0;
  const uint64_t there = offset < size ? MIN (count, size - offset) : 0;

  *length = 0;
  if (there > 0 && node_zeroes (backing, there, offset, length) == -1)
    return -1;
  if (*length == there)
    *length = count;
  return 0;
}

static int
short_data (struct qed *s, uint64_t count, uint64_t offset, uint64_t *skip,
            uint64_t *length)
{
  uint64_t zeroes;

  *skip = 0;
  do {
    if (backing_zeroes (s->backing, count - *skip, offset + *skip, &zeroes)
        == -1)
      return -1;
    *skip += zeroes;
  } while (zeroes > 0 && *skip < count);
  *length = count - *skip;
  return 0;
}

int
backing_data (struct qed *s, uint64_t count, uint64_t offset, uint64_t *skip,
              uint64_t *length)
{
  const uint64_t size = s->backing ? node_size (s->backing) : 0;

  *skip = 0;
  *length = offset < size ? MIN (count, size - offset) : 0;
  if (count < s->ask_len && *length > 0)
    return 0;
  if (count < SHORT_RANGE)
    return short_data (s, count, offset, skip, length);
  while (*skip < count) {
    struct extent e;

    if (backing_extents (s->backing, count - *skip, offset + *skip, &e)
        == -1)
      return -1;
    *length = e.length;
    if (!(e.flags & EXTENT_ZERO))
      return 0;
    *skip += e.length;
  }
  *length = 0;
  return 0;
}

int
backing_unchanged (struct qed *s, uint64_t count, uint64_t offset,
                   uint64_t *length)
{
  struct mapping m;

  *length = count;
  if (!s->backing_written)
    return 0;
  /* Whoever writes to a cluster of the backing image has seen to it that
   * this layer maps the cluster before.  So if the lookup comes after
   * the read, and finds nothing, the read came before the write.  The
   * loads of the lookup must not be done before those of the read: without
   * a fence a processor (arm64) may do them in any order, since neither
   * needs the other.
   */
  atomic_thread_fence (memory_order_acquire);
  if (qed_map (s, count, offset, &m) == -1)
    return -1;
  *length = m.kind == MAP_UNALLOCATED ? m.length : 0;
  return 0;
}
