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

/* ---- Bounds */

/* Numbers are sorted by digits of so many bits, the lowest first. */
#define DIGIT_BITS 11
#define DIGITS (1 << DIGIT_BITS)

static unsigned
digit (uint64_t number, unsigned shift)
{
  return number >> shift & (DIGITS - 1);
}

/* Sort by one digit what is sorted by those below it.  Returns false, and
 * has done nothing, if all have the same one.
 */
static bool
sort_digit (const uint64_t *from, uint64_t *to, size_t n, unsigned shift)
{
  size_t place[DIGITS] = { 0 }, sum = 0;

  for (size_t i = 0; i < n; ++i)
    place[digit (from[i], shift)]++;
  if (place[digit (from[0], shift)] == n)
    return false;
  for (unsigned d = 0; d < DIGITS; ++d) {
    const size_t nr = place[d];

    place[d] = sum;
    sum += nr;
  }
  for (size_t i = 0; i < n; ++i)
    to[place[digit (from[i], shift)]++] = from[i];
  return true;
}

/* Sort an array, which may be exchanged for another one. */
static int
sort (uint64_t **array, size_t n)
{
  uint64_t *other = malloc (n * sizeof *other);
  uint64_t all = 0;

  if (other == NULL)
    return -1;
  for (size_t i = 0; i < n; ++i)
    all |= (*array)[i];
  for (unsigned shift = 0; shift < 64 && all >> shift; shift += DIGIT_BITS) {
    if (sort_digit (*array, other, n, shift)) {
      uint64_t *const sorted = other;

      other = *array;
      *array = sorted;
    }
  }
  free (other);
  return 0;
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
  if (sort (&c->bounds, 2 * n) == -1)
    return -1;
  for (size_t i = 0; i < 2 * n; ++i)
    if (i == 0 || c->bounds[i] != c->bounds[nr - 1])
      c->bounds[nr++] = c->bounds[i];
  c->nr_pieces = nr - 1;

  shorter = realloc (c->bounds, nr * sizeof *c->bounds);
  if (shorter)
    c->bounds = shorter;
  return 0;
}

/* A binary search misses the processor's caches at nearly each step, which
 * for all spans takes longer than all else here.  So the line is cut
 * evenly, and the search begins between two cuts: first[i] is the number
 * of bounds before cut i.
 */
#define GUIDE_BITS 16
struct guide {
  unsigned shift;
  uint32_t first[(1 << GUIDE_BITS) + 1];
};

static struct guide *
make_guide (const struct cover *c)
{
  const uint64_t length = c->bounds[c->nr_pieces] - c->bounds[0];
  struct guide *guide = malloc (sizeof *guide);
  size_t nr = 0;

  if (guide == NULL)
    return NULL;
  for (guide->shift = 0; length >> guide->shift >> GUIDE_BITS;)
    guide->shift++;
  for (uint64_t i = 0; i <= 1 << GUIDE_BITS; ++i) {
    while (nr <= c->nr_pieces &&
           (c->bounds[nr] - c->bounds[0]) >> guide->shift < i)
      nr++;
    guide->first[i] = nr;
  }
  return guide;
}

/* The number of bounds that are not behind a place, which is known to be
 * between these two.
 */
static size_t
bounds_up_to (const struct cover *c, uint64_t place, size_t from, size_t to)
{
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
  return c->nr_pieces > 0
    ? bounds_up_to (c, place, 0, c->nr_pieces + 1) - 1 : 0;
}

/* The same for a place that is one of the bounds. */
static size_t
find_bound (const struct cover *c, const struct guide *guide, uint64_t place)
{
  const size_t i = (place - c->bounds[0]) >> guide->shift;

  return bounds_up_to (c, place, guide->first[i], guide->first[i + 1]) - 1;
}

/* Give the bounds of spans as numbers of pieces. */
static int
number_bounds (const struct cover *c, struct cover_span *spans, size_t n)
{
  struct guide *guide = make_guide (c);

  if (guide == NULL)
    return -1;
  for (size_t i = 0; i < n; ++i) {
    spans[i].start = find_bound (c, guide, spans[i].start);
    spans[i].end = find_bound (c, guide, spans[i].end);
  }
  free (guide);
  return 0;
}

/* ---- The tree */

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
  if (collect_bounds (c, spans, n) == -1 || number_bounds (c, spans, n) == -1)
    goto error;

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

size_t
cover_count_below (const uint32_t *ids, size_t nr, uint64_t limit)
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
    const size_t nr =
      cover_count_below (ids, c->first[node + 1] - c->first[node], limit);

    if (nr > 0) {
      lists->list[lists->nr].ids = ids;
      lists->list[lists->nr].nr = nr;
      lists->nr++;
    }
  }
}

void
cover_cut (struct cover_lists *lists, uint64_t limit)
{
  for (unsigned i = 0; i < lists->nr;) {
    lists->list[i].nr =
      cover_count_below (lists->list[i].ids, lists->list[i].nr, limit);
    if (lists->list[i].nr > 0)
      i++;
    else
      lists->list[i] = lists->list[--lists->nr];
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
