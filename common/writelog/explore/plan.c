/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* States to try.
 *
 * Notes on the design
 *
 * The log is walked once, interval by interval: an interval is what stands
 * between two flushes.  On the way the number of the content (content.h) is
 * kept of the disk with all entries so far, and of the one with only those
 * that a power loss cannot take; a state differs from one of these by the
 * sectors of an entry or two, so its own number costs a look at these.  A
 * set of the numbers tells which states have been met.
 *
 * What may be lost: after flush N what was before it is there, and so are
 * FUA writes that were acknowledged.  The data of an entry with the flag
 * FLUSH, but not FUA, are not covered by its own flush, so they belong to
 * the interval behind it.  The last entry before a moment may not have been
 * acknowledged; it can be there in part, whatever its flags are.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/rounding.h"
#include "writelog/explore/content.h"
#include "writelog/explore/plan.h"
#include "writelog/moments/moment.h"

/* Where seeds choose sector by sector, intervals of more than so many are not
 * looked at for equal ones.
 */
#define MAX_SECTORS (UINT64_C (1) << 20)

/* Which end of the last write is there. */
enum { FRONT, BACK };

static const char *const kind_names[PLAN_KINDS] = {
  [PLAN_FLUSH] = "flush", [PLAN_MARK] = "mark", [PLAN_FUA] = "fua",
  [PLAN_ENTRY] = "entry", [PLAN_SINGLE] = "single", [PLAN_ONLY] = "only",
  [PLAN_TORN] = "torn", [PLAN_RANDOM] = "random",
};

const char *
plan_kind_name (enum plan_kind kind)
{
  return kind_names[kind];
}

static bool
parse_seeds (const char *text, size_t len, uint64_t *seeds)
{
  *seeds = 0;
  if (len == 0 || len > 9)
    return false;
  for (; len > 0; ++text, --len) {
    if (*text < '0' || *text > '9')
      return false;
    *seeds = 10 * *seeds + (*text - '0');
  }
  return *seeds > 0;
}

static bool
parse_kind (const char *word, size_t len, struct plan_wish *wish)
{
  const char *const colon = memchr (word, ':', len);
  const size_t name = colon ? (size_t) (colon - word) : len;

  for (unsigned kind = 0; kind < PLAN_KINDS; ++kind) {
    if (strlen (kind_names[kind]) != name ||
        memcmp (kind_names[kind], word, name) != 0)
      continue;
    wish->kinds[kind] = true;
    if (kind != PLAN_RANDOM)
      return colon == NULL;
    return colon && parse_seeds (colon + 1, len - name - 1, &wish->seeds);
  }
  return false;
}

bool
plan_parse_kinds (const char *list, struct plan_wish *wish)
{
  memset (wish->kinds, 0, sizeof wish->kinds);
  for (;;) {
    const size_t len = strcspn (list, ",");

    if (!parse_kind (list, len, wish))
      return false;
    if (list[len] == '\0')
      return true;
    list += len + 1;
  }
}

/* ---- States and their moments */

bool
plan_is_prefix (const struct plan_state *state)
{
  return state->kind <= PLAN_ENTRY;
}

/* What is lost of a write that is torn at its middle, or at the end of the
 * unit there: false if the whole lies in one unit.
 */
static bool
torn_piece (const struct plan *plan, uint64_t entry, unsigned end,
            struct lost_piece *lost)
{
  const struct writelog_index_entry e =
    writelog_index_entry (plan->index, entry);
  const uint64_t unit = plan->wish.tear;
  const uint64_t last = e.sector + e.nr_sectors;
  uint64_t cut;

  if (unit == TEAR_ENTRY || e.nr_sectors < 2)
    return false;
  cut = round_up (e.sector + e.nr_sectors / 2, unit);
  if (cut >= last)
    cut = round_down (last - 1, unit);
  if (cut <= e.sector)
    return false;
  *lost = end == FRONT ? (struct lost_piece) { entry, cut, last }
    : (struct lost_piece) { entry, e.sector, cut };
  return true;
}

