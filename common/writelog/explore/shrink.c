/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Shrinking, by delta debugging (Zeller and Hildebrandt, ddmin) and by
 * bisection.
 *
 * Several tries run at the same time, but what is found is the same as if
 * they ran one after the other: of a row of tries the first that is bad
 * counts, and those behind it are forgotten.  So a report does not depend on
 * the number of jobs.
 *
 * Pieces of one entry are lost together or not at all.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/explore/plan.h"
#include "writelog/explore/shrink.h"

/* Export names that NBD takes. */
#define MAX_EXPORT 4096

void
shrink_free (struct shrink *s)
{
  free (s->known);
  s->known = NULL;
  s->nr_known = 0;
}

void
least_free (struct least *least)
{
  free (least->lost);
  try_free (&least->outcome);
  *least = (struct least) { .lost = NULL };
}

/* ---- Moments without losses */

static size_t
find_known (const struct shrink *s, uint64_t entries)
{
  size_t low = 0, high = s->nr_known;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (s->known[middle].entries < entries)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

int
shrink_note (struct shrink *s, uint64_t entries, enum try_verdict verdict)
{
  const size_t i = find_known (s, entries);

  if (i < s->nr_known && s->known[i].entries == entries)
    return 0;
  if (s->nr_known == s->allocated) {
    const size_t wanted = 2 * s->allocated + 64;
    void *larger = reallocarray (s->known, wanted, sizeof *s->known);

    if (larger == NULL)
      return -1;
    s->known = larger;
    s->allocated = wanted;
  }
  memmove (&s->known[i + 1], &s->known[i],
           (s->nr_known - i) * sizeof *s->known);
  s->known[i] = (struct known) { entries, verdict };
  s->nr_known++;
  return 0;
}

/* ---- Trying a row of sets */

/* Sets of pieces that are lost of the first entries. */
struct row {
  struct shrink *shrink;
  uint64_t entries;
  size_t nr;
  const struct lost_piece *(*set) (void *opaque, size_t i, size_t *nr);
  void *opaque;

  size_t first_bad;             /* or SIZE_MAX */
  struct try_outcome outcome;   /* of that one */
  enum try_verdict verdict;     /* of the last one */
};

static int
next_of_row (void *opaque, size_t number, struct try_task *task)
{
  struct row *const row = opaque;
  const struct lost_piece *set;
  size_t nr;

  if (number >= row->nr || number > row->first_bad)
    return 0;
  set = row->set (row->opaque, number, &nr);
  if (writelog_moment_lost (row->shrink->index, row->entries, set, nr,
                            &task->moment, NULL) == -1)
    return -1;
  task->export = plan_moment_name (row->shrink->index, &task->moment);
  if (task->export && strlen (task->export) > MAX_EXPORT)
    task->export[0] = '\0';
  if (task->export == NULL) {
    try_free_task (task);
    return -1;
  }
  return 1;
}

static bool
done_of_row (void *opaque, size_t number, struct try_outcome *outcome)
{
  struct row *const row = opaque;

  row->verdict = outcome->verdict;
  if (outcome->verdict == TRY_BAD && number < row->first_bad) {
    row->first_bad = number;
    try_free (&row->outcome);
    row->outcome = *outcome;
    *outcome = (struct try_outcome) { .why = NULL };
  }
  return true;
}

/* Try the sets of a row, as many as still may be.  -1 if interrupted. */
static int
try_row (struct row *row, uint64_t *left)
{
  row->first_bad = SIZE_MAX;
  row->outcome = (struct try_outcome) { .why = NULL };
  row->nr = MIN (row->nr, *left);
  if (row->nr == 0)
    return 0;
  if (pool_run (row->shrink->pool, next_of_row, done_of_row, NULL,
                row) == -1) {
    try_free (&row->outcome);
    return -1;
  }
  row->nr = MIN (row->nr, row->first_bad == SIZE_MAX ? SIZE_MAX
                                                     : row->first_bad + 1);
  *left -= row->nr;
  row->shrink->runs += row->nr;
  return 0;
}

/* The outcome of the state that is the least so far. */
static void
take_outcome (struct row *row, struct least *least)
{
  try_free (&least->outcome);
  least->outcome = row->outcome;
  least->tried = true;
}

static const struct lost_piece *
one_set (void *opaque, size_t i, size_t *nr)
{
  const struct least *const set = opaque;

  *nr = set->nr_lost;
  return set->lost;
}

/* Is this set bad?  1, 0, or -1 if interrupted.  0 also if there are no runs
 * left.
 */
static int
is_bad (struct shrink *s, uint64_t entries, const struct least *set,
        uint64_t *left, struct least *least)
{
  struct row row = {
    .shrink = s, .entries = entries, .nr = 1, .set = one_set,
    .opaque = (void *) set,
  };

  if (try_row (&row, left) == -1)
    return -1;
  if (row.nr > 0 && set->nr_lost == 0 &&
      shrink_note (s, entries, row.verdict) == -1) {
    msg_error ("shrink: %m");
    return -1;
  }
  if (row.first_bad == SIZE_MAX)
    return 0;
  take_outcome (&row, least);
  return 1;
}

/* ---- The first bad entry */

/* The last good moment that is known before one; false if there is none. */
static bool
good_before (const struct shrink *s, uint64_t entries, uint64_t *good)
{
  for (size_t i = find_known (s, entries); i-- > 0;)
    if (s->known[i].verdict == TRY_GOOD) {
      *good = s->known[i].entries;
      return true;
    }
  return false;
}

static int
bisect (struct shrink *s, uint64_t bad, uint64_t *left, struct least *least)
{
  const struct least none = { .lost = NULL };
  uint64_t good;
  int r;

  least->good = UINT64_MAX;
  if (!good_before (s, bad, &good)) {
    good = s->from;
    if (good < bad && *left == 0)
      return 0;
    if (good < bad) {
      r = is_bad (s, good, &none, left, least);
      if (r == -1)
        return -1;
      if (r == 1)
        bad = good;
    }
    if (good == bad) {
      least->entries = bad;
      return 0;
    }
  }
  while (bad - good > 1 && *left > 0) {
    const uint64_t middle = good + (bad - good) / 2;

    r = is_bad (s, middle, &none, left, least);
    if (r == -1)
      return -1;
    if (r == 1)
      bad = middle;
    else
      good = middle;
  }
  least->entries = bad;
  least->good = good;
  least->proven = bad - good == 1;
  return 0;
}

/* ---- The least set */

/* A set that is cut in parts. */
struct parts {
  const struct lost_piece *lost;
  size_t nr;
  size_t *firsts;               /* of each entry, its first piece; one more
                                   for the end */
  size_t nr_entries;
  size_t n;                     /* parts */
  bool others;                  /* all but a part, not the part */
  struct lost_piece *room;      /* for a set */
};

static size_t
part_start (const struct parts *p, size_t i)
{
  return p->firsts[part_begins (i, p->n, p->nr_entries)];
}

static const struct lost_piece *
part_set (void *opaque, size_t i, size_t *nr)
{
  struct parts *const p = opaque;
  const size_t start = part_start (p, i), end = part_start (p, i + 1);

  if (!p->others) {
    *nr = end - start;
    return p->lost + start;
  }
  memcpy (p->room, p->lost, start * sizeof *p->lost);
  memcpy (p->room + start, p->lost + end, (p->nr - end) * sizeof *p->lost);
  *nr = p->nr - (end - start);
  return p->room;
}

static void
find_entries (struct parts *p)
{
  p->nr_entries = 0;
  for (size_t i = 0; i < p->nr; ++i)
    if (i == 0 || p->lost[i].entry != p->lost[i - 1].entry)
      p->firsts[p->nr_entries++] = i;
  p->firsts[p->nr_entries] = p->nr;
}

/* Take the set of a row that was bad. */
static void
take_set (struct parts *p, struct least *least, size_t i)
{
  size_t nr;
  const struct lost_piece *const set = part_set (p, i, &nr);

  memmove (least->lost, set, nr * sizeof *set);
  least->nr_lost = p->nr = nr;
  find_entries (p);
}

/* Try the parts, or all others of each.  1 if one was taken. */
static int
try_parts (struct shrink *s, struct parts *p, bool others, uint64_t *left,
           struct least *least)
{
  struct row row = {
    .shrink = s, .entries = least->entries, .nr = p->n, .set = part_set,
    .opaque = p,
  };

  p->others = others;
  if (try_row (&row, left) == -1)
    return -1;
  if (row.first_bad == SIZE_MAX)
    return 0;
  take_outcome (&row, least);
  take_set (p, least, row.first_bad);
  return 1;
}

/* least->lost is bad; make it one of which no entry can be left out. */
static int
delta_debug (struct shrink *s, uint64_t *left, struct least *least)
{
  CLEANUP_FREE size_t *firsts = calloc (least->nr_lost + 1, sizeof *firsts);
  CLEANUP_FREE struct lost_piece *room =
    calloc (least->nr_lost, sizeof *room);
  struct parts p = {
    .lost = least->lost, .nr = least->nr_lost, .firsts = firsts,
    .room = room, .n = 2,
  };

  if (firsts == NULL || room == NULL) {
    msg_error ("shrink: %m");
    return -1;
  }
  find_entries (&p);
  while (p.nr_entries > 1 && *left > 0) {
    int r = try_parts (s, &p, false, left, least);

    if (r == 1) {
      p.n = 2;
      continue;
    }
    if (r == 0 && p.n > 2)
      r = try_parts (s, &p, true, left, least);
    if (r == -1)
      return -1;
    if (r == 1)
      p.n = MAX (p.n - 1, (size_t) 2);
    else if (p.n == p.nr_entries)
      break;
    else
      p.n = MIN (2 * p.n, p.nr_entries);
  }
  least->proven = *left > 0 || (p.nr_entries <= 1 && s->most > 0);
  return 0;
}

/* ---- Whole writes */

/* All of the entries of which something is lost, to be freed.  NULL if that is
 * the same, or with errno.
 */
static struct lost_piece *
whole_entries (const struct shrink *s, const struct least *least, size_t *nr)
{
  struct lost_piece *all = calloc (least->nr_lost, sizeof *all);
  bool same = true;

  errno = 0;
  *nr = 0;
  for (size_t i = 0; all && i < least->nr_lost; ++i) {
    const struct lost_piece *const p = &least->lost[i];
    const struct writelog_index_entry e =
      writelog_index_entry (s->index, p->entry);

    if (*nr > 0 && all[*nr - 1].entry == p->entry)
      continue;
    all[(*nr)++] = (struct lost_piece) { p->entry, e.sector,
                                         e.sector + e.nr_sectors };
    if (p->end - p->start < e.nr_sectors)
      same = false;
  }
  if (same) {
    free (all);
    all = NULL;
  }
  return all;
}

/* If it is as bad to lose the writes wholly, the parts do not matter, and
 * what is told is the same whatever parts were drawn.
 */
static int
widen (struct shrink *s, uint64_t *left, struct least *least)
{
  struct least all = { .entries = least->entries };
  int r;

  all.lost = whole_entries (s, least, &all.nr_lost);
  if (all.lost == NULL) {
    if (errno == 0)
      return 0;
    msg_error ("shrink: %m");
    return -1;
  }
  r = is_bad (s, least->entries, &all, left, least);
  if (r <= 0) {
    free (all.lost);
    return r;
  }
  free (least->lost);
  least->lost = all.lost;
  least->nr_lost = all.nr_lost;
  return all.nr_lost > 1 ? delta_debug (s, left, least) : 0;
}

/* ---- All of it */

/* Are all pieces of a in b? */
static bool
is_part (const struct least *a, const struct least *b)
{
  size_t j = 0;

  for (size_t i = 0; i < a->nr_lost; ++i) {
    const struct lost_piece *const p = &a->lost[i];

    while (j < b->nr_lost && (b->lost[j].entry < p->entry ||
                              (b->lost[j].entry == p->entry &&
                               b->lost[j].end < p->end)))
      j++;
    if (j == b->nr_lost || b->lost[j].entry != p->entry ||
        b->lost[j].start > p->start)
      return false;
  }
  return true;
}

static int
guess (struct shrink *s, const struct least *const *guesses, size_t nr,
       uint64_t *left, struct least *least)
{
  for (size_t i = 0; i < nr; ++i) {
    struct lost_piece *copy;
    int r;

    if (guesses[i]->nr_lost == 0 || !is_part (guesses[i], least))
      continue;
    r = is_bad (s, least->entries, guesses[i], left, least);
    if (r == -1)
      return -1;
    if (r == 0)
      continue;
    copy = reallocarray (NULL, guesses[i]->nr_lost, sizeof *copy);
    if (copy == NULL) {
      msg_error ("shrink: %m");
      return -1;
    }
    memcpy (copy, guesses[i]->lost, guesses[i]->nr_lost * sizeof *copy);
    free (least->lost);
    least->lost = copy;
    least->nr_lost = guesses[i]->nr_lost;
    least->proven = guesses[i]->proven;
    return 1;
  }
  return 0;
}

/* Is the moment bad, too, if nothing is lost? */
static int
is_bad_anyway (struct shrink *s, uint64_t *left, struct least *least)
{
  const struct least none = { .lost = NULL };
  const size_t i = find_known (s, least->entries);

  if (i < s->nr_known && s->known[i].entries == least->entries)
    return s->known[i].verdict == TRY_BAD;
  return is_bad (s, least->entries, &none, left, least);
}

int
shrink_moment (struct shrink *s, const struct writelog_moment *moment,
               const struct least *const *guesses, size_t nr,
               struct least *least)
{
  uint64_t left = s->most;
  int r;

  *least = (struct least) { .entries = moment->entries, .good = UINT64_MAX };
  if (writelog_moment_losses (s->index, moment, &least->lost,
                              &least->nr_lost) == -1) {
    msg_error ("shrink: %m");
    return -1;
  }
  r = least->nr_lost > 0 ? is_bad_anyway (s, &left, least) : 1;
  if (r == 1) {
    least->nr_lost = 0;
    return bisect (s, least->entries, &left, least);
  }
  if (r == 0)
    r = guess (s, guesses, nr, &left, least);
  if (r != 0)
    return MIN (r, 0);
  if (delta_debug (s, &left, least) == -1)
    return -1;
  return widen (s, &left, least);
}
