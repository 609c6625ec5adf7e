/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Block status of a QED image, made from lookups and from what the file and
 * the backing image say.
 */

#include <config.h>

#include <string.h>

#include "qed/image/map.h"
#include "qed/io/backing.h"
#include "qed/io/io.h"
#include "utils/rounding.h"

/* Block status of a cluster that this layer has: holes of the file, unless
 * only the mapping is asked for.
 */
static int
data_extents (struct qed *s, bool only_mapping, const struct mapping *m,
              struct extent *ret)
{
  if (only_mapping)
    *ret = (struct extent) { .length = m->length };
  else if (node_extents (s->file, m->length, m->file_offset, ret) == -1)
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
below_extents (struct qed *s, bool only_mapping, uint64_t count,
               uint64_t offset, struct extent *ret)
{
  if ((only_mapping ? qed_mapping : node_extents) (s->backing, count, offset,
                                                   ret) == -1 ||
      backing_unchanged (s, ret->length, offset, &ret->length) == -1)
    return -1;
  ret->depth++;
  return 0;
}

static int
extents (struct qed *s, bool only_mapping, uint64_t count, uint64_t offset,
         struct extent *ret)
{
  struct mapping m;
  uint64_t backing_size;

  if (qed_map (s, count, offset, &m) == -1)
    return -1;
  if (m.kind == MAP_DATA)
    return data_extents (s, only_mapping, &m, ret);

  backing_size = s->backing ? node_size (s->backing) : 0;
  if (m.kind == MAP_UNALLOCATED && offset < backing_size)
    return below_extents (s, only_mapping,
                          MIN (m.length, backing_size - offset), offset, ret);
  *ret = (struct extent) {
    .length = m.length, .flags = EXTENT_ZERO | EXTENT_HOLE,
    .where = &s->node
  };
  if (m.kind == MAP_UNALLOCATED)
    ret->flags |= EXTENT_UNALLOCATED;
  return 0;
}

static int
whole_extents (struct qed *s, bool only_mapping, uint64_t count,
               uint64_t offset, struct extent *ret)
{
  int r;

  qed_request_begin (s);
  do
    r = extents (s, only_mapping, count, offset, ret);
  while (r == 0 && ret->length == 0);
  qed_request_end (s);
  return r;
}

int
qed_extents (struct node *n, uint64_t count, uint64_t offset,
             struct extent *ret)
{
  return whole_extents (qed_of_node (n), false, count, offset, ret);
}

int
qed_mapping (struct node *n, uint64_t count, uint64_t offset,
             struct extent *ret)
{
  if (strcmp (n->ops->type, "qed") != 0)
    return node_extents (n, count, offset, ret);
  return whole_extents (qed_of_node (n), true, count, offset, ret);
}

/* The beginning of a range that reads as zeroes for all that the file and
 * the backing image can tell at once.
 */
static int
zeroes (struct qed *s, uint64_t count, uint64_t offset, uint64_t *length)
{
  struct mapping m;

  if (qed_map (s, count, offset, &m) == -1)
    return -1;
  switch (m.kind) {
  case MAP_DATA:
    return node_zeroes (s->file, m.length, m.file_offset, length);
  case MAP_ZERO:
    *length = m.length;
    break;
  case MAP_UNALLOCATED:
    if (backing_zeroes (s->backing, m.length, offset, length) == -1 ||
        (*length > 0 && backing_unchanged (s, *length, offset, length) == -1))
      return -1;
    break;
  }
  return 0;
}

int
qed_zeroes (struct node *n, uint64_t count, uint64_t offset,
            uint64_t *length)
{
  struct qed *s = qed_of_node (n);
  int r;

  qed_request_begin (s);
  r = zeroes (s, count, offset, length);
  qed_request_end (s);
  return r;
}