static struct lost_piece
whole (const struct plan *plan, uint64_t entry)
{
  const struct writelog_index_entry e =
    writelog_index_entry (plan->index, entry);

  return (struct lost_piece) { entry, e.sector, e.sector + e.nr_sectors };
}

/* The first entry behind flush n. */
static uint64_t
interval_start (const struct writelog_index *index, uint64_t n)
{
  struct writelog_moment moment = { .entries = 0 };

  if (n > 0)
    writelog_moment_flag (index, WRITELOG_FLUSH, n, &moment);
  return moment.entries;
}

int
plan_moment (const struct plan *plan, const struct plan_state *state,
             struct writelog_moment *moment)
{
  struct lost_piece lost;

  switch (state->kind) {
  case PLAN_SINGLE:
    lost = whole (plan, state->place);
    return writelog_moment_lost (plan->index, state->entries, &lost, 1,
                                 moment, NULL);
  case PLAN_TORN:
    torn_piece (plan, state->entries - 1, state->choice, &lost);
    return writelog_moment_lost (plan->index, state->entries, &lost, 1,
                                 moment, NULL);
  case PLAN_ONLY:
    *moment = writelog_moment_only (interval_start (plan->index,
                                                    state->place),
                                    state->entries - 1);
    return 0;
  case PLAN_RANDOM:
    return writelog_moment_cut (plan->index, state->place, state->choice,
                                plan->wish.tear, moment);
  default:
    return writelog_moment_entries (plan->index, state->entries, moment);
  }
}

/* ---- Making the list */

struct make {
  struct plan *plan;
  struct content content;
  struct writelog_totals totals;
  size_t allocated;

  uint64_t at, number;          /* of the disk with the first entries */
  uint64_t flush;               /* the interval behind this flush */
  uint64_t start;               /* its first entry */
  uint64_t bare;                /* of the disk at its start, and with the FUA
                                   writes behind that */
  uint64_t marks;               /* before `at' */
  uint64_t fua;                 /* FUA writes up to `at' */

  /* The set: for each number the state and how many marks are before it.
   * A place is free if its state is NONE.
   */
  struct met {
    uint64_t number;
    uint32_t state, marks;
  } *met;
  size_t met_size;              /* a power of two */
};

#define NONE UINT32_MAX

static struct met *
find_met (const struct make *m, uint64_t number)
{
  size_t i = number & (m->met_size - 1);

  while (m->met[i].state != NONE && m->met[i].number != number)
    i = (i + 1) & (m->met_size - 1);
  return &m->met[i];
}

static int
grow_met (struct make *m)
{
  struct met *const old = m->met;
  const size_t old_size = m->met_size;

  if (m->plan->nr < old_size - old_size / 8)
    return 0;
  m->met_size = MAX (2 * old_size, (size_t) 64);
  m->met = malloc (m->met_size * sizeof *m->met);
  if (m->met == NULL) {
    m->met = old;
    m->met_size = old_size;
    return -1;
  }
  for (size_t i = 0; i < m->met_size; ++i)
    m->met[i].state = NONE;
  for (size_t i = 0; i < old_size; ++i)
    if (old[i].state != NONE)
      *find_met (m, old[i].number) = old[i];
  free (old);
  return 0;
}

static int
grow_states (struct make *m)
{
  struct plan *const plan = m->plan;
  const size_t wanted = m->allocated + m->allocated / 2 + 64;
  struct plan_state *larger;

  if (plan->nr < m->allocated)
    return 0;
  if (plan->nr == NONE - 1) {
    errno = ENOMEM;
    return -1;
  }
  larger = reallocarray (plan->states, wanted, sizeof *larger);
  if (larger == NULL)
    return -1;
  plan->states = larger;
  m->allocated = wanted;
  return 0;
}

/* Is a state, behind so many marks, better than the one that was met with the
 * same content?
 */
