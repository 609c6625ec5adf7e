/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How large an image would be: header, L1 table, and what is needed of
 * L2 tables and data clusters.
 */

#include <config.h>

#include <inttypes.h>

#include "node/node.h"
#include "qed/create.h"
#include "utils/rounding.h"

/* Clusters of data in source; *tables is how many L2 tables they need. */
static int
count_clusters (const struct qed_header *h, struct node *source,
                uint64_t *clusters, uint64_t *tables)
{
  const uint64_t size = MIN (node_size (source), h->image_size);
  const uint64_t per_table = qed_table_entries (h) * h->cluster_size;
  uint64_t next_cluster = 0, next_table = 0;

  *clusters = *tables = 0;
  for (uint64_t offset = 0; offset < size;) {
    struct extent e;

    if (node_extents (source, size - offset, offset, &e) == -1)
      return -1;
    if (!(e.flags & EXTENT_ZERO)) {
      const uint64_t end = offset + e.length;
      const uint64_t cluster = MAX (offset / h->cluster_size, next_cluster);
      const uint64_t table = MAX (offset / per_table, next_table);

      next_cluster = div_round_up (end, h->cluster_size);
      next_table = div_round_up (end, per_table);
      *clusters += next_cluster - cluster;
      *tables += next_table - table;
    }
    offset += e.length;
  }
  return 0;
}

int
qed_measure (const struct qed_create_options *options, struct node *source,
             struct qed_measurement *result)
{
  uint64_t clusters = 0, tables = 0, table_bytes, fixed;
  struct qed_header h;

  if (qed_make_header (source ? source->name : "measure", options, &h) == -1)
    return -1;
  table_bytes = qed_table_bytes (&h);
  fixed = h.l1_table_offset + table_bytes;
  if (source && count_clusters (&h, source, &clusters, &tables) == -1)
    return -1;

  result->required = fixed + tables * table_bytes +
    clusters * h.cluster_size;
  clusters = div_round_up (h.image_size, h.cluster_size);
  tables = div_round_up (clusters, qed_table_entries (&h));
  result->fully_allocated = fixed + tables * table_bytes +
    clusters * h.cluster_size;
  return 0;
}
