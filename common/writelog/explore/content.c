/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Contents as numbers.
 *
 * Every sector has a random weight and every entry a random factor, and the
 * number is the sum of their products modulo 2^64.  The weight of sector s
 * is r(s + 1) - r(s) for a random function r, so that of a run of sectors is
 * found at once, however the run is cut.
 */

#include <config.h>

#include "writelog/explore/content.h"
#include "writelog/format.h"
#include "writelog/moments/state.h"

/* Parts of the disk that are looked at for one share: as many as the longest
 * writes have, and not all that a discard of the whole disk covers, of which a
 * log may have many.
 */
#define MOST_PARTS 1024

/* The end of SplitMix64: a random function. */
static uint64_t
random_of (uint64_t x)
{
  x += UINT64_C (0x9e3779b97f4a7c15);
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

static uint64_t
factor (const struct content *c, uint64_t entry)
{
  if (entry == WRITELOG_NO_ENTRY)
    return 0;
  if (writelog_index_entry (c->index, entry).flags & WRITELOG_DISCARD)
    return c->zero_base ? 0 : 1;
  return random_of (~entry) | 1;
}

uint64_t
content_of_entry (const struct content *c, uint64_t entry, uint64_t start,
                  uint64_t end)
{
  return factor (c, entry) * (random_of (end) - random_of (start));
}

struct sum {
  const struct content *c;
  uint64_t value;
};

static void
add_run (void *opaque, uint64_t start, uint64_t end, uint32_t entry)
{
  struct sum *sum = opaque;

  sum->value += content_of_entry (sum->c, entry, start, end);
}

uint64_t
content_share (struct content *c,
               const struct writelog_moment *moment, uint64_t start,
               uint64_t end)
{
  struct sum sum = { .c = c };

  if (writelog_moment_visit (c->index, moment, start, end, MOST_PARTS, add_run,
                             &sum))
    return sum.value;
  return random_of (random_of (++c->nr_given_up));
}