static bool
is_better (const struct make *m, const struct plan_state *state,
           uint64_t marks, const struct met *met)
{
  if (marks != met->marks)
    return marks > met->marks;
  return plan_is_prefix (state) &&
    !plan_is_prefix (&m->plan->states[met->state]);
}

/* A state with a content of this number.  If that was met, the better one is
 * kept.
 */
static int
add (struct make *m, enum plan_kind kind, uint64_t entries, uint64_t place,
     uint64_t choice, uint64_t number, uint64_t marks)
{
  const struct plan_wish *const wish = &m->plan->wish;
  const struct plan_state state = {
    .entries = entries, .place = place, .choice = choice, .kind = kind,
  };
  struct met *met;

  if (entries < wish->from || entries > wish->to)
    return 0;
  m->plan->found++;
  if (grow_met (m) == -1 || grow_states (m) == -1)
    return -1;
  met = find_met (m, number);
  if (met->state != NONE) {
    if (is_better (m, &state, marks, met)) {
      m->plan->states[met->state] = state;
      met->marks = marks;
    }
    return 0;
  }
  *met = (struct met) { number, m->plan->nr, marks };
  m->plan->states[m->plan->nr++] = state;
  return 0;
}

static uint64_t
share (struct make *m, const struct writelog_moment *moment,
       const struct lost_piece *p)
{
  return content_share (&m->content, moment, p->start, p->end);
}

/* What the number grows by if a piece of an entry comes over a moment. */
static uint64_t
change (struct make *m, const struct writelog_moment *moment,
        const struct lost_piece *p)
{
  return content_of_entry (&m->content, p->entry, p->start, p->end) -
    share (m, moment, p);
}

static bool
has_kind (const struct make *m, enum plan_kind kind)
{
  return m->plan->wish.kinds[kind];
}

/* The last write in part: both what is at the front and at the back. */
static int
add_torn (struct make *m, uint64_t entry)
{
  const struct writelog_moment before = { .entries = entry,
                                          .certain = entry };
  struct lost_piece lost, there;

  for (unsigned end = FRONT; end <= BACK; ++end) {
    if (!torn_piece (m->plan, entry, end, &lost) ||
        !torn_piece (m->plan, entry, end == FRONT ? BACK : FRONT, &there))
      return 0;
    if (add (m, PLAN_TORN, entry + 1, 0, end,
             m->number + change (m, &before, &there), m->marks) == -1)
      return -1;
  }
  return 0;
}

/* Exactly one entry behind the flush. */
static int
add_only (struct make *m, uint64_t entry)
{
  struct writelog_moment bare = writelog_moment_only (m->start, entry);
  const struct lost_piece all = whole (m->plan, entry);
  uint64_t number;

  bare.one = UINT64_MAX;
  bare.entries = entry;
  number = m->bare + change (m, &bare, &all);
  if (writelog_index_entry (m->plan->index, entry).flags & WRITELOG_FUA)
    m->bare = number;
  if (!has_kind (m, PLAN_ONLY))
    return 0;
  return add (m, PLAN_ONLY, entry + 1, m->flush, 0, number, m->marks);
}

/* All up to an entry, if it is one of those that are wanted. */
static int
add_prefixes (struct make *m, const struct writelog_index_entry *e)
{
  int r = 0;

  if (has_kind (m, PLAN_FLUSH) && (e->flags & WRITELOG_FLUSH))
    r = add (m, PLAN_FLUSH, m->at, m->flush, 0, m->number, m->marks);
  if (r == 0 && has_kind (m, PLAN_FUA) && (e->flags & WRITELOG_FUA))
    r = add (m, PLAN_FUA, m->at, m->fua, 0, m->number, m->marks);
  /* Behind the mark, which changes nothing, so that it counts as met. */
  if (r == 0 && has_kind (m, PLAN_MARK) && (e->flags & WRITELOG_MARK))
    r = add (m, PLAN_MARK, m->at, 0, 0, m->number, m->marks);
  if (r == 0 && has_kind (m, PLAN_ENTRY))
    r = add (m, PLAN_ENTRY, m->at, 0, 0, m->number, m->marks);
  return r;
}

