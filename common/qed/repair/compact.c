/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Leaked clusters inside the file are given back by moving what stands
 * at its end into them, until the file is as long as what is in use and
 * can be cut there ("the goal").
 *
 * All that moves is copied to unused clusters and flushed, then the
 * entries that refer to it are changed and flushed, and only then what
 * it leaves is unused.  So a crash leaves leaks, as before.
 *
 * Tables go first, since they need as many clusters in a row as they
 * have.  If they find no such runs, regions are cleared for them: pieces
 * of the file before the goal whose tables would leave room for one more
 * if they stood close together.  What is in them moves to the end of the
 * file, and comes back in the next round.  Each such region brings one
 * more table before the goal, so this ends.  There always is one: all of
 * the file before the goal is, at the worst.
 *
 * Data clusters fill what remains, which then is just enough.
 *
 * Each round begins with reading all tables, so it does not matter what
 * an earlier one, or a crash, has left.  So a round must do a part of the
 * work that grows with the image, or the time would grow with the square
 * of it; but not all of it at once, since until the next round the file
 * is longer, and the disk may be nearly full.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qed/image/scan.h"
#include "qed/image/space.h"
#include "qed/repair/compact.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Data clusters that one round moves: so many, or a 64th of the file. */
#define LEAST_DATA ((uint64_t) 65536)
#define DATA_SHARE 64

/* What one round may clear, and the file may grow by: a part of it. */
#define CLEAR_SHARE 8

#define COPY_PIECE ((uint64_t) 1024 * 1024)

/* The place of the L1 table is in the header. */
#define IN_HEADER UINT64_MAX

/* A table or data cluster, and where it goes. */
struct unit {
  uint64_t l1_index;            /* or IN_HEADER */
  uint64_t l2_index;            /* or SCAN_TABLE */
  uint64_t offset, to;          /* in the file, bytes */
};

/* A piece of the file, in clusters. */
struct region {
  uint64_t first, length;
};

struct compact {
  struct qed *s;
  struct scan scan;             /* of this round */
  uint64_t goal;                /* clusters that the file is to have */

  /* What is to be collected, and has been. */
  bool tables, data;
  const struct region *regions; /* in order; units that are partly there */
  size_t nr_regions;
  struct unit *units;
  size_t nr, room;
  bool out_of_memory;
};

static uint64_t
clusters_of (const struct compact *c, const struct unit *u)
{
  return u->l2_index == SCAN_TABLE ? c->s->header.table_size : 1;
}

static uint64_t
first_of (const struct compact *c, const struct unit *u)
{
  return u->offset >> c->s->cluster_bits;
}

/* ---- Finding what is where */

static bool
is_in_regions (const struct compact *c, uint64_t first, uint64_t length)
{
  size_t low = 0, high = c->nr_regions;

  /* The first region that ends behind it. */
  while (low < high) {
    const size_t i = low + (high - low) / 2;

    if (c->regions[i].first + c->regions[i].length > first)
      high = i;
    else
      low = i + 1;
  }
  return low < c->nr_regions && c->regions[low].first < first + length;
}

static bool
is_enough (const struct compact *c)
{
  return !c->tables && c->nr >= MAX (LEAST_DATA, c->goal / DATA_SHARE);
}

static void
compact_collect (void *opaque, uint64_t l1_index, uint64_t l2_index,
                 uint64_t offset)
{
  struct compact *c = opaque;
  const struct unit u = {
    .l1_index = l1_index, .l2_index = l2_index, .offset = offset
  };

  if ((l2_index == SCAN_TABLE ? !c->tables : !c->data) || is_enough (c) ||
      !is_in_regions (c, first_of (c, &u), clusters_of (c, &u)))
    return;
  if (c->nr == c->room) {
    const size_t room = c->room ? c->room * 2 : 64;
    struct unit *units = realloc (c->units, room * sizeof *units);

    if (units == NULL) {
      c->out_of_memory = true;
      return;
    }
    c->units = units;
    c->room = room;
  }
  c->units[c->nr++] = u;
}

static int
by_offset (const void *a, const void *b)
{
  const struct unit *u = a, *v = b;

  return u->offset < v->offset ? -1 : u->offset > v->offset;
}

/* Collect tables, data or both that have clusters in one of the regions,
 * which are in order.
 */
static int
find_units (struct compact *c, bool tables, bool data,
            const struct region *regions, size_t nr_regions)
{
  struct scan scan = { .unit = compact_collect, .opaque = c };
  int r;

  c->tables = tables;
  c->data = data;
  c->regions = regions;
  c->nr_regions = nr_regions;
  c->nr = 0;
  compact_collect (c, IN_HEADER, SCAN_TABLE, c->s->header.l1_table_offset);
  r = scan_image (c->s, &scan);
  scan_free (&scan);
  if (r == -1)
    return -1;
  if (c->out_of_memory) {
    errno = ENOMEM;
    msg_error ("%s: repair: %m", c->s->node.name);
    return -1;
  }
  if (c->nr > 0)
    qsort (c->units, c->nr, sizeof *c->units, by_offset);
  return 0;
}

