/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Which of many numbered ranges cover a place, the latest first.  Built
 * once and then never changed, so it is read without locks.
 */

#ifndef BLOCKDRIVERS_COVER_H
#define BLOCKDRIVERS_COVER_H

#include <stddef.h>
#include <stdint.h>

/* A range start..end (not empty) and its number. */
struct cover_span {
  uint64_t start, end;
  uint32_t id;
};

/* The bounds of all ranges cut the line into pieces, each of which is
 * covered by one set of ranges.
 */
struct cover {
  uint64_t *bounds;             /* piece i is bounds[i]..bounds[i+1] */
  size_t nr_pieces;

  /* The tree (see cover.c): node i has ids[first[i]..first[i+1]]. */
  uint64_t *first;
  uint32_t *ids;
};

#define COVER_MAX_SPANS INT32_MAX

/* Build from n spans, at most COVER_MAX_SPANS, in ascending order of
 * their numbers.  The spans are used up: their bounds are changed.
 * Returns -1 with errno ENOMEM.
 */
extern int cover_build (struct cover *c, struct cover_span *spans, size_t n);

/* A cover that was zeroed and never built may be freed too. */
extern void cover_free (struct cover *c);

/* Bytes of memory. */
extern uint64_t cover_memory (const struct cover *c);

/* The piece that holds a place: 0..nr_pieces-1; SIZE_MAX before the
 * first one, nr_pieces behind the last one (and if there is none).
 */
extern size_t cover_find (const struct cover *c, uint64_t place);

/* The ranges that cover a piece: a few ascending lists of numbers,
 * each number in one of them.
 */
#define COVER_MAX_LISTS 33
struct cover_lists {
  unsigned nr;
  struct {
    const uint32_t *ids;        /* borrowed from the cover */
    size_t nr;                  /* at least 1 */
  } list[COVER_MAX_LISTS];
};

/* Those with a number below limit that cover a piece. */
extern void cover_below (const struct cover *c, size_t piece,
                         uint64_t limit, struct cover_lists *lists);

/* How many of nr ascending numbers are below limit? */
extern size_t cover_count_below (const uint32_t *ids, size_t nr,
                                 uint64_t limit);

/* Leave only the numbers below limit in lists. */
extern void cover_cut (struct cover_lists *lists, uint64_t limit);

/* Take the greatest number out of the lists.  COVER_NONE when they are
 * empty.
 */
#define COVER_NONE UINT32_MAX
extern uint32_t cover_pop (struct cover_lists *lists);

#endif /* BLOCKDRIVERS_COVER_H */
