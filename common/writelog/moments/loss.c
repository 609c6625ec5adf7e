/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Losses: drawn by a seed, or listed.
 *
 * Power loss
 *
 * A state after a power loss is drawn from the number of the flush and
 * the seed alone, so the same name is the same disk for ever, whoever
 * reads it and in whatever order.  The rules are in the manual, for those
 * who want to find the states of a log by other means; changing them
 * would change the meaning of every name that somebody has written down.
 *
 *   key       mix (mix (SEED) + N)
 *   moment    with r = mix (key + 1): if r is a multiple of 4, all
 *             entries up to the next flush; otherwise the first
 *             (r / 4) % (count + 1) of the count entries in between
 *   chance    chances[mix (key + 2) % 8] of 64
 *   whole     if mix (key + 3) is odd: writes are there or not there as
 *             a whole, otherwise unit by unit
 *   coin      mix (mix (key + entry) + unit) % 64 < chance, where the
 *             unit counts as 0 if writes are whole, and is the sector if
 *             nothing else is said
 *
 * That leaves out what a wider rule has: an entry that had not been
 * acknowledged, which only the last one is sure to be, is lost like others
 * although it is FUA, or the next flush with data, before which all is
 * there; and the data of the flush itself are not what it has flushed.
 * There about a quarter of the seeds end in such an entry.
 *
 *   end       if mix (key + 4) is a multiple of 4: not the moment above,
 *             but the last entry up to it that is FUA or the next flush,
 *             if there is any
 *
 * Chances from nearly none to all are among them, because file systems
 * break in both kinds of state: where little of a long interval is there,
 * and where one block of it is missing.  A chance of 64 gives the exact
 * state after each entry.  The least chance is not 0, so that a sector is
 * found after some 64 entries even if a million cover it.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/rounding.h"
#include "writelog/moments/loss.h"
#include "writelog/moments/moments.h"

void
writelog_moment_free (struct writelog_moment *moment)
{
  free (moment->lost);
  *moment = (struct writelog_moment) { .lost = NULL };
}

/* ---- By a seed */

/* One step of SplitMix64. */
static uint64_t
mix (uint64_t x)
{
  x += UINT64_C (0x9e3779b97f4a7c15);
  x = (x ^ (x >> 30)) * UINT64_C (0xbf58476d1ce4e5b9);
  x = (x ^ (x >> 27)) * UINT64_C (0x94d049bb133111eb);
  return x ^ (x >> 31);
}

/* Between flush n and the next: its first entry, and how many there are. */
static int
find_interval (const struct writelog_index *index, uint64_t n,
               uint64_t *start, uint64_t *count)
{
  const struct entry_list *flushes = &index->flushes;

  if (n > flushes->nr) {
    errno = ENOENT;
    return -1;
  }
  *start = n > 0 ? flushes->numbers[n - 1] + UINT64_C (1) : 0;
  *count = (n < flushes->nr ? flushes->numbers[n] : index->nr_entries) -
    *start;
  return 0;
}

/* Draw one of the moments in an interval. */
static void
draw (struct writelog_moment *moment, uint64_t n, uint64_t seed,
      uint64_t tear, uint64_t start, uint64_t count)
{
  static const uint8_t chances[8] = { 1, 8, 16, 32, 48, 56, 63, 64 };
  const uint64_t key = mix (mix (seed) + n);
  const uint64_t r = mix (key + 1);

  moment->seeded = true;
  moment->entries = start + (r % 4 == 0 ? count : r / 4 % (count + 1));
  moment->key = key;
  moment->chance = chances[mix (key + 2) % 8];
  moment->unit = mix (key + 3) % 2 == 1 ? TEAR_ENTRY : tear;
}

int
writelog_moment_crash (const struct writelog_index *index, uint64_t n,
                       uint64_t seed, uint64_t tear,
                       struct writelog_moment *moment)
{
  uint64_t start, count;

  if (find_interval (index, n, &start, &count) == -1)
    return -1;
  *moment = (struct writelog_moment) { .entries = start, .certain = start };
  if (seed != 0 && count > 0)
    draw (moment, n, seed, tear, start, count);
  return 0;
}

/* Has an entry data that its own flags do not make durable at once? */
static bool
is_volatile (const struct writelog_index *index, uint64_t entry)
{
  return index->nr_sectors[entry] > 0 &&
    !(index->flags[entry] & WRITELOG_FUA);
}