/* ---- Moving */

static int
copy_unit (struct compact *c, const struct unit *u, void *buf)
{
  const uint64_t bytes = clusters_of (c, u) << c->s->cluster_bits;

  for (uint64_t done = 0; done < bytes; done += COPY_PIECE) {
    const uint64_t piece = MIN (bytes - done, COPY_PIECE);

    if (node_pread (c->s->file, buf, piece, u->offset + done) == -1 ||
        node_pwrite (c->s->file, buf, piece, u->to + done) == -1)
      return -1;
  }
  return 0;
}

/* Let what refers to a unit refer to its copy. */
static int
switch_unit (struct compact *c, const struct unit *u)
{
  struct qed *s = c->s;
  uint8_t buf[QED_ENTRY_LEN];
  uint64_t place;

  if (u->l1_index == IN_HEADER)
    return header_change (s, &(struct header_edit) {
                            .l1_table_offset = u->to
                          });
  place = s->header.l1_table_offset + u->l1_index * QED_ENTRY_LEN;
  if (u->l2_index != SCAN_TABLE) {
    if (node_pread (s->file, buf, sizeof buf, place) == -1)
      return -1;
    place = qed_entry_get (buf, 0) + u->l2_index * QED_ENTRY_LEN;
  }
  TRACE_META ("qed: repair: cluster at %" PRIu64 " moves to %" PRIu64,
              u->offset, u->to);
  qed_entry_put (buf, 0, u->to);
  return node_pwrite (s->file, buf, sizeof buf, place);
}

/* The entries of one kind: data, L2 tables, or the L1 table.  Each kind
 * is looked up through the next one, so they are switched in this order
 * and each is durable before the next.
 */
enum { DATA, L2_TABLES, L1_TABLE, NR_KINDS };

static int
kind_of (const struct unit *u)
{
  return u->l2_index != SCAN_TABLE ? DATA :
    u->l1_index != IN_HEADER ? L2_TABLES : L1_TABLE;
}

/* Move one kind of all units that have been collected and given a new
 * place.
 */
static int
move_kind (struct compact *c, int kind, void *buf)
{
  size_t n = 0;

  for (size_t i = 0; i < c->nr; ++i) {
    if (kind_of (&c->units[i]) != kind || c->units[i].to == 0)
      continue;
    if (copy_unit (c, &c->units[i], buf) == -1)
      return -1;
    n++;
  }
  if (n == 0)
    return 0;
  if (node_flush (c->s->file) == -1)
    return -1;
  for (size_t i = 0; i < c->nr; ++i)
    if (kind_of (&c->units[i]) == kind && c->units[i].to != 0 &&
        switch_unit (c, &c->units[i]) == -1)
      return -1;
  return node_flush (c->s->file);
}

static int
move_units (struct compact *c)
{
  CLEANUP_FREE void *buf = malloc (COPY_PIECE);

  if (buf == NULL) {
    msg_error ("%s: repair: %m", c->s->node.name);
    return -1;
  }
  for (int kind = 0; kind < NR_KINDS; ++kind)
    if (move_kind (c, kind, buf) == -1)
      return -1;
  return 0;
}

/* ---- Places */

/* The next n unused clusters in a row before the goal, searched from
 * *cluster on; they count as used from then on.
 */
static int
take_run (struct compact *c, uint64_t n, uint64_t *cluster, bool *found)
{
  uint64_t length = 0;

  *found = false;
  for (; *cluster < c->goal; ++*cluster) {
    length = bitmap_has (&c->scan.used, *cluster) ? 0 : length + 1;
    if (length < n)
      continue;
    *cluster -= n - 1;
    for (uint64_t i = 0; i < n; ++i) {
      if (bitmap_add (&c->scan.used, *cluster + i) == -1) {
        msg_error ("%s: repair: %m", c->s->node.name);
        return -1;
      }
    }
    *found = true;
    return 0;
  }
  return 0;
}

/* Move all that reaches behind the goal into unused runs before it.
 * *moved is how many found one.
 */
static int
move_down (struct compact *c, size_t *moved)
{
  uint64_t cluster = 0;
  bool found = true;

  *moved = 0;
  for (size_t i = 0; i < c->nr && found; ++i) {
    if (take_run (c, clusters_of (c, &c->units[i]), &cluster, &found) == -1)
      return -1;
    if (found) {
      c->units[i].to = cluster << c->s->cluster_bits;
      ++*moved;
    }
  }
  return *moved ? move_units (c) : 0;
}

/* ---- Regions */

/* Find pieces to clear for at most max tables, one more for each, into
 * regions; returns how many.  All tables have been collected, in order.
 *
 * The gaps before and between tables are added up until they make room
 * for one.  If that is done as soon as possible nothing of any gap is
 * lost, so there is a region for each table that has to come before the
 * goal.  A short one begins as late as possible instead, which may be too
 * few of them.
 */
