/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Zero requests and trims.
 *
 * They leave data clusters mapped and punch holes into the file under
 * them; see image.h for why a mapping never goes back to unallocated.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "qed/image/file.h"
#include "qed/image/map.h"
#include "qed/io/allocate.h"
#include "qed/io/backing.h"
#include "qed/io/io.h"
#include "qed/io/zero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* The whole clusters in a range: how many bytes stand before the first
 * (all, if there is none), and how many bytes they are.  The last
 * cluster of the disk is whole if all that the disk has of it is there.
 */
static void
whole_clusters (const struct qed *s, uint64_t count, uint64_t offset,
                uint64_t *before, uint64_t *whole)
{
  const uint64_t end = offset + count;
  const uint64_t first = round_up (offset, s->cluster_size);
  const uint64_t last = end == node_size (&s->node)
    ? end : round_down (end, s->cluster_size);

  *before = first < last ? first - offset : count;
  *whole = first < last ? last - first : 0;
}

/* Zero a part of a cluster that is unallocated. */
static int
zero_part (struct qed *s, uint64_t count, uint64_t offset, uint64_t *done)
{
  uint64_t skip, length;

  if (backing_data (s, count, offset, &skip, &length) == -1)
    return -1;
  if (length > 0)
    return allocate (s, ALLOCATE_ZEROES, NULL, count, offset, done);
  *done = count;                /* is zero */
  return 0;
}

/* Zero the beginning of a run that this layer does not have. */
static int
zero_unallocated (struct qed *s, uint64_t count, uint64_t offset,
                  uint64_t *done)
{
  uint64_t before, whole;

  *done = count;
  if (s->backing == NULL)
    return 0;
  whole_clusters (s, count, offset, &before, &whole);
  if (before > 0) {
    /* Up to a cluster's end: what remains behind it is another run. */
    before = MIN (before, s->cluster_size - (offset & (s->cluster_size - 1)));
    return zero_part (s, before, offset, done);
  }
  return allocate (s, ALLOCATE_MARK, NULL, whole, offset, done);
}

/* Before anything is changed for a fast zero: can all of it be fast? */
static int
check_fast (struct qed *s, uint64_t count, uint64_t offset)
{
  while (count > 0) {
    uint64_t before, whole, skip = 0, length = 0;
    struct mapping m;
    bool fast = true;

    if (qed_map (s, count, offset, &m) == -1)
      return -1;
    if (m.kind == MAP_DATA)
      fast = s->file->can_fast_zero &&
        is_aligned (m.file_offset | m.length, s->file->zero_align);
    else if (m.kind == MAP_UNALLOCATED && s->backing) {
      whole_clusters (s, m.length, offset, &before, &whole);
      /* Parts at both ends need data if the backing image has some. */
      if (backing_data (s, before, offset, &skip, &length) == -1)
        return -1;
      fast = length == 0;
      if (fast && before + whole < m.length) {
        if (backing_data (s, m.length - before - whole,
                          offset + before + whole, &skip, &length) == -1)
          return -1;
        fast = length == 0;
      }
    }
    if (!fast) {
      errno = ENOTSUP;
      return -1;
    }
    count -= m.length;
    offset += m.length;
  }
  return 0;
}

/* A request that begins to be fast is completed, even if the storage
 * then cannot be fast everywhere: ENOTSUP means that nothing changed.
 */
int
zero_range (struct qed *s, uint64_t count, uint64_t offset,
                unsigned flags)
{
  bool changed = false;

  while (count > 0) {
    struct mapping m;
    uint64_t done;

    if (qed_map (s, count, offset, &m) == -1)
      return -1;
    done = m.length;
    if (m.kind == MAP_DATA) {
      if (file_zero (s, m.length, m.file_offset, flags) == -1) {
        if (errno != ENOTSUP || !changed)
          return -1;
        flags &= ~NODE_FAST;
        continue;
      }
      changed = true;
    }
    else if (m.kind == MAP_UNALLOCATED) {
      if (zero_unallocated (s, m.length, offset, &done) == -1)
        return -1;
      changed = true;
    }
    count -= done;
    offset += done;
  }
  return 0;
}

int
qed_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct qed *s = qed_of_node (n);
  int r;

  TRACE_IO ("qed: zero count=%" PRIu64 " offset=%" PRIu64 "%s%s",
            count, offset, flags & NODE_MAY_TRIM ? " may-trim" : "",
            flags & NODE_FAST ? " fast" : "");
  if (s->options.ignore_trim)
    flags &= ~NODE_MAY_TRIM;

  request_begin (&s->requests);
  r = header_known (s);
  if (r == 0 && (flags & NODE_FAST))
    r = check_fast (s, count, offset);
  if (r == 0)
    r = zero_range (s, count, offset, flags);
  request_end (&s->requests);
  return r;
}

/* Give back the space under data clusters; they then read as zeroes
 * where the storage can tell, otherwise as zeroes or as before.
 */
static int
trim_data (struct qed *s, const struct mapping *m)
{
  const int r = file_zero (s, m->length, m->file_offset,
                           NODE_MAY_TRIM | NODE_FAST);

  return r == -1 && errno == ENOTSUP
    ? file_discard (s, m->length, m->file_offset) : r;
}

/* Whole clusters that this layer does not have are marked as zeroes if
 * the backing image has data there, so that nothing of what was trimmed
 * comes back; parts are left alone.
 */
static int
trim_unallocated (struct qed *s, uint64_t count, uint64_t offset,
                  uint64_t *done)
{
  uint64_t before, whole, skip, length;

  *done = count;
  if (s->backing == NULL)
    return 0;
  whole_clusters (s, count, offset, &before, &whole);
  if (before > 0) {
    *done = before;
    return 0;
  }
  if (backing_data (s, whole, offset, &skip, &length) == -1)
    return -1;
  skip = length > 0 ? round_down (skip, s->cluster_size) : whole;
  if (skip > 0) {
    *done = skip;
    return 0;
  }
  length = MIN (round_up (length, s->cluster_size), whole);
  return allocate (s, ALLOCATE_MARK, NULL, length, offset, done);
}

int
qed_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  int r;

  TRACE_IO ("qed: trim count=%" PRIu64 " offset=%" PRIu64, count, offset);
  if (s->options.ignore_trim)
    return 0;

  request_begin (&s->requests);
  r = header_known (s);
  while (r == 0 && count > 0) {
    struct mapping m;
    uint64_t done;

    r = qed_map (s, count, offset, &m);
    if (r == -1)
      break;
    done = m.length;
    if (m.kind == MAP_DATA)
      r = trim_data (s, &m);
    else if (m.kind == MAP_UNALLOCATED)
      r = trim_unallocated (s, m.length, offset, &done);
    count -= done;
    offset += done;
  }
  request_end (&s->requests);
  return r;
}