/* The last entry behind a FUA write, of those up to n; 0 if there is none. */
static uint64_t
behind_fua (const struct writelog_index *index, uint64_t n)
{
  const size_t nr = entry_list_below (&index->fuas, n);

  return nr > 0 ? index->fuas.numbers[nr - 1] + UINT64_C (1) : 0;
}

int
writelog_moment_cut (const struct writelog_index *index, uint64_t n,
                     uint64_t seed, uint64_t tear,
                     struct writelog_moment *moment)
{
  uint64_t start, count, next;

  if (find_interval (index, n, &start, &count) == -1)
    return -1;
  *moment = (struct writelog_moment) { .entries = start, .certain = start };
  if (seed == 0)
    return 0;

  next = start + count;         /* the next flush, or the end of the log */
  if (next < index->nr_entries && index->nr_sectors[next] > 0)
    count++;
  draw (moment, n, seed, tear, start, count);
  if (mix (moment->key + 4) % 4 == 0 && moment->entries <= next) {
    const uint64_t fua = behind_fua (index, moment->entries);

    if (fua > start)
      moment->entries = fua;
  }
  moment->in_flight = moment->entries > start;
  if (moment->entries > next)
    moment->certain = next;     /* it has flushed what was before it */
  else if (n > 0 && is_volatile (index, start - 1))
    moment->certain = start - 1;
  return 0;
}

static bool
coin (const struct writelog_moment *moment, uint64_t entry, uint64_t unit)
{
  return mix (mix (moment->key + entry) + unit) % 64 < moment->chance;
}

/* ---- By a list */

