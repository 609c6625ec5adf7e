/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Where the bytes of the disk are: lookups of runs. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qed/image/cache.h"
#include "qed/image/map.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* A message for each damaged cluster would fill the log; after this
 * many they are reported to clients only.
 */
#define MAX_REPORTED 1000

void
damage_free (struct damage *d)
{
  if (d == NULL)
    return;
  bitmap_free (&d->tables);
  bitmap_free (&d->shared);
  bitmap_free (&d->l1);
  bitmap_free (&d->reported);
  pthread_mutex_destroy (&d->lock);
  free (d);
}

static bool
data_ok (const struct qed *s, uint64_t offset)
{
  const uint64_t file_cluster = offset >> s->cluster_bits;

  if (!image_cluster_ok (s, offset))
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
  if (!image_table_ok (s, table) ||
      (s->damage && bitmap_has (&s->damage->l1, l1_index)))
    return damaged_l1 (s, l1_index, table);
  return cache_lookup (s, cluster, table, entry);
}

/* A range of the file that is known to be a hole. */
struct hole {
  uint64_t start, end;
};

/* How many clusters, from one on that begins a slice, are unallocated since
 * that part of their table is a hole in the file?  0 if that is not known.
 * A hole that was found is remembered for the tables behind this one, so it
 * must not be filled meanwhile.
 */
static uint64_t
clusters_in_hole (struct qed *s, uint64_t cluster, struct hole *hole)
{
  const uint64_t l1_index = cluster >> s->table_bits;
  const uint64_t index = cluster & (s->table_entries - 1);
  const uint64_t table =
    atomic_load_explicit (&s->l1[l1_index], memory_order_acquire);
  const uint64_t offset = table + index * QED_ENTRY_LEN;
  uint64_t length;

  if (!s->file->read_only || s->file->fixed_size ||
      index % SLICE_ENTRIES != 0 || table == 0 || !image_table_ok (s, table) ||
      (s->damage && bitmap_has (&s->damage->l1, l1_index)))
    return 0;
  if (offset < hole->start || offset >= hole->end) {
    if (node_zeroes (s->file, node_size (s->file) - offset, offset, &length)
        == -1)
      return 0;
    hole->start = offset;
    hole->end = offset + length;
  }
  length = MIN (hole->end - offset,
                (s->table_entries - index) * QED_ENTRY_LEN);
  return length / SLICE_LEN * SLICE_ENTRIES;
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
  struct hole hole = { 0, 0 };
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

    if (m->kind == MAP_UNALLOCATED &&
        (covers = clusters_in_hole (s, cluster, &hole)) > 0) {
      m->length += covers << s->cluster_bits;
      continue;
    }
    /* What is damaged here is met again, as the first, if it matters. */
    if (((cluster & (s->table_entries - 1)) == 0 && s->damage) ||
        look_up (s, cluster, &entry, &covers) == -1 ||
        entry != expected ||
        (m->kind == MAP_DATA && !data_ok (s, entry)))
      break;
    if (m->kind != MAP_DATA && covers == 1)
      covers = cache_run (s, cluster, entry);
    m->length += covers << s->cluster_bits;
  }
  if (m->length > count)
    m->length = count;
  return 0;
}
