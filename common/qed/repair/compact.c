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
 * have.  If one finds no such run, a region is cleared for it: the
 * shortest one before the goal whose tables would leave room for one
 * more if they stood close together.  What is in it moves to the end of
 * the file, and comes back in the next round.  Each such region brings
 * one more table before the goal, so this ends.  There always is one:
 * all of the file before the goal is, at the worst.
 *
 * Data clusters fill what remains, which then is just enough.
 *
 * Each round begins with reading all tables, so it does not matter what
 * an earlier one, or a crash, has left.
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

/* Data clusters that one round moves. */
#define MAX_DATA 65536

#define COPY_PIECE ((uint64_t) 1024 * 1024)

/* The place of the L1 table is in the header. */
#define IN_HEADER UINT64_MAX

/* A table or data cluster, and where it goes. */
struct unit {
  uint64_t l1_index;            /* or IN_HEADER */
  uint64_t l2_index;            /* or SCAN_TABLE */
  uint64_t offset, to;          /* in the file, bytes */
};

struct compact {
  struct qed *s;
  struct scan scan;             /* of this round */
  uint64_t goal;                /* clusters that the file is to have */

  /* What is to be collected, and has been. */
  bool tables, data;
  uint64_t first, end;          /* clusters of the file */
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

static void
compact_collect (void *opaque, uint64_t l1_index, uint64_t l2_index,
                 uint64_t offset)
{
  struct compact *c = opaque;
  const struct unit u = {
    .l1_index = l1_index, .l2_index = l2_index, .offset = offset
  };

  if ((l2_index == SCAN_TABLE ? !c->tables : !c->data) ||
      first_of (c, &u) >= c->end ||
      first_of (c, &u) + clusters_of (c, &u) <= c->first ||
      (!c->tables && c->nr == MAX_DATA))
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

/* Collect tables, data or both that have clusters in first..end. */
static int
find_units (struct compact *c, bool tables, bool data,
            uint64_t first, uint64_t end)
{
  struct scan scan = { .unit = compact_collect, .opaque = c };
  int r;

  c->tables = tables;
  c->data = data;
  c->first = first;
  c->end = end;
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

/* Find the region to clear for one more table, as *first and the result
 * in clusters; 0 if there is none.  All tables have been collected, in
 * order.
 */
static uint64_t
find_region (const struct compact *c, uint64_t *first)
{
  const uint64_t table = c->s->header.table_size;
  uint64_t start = c->s->header.header_size, best = 0;
  size_t j = 0;

  /* From behind each table, as many as it takes, i being the first of
   * them: the room between them grows with each, and shrinks with i.
   */
  for (size_t i = 0; i <= c->nr; ++i) {
    for (j = MAX (i, j);; ++j) {
      uint64_t end = j < c->nr ? first_of (c, &c->units[j]) : c->goal;
      const uint64_t needed = (j - i + 1) * table;

      /* One that reaches behind the goal has to move in any case. */
      if (j < c->nr && end + table > c->goal)
        end = c->goal;
      if (start + needed <= end) {
        if (best == 0 || needed < best) {
          best = needed;
          *first = start;
        }
        break;
      }
      if (end == c->goal)
        return best;
    }
    if (i < c->nr)
      start = first_of (c, &c->units[i]) + table;
  }
  return best;
}

/* Move what is in a region to the end of the file. */
static int
clear_region (struct compact *c, uint64_t first, uint64_t length)
{
  struct qed *s = c->s;
  uint64_t end = round_up (node_size (s->file), s->cluster_size);

  if (find_units (c, true, true, first, first + length) == -1)
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
make_room_for_table (struct compact *c)
{
  uint64_t first = 0, length;

  if (find_units (c, true, false, 0, UINT64_MAX) == -1)
    return -1;
  length = find_region (c, &first);
  if (length == 0) {
    errno = ENOSPC;
    msg_error ("%s: repair: no room for a table", c->s->node.name);
    return -1;
  }
  return clear_region (c, first, length);
}

/* Move something; *more is false if there is nothing left to do. */
static int
do_round (struct compact *c, bool *more)
{
  size_t moved;

  *more = true;
  if (find_units (c, true, false, c->goal, UINT64_MAX) == -1)
    return -1;
  if (c->nr > 0) {
    if (move_down (c, &moved) == -1)
      return -1;
    return moved > 0 ? 0 : make_room_for_table (c);
  }
  if (find_units (c, false, true, c->goal, UINT64_MAX) == -1 ||
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