/* The first listed piece that ends behind a sector of an entry. */
static size_t
find_lost (const struct writelog_moment *moment, uint64_t entry,
           uint64_t sector)
{
  size_t low = 0, high = moment->nr_lost;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    const struct lost_piece *p = &moment->lost[middle];

    if (p->entry < entry || (p->entry == entry && p->end <= sector))
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

bool
writelog_can_lose (const struct writelog_index *index, uint64_t entry)
{
  return index->nr_sectors[entry] > 0;
}

static int
compare (const void *ap, const void *bp)
{
  const struct lost_piece *a = ap, *b = bp;

  if (a->entry != b->entry)
    return a->entry < b->entry ? -1 : 1;
  return a->start < b->start ? -1 : a->start > b->start;
}

/* Bring pieces in order, and join those that touch.  Returns how many there
 * are then.
 */
static size_t
join (struct lost_piece *lost, size_t nr)
{
  size_t n = 0;

  if (nr > 0)
    qsort (lost, nr, sizeof *lost, compare);
  for (size_t i = 0; i < nr; ++i)
    if (n > 0 && lost[n - 1].entry == lost[i].entry &&
        lost[n - 1].end >= lost[i].start)
      lost[n - 1].end = MAX (lost[n - 1].end, lost[i].end);
    else
      lost[n++] = lost[i];
  return n;
}

static bool
is_inside (const struct writelog_index *index, uint64_t n,
           const struct lost_piece *p)
{
  return p->entry < n && writelog_can_lose (index, p->entry) &&
    p->start >= index->sector[p->entry] && p->start < p->end &&
    p->end - index->sector[p->entry] <= index->nr_sectors[p->entry];
}

int
writelog_moment_lost (const struct writelog_index *index, uint64_t n,
                      const struct lost_piece *lost, size_t nr,
                      struct writelog_moment *moment, uint64_t *wrong)
{
  if (n > index->nr_entries) {
    errno = ENOENT;
    return -1;
  }
  for (size_t i = 0; i < nr; ++i)
    if (!is_inside (index, n, &lost[i])) {
      if (wrong)
        *wrong = lost[i].entry;
      errno = ENOENT;
      return -1;
    }
  *moment = (struct writelog_moment) { .entries = n, .certain = n };
  if (nr == 0)
    return 0;
  moment->lost = reallocarray (NULL, nr, sizeof *lost);
  if (moment->lost == NULL)
    return -1;
  memcpy (moment->lost, lost, nr * sizeof *lost);
  moment->nr_lost = join (moment->lost, nr);
  moment->certain = moment->lost[0].entry;
  return 0;
}

struct writelog_moment
writelog_moment_only (uint64_t start, uint64_t entry)
{
  return (struct writelog_moment) {
    .entries = entry + 1, .certain = start, .bare = true, .one = entry,
  };
}

/* ---- SET */

struct set {
  struct lost_piece *lost;
  size_t nr, allocated;
};

static int
add (struct set *set, uint64_t entry, uint64_t start, uint64_t end)
{
  if (set->nr == set->allocated) {
    const size_t wanted = 2 * set->allocated + 16;
    void *larger = reallocarray (set->lost, wanted, sizeof *set->lost);

    if (larger == NULL)
      return -1;
    set->lost = larger;
    set->allocated = wanted;
  }
  set->lost[set->nr++] = (struct lost_piece) { entry, start, end };
  return 0;
}

static bool
parse_number (const char **text, uint64_t *n)
{
  const char *p = *text;

  *n = 0;
  for (; *p >= '0' && *p <= '9'; ++p)
    if (__builtin_mul_overflow (*n, 10, n) ||
        __builtin_add_overflow (*n, *p - '0', n))
      return false;
  if (p == *text)
    return false;
  *text = p;
  return true;
}

/* "-N" or nothing. */
static bool
parse_last (const char **text, uint64_t *n)
{
  if (**text != '-')
    return true;
  ++*text;
  return parse_number (text, n);
}

static int
refuse (uint64_t entry, uint64_t *wrong)
{
  *wrong = entry;
  errno = ENOENT;
  return -1;
}

/* All of some entries, or some sectors of one. */
static int
parse_item (const struct writelog_index *index, uint64_t n,
            const char **text, struct set *set, uint64_t *wrong)
{
  uint64_t first, last, from = 0, to;

  if (!parse_number (text, &first))
    return refuse (UINT64_MAX, wrong);
  last = first;
  if (**text == ':') {
    ++*text;
    if (!parse_number (text, &from))
      return refuse (first, wrong);
    to = from;
    if (!parse_last (text, &to) || to < from || first >= n ||
        to >= index->nr_sectors[first])
      return refuse (first, wrong);
    return add (set, first, index->sector[first] + from,
                index->sector[first] + to + 1);
  }
  if (!parse_last (text, &last) || last < first)
    return refuse (first, wrong);
  for (uint64_t e = first; e <= last; ++e) {
    if (e >= n || !writelog_can_lose (index, e))
      return refuse (e, wrong);
    if (add (set, e, index->sector[e],
             index->sector[e] + index->nr_sectors[e]) == -1)
      return -1;
  }
  return 0;
}

int
writelog_lost_parse (const struct writelog_index *index, uint64_t n,
                     const char *text, struct writelog_moment *moment,
                     uint64_t *wrong)
{
  struct set set = { NULL };
  int r;

  *wrong = UINT64_MAX;
  if (n > index->nr_entries) {
    errno = ENOENT;
    return -1;
  }
  for (;;) {
    r = parse_item (index, n, &text, &set, wrong);
    if (r == -1 || *text != ',')
      break;
    ++text;
  }
  if (r == 0 && *text != '\0')
    r = refuse (UINT64_MAX, wrong);
  if (r == 0)
    r = writelog_moment_lost (index, n, set.lost, set.nr, moment, wrong);
  free (set.lost);
  return r;
}

static bool
is_whole (const struct writelog_index *index, const struct lost_piece *p)
{
  return p->start == index->sector[p->entry] &&
    p->end - p->start == index->nr_sectors[p->entry];
}

char *
writelog_lost_print (const struct writelog_index *index,
                     const struct lost_piece *lost, size_t nr)
{
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  if (fp == NULL)
    return NULL;
  for (size_t i = 0; i < nr; ++i) {
    const struct lost_piece *p = &lost[i];
    const uint64_t sector = index->sector[p->entry];
    size_t last = i;

    fprintf (fp, "%s%" PRIu64, i > 0 ? "," : "", p->entry);
    if (!is_whole (index, p)) {
      fprintf (fp, ":%" PRIu64 "-%" PRIu64, p->start - sector,
               p->end - 1 - sector);
      continue;
    }
    while (last + 1 < nr && lost[last + 1].entry == lost[last].entry + 1 &&
           is_whole (index, &lost[last + 1]))
      last++;
    if (last > i)
      fprintf (fp, "-%" PRIu64, lost[last].entry);
    i = last;
  }
  if (fclose (fp) != 0) {
    free (text);
    text = NULL;
  }
  return text;
}

/* ---- What is there */

enum presence
moment_presence (const struct writelog_index *index,
                 const struct writelog_moment *moment, uint64_t entry)
{
  size_t i;

  if (entry < moment->certain)
    return PRESENT;
  if (moment->bare)
    return entry == moment->one || (index->flags[entry] & WRITELOG_FUA)
      ? PRESENT : ABSENT;
  if (moment->seeded) {
    if ((index->flags[entry] & WRITELOG_FUA) &&
        !(moment->in_flight && entry == moment->entries - 1))
      return PRESENT;
    if (moment->unit != TEAR_ENTRY)
      return IN_PARTS;
    return coin (moment, entry, 0) ? PRESENT : ABSENT;
  }
  i = find_lost (moment, entry, 0);
  if (i == moment->nr_lost || moment->lost[i].entry != entry)
    return PRESENT;
  return is_whole (index, &moment->lost[i]) ? ABSENT : IN_PARTS;
}

uint64_t
moment_absent_from (const struct writelog_index *index,
                    const struct writelog_moment *moment, uint64_t entry)
{
  uint64_t from;

  if (!moment->bare)
    return entry;
  from = MAX (moment->certain, behind_fua (index, entry));
  return moment->one < entry ? MAX (from, moment->one + 1) : from;
}

bool
moment_has (const struct writelog_index *index,
            const struct writelog_moment *moment, uint64_t entry,
            uint64_t sector)
{
  size_t i;

  switch (moment_presence (index, moment, entry)) {
  case PRESENT: return true;
  case ABSENT: return false;
  default: break;
  }
  if (moment->seeded)
    return coin (moment, entry, sector / moment->unit);
  i = find_lost (moment, entry, sector);
  return i == moment->nr_lost || moment->lost[i].entry != entry ||
    sector < moment->lost[i].start;
}

/* Up to where is it the same for the sectors of an entry from this one on, of
 * which some are lost?  That may be a discard of many millions.
 */
static uint64_t
same_until (const struct writelog_moment *moment, uint64_t entry,
            uint64_t sector, uint64_t end)
{
  const struct lost_piece *p;
  size_t i;

  if (moment->seeded) {
    const uint64_t left = moment->unit - sector % moment->unit;

    return left < end - sector ? sector + left : end;
  }
  i = find_lost (moment, entry, sector);
  if (i == moment->nr_lost || moment->lost[i].entry != entry)
    return end;
  p = &moment->lost[i];
  return MIN (end, sector < p->start ? p->start : p->end);
}

/* Add what has been lost of an entry, of which that is some parts. */
static int
add_parts (const struct writelog_index *index,
           const struct writelog_moment *moment, uint64_t entry,
           struct set *set)
{
  const uint64_t end = index->sector[entry] + index->nr_sectors[entry];
  const size_t nr = set->nr;

  for (uint64_t s = index->sector[entry], next; s < end; s = next) {
    next = same_until (moment, entry, s, end);
    if (!moment_has (index, moment, entry, s) &&
        add (set, entry, s, next) == -1)
      return -1;
  }
  /* Those of other entries have been joined. */
  if (set->nr > nr)
    set->nr = nr + join (set->lost + nr, set->nr - nr);
  return 0;
}

static int
copy_lost (const struct writelog_moment *moment, struct lost_piece **lost,
           size_t *nr)
{
  *lost = NULL;
  *nr = moment->nr_lost;
  if (moment->nr_lost == 0)
    return 0;
  *lost = reallocarray (NULL, moment->nr_lost, sizeof **lost);
  if (*lost == NULL)
    return -1;
  memcpy (*lost, moment->lost, moment->nr_lost * sizeof **lost);
  return 0;
}

int
writelog_moment_losses (const struct writelog_index *index,
                        const struct writelog_moment *moment,
                        struct lost_piece **lost, size_t *nr)
{
  struct set set = { NULL };

  if (!moment->seeded && !moment->bare)
    return copy_lost (moment, lost, nr);
  for (uint64_t e = moment->certain; e < moment->entries; ++e) {
    const uint64_t start = index->sector[e];
    const uint64_t end = start + index->nr_sectors[e];

    switch (moment_presence (index, moment, e)) {
    case PRESENT:
      continue;
    case ABSENT:
      if (end > start && add (&set, e, start, end) == -1)
        goto error;
      continue;
    default:
      if (add_parts (index, moment, e, &set) == -1)
        goto error;
    }
  }
  *lost = set.lost;
  *nr = set.nr;
  return 0;

 error:
  free (set.lost);
  return -1;
}
