/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How much storage an image would need: which L2 tables and data clusters
 * it would have.  What these take space_needed says, which counts as
 * space_reserve hands it out.
 */

#include <config.h>

#include <inttypes.h>

#include "node/node.h"
#include "qed/create.h"
#include "qed/image/space.h"
#include "utils/rounding.h"

/* Units of a size that a range touches, but for those before *next. */
static uint64_t
count_units (uint64_t offset, uint64_t end, uint64_t unit, uint64_t *next)
{
  const uint64_t first = MAX (offset / unit, *next);

  *next = MAX (*next, div_round_up (end, unit));
  return *next - first;
}

/* Over a backing image zeroes need an entry in a table. */
static bool
needs_table (const struct qed_header *h, const struct extent *e)
{
  return !(e->flags & EXTENT_ZERO) ||
    ((h->features & QED_BACKING_FILE) && e->depth == 0 &&
     !(e->flags & EXTENT_UNALLOCATED));
}

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
    if (!(e.flags & EXTENT_ZERO))
      *clusters += count_units (offset, offset + e.length, h->cluster_size,
                                &next_cluster);
    if (needs_table (h, &e))
      *tables += count_units (offset, offset + e.length, per_table,
                              &next_table);
    offset += e.length;
  }
  return 0;
}

int
qed_measure (const struct qed_create_options *options, struct node *source,
             struct qed_measurement *result)
{
  uint64_t clusters = 0, tables = 0;
  struct qed_header h;

  if (qed_make_header (source ? source->name : "measure", options, &h) == -1
      || (source && count_clusters (&h, source, &clusters, &tables) == -1))
    return -1;

  result->required = space_needed (&h, tables, clusters);
  clusters = div_round_up (h.image_size, h.cluster_size);
  tables = div_round_up (clusters, qed_table_entries (&h));
  result->fully_allocated = space_needed (&h, tables, clusters);
  return 0;
}
