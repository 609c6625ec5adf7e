/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A write to data clusters goes straight into them.  Where the mapping
 * is unallocated or zero, whole clusters of the disk are claimed, looked
 * up again (somebody may have been there first), and allocated: space
 * is reserved, what the request leaves untouched is filled in, the data
 * is written, and last the L2 entries.  So clusters side by side, or in
 * different places, are allocated by many threads at once.
 *
 * Filling in costs nothing where the backing image has zeroes and the
 * new space reads as zeroes anyway; both are common.
 *
 * Zero requests and trims leave data clusters mapped and punch holes
 * into the file under them.  See image.h for why a mapping never goes
 * back to unallocated.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "utils/cleanup.h"
#include "qed/image/image.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Backing data is copied, and clusters are allocated at once, in pieces
 * of at most this many bytes (or of one cluster).
 */
#define COPY_PIECE ((uint64_t) 256 * 1024)
#define ALLOCATE_PIECE ((uint64_t) 32 * 1024 * 1024)

/* What an allocation puts into the clusters, besides filling them. */
struct source {
  enum { FROM_BUFFER, FROM_BACKING, ZEROES } kind;
  const void *buf;              /* FROM_BUFFER */
};

/* Make new space in the file read as zeroes. */
static int
fill_zero (struct qed *s, uint64_t count, uint64_t file_offset)
{
  if (count == 0 || space_is_zero (s, file_offset))
    return 0;
  return node_zero (s->file, count, file_offset, NODE_MAY_TRIM);
}

/* Copy what the backing image has into new space. */
static int
fill_backing (struct qed *s, uint64_t count, uint64_t offset,
              uint64_t file_offset)
{
  CLEANUP_FREE void *buf = NULL;

  while (count > 0) {
    uint64_t skip, length;

    if (qed_backing_data (s, count, offset, &skip, &length) == -1 ||
        fill_zero (s, skip, file_offset) == -1)
      return -1;
    count -= skip;
    offset += skip;
    file_offset += skip;

    length = MIN (length, COPY_PIECE);
    if (length > 0) {
      if (buf == NULL)
        buf = malloc (MIN (count, COPY_PIECE));
      if (buf == NULL) {
        msg_error ("%s: copying from the backing image: %m", s->node.name);
        return -1;
      }
      if (node_pread (s->backing, buf, length, offset) == -1 ||
          (is_zero (buf, length) ? fill_zero (s, length, file_offset)
           : node_pwrite (s->file, buf, length, file_offset)) == -1)
        return -1;
      count -= length;
      offset += length;
      file_offset += length;
    }
  }
  return 0;
}

/* Fill a part of a new cluster that the request leaves untouched with
 * what was there before.
 */
static int
fill (struct qed *s, enum map_kind before, uint64_t count, uint64_t offset,
      uint64_t file_offset)
{
  if (before == MAP_UNALLOCATED && s->backing)
    return fill_backing (s, count, offset, file_offset);
  return fill_zero (s, count, file_offset);
}

/* Write all of n reserved clusters.  The range offset..offset+count of
 * the disk comes from the source.
 */
static int
write_clusters (struct qed *s, const struct source *source,
                enum map_kind before, uint64_t count, uint64_t offset,
                uint64_t n, uint64_t file_offset)
{
  const uint64_t start = round_down (offset, s->cluster_size);
  const uint64_t head = offset - start;
  const uint64_t tail = (n << s->cluster_bits) - head - count;

  if (s->buffer && n == 1 && source->kind == FROM_BUFFER &&
      before == MAP_UNALLOCATED && head + tail > 0)
    return buffer_write_cluster (s, source->buf, count, offset, file_offset);
  if (fill (s, before, head, start, file_offset) == -1 ||
      fill (s, before, tail, offset + count, file_offset + head + count)
      == -1)
    return -1;

  switch (source->kind) {
  case FROM_BUFFER:
    return node_pwrite (s->file, source->buf, count, file_offset + head);
  case FROM_BACKING:
    return fill_backing (s, count, offset, file_offset + head);
  case ZEROES:
    return fill_zero (s, count, file_offset + head);
  }
  abort ();
}

/* Allocate clusters of the disk that all lie in one slice, under a
 * claim.
 */
static int
allocate_claimed (struct qed *s, const struct source *source,
                  enum map_kind before, uint64_t count, uint64_t offset)
{
  const uint64_t cluster = offset >> s->cluster_bits;
  const uint64_t last = (offset + count - 1) >> s->cluster_bits;
  const uint64_t n = last - cluster + 1;
  uint64_t file_offset;
  int r;

  if (space_reserve (s, n, &file_offset) == -1)
    return -1;
  r = write_clusters (s, source, before, count, offset, n, file_offset);
  if (r == 0) {
    flusher_written (&s->flusher);
    /* Data first, then what refers to it. */
    if (s->ordered)
      r = flusher_flush (&s->flusher, FLUSH_FOR_METADATA);
  }
  if (r == -1) {
    const int err = errno;

    space_give_back (s, n, file_offset);
    errno = err;
    return -1;
  }
  r = metadata_map (s, cluster, n, file_offset, s->cluster_size);
  if (r == 0 && before == MAP_UNALLOCATED)
    count_held (s, n);
  return r;
}