/* Go over the next entry. */
static int
advance (struct make *m)
{
  const struct writelog_moment before = { .entries = m->at,
                                          .certain = m->at };
  const uint64_t entry = m->at;
  const struct writelog_index_entry e =
    writelog_index_entry (m->plan->index, entry);
  const struct lost_piece all = whole (m->plan, entry);
  const bool flush = e.flags & WRITELOG_FLUSH;

  if (e.nr_sectors > 0) {
    if (has_kind (m, PLAN_TORN) && add_torn (m, entry) == -1)
      return -1;
    if (!flush && add_only (m, entry) == -1)
      return -1;
    m->number += change (m, &before, &all);
  }
  m->at++;
  m->marks += (e.flags & WRITELOG_MARK) != 0;
  m->fua += (e.flags & WRITELOG_FUA) != 0;
  if (flush) {
    m->flush++;
    m->start = m->at;
    m->bare = m->number;
  }
  return add_prefixes (m, &e);
}

/* ---- The end of an interval */

static int
add_single (struct make *m, uint64_t entry)
{
  const struct writelog_moment all = { .entries = m->at, .certain = m->at };
  struct lost_piece piece = whole (m->plan, entry);
  const struct writelog_moment lost = {
    .entries = m->at, .certain = entry, .lost = &piece, .nr_lost = 1,
  };

  return add (m, PLAN_SINGLE, m->at, entry, 0,
              m->number - share (m, &all, &piece) + share (m, &lost, &piece),
              m->marks);
}

static int
add_singles (struct make *m, uint64_t first)
{
  for (uint64_t entry = first; entry < m->at; ++entry) {
    const struct writelog_index_entry e =
      writelog_index_entry (m->plan->index, entry);

    if (e.nr_sectors > 0 && !(e.flags & WRITELOG_FUA) &&
        add_single (m, entry) == -1)
      return -1;
  }
  return 0;
}

static int
compare (const void *ap, const void *bp)
{
  const struct lost_piece *a = ap, *b = bp;

  return a->start < b->start ? -1 : a->start > b->start;
}

/* The sectors that the entries of an interval reach, each once.  NULL with
 * errno if out of memory.
 */
static struct lost_piece *
reached (const struct make *m, uint64_t first, uint64_t last, size_t *nr)
{
  struct lost_piece *pieces = calloc (last - first + 1, sizeof *pieces);
  size_t n = 0;

  if (pieces == NULL)
    return NULL;
  for (uint64_t entry = first; entry < last; ++entry) {
    pieces[n] = whole (m->plan, entry);
    n += pieces[n].end > pieces[n].start;
  }
  qsort (pieces, n, sizeof *pieces, compare);
  *nr = 0;
  for (size_t i = 0; i < n; ++i)
    if (*nr > 0 && pieces[*nr - 1].end >= pieces[i].start)
      pieces[*nr - 1].end = MAX (pieces[*nr - 1].end, pieces[i].end);
    else
      pieces[(*nr)++] = pieces[i];
  return pieces;
}

/* The number of a drawn state: it differs from the disk at the start of its
 * interval where the entries of the interval reach.
 */
static uint64_t
number_of_random (struct make *m, const struct plan_state *state,
                  const struct writelog_moment *moment, uint64_t at_start,
                  const struct lost_piece *pieces, size_t nr)
{
  const struct writelog_moment before = { .entries = m->start,
                                          .certain = m->start };
  uint64_t sectors = 0, number = at_start;

  for (size_t i = 0; i < nr; ++i)
    if (__builtin_add_overflow (sectors, pieces[i].end - pieces[i].start,
                                &sectors))
      sectors = UINT64_MAX;
  if (moment->seeded && moment->unit != TEAR_ENTRY && sectors > MAX_SECTORS)
    return moment->key + state->choice; /* a number of its own */
  for (size_t i = 0; i < nr; ++i)
    number += share (m, moment, &pieces[i]) - share (m, &before, &pieces[i]);
  return number;
}

