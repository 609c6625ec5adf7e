/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * What a buffer shall hold is copied in whole clusters: read once, zero
 * clusters become zero markers, others are written side by side.  The
 * backing image is not asked for its extents first, except for long
 * ranges, since for a few clusters reading is cheaper than asking.
 *
 * The copy is made under the claim that every allocation takes, so of
 * two who want the same cluster one copies, and the other finds it.
 * Whoever wants to overwrite the backing image does so only when his
 * clusters are mapped; and an unallocated cluster is therefore as old
 * as the buffer (see qed_still_backing for those who read).
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "qed/image/image.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Copied at once: this many bytes, or a cluster. */
#define HOLD_PIECE ((uint64_t) 256 * 1024)

/* Memory for one copy, kept for the next one: there are as many as there
 * have ever been copies at the same time.
 */
struct scratch {
  struct scratch *next;
  uint8_t data[];
};

static struct scratch *
scratch_get (struct qed *s)
{
  struct buffer *b = s->buffer;
  struct scratch *scratch;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->scratch_lock);
    scratch = b->free_scratch;
    if (scratch) {
      b->free_scratch = scratch->next;
      return scratch;
    }
  }
  scratch = malloc (sizeof *scratch + MAX (HOLD_PIECE, s->cluster_size));
  if (scratch == NULL)
    msg_error ("%s: copying from the backing image: %m", s->node.name);
  return scratch;
}

static void
scratch_put (struct qed *s, struct scratch *scratch)
{
  struct buffer *b = s->buffer;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&b->scratch_lock);
  scratch->next = b->free_scratch;
  b->free_scratch = scratch;
}

void
scratch_free_all (struct buffer *b)
{
  while (b->free_scratch) {
    struct scratch *next = b->free_scratch->next;

    free (b->free_scratch);
    b->free_scratch = next;
  }
}

int
buffer_write_cluster (struct qed *s, const void *buf, uint64_t count,
                      uint64_t offset, uint64_t file_offset)
{
  const uint64_t start = round_down (offset, s->cluster_size);
  struct scratch *scratch = scratch_get (s);
  int r;

  if (scratch == NULL)
    return -1;
  r = qed_read_backing (s, scratch->data, s->cluster_size, start);
  if (r == 0) {
    memcpy (scratch->data + (offset - start), buf, count);
    r = node_pwrite (s->file, scratch->data, s->cluster_size, file_offset);
  }
  scratch_put (s, scratch);
  return r;
}

/* Map clusters to a copy of data, of which they are written as a whole:
 * where an earlier layer was new space holds anything.
 */
static int
hold_data (struct qed *s, const uint8_t *data, uint64_t length,
           uint64_t offset)
{
  const unsigned n = div_round_up (length, s->cluster_size);
  uint64_t file_offset;

  if (space_reserve (s, n, &file_offset) == -1)
    return -1;
  if (node_pwrite (s->file, data, (uint64_t) n << s->cluster_bits,
                   file_offset) == -1) {
    const int err = errno;

    space_give_back (s, n, file_offset);
    errno = err;
    return -1;
  }
  flusher_written (&s->flusher);
  if (metadata_map (s, offset >> s->cluster_bits, n, file_offset,
                    s->cluster_size) == -1)
    return -1;
  count_held (s, n);
  return 0;
}

static int
hold_zeroes (struct qed *s, uint64_t length, uint64_t offset)
{
  const unsigned n = div_round_up (length, s->cluster_size);

  if (metadata_map (s, offset >> s->cluster_bits, n, QED_ZERO, 0) == -1)
    return -1;
  count_held (s, n);
  return 0;
}

/* Map unallocated clusters, all in one slice, to what has been read. */
static int
hold_clusters (struct qed *s, const uint8_t *data, uint64_t length,
               uint64_t offset)
{
  while (length > 0) {
    const bool zero = is_zero (data, MIN (length, s->cluster_size));
    uint64_t run = 0;

    do
      run = MIN (run + s->cluster_size, length);
    while (run < length &&
           is_zero (data + run, MIN (length - run, s->cluster_size))
           == zero);
    if ((zero ? hold_zeroes (s, run, offset)
         : hold_data (s, data, run, offset)) == -1)
      return -1;
    data += run;
    offset += run;
    length -= run;
  }
  return 0;
}

/* Copy the first run of a range of whole clusters that was found to be
 * unallocated.  *done is how far that went: 0 if it is mapped meanwhile.
 */
static int
copy_run (struct qed *s, uint8_t *data, uint64_t count, uint64_t offset,
          uint64_t *done)
{
  const uint64_t piece = MAX (HOLD_PIECE, s->cluster_size);
  struct claim claim;
  struct mapping m;
  int r;

  count = qed_limit_allocation (s, MIN (count, piece), offset);
  *done = 0;
  if (allocation_begin (s) == -1)
    return -1;
  claim_acquire (&s->claims, &claim, offset,
                 round_up (count, s->cluster_size), CLAIM_EXCLUSIVE);
  r = qed_map (s, count, offset, &m);
  if (r == 0 && m.kind == MAP_UNALLOCATED) {
    const uint64_t whole = round_up (m.length, s->cluster_size);

    r = qed_read_backing (s, data, m.length, offset);
    if (r == 0) {
      memset (data + m.length, 0, whole - m.length);
      r = hold_clusters (s, data, m.length, offset);
    }
    *done = m.length;
  }
  claim_release (&s->claims, &claim);
  allocation_end (s);
  return r;
}

/* In a long run, zeroes need not be read if the backing image can tell
 * where they are.  It has said that there is data up to *data_end.
 */
static int
hold_run (struct qed *s, uint8_t *data, uint64_t count, uint64_t offset,
          uint64_t *data_end, uint64_t *done)
{
  uint64_t skip, length;

  if (count >= BUFFER_ASK_LEN && offset >= *data_end) {
    if (qed_backing_data (s, count, offset, &skip, &length) == -1)
      return -1;
    *data_end = offset + skip + length;
    if (length > 0)
      skip = round_down (skip, s->cluster_size);
    if (skip > 0)
      return qed_mark_zero (s, skip, offset, done);
  }
  return copy_run (s, data, count, offset, done);
}

static int
hold (struct qed *s, uint64_t offset, uint64_t end)
{
  struct scratch *scratch = NULL;
  uint64_t data_end = 0;
  struct mapping m;
  int r = 0;

  while (offset < end) {
    r = qed_map (s, end - offset, offset, &m);
    if (r == 0 && m.kind == MAP_UNALLOCATED) {
      if (scratch == NULL)
        scratch = scratch_get (s);
      r = scratch ? hold_run (s, scratch->data, m.length, offset, &data_end,
                              &m.length) : -1;
    }
    if (r == -1)
      break;
    offset += m.length;
  }
  if (scratch)
    scratch_put (s, scratch);
  return r;
}

int
qed_buffer_hold (struct node *n, uint64_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  const uint64_t start = round_down (offset, s->cluster_size);
  const uint64_t end =
    MIN (round_up (offset + count, s->cluster_size), node_size (n));
  int r;

  if (n->read_only) {
    errno = EROFS;
    msg_error ("%s: the buffer can no longer be written", n->name);
    return -1;
  }
  request_begin (&s->requests);
  r = hold (s, start, end);
  request_end (&s->requests);
  return r;
}
