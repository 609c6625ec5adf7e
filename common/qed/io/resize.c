/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A disk grows by a new image_size in the header, since the L1 table
 * has room for all that the geometry can map.  That is one write of a
 * sector, and comes last, when all of this is durable:
 *
 * - Entries of tables beyond the old size that are not zero (QEMU does
 *   not look at them) are cleared.  The clusters leak.
 * - The rest of the last cluster is zeroed: it may hold what the
 *   backing image has there.
 * - Where the backing image is longer than the old disk and has data,
 *   the new clusters are marked as zeroes.  qemu-img refuses to resize
 *   such an image.
 *
 * None of it is visible under the old size, so the disk has one size or
 * the other at any moment.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qed/image/cache.h"
#include "qed/image/file.h"
#include "qed/io/allocate.h"
#include "qed/io/backing.h"
#include "qed/io/io.h"
#include "qed/io/zero.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define PIECE ((uint64_t) 256 * 1024)

static int
resize_refuse (const struct qed *s, int err, const char *why, uint64_t size)
{
  errno = err;
  msg_error ("%s: %s: %" PRIu64 " bytes, the disk has %" PRIu64,
             s->node.name, why, size, node_size (&s->node));
  return -1;
}

static int
check_size (const struct qed *s, uint64_t size)
{
  if (!is_aligned (size, QED_SECTOR))
    return resize_refuse (s, EINVAL, "Invalid image size specified: it must "
                          "be a multiple of 512", size);
  if (size > qed_max_image_size (s->header.cluster_size,
                                 s->header.table_size))
    return resize_refuse (s, EINVAL, "Invalid image size specified: it is "
                          "more than tables of this geometry can map", size);
  if (size < node_size (&s->node))
    return resize_refuse (s, ENOTSUP, "Shrinking images is currently not "
                          "supported", size);
  return 0;
}

/* Zero the entries of an L2 table from this one on. */
static int
clear_entries (struct qed *s, uint64_t table, uint64_t first)
{
  const uint64_t bytes = qed_table_bytes (&s->header);
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);
  uint64_t done = first * QED_ENTRY_LEN;

  if (buf == NULL) {
    msg_error ("%s: resize: %m", s->node.name);
    return -1;
  }
  while (done < bytes) {
    const uint64_t length = MIN (bytes - done, PIECE);

    if (node_pread (s->file, buf, length, table + done) == -1)
      return -1;
    if (!is_zero (buf, length)) {
      TRACE_META ("qed: resize: stale entries in the table at %" PRIu64,
                  table);
      if (file_zero (s, length, table + done, 0) == -1)
        return -1;
    }
    done += length;
  }
  return 0;
}

/* Entries of the L2 table that the old size ends in. */
static int
clear_last_table (struct qed *s)
{
  const uint64_t clusters = div_round_up (node_size (&s->node),
                                          s->cluster_size);
  const uint64_t first = clusters & (s->table_entries - 1);
  uint64_t table;

  if (first == 0)
    return 0;
  table = atomic_load (&s->l1[s->nr_l1 - 1]);
  return table ? clear_entries (s, table, first) : 0;
}

/* Make L1 entries in memory for the new size.  What the file has there
 * are tables, or the image would be damaged and so read-only; they are
 * used, without their entries.
 */
static int
extend_l1 (struct qed *s, uint64_t nr_l1)
{
  const uint64_t more = nr_l1 - s->nr_l1;
  CLEANUP_FREE _Atomic uint64_t *l1 = malloc (nr_l1 * sizeof *l1 + 1);
  CLEANUP_FREE uint8_t *buf = malloc (more * QED_ENTRY_LEN + 1);
  uint64_t i;

  if (l1 == NULL || buf == NULL) {
    msg_error ("%s: resize: %m", s->node.name);
    return -1;
  }
  if (node_pread (s->file, buf, more * QED_ENTRY_LEN,
                  s->header.l1_table_offset + s->nr_l1 * QED_ENTRY_LEN) == -1)
    return -1;
  for (i = 0; i < s->nr_l1; ++i)
    atomic_init (&l1[i], atomic_load (&s->l1[i]));
  for (i = 0; i < more; ++i) {
    const uint64_t table = qed_entry_get (buf, i);

    if (table && clear_entries (s, table, 0) == -1)
      return -1;
    atomic_init (&l1[s->nr_l1 + i], table);
  }
  free ((void *) s->l1);
  s->l1 = l1;
  s->nr_l1 = nr_l1;
  l1 = NULL;
  return 0;
}

/* Mark new clusters where the backing image has data as zeroes. */
static int
hide_backing (struct qed *s, uint64_t offset, uint64_t end)
{
  const uint64_t backing_size = s->backing ? node_size (s->backing) : 0;
  uint64_t skip, length, done;

  while (offset < MIN (end, backing_size)) {
    if (backing_data (s, end - offset, offset, &skip, &length) == -1)
      return -1;
    if (length == 0)
      return 0;
    length = MIN (round_up (offset + skip + length, s->cluster_size), end);
    offset = round_down (offset + skip, s->cluster_size);
    if (allocate (s, ALLOCATE_MARK, NULL, length - offset, offset, &done)
        == -1)
      return -1;
    offset += done;
  }
  return 0;
}

/* Make what is between the sizes read as zeroes.  The image has the new
 * size in memory already.
 */
static int
zero_new (struct qed *s, uint64_t old, uint64_t size)
{
  const uint64_t edge = MIN (round_up (old, s->cluster_size), size);

  if (edge > old && zero_range (s, edge - old, old, 0) == -1)
    return -1;
  return hide_backing (s, edge, size);
}

/* Grow, while no request is in flight. */
static int
grow (struct qed *s, uint64_t size)
{
  const uint64_t old = node_size (&s->node), old_nr_l1 = s->nr_l1;
  const struct header_edit edit = { .image_size = size, .flush = true };
  int err;

  if (clear_last_table (s) == -1 ||
      extend_l1 (s, div_round_up (size, s->table_entries
                                  << s->cluster_bits)) == -1)
    return -1;
  cache_forget (s);
  atomic_store (&s->node.size, size);
  if (zero_new (s, old, size) == 0 &&
      flusher_flush (&s->flusher) == 0 &&
      header_change (s, &edit) == 0)
    return 0;
  err = errno;
  atomic_store (&s->node.size, old);
  s->nr_l1 = old_nr_l1;
  cache_forget (s);
  errno = err;
  return -1;
}

int
qed_resize (struct node *n, uint64_t size)
{
  struct qed *s = qed_of_node (n);
  int r;

  drain_begin (&s->requests);
  r = header_known (s);
  if (r == 0)
    r = check_size (s, size);
  if (r == 0 && size > node_size (n))
    r = grow (s, size);
  drain_end (&s->requests);
  return r;
}
