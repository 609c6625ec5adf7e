/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Where the bytes of the disk are: lookups of runs, and block status,
 * which is made from them.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "utils/cleanup.h"
#include "qed/image/image.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* A message for each damaged cluster would fill the log; after this
 * many they are reported to clients only.
 */
#define MAX_REPORTED 1000

static bool
inside (const struct qed *s, uint64_t length, uint64_t offset)
{
  const uint64_t size = node_size (s->file);

  return is_aligned (offset, s->cluster_size) &&
    offset >= qed_header_bytes (&s->header) &&
    offset <= size && length <= size - offset;
}

bool
qed_cluster_offset_ok (const struct qed *s, uint64_t offset)
{
  return inside (s, s->cluster_size, offset);
}

bool
qed_table_offset_ok (const struct qed *s, uint64_t offset)
{
  return inside (s, qed_table_bytes (&s->header), offset);
}

static bool
data_ok (const struct qed *s, uint64_t offset)
{
  const uint64_t file_cluster = offset >> s->cluster_bits;

  if (!qed_cluster_offset_ok (s, offset))
    return false;
  return s->damage == NULL ||
    (!bitmap_has (&s->damage->tables, file_cluster) &&
     !bitmap_has (&s->damage->shared, file_cluster));
}

/* Fail a request that met a damaged entry, which maps the disk from
 * offset on; tell of each entry once.  Its number is the L1 index, or
 * for L2 entries the cluster with L2_ENTRY added.
 */
#define L2_ENTRY (UINT64_C (1) << 63)

static int
damaged (struct qed *s, uint64_t number, uint64_t offset, uint64_t entry)
{
  bool tell = true;

  if (s->damage) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->damage->lock);
    tell = s->damage->reported.members < MAX_REPORTED &&
      bitmap_add (&s->damage->reported, number) == 0;
  }
  errno = EIO;
  if (tell)
    msg_error ("%s: the %s entry for offset %" PRIu64 " of the disk is "
               "damaged: it points to offset %" PRIu64 " of the file, which "
               "is outside, not a cluster, or in use for something else",
               s->node.name, number & L2_ENTRY ? "L2" : "L1", offset, entry);
  return -1;
}

static int
damaged_l1 (struct qed *s, uint64_t l1_index, uint64_t entry)
{
  return damaged (s, l1_index,
                  l1_index << (s->table_bits + s->cluster_bits), entry);
}

static int
damaged_l2 (struct qed *s, uint64_t cluster, uint64_t entry)
{
  return damaged (s, L2_ENTRY | cluster, cluster << s->cluster_bits, entry);
}

/* Look up one cluster.  *covers is how many clusters, counted from this
 * one, are known to be the same: more than one if there is no table.
 */
static int
look_up (struct qed *s, uint64_t cluster, uint64_t *entry, uint64_t *covers)
{
  const uint64_t l1_index = cluster >> s->table_bits;
  const uint64_t table =
    atomic_load_explicit (&s->l1[l1_index], memory_order_acquire);

  if (table == 0) {
    *entry = QED_UNALLOCATED;
    *covers = s->table_entries - (cluster & (s->table_entries - 1));
    return 0;
  }
  *covers = 1;
  if (!qed_table_offset_ok (s, table) ||
      (s->damage && bitmap_has (&s->damage->l1, l1_index)))
    return damaged_l1 (s, l1_index, table);
  return cache_lookup (s, cluster, table, entry);
}

static enum map_kind
kind_of (uint64_t entry)
{
  return entry == QED_UNALLOCATED ? MAP_UNALLOCATED :
    entry == QED_ZERO ? MAP_ZERO : MAP_DATA;
}

int
qed_map (struct qed *s, uint64_t count, uint64_t offset, struct mapping *m)
{
  const uint64_t in_cluster = offset & (s->cluster_size - 1);
  uint64_t cluster = offset >> s->cluster_bits;
  uint64_t entry, covers;

  if (look_up (s, cluster, &entry, &covers) == -1)
    return -1;
  m->kind = kind_of (entry);
  if (m->kind == MAP_DATA) {
    if (!data_ok (s, entry))
      return damaged_l2 (s, cluster, entry);
    m->file_offset = entry + in_cluster;
  }
  m->length = (covers << s->cluster_bits) - in_cluster;

  while (m->length < count) {
    cluster += covers;
    if (m->kind == MAP_DATA)
      entry += s->cluster_size;

    const uint64_t expected = entry;

    /* What is damaged here is met again, as the first, if it matters. */
    if (((cluster & (s->table_entries - 1)) == 0 && s->damage) ||
        look_up (s, cluster, &entry, &covers) == -1 ||
        entry != expected ||
        (m->kind == MAP_DATA && !data_ok (s, entry)))
      break;
    m->length += covers << s->cluster_bits;
  }
  if (m->length > count)
    m->length = count;
  return 0;
}

/* Block status of a cluster that this layer has. */
static int
data_extents (struct qed *s, const struct mapping *m, struct extent *ret)
{
  if (node_extents (s->file, m->length, m->file_offset, ret) == -1)
    return -1;
  ret->flags = (ret->flags & (EXTENT_HOLE | EXTENT_ZERO)) | EXTENT_MAPPED;
  ret->depth = 0;
  ret->where = &s->node;
  ret->offset = m->file_offset;
  return 0;
}

/* Block status of what this layer does not have, for as long as that
 * is true: 0 bytes if its mapping has changed meanwhile.
 */
static int
backing_extents (struct qed *s, uint64_t count, uint64_t offset,
                 struct extent *ret)
{
  if (node_extents (s->backing, count, offset, ret) == -1 ||
      qed_still_backing (s, ret->length, offset, &ret->length) == -1)
    return -1;
  ret->depth++;
  return 0;
}

static int
extents (struct qed *s, uint64_t count, uint64_t offset, struct extent *ret)
{
  struct mapping m;
  uint64_t backing_size;

  if (qed_map (s, count, offset, &m) == -1)
    return -1;
  if (m.kind == MAP_DATA)
    return data_extents (s, &m, ret);

  backing_size = s->backing ? node_size (s->backing) : 0;
  if (m.kind == MAP_UNALLOCATED && offset < backing_size)
    return backing_extents (s, MIN (m.length, backing_size - offset), offset,
                            ret);
  *ret = (struct extent) {
    .length = m.length, .flags = EXTENT_ZERO | EXTENT_HOLE,
    .where = &s->node
  };
  if (m.kind == MAP_UNALLOCATED)
    ret->flags |= EXTENT_UNALLOCATED;
  return 0;
}

int
qed_extents (struct node *n, uint64_t count, uint64_t offset,
             struct extent *ret)
{
  struct qed *s = qed_of_node (n);
  int r;

  request_begin (&s->requests);
  do
    r = extents (s, count, offset, ret);
  while (r == 0 && ret->length == 0);
  request_end (&s->requests);
  return r;
}
