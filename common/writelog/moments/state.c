/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The disk at a moment, as a node: each sector is that of the latest
 * entry that covers it and is there at the moment, or that of the base.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "utils/message.h"
#include "writelog/moments/moments.h"
#include "writelog/moments/state.h"
#include "utils/rounding.h"

/* Sectors whose coins are tossed together: one bit each. */
#define COINS 64

/* Runs of the same entry are joined, but a walk may see no more parts
 * than this for one run, so that no request takes for ever.
 */
#define MAX_PARTS 65536

struct state {
  struct node node;
  const struct writelog_index *index;
  struct writelog_moment moment;
  struct node *base;            /* may be NULL */
};

/* A walk over sectors of the disk, which tells what each comes out of:
 * an entry, or the base (COVER_NONE).
 */
struct walk {
  const struct state *s;
  uint64_t sector, end;         /* what is still to be told */
  size_t piece;                 /* of the cover, that sector lies in */
  unsigned most;                /* parts that a run is joined of */
  uint64_t parts;               /* that were found so far */

  /* The part at sector, if it is known: its end and its entry. */
  uint64_t part_end;
  uint32_t entry;

  /* The results of the coins of sectors from..to. */
  uint64_t from, to;
  uint32_t winners[COINS];
};

static void
walk_sectors (struct walk *w, const struct state *s, uint64_t start,
              uint64_t end)
{
  w->s = s;
  w->sector = start;
  w->end = end;
  w->most = MAX_PARTS;
  w->parts = 0;
  w->piece = cover_find (&s->index->cover, w->sector);
  w->part_end = w->sector;
  w->from = w->to = 0;
}

/* Walk over the sectors that hold a range of bytes, which is not empty. */
static void
walk_begin (struct walk *w, const struct state *s, uint64_t count,
            uint64_t offset)
{
  walk_sectors (w, s, offset / s->index->sector_size,
                div_round_up (offset + count, s->index->sector_size));
}

/* Of a long interval all may be absent but a few. */
static void
skip_absent (const struct state *s, struct cover_lists *lists, uint32_t entry)
{
  const uint64_t from = moment_absent_from (s->index, &s->moment, entry);

  if (from < entry)
    cover_cut (lists, from);
}

/* The latest entry that is there in the whole piece, if it is the same
 * one for all its sectors.  Otherwise false, and the lists are as they were.
 */
static bool
find_common (const struct state *s, struct cover_lists *lists,
             uint32_t *entry)
{
  const struct cover_lists all = *lists;

  for (;;) {
    *entry = cover_pop (lists);
    if (*entry == COVER_NONE)
      return true;
    switch (moment_presence (s->index, &s->moment, *entry)) {
    case PRESENT:
      return true;
    case ABSENT:
      skip_absent (s, lists, *entry);
      break;
    case IN_PARTS:
      *lists = all;
      return false;
    }
  }
}

/* Toss the coins of w->from..w->to, all in one piece, the latest entries
 * first, until each sector has one that is there.
 */
static void
toss (struct walk *w, struct cover_lists *lists)
{
  const struct state *s = w->s;
  const unsigned n = w->to - w->from;
  uint64_t open = UINT64_MAX >> (COINS - n);

  while (open) {
    const uint32_t entry = cover_pop (lists);
    const bool all = entry == COVER_NONE || entry < s->moment.certain;

    for (uint64_t left = open; left; left &= left - 1) {
      const unsigned i = __builtin_ctzll (left);

      if (all || moment_has (s->index, &s->moment, entry, w->from + i)) {
        w->winners[i] = entry;
        open &= ~(UINT64_C (1) << i);
      }
    }
  }
}

/* Find the part at w->sector: sectors that come out of the same entry,
 * perhaps not all of them.
 */
static void
find_part (struct walk *w)
{
  const struct cover *c = &w->s->index->cover;
  struct cover_lists lists;

  w->parts++;
  w->entry = COVER_NONE;
  w->part_end = w->end;
  if (w->piece == c->nr_pieces)
    return;                     /* behind all entries */
  w->part_end = MIN (w->end, c->bounds[w->piece + 1]);
  if (w->piece == SIZE_MAX)
    return;                     /* before all entries */

  if (w->sector >= w->to) {
    cover_below (c, w->piece, w->s->moment.entries, &lists);
    if (find_common (w->s, &lists, &w->entry))
      return;
    w->from = w->sector;
    w->to = MIN (w->part_end, w->from + COINS);
    toss (w, &lists);
  }
  w->entry = w->winners[w->sector - w->from];
  w->part_end = w->sector + 1;
}

static void
skip_part (struct walk *w)
{
  const struct cover *c = &w->s->index->cover;

  w->sector = w->part_end;
  if (w->piece != c->nr_pieces && w->sector == c->bounds[w->piece + 1])
    w->piece++;
}

/* The next run: its end in sectors is returned, and what it comes out
 * of.  Not to be called at the end.
 */
static uint64_t
next_run (struct walk *w, uint32_t *entry)
{
  if (w->part_end == w->sector)
    find_part (w);
  *entry = w->entry;
  for (unsigned i = 0; i < w->most; ++i) {
    skip_part (w);
    if (w->sector == w->end)
      break;
    find_part (w);
    if (w->entry != *entry)
      break;
  }
  return w->sector;
}