uint64_t
qed_limit_allocation (const struct qed *s, uint64_t count, uint64_t offset)
{
  const uint64_t slice_bytes = (uint64_t) SLICE_ENTRIES << s->cluster_bits;
  const uint64_t piece = MAX (ALLOCATE_PIECE, s->cluster_size);
  const uint64_t start = round_down (offset, s->cluster_size);

  return MIN (count, MIN (round_down (offset, slice_bytes) + slice_bytes,
                          start + piece) - offset);
}

/* Claim the clusters of a range that was found to be unallocated or
 * zero, look again, and do the first run of it.  *done is how far that
 * went: 0 if it has become data meanwhile.
 */
static int
allocate (struct qed *s, const struct source *source, uint64_t count,
          uint64_t offset, uint64_t *done)
{
  struct claim claim;
  struct mapping m;
  uint64_t start, end;
  int r;

  count = qed_limit_allocation (s, count, offset);
  start = round_down (offset, s->cluster_size);
  end = round_up (offset + count, s->cluster_size);
  *done = 0;

  if (allocation_begin (s) == -1)
    return -1;
  claim_acquire (&s->claims, &claim, start, end - start, CLAIM_EXCLUSIVE);
  r = qed_map (s, count, offset, &m);
  if (r == 0 && m.kind != MAP_DATA) {
    r = allocate_claimed (s, source, m.kind, m.length, offset);
    *done = m.length;
  }
  claim_release (&s->claims, &claim);
  allocation_end (s);
  return r;
}

/* ---- Writes */

static ssize_t
write_run (struct qed *s, const void *buf, size_t count, uint64_t offset)
{
  const struct source source = { .kind = FROM_BUFFER, .buf = buf };
  struct mapping m;
  uint64_t done;

  if (qed_map (s, count, offset, &m) == -1)
    return -1;
  if (m.kind == MAP_DATA) {
    if (node_pwrite (s->file, buf, m.length, m.file_offset) == -1)
      return -1;
    flusher_written (&s->flusher);
    return m.length;
  }
  if (allocate (s, &source, m.length, offset, &done) == -1)
    return -1;
  return done;
}

static int
write_plain (struct qed *s, const char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    const ssize_t done = write_run (s, buf, count, offset);

    if (done == -1)
      return -1;
    buf += done;
    count -= done;
    offset += done;
  }
  return 0;
}

/* Is this whole cluster (or what the disk has of its last one) written,
 * with zeroes?
 */
static bool
is_zero_cluster (const struct qed *s, const char *buf, size_t count,
                 uint64_t offset)
{
  const uint64_t end =
    MIN (round_down (offset, s->cluster_size) + s->cluster_size,
         node_size (&s->node));

  return is_aligned (offset, s->cluster_size) && end - offset <= count &&
    is_zero (buf, end - offset);
}

/* Cut a write into runs of whole clusters of zeroes and of others. */
static int
write_detecting_zeroes (struct qed *s, const char *buf, size_t count,
                        uint64_t offset)
{
  const unsigned flags =
    s->options.detect_zeroes == QED_DETECT_UNMAP ? NODE_MAY_TRIM : 0;

  while (count > 0) {
    const bool zero = is_zero_cluster (s, buf, count, offset);
    uint64_t len = 0;
    int r;

    do
      len = MIN (round_up (offset + len + 1, s->cluster_size) - offset,
                 (uint64_t) count);
    while (len < count &&
           is_zero_cluster (s, buf + len, count - len, offset + len)
           == zero);

    r = zero ? qed_zero_range (s, len, offset, flags)
      : write_plain (s, buf, len, offset);
    if (r == -1)
      return -1;
    buf += len;
    count -= len;
    offset += len;
  }
  return 0;
}

int
qed_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
             size_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  int r = 0;

  TRACE_IO ("qed: write count=%zu offset=%" PRIu64, count, offset);
  request_begin (&s->requests);
  for (int i = 0; r == 0 && i < iovcnt; ++i) {
    if (s->options.detect_zeroes != QED_DETECT_OFF)
      r = write_detecting_zeroes (s, iov[i].iov_base, iov[i].iov_len,
                                  offset);
    else
      r = write_plain (s, iov[i].iov_base, iov[i].iov_len, offset);
    offset += iov[i].iov_len;
  }
  request_end (&s->requests);
  return r;
}

int
qed_copy_up (struct qed *s, uint64_t count, uint64_t offset)
{
  const struct source source = { .kind = FROM_BACKING };
  const uint64_t end = offset + count;
  uint64_t skip, length, done;
  struct mapping m;

  if (s->node.read_only)
    return 0;
  while (offset < end) {
    if (qed_map (s, end - offset, offset, &m) == -1)
      return -1;
    if (m.kind == MAP_UNALLOCATED) {
      if (qed_backing_data (s, m.length, offset, &skip, &length) == -1)
        return -1;
      m.length = skip;
      if (length > 0 && skip == 0) {
        if (allocate (s, &source, length, offset, &done) == -1)
          return -1;
        m.length = done;
      }
    }
    offset += m.length;
  }
  return 0;
}

