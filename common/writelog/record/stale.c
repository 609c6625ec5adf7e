/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The line of sectors is cut into steps, in an array in order.  As FUA
 * entries come one after the other, the latest on a sector makes stale
 * all that the earlier ones did, so one number a step says it all.
 *
 * Discards are counted, not remembered one by one: the count may be too
 * high after some of them have been logged while others are still held.
 * It begins anew once the last of them has been logged.
 *
 * Inserting moves what is behind, at most as much as is allowed here,
 * which takes a fraction of a millisecond.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "utils/rounding.h"
#include "writelog/record/stale.h"

/* 4 MiB.  A FUA entry, or a discard, needs two at most. */
#define MAX_STEPS ((size_t) 128 * 1024)

int
stale_init (struct stale *s)
{
  *s = (struct stale) { .steps = NULL };
  return stale_has_room (s) ? 0 : -1;
}

void
stale_clear (struct stale *s)
{
  s->n = 0;
}

void
stale_free (struct stale *s)
{
  free (s->steps);
  *s = (struct stale) { .steps = NULL };
}

bool
stale_has_room (struct stale *s)
{
  const size_t max = MAX (s->max * 2, (size_t) 64);
  struct stale_step *steps;

  if (s->n + 2 <= s->max)
    return true;
  if (max > MAX_STEPS)
    return false;
  steps = realloc (s->steps, max * sizeof *steps);
  if (steps == NULL)
    return false;
  s->steps = steps;
  s->max = max;
  return true;
}

/* The first step that begins behind a sector. */
static size_t
find_behind (const struct stale *s, uint64_t sector)
{
  size_t low = 0, high = s->n;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (s->steps[middle].start <= sector)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* See that a step begins at a sector.  Returns its index. */
static size_t
cut_at (struct stale *s, uint64_t sector)
{
  const size_t i = find_behind (s, sector);
  struct stale_step step = { .start = sector };

  if (i > 0) {
    if (s->steps[i - 1].start == sector)
      return i - 1;
    step = s->steps[i - 1];
    step.start = sector;
  }
  memmove (s->steps + i + 1, s->steps + i, (s->n - i) * sizeof step);
  s->steps[i] = step;
  s->n++;
  return i;
}

/* Remove the steps from first on, before end. */
static void
remove_steps (struct stale *s, size_t first, size_t end)
{
  memmove (s->steps + first, s->steps + end,
           (s->n - end) * sizeof s->steps[0]);
  s->n -= end - first;
}

/* Is a step like the one before it, so that it is not needed?  If only
 * the last discards differ the later one serves for both.
 */
static bool
merge (struct stale_step *before, const struct stale_step *step)
{
  static const struct stale_step nothing;

  if (step->below != (before ? before : &nothing)->below ||
      step->discards != (before ? before : &nothing)->discards)
    return false;
  if (before)
    before->last = MAX (before->last, step->last);
  return true;
}

/* Merge the step i with the one before it. */
static void
merge_at (struct stale *s, size_t i)
{
  if (i < s->n && merge (i > 0 ? &s->steps[i - 1] : NULL, &s->steps[i]))
    remove_steps (s, i, i + 1);
}

void
stale_overtake (struct stale *s, uint64_t start, uint64_t end,
                uint64_t number)
{
  const size_t first = cut_at (s, start);
  const size_t behind = cut_at (s, end);

  s->steps[first] = (struct stale_step) { .start = start, .below = number };
  remove_steps (s, first + 1, behind);
  merge_at (s, first + 1);
  merge_at (s, first);
}

void
stale_discard (struct stale *s, uint64_t start, uint64_t end,
               uint64_t number)
{
  const size_t first = cut_at (s, start);
  const size_t behind = cut_at (s, end);

  for (size_t i = first; i < behind; ++i) {
    s->steps[i].discards++;
    s->steps[i].last = number;
  }
  merge_at (s, behind);
  merge_at (s, first);
}

uint64_t
stale_nr_discards (const struct stale *s, uint64_t sector)
{
  const size_t i = find_behind (s, sector);

  return i > 0 ? s->steps[i - 1].discards : 0;
}

bool
stale_at (const struct stale *s, uint64_t number, uint64_t at, uint64_t end,
          uint64_t *len)
{
  size_t i = find_behind (s, at);
  const bool stale = i > 0 && number < s->steps[i - 1].below;

  while (i < s->n && s->steps[i].start < end &&
         (number < s->steps[i].below) == stale)
    i++;
  *len = (i < s->n ? MIN (s->steps[i].start, end) : end) - at;
  return stale;
}

void
stale_forget (struct stale *s, uint64_t oldest)
{
  size_t kept = 0;

  for (size_t i = 0; i < s->n; ++i) {
    struct stale_step step = s->steps[i];

    if (step.below <= oldest)
      step.below = 0;
    if (step.last < oldest)
      step.discards = 0;
    if (!merge (kept > 0 ? &s->steps[kept - 1] : NULL, &step))
      s->steps[kept++] = step;
  }
  s->n = kept;
}
