/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Block status of a QED image, made from lookups and from what the file and
 * the backing image say.
 */

#include <config.h>

#include "qed/image/map.h"
#include "qed/io/backing.h"
#include "qed/io/io.h"
#include "utils/rounding.h"

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
below_extents (struct qed *s, uint64_t count, uint64_t offset,
                 struct extent *ret)
{
  if (node_extents (s->backing, count, offset, ret) == -1 ||
      backing_unchanged (s, ret->length, offset, &ret->length) == -1)
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
    return below_extents (s, MIN (m.length, backing_size - offset), offset,
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

  request_begin (&s->requests);
  r = zeroes (s, count, offset, length);
  request_end (&s->requests);
  return r;
}