static size_t
find_regions (const struct compact *c, bool want_short, size_t max,
              struct region *regions)
{
  const uint64_t table = c->s->header.table_size;
  uint64_t start = c->s->header.header_size, sum = 0, end;
  size_t nr = 0, i = 0;         /* the first table behind start */

  for (size_t j = 0; nr < max; ++j) {
    const uint64_t behind = j == 0 ? start
      : first_of (c, &c->units[j - 1]) + table;

    /* One that reaches behind the goal has to move in any case. */
    end = j < c->nr ? first_of (c, &c->units[j]) : c->goal;
    if (end + table > c->goal)
      end = c->goal;
    sum += end - MIN (MAX (behind, start), end);

    for (; want_short && i < j; ++i) {
      const uint64_t gap = first_of (c, &c->units[i]) - start;

      if (sum - gap < table)
        break;
      sum -= gap;
      start = first_of (c, &c->units[i]) + table;
    }
    for (; sum >= table && nr < max; sum -= table) {
      regions[nr] = (struct region) {
        .first = start, .length = (j - i + 1) * table
      };
      start += regions[nr++].length;
      i = j;
    }
    if (end == c->goal)
      break;
  }
  return nr;
}

static int
by_length (const void *a, const void *b)
{
  const struct region *r = a, *s = b;

  return r->length < s->length ? -1 : r->length > s->length;
}

static int
by_first (const void *a, const void *b)
{
  const struct region *r = a, *s = b;

  return r->first < s->first ? -1 : r->first > s->first;
}

/* The shortest regions for so many tables, as many as may be cleared at
 * once; returns how many, in order.
 */
static size_t
choose_regions (const struct compact *c, size_t wanted,
                struct region *regions)
{
  uint64_t length = 0;
  size_t n = find_regions (c, true, c->nr + wanted, regions), i;

  if (n < wanted)
    n = find_regions (c, false, c->nr + wanted, regions);
  qsort (regions, n, sizeof *regions, by_length);
  for (i = 0; i < MIN (n, wanted); ++i) {
    length += regions[i].length;
    if (i > 0 && length > c->goal / CLEAR_SHARE)
      break;
  }
  qsort (regions, i, sizeof *regions, by_first);
  return i;
}

/* Move what is in regions to the end of the file. */
static int
clear_regions (struct compact *c, const struct region *regions, size_t nr)
{
  struct qed *s = c->s;
  uint64_t end = round_up (node_size (s->file), s->cluster_size);

  if (find_units (c, true, true, regions, nr) == -1)
    return -1;
  for (size_t i = 0; i < c->nr; ++i) {
    c->units[i].to = end;
    end += clusters_of (c, &c->units[i]) << s->cluster_bits;
  }
  if (node_resize (s->file, end) == -1)
    return -1;
  return move_units (c);
}

/* ---- Rounds */

static int
make_room_for_tables (struct compact *c, size_t wanted)
{
  static const struct region all = { .first = 0, .length = UINT64_MAX };
  CLEANUP_FREE struct region *regions = NULL;
  size_t n;

  if (find_units (c, true, false, &all, 1) == -1)
    return -1;
  regions = calloc (c->nr + wanted, sizeof *regions);
  if (regions == NULL) {
    msg_error ("%s: repair: %m", c->s->node.name);
    return -1;
  }
  n = choose_regions (c, wanted, regions);
  if (n == 0) {
    errno = ENOSPC;
    msg_error ("%s: repair: no room for a table", c->s->node.name);
    return -1;
  }
  return clear_regions (c, regions, n);
}

/* Move something; *more is false if there is nothing left to do. */
static int
do_round (struct compact *c, bool *more)
{
  const struct region behind = {
    .first = c->goal, .length = UINT64_MAX - c->goal
  };
  size_t moved;

  *more = true;
  if (find_units (c, true, false, &behind, 1) == -1)
    return -1;
  if (c->nr > 0) {
    if (move_down (c, &moved) == -1)
      return -1;
    return moved > 0 ? 0 : make_room_for_tables (c, c->nr);
  }
  if (find_units (c, false, true, &behind, 1) == -1 ||
      move_down (c, &moved) == -1)
    return -1;
  *more = moved > 0;
  return 0;
}

static int
do_rounds (struct compact *c)
{
  bool more = true;
  int r = 0;

  while (r == 0 && more) {
    c->scan = (struct scan) { .found = NULL };
    r = scan_image (c->s, &c->scan);
    if (r == 0) {
      c->goal = c->scan.used.members;
      r = do_round (c, &more);
    }
    scan_free (&c->scan);
  }
  if (r == -1)
    return -1;
  if (node_resize (c->s->file, c->goal << c->s->cluster_bits) == -1)
    return -1;
  space_begin (c->s, c->goal << c->s->cluster_bits, true);
  return node_flush (c->s->file);
}

int
compact_image (struct qed *s)
{
  struct compact c = { .s = s };
  const int r = do_rounds (&c);

  free (c.units);
  return r;
}
