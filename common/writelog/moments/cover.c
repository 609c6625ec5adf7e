/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The bounds of all ranges, sorted, cut the line into pieces.  A static
 * segment tree stands over the pieces: a range is kept at those nodes of
 * the tree that together make it up, about two for each level at most.
 * Each node has the numbers of its ranges in ascending order, and all
 * these lists lie in one array, filled in two passes (count, then fill),
 * so that no byte is lost to pointers and spare room.
 *
 * The ranges that cover a piece are in the lists between its leaf and the
 * root.  To find the latest one below some number is a binary search in
 * each of these; no state of any moment is ever kept.
 *
 * A range takes at most 2 * log2 (2 * n) numbers of four bytes, 164
 * bytes for a million ranges, however they overlap; nested ranges come
 * near to it.  Ranges that do not overlap take one or two.
 *
 * The tree is the one without pointers: with m pieces, leaf i is node
 * m + i and the parent of node k is k / 2, which works for any m.
 */

#include <config.h>

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "writelog/moments/cover.h"

static int
compare (const void *ap, const void *bp)
{
  const uint64_t a = *(const uint64_t *) ap;
  const uint64_t b = *(const uint64_t *) bp;

  return a < b ? -1 : a > b;
}

/* Sort the bounds of all spans, each once. */
static int
collect_bounds (struct cover *c, const struct cover_span *spans, size_t n)
{
  uint64_t *shorter;
  size_t nr = 0;

  c->bounds = calloc (2 * n, sizeof *c->bounds);
  if (c->bounds == NULL)
    return -1;
  for (size_t i = 0; i < n; ++i) {
    c->bounds[2 * i] = spans[i].start;
    c->bounds[2 * i + 1] = spans[i].end;
  }
  qsort (c->bounds, 2 * n, sizeof *c->bounds, compare);
  for (size_t i = 0; i < 2 * n; ++i)
    if (i == 0 || c->bounds[i] != c->bounds[nr - 1])
      c->bounds[nr++] = c->bounds[i];
  c->nr_pieces = nr - 1;

  shorter = realloc (c->bounds, nr * sizeof *c->bounds);
  if (shorter)
    c->bounds = shorter;
  return 0;
}

/* The number of bounds that are not behind a place. */
static size_t
bounds_up_to (const struct cover *c, uint64_t place)
{
  size_t from = 0, to = c->nr_pieces + 1;

  while (from < to) {
    const size_t middle = from + (to - from) / 2;

    if (c->bounds[middle] <= place)
      from = middle + 1;
    else
      to = middle;
  }
  return from;
}

size_t
cover_find (const struct cover *c, uint64_t place)
{
  return c->nr_pieces > 0 ? bounds_up_to (c, place) - 1 : 0;
}

/* Call next for each node that a span of pieces is made up of. */
static inline __attribute__ ((always_inline)) void
each_node (struct cover *c, const struct cover_span *span,
           void (*next) (struct cover *c, size_t node, uint32_t id))
{
  size_t from = span->start + c->nr_pieces;
  size_t to = span->end + c->nr_pieces;

  for (; from < to; from /= 2, to /= 2) {
    if (from & 1)
      next (c, from++, span->id);
    if (to & 1)
      next (c, --to, span->id);
  }
}

/* first[i+2] counts the numbers of node i.  After the sums, first[i+1]
 * is where they begin; each one that is filled in moves it on, until it
 * is where those of node i+1 begin.
 */
static void
count_one (struct cover *c, size_t node, uint32_t id)
{
  c->first[node + 2]++;
}

static void
fill_one (struct cover *c, size_t node, uint32_t id)
{
  c->ids[c->first[node + 1]++] = id;
}

int
cover_build (struct cover *c, struct cover_span *spans, size_t n)
{
  *c = (struct cover) { 0 };
  if (n == 0)
    return 0;
  if (collect_bounds (c, spans, n) == -1)
    return -1;
  for (size_t i = 0; i < n; ++i) {
    spans[i].start = cover_find (c, spans[i].start);
    spans[i].end = cover_find (c, spans[i].end);
  }

  c->first = calloc (2 * c->nr_pieces + 2, sizeof *c->first);
  if (c->first == NULL)
    goto error;
  for (size_t i = 0; i < n; ++i)
    each_node (c, &spans[i], count_one);
  for (size_t i = 1; i < 2 * c->nr_pieces + 2; ++i)
    c->first[i] += c->first[i - 1];

  c->ids = calloc (c->first[2 * c->nr_pieces + 1], sizeof *c->ids);
  if (c->ids == NULL)
    goto error;
  for (size_t i = 0; i < n; ++i)
    each_node (c, &spans[i], fill_one);
  return 0;

 error:
  cover_free (c);
  return -1;
}

void
cover_free (struct cover *c)
{
  free (c->bounds);
  free (c->first);
  free (c->ids);
  *c = (struct cover) { 0 };
}

uint64_t
cover_memory (const struct cover *c)
{
  if (c->nr_pieces == 0)
    return 0;
  return (c->nr_pieces + 1) * sizeof *c->bounds +
    (2 * c->nr_pieces + 2) * sizeof *c->first +
    c->first[2 * c->nr_pieces] * sizeof *c->ids;
}

/* How many of nr ascending numbers are below limit? */
static size_t
count_below (const uint32_t *ids, size_t nr, uint64_t limit)
{
  size_t from = 0, to = nr;

  if (nr > 0 && ids[nr - 1] < limit)
    return nr;
  while (from < to) {
    const size_t middle = from + (to - from) / 2;

    if (ids[middle] < limit)
      from = middle + 1;
    else
      to = middle;
  }
  return from;
}

void
cover_below (const struct cover *c, size_t piece, uint64_t limit,
             struct cover_lists *lists)
{
  lists->nr = 0;
  for (size_t node = piece + c->nr_pieces; node > 0; node /= 2) {
    const uint32_t *ids = c->ids + c->first[node];
    const size_t nr = count_below (ids, c->first[node + 1] - c->first[node],
                                   limit);

    if (nr > 0) {
      lists->list[lists->nr].ids = ids;
      lists->list[lists->nr].nr = nr;
      lists->nr++;
    }
  }
}

uint32_t
cover_pop (struct cover_lists *lists)
{
  unsigned latest = 0;
  uint32_t id;

  if (lists->nr == 0)
    return COVER_NONE;
  for (unsigned i = 1; i < lists->nr; ++i)
    if (lists->list[i].ids[lists->list[i].nr - 1] >
        lists->list[latest].ids[lists->list[latest].nr - 1])
      latest = i;
  id = lists->list[latest].ids[--lists->list[latest].nr];
  if (lists->list[latest].nr == 0)
    lists->list[latest] = lists->list[--lists->nr];
  return id;
}