bool
writelog_moment_visit (const struct writelog_index *index,
                       const struct writelog_moment *moment,
                       uint64_t start, uint64_t end, unsigned most_parts,
                       void (*visit) (void *opaque, uint64_t start,
                                      uint64_t end, uint32_t entry),
                       void *opaque)
{
  const struct state s = { .index = index, .moment = *moment };
  struct walk w;

  walk_sectors (&w, &s, start, end);
  w.most = MIN (w.most, most_parts);
  /* The last run begins at the part of number most_parts at the latest, and
   * is joined of w.most.  Each piece is a part or more.
   */
  if (cover_find (&index->cover, end - 1) - w.piece >=
      (uint64_t) most_parts + w.most - 1)
    return false;
  while (start < end) {
    uint32_t entry;
    uint64_t run_end;

    if (w.parts > most_parts)
      return false;
    run_end = next_run (&w, &entry);
    visit (opaque, start, run_end, entry);
    start = run_end;
  }
  return true;
}

/* ---- The node */

/* Bytes of the base from an offset; behind its end there are none. */
static uint64_t
base_left (const struct state *s, uint64_t count, uint64_t offset)
{
  const uint64_t size = s->base ? node_size (s->base) : 0;

  return offset < size ? MIN (count, size - offset) : 0;
}

static int
read_base (const struct state *s, void *buf, size_t count, uint64_t offset)
{
  const size_t n = base_left (s, count, offset);

  memset ((char *) buf + n, 0, count - n);
  return n > 0 ? node_pread (s->base, buf, n, offset) : 0;
}

static int
read_run (const struct state *s, uint32_t entry, void *buf, size_t count,
          uint64_t offset)
{
  const struct writelog_index *index = s->index;

  if (entry == COVER_NONE)
    return read_base (s, buf, count, offset);
  if (index->flags[entry] & WRITELOG_DISCARD) {
    memset (buf, 0, count);
    return 0;
  }
  return node_pread (index->reader->node, buf, count,
                     offset + index->place[entry]);
}

static int
state_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  const struct state *s = (struct state *) n;
  const uint64_t end = offset + count;
  struct walk w;

  if (count == 0)
    return 0;
  walk_begin (&w, s, count, offset);
  while (offset < end) {
    uint32_t entry;
    const uint64_t run_end = next_run (&w, &entry) * s->index->sector_size;
    const size_t len = MIN (run_end, end) - offset;

    if (read_run (s, entry, buf, len, offset) == -1)
      return -1;
    buf = (char *) buf + len;
    offset += len;
  }
  return 0;
}

static int
base_extent (struct state *s, uint64_t count, uint64_t offset,
             struct extent *ret)
{
  const uint64_t n = base_left (s, count, offset);

  if (n > 0) {
    if (node_extents (s->base, n, offset, ret) == -1)
      return -1;
    ret->depth++;
    return 0;
  }
  *ret = (struct extent) {
    .length = count, .flags = EXTENT_ZERO | EXTENT_HOLE, .where = &s->node,
  };
  return 0;
}

static int
state_extents (struct node *n, uint64_t count, uint64_t offset,
               struct extent *ret)
{
  struct state *s = (struct state *) n;
  const struct writelog_index *index = s->index;
  struct walk w;
  uint32_t entry;
  uint64_t len;

  walk_begin (&w, s, count, offset);
  len = MIN (next_run (&w, &entry) * index->sector_size - offset, count);
  if (entry == COVER_NONE)
    return base_extent (s, len, offset, ret);
  if (index->flags[entry] & WRITELOG_DISCARD)
    *ret = (struct extent) {
      .length = len, .flags = EXTENT_ZERO | EXTENT_HOLE, .where = n,
    };
  else
    *ret = (struct extent) {
      .length = len, .flags = EXTENT_MAPPED,
      .where = index->reader->node, .offset = offset + index->place[entry],
    };
  return 0;
}

static int
state_close (struct node *n)
{
  writelog_moment_free (&((struct state *) n)->moment);
  free (n->name);
  free (n);
  return 0;
}

static const struct node_ops state_ops = {
  .type = "moment",
  .close = state_close,
  .pread = state_pread,
  .extents = state_extents,
};

struct node *
writelog_moment_open (const struct writelog_index *index,
                      const struct writelog_moment *moment,
                      struct node *base, uint64_t size)
{
  struct state *s = calloc (1, sizeof *s);
  char *name = strdup (index->reader->node->name);
  const size_t lost_size = moment->nr_lost * sizeof *moment->lost;
  struct lost_piece *lost = malloc (MAX (lost_size, (size_t) 1));

  if (s == NULL || name == NULL || lost == NULL) {
    msg_error ("%s: open: %m", index->reader->node->name);
    free (s);
    free (name);
    free (lost);
    return NULL;
  }
  s->node.ops = &state_ops;
  s->node.name = name;
  s->node.size = size;
  s->node.read_only = true;
  s->node.fixed_size = true;
  s->node.zero_align = 1;
  s->node.align = 1;
  s->node.preferred = MAX (index->sector_size, UINT32_C (4096));
  s->index = index;
  s->moment = *moment;
  s->moment.lost = lost_size > 0 ? memcpy (lost, moment->lost, lost_size)
                                 : lost;
  s->base = base;
  return &s->node;
}