int
qed_hold (struct qed *s, uint64_t count, uint64_t offset)
{
  const struct source source = { .kind = FROM_BACKING };
  const uint64_t end = offset + count;
  uint64_t skip, length, done;
  struct mapping m;

  while (offset < end) {
    if (qed_map (s, end - offset, offset, &m) == -1)
      return -1;
    done = m.length;
    if (m.kind == MAP_UNALLOCATED) {
      if (qed_backing_data (s, m.length, offset, &skip, &length) == -1)
        return -1;
      if (length == 0 || skip >= s->cluster_size) {
        if (length > 0)
          skip = round_down (skip, s->cluster_size);
        if (qed_mark_zero (s, skip, offset, &done) == -1)
          return -1;
      }
      else {
        length = MIN (round_up (skip + length, s->cluster_size), m.length);
        if (allocate (s, &source, length, offset, &done) == -1)
          return -1;
      }
    }
    offset += done;
  }
  return 0;
}

/* ---- Zero requests and trims */

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

int
qed_mark_zero (struct qed *s, uint64_t count, uint64_t offset,
               uint64_t *done)
{
  struct claim claim;
  struct mapping m;
  int r;

  count = qed_limit_allocation (s, count, offset);
  *done = 0;
  if (allocation_begin (s) == -1)
    return -1;
  claim_acquire (&s->claims, &claim, offset,
                 round_up (count, s->cluster_size), CLAIM_EXCLUSIVE);
  r = qed_map (s, count, offset, &m);
  if (r == 0 && m.kind == MAP_UNALLOCATED) {
    const unsigned n = div_round_up (m.length, s->cluster_size);

    r = metadata_map (s, offset >> s->cluster_bits, n, QED_ZERO, 0);
    if (r == 0)
      count_held (s, n);
  }
  if (r == 0 && m.kind != MAP_DATA)
    *done = m.length;
  claim_release (&s->claims, &claim);
  allocation_end (s);
  return r;
}

/* Zero a part of a cluster that is unallocated. */
static int
zero_part (struct qed *s, uint64_t count, uint64_t offset, uint64_t *done)
{
  const struct source source = { .kind = ZEROES };
  uint64_t skip, length;

  if (qed_backing_data (s, count, offset, &skip, &length) == -1)
    return -1;
  if (length > 0)
    return allocate (s, &source, count, offset, done);
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
  return qed_mark_zero (s, whole, offset, done);
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
      if (qed_backing_data (s, before, offset, &skip, &length) == -1)
        return -1;
      fast = length == 0;
      if (fast && before + whole < m.length) {
        if (qed_backing_data (s, m.length - before - whole,
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
qed_zero_range (struct qed *s, uint64_t count, uint64_t offset,
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
      if (node_zero (s->file, m.length, m.file_offset, flags) == -1) {
        if (errno != ENOTSUP || !changed)
          return -1;
        flags &= ~NODE_FAST;
        continue;
      }
      flusher_written (&s->flusher);
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
  int r = 0;

  TRACE_IO ("qed: zero count=%" PRIu64 " offset=%" PRIu64 "%s%s",
            count, offset, flags & NODE_MAY_TRIM ? " may-trim" : "",
            flags & NODE_FAST ? " fast" : "");
  if (s->options.ignore_trim)
    flags &= ~NODE_MAY_TRIM;

  request_begin (&s->requests);
  if (flags & NODE_FAST)
    r = check_fast (s, count, offset);
  if (r == 0)
    r = qed_zero_range (s, count, offset, flags);
  request_end (&s->requests);
  return r;
}

/* Give back the space under data clusters; they then read as zeroes
 * where the storage can tell, otherwise as zeroes or as before.
 */
static int
trim_data (struct qed *s, const struct mapping *m)
{
  if (node_zero (s->file, m->length, m->file_offset,
                 NODE_MAY_TRIM | NODE_FAST) == -1 &&
      (errno != ENOTSUP ||
       node_discard (s->file, m->length, m->file_offset) == -1))
    return -1;
  flusher_written (&s->flusher);
  return 0;
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
  if (qed_backing_data (s, whole, offset, &skip, &length) == -1)
    return -1;
  skip = length > 0 ? round_down (skip, s->cluster_size) : whole;
  if (skip > 0) {
    *done = skip;
    return 0;
  }
  length = MIN (round_up (length, s->cluster_size), whole);
  return qed_mark_zero (s, length, offset, done);
}

int
qed_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  int r = 0;

  TRACE_IO ("qed: trim count=%" PRIu64 " offset=%" PRIu64, count, offset);
  if (s->options.ignore_trim)
    return 0;

  request_begin (&s->requests);
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