/* Seeds for the interval, whose disk at the start has this number.  It may
 * end with the next flush, which has not been passed yet.
 */
static int
add_random (struct make *m, uint64_t first, uint64_t at_start)
{
  const uint64_t last = MIN (m->at + 1, m->totals.entries);
  CLEANUP_FREE struct lost_piece *pieces = NULL;
  size_t nr;

  pieces = reached (m, first, last, &nr);
  if (pieces == NULL)
    return -1;
  for (uint64_t seed = 1; nr > 0 && seed <= m->plan->wish.seeds; ++seed) {
    struct plan_state state = {
      .kind = PLAN_RANDOM, .place = m->flush, .choice = seed,
    };
    struct writelog_moment moment;

    if (plan_moment (m->plan, &state, &moment) == -1)
      return -1;
    if (add (m, PLAN_RANDOM, moment.entries, m->flush, seed,
             number_of_random (m, &state, &moment, at_start, pieces, nr),
             writelog_count_marks (m->plan->index,
                                   MIN (moment.entries, m->at))) == -1)
      return -1;
  }
  return 0;
}

/* Behind which entries of an interval something can be lost: those of the
 * flush before it, without FUA, too.
 */
static uint64_t
first_volatile (const struct make *m)
{
  const struct writelog_index_entry none = { 0 };
  const struct writelog_index_entry e = m->start > 0
    ? writelog_index_entry (m->plan->index, m->start - 1) : none;

  return e.nr_sectors > 0 && !(e.flags & WRITELOG_FUA) ? m->start - 1
    : m->start;
}

static int
walk_interval (struct make *m)
{
  const uint64_t end = m->plan->wish.to, at_start = m->number;

  while (m->at < MIN (end, m->totals.entries) &&
         !(writelog_index_entry (m->plan->index, m->at).flags &
           WRITELOG_FLUSH))
    if (advance (m) == -1)
      return -1;
  if (has_kind (m, PLAN_SINGLE) &&
      add_singles (m, first_volatile (m)) == -1)
    return -1;
  if (has_kind (m, PLAN_RANDOM) &&
      add_random (m, first_volatile (m), at_start) == -1)
    return -1;
  return 0;
}

static int
walk (struct make *m)
{
  const uint64_t end = MIN (m->plan->wish.to, m->totals.entries);

  if (has_kind (m, PLAN_ENTRY) &&
      add (m, PLAN_ENTRY, 0, 0, 0, 0, 0) == -1)
    return -1;
  for (;;) {
    if (walk_interval (m) == -1)
      return -1;
    if (m->at >= end)
      return 0;
    if (advance (m) == -1)      /* the flush */
      return -1;
  }
}

/* An even sample. */
static void
sample (struct plan *plan)
{
  const uint64_t limit = plan->wish.limit;

  plan->distinct = plan->nr;
  if (limit == 0 || limit >= plan->nr)
    return;
  for (uint64_t i = 0; i < limit; ++i)
    plan->states[i] = plan->states[part_begins (i, limit, plan->nr)];
  plan->nr = limit;
}

int
plan_make (struct plan *plan, const struct writelog_index *index,
           const struct plan_wish *wish)
{
  struct make m = { .plan = plan };
  int r;

  *plan = (struct plan) { .index = index, .wish = *wish };
  m.content.index = index;
  m.content.zero_base = wish->zero_base;
  writelog_index_totals (index, &m.totals);
  r = walk (&m);
  if (r == 0 && has_kind (&m, PLAN_ONLY))
    r = runs_find (&plan->runs, index);
  free (m.met);
  if (r == -1)
    plan_free (plan);
  else
    sample (plan);
  return r;
}

void
plan_free (struct plan *plan)
{
  free (plan->states);
  runs_free (&plan->runs);
  plan->states = NULL;
  plan->nr = 0;
}
