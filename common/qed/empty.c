/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A layer is empty when its L1 table is.  The table cannot be zeroed in
 * place, since after a crash a part of it might be zero and another one
 * not; but the header names its place, and the header is one sector.
 * So, with a flush after each step:
 *
 * 1. A table of zeroes is made behind everything.
 * 2. The header is pointed to it: from here on the layer is empty.
 *    NEED_CHECK is set in the same write, since all clusters before the
 *    table are leaked now.
 * 3. What the layer held is given back as one hole, and with it the
 *    place right behind the header has become a table of zeroes.
 * 4. The header is pointed to that one.
 * 5. The file is cut behind it and NEED_CHECK cleared (which need not be
 *    flushed: whatever of it is lost leaves an empty layer with a leak
 *    at its end).
 *
 * So the file ends as a newly created one, however often it is emptied;
 * a crash leaves the old image before step 2, and an empty one with
 * leaked clusters after it.
 *
 * Storage of fixed size has no end behind which there is always room.
 * There a table's length is kept free at its end by whoever allocates
 * (space.c), so that a full buffer can be emptied.  Images that were
 * filled by other means are searched for room inside.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qed/empty.h"
#include "qed/image/map.h"
#include "qed/image/need-check.h"
#include "qed/image/scan.h"
#include "qed/image/space.h"
#include "qed/image/table.h"
#include "qed/open.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* ---- A place for a table */

static int
grow_for_table (struct qed *s, uint64_t *place)
{
  *place = round_up (node_size (s->file), s->cluster_size);
  return node_resize (s->file, *place + qed_table_bytes (&s->header));
}

/* The first run of unused clusters that is long enough. */
static bool
find_run (const struct qed *s, const struct scan *scan, uint64_t *place)
{
  const uint64_t end = node_size (s->file) >> s->cluster_bits;
  uint64_t length = 0;

  for (uint64_t i = 0; i < end; ++i) {
    length = bitmap_has (&scan->used, i) ? 0 : length + 1;
    if (length == s->header.table_size) {
      *place = (i + 1 - length) << s->cluster_bits;
      return true;
    }
  }
  return false;
}

static int
find_room (struct qed *s, uint64_t *place)
{
  struct scan scan = { .found = NULL };
  bool found = false;
  int r = scan_image (s, &scan);

  if (r == 0) {
    *place = scan.result.image_end;
    found = *place + qed_table_bytes (&s->header) <= node_size (s->file) ||
      find_run (s, &scan, place);
  }
  scan_free (&scan);
  if (r == -1 || found)
    return r;
  errno = ENOSPC;
  msg_error ("%s: empty: no room for another table of %" PRIu64 " bytes in "
             "the storage under the image, which ends at %" PRIu64,
             s->node.name, qed_table_bytes (&s->header),
             node_size (s->file));
  return -1;
}

/* Make a table of zeroes on clusters that are not in use. */
static int
make_empty_table (struct qed *s, uint64_t *place)
{
  const uint64_t bytes = qed_table_bytes (&s->header);

  if (!s->file->fixed_size)
    return grow_for_table (s, place);
  *place = s->end;
  if ((s->end == 0 || s->end + bytes > node_size (s->file)) &&
      find_room (s, place) == -1)
    return -1;
  return node_zero (s->file, bytes, *place, NODE_MAY_TRIM);
}

/* ---- The header */

int
empty_switch_table (struct qed *s, uint64_t l1, bool flush)
{
  const struct header_edit edit = {
    .set = QED_NEED_CHECK, .l1_table_offset = l1, .flush = flush
  };

  TRACE_META ("qed: empty: L1 table at %" PRIu64, l1);
  return header_change (s, &edit);
}

void
empty_forget (struct qed *s)
{
  table_forget (s);
  damage_free (s->damage);
  s->damage = NULL;
  need_check_forget (s);
  atomic_store (&s->nr_mapped, 0);
}

/* ---- Giving space back */

/* Make clusters from first to end, which nobody uses, read as zeroes
 * at least where the table at first is to be; *all says if everywhere.
 */
static int
give_back (struct qed *s, uint64_t first, uint64_t end, bool *all)
{
  const uint64_t bytes = qed_table_bytes (&s->header);

  *all = false;
  if (!s->file->fixed_size) {
    if (node_zero (s->file, end - first, first,
                   NODE_MAY_TRIM | NODE_FAST) == 0) {
      *all = true;
      return 0;
    }
    if (errno != ENOTSUP)
      return -1;
  }
  else if (node_discard (s->file, end - first, first) == -1)
    return -1;
  return node_zero (s->file, bytes, first, 0);
}

/* The L1 table is empty and at "from"; make the image as a new one. */
static int
reclaim (struct qed *s, uint64_t from)
{
  const uint64_t home = qed_header_bytes (&s->header);
  const uint64_t bytes = qed_table_bytes (&s->header);
  bool all_zero;

  if (home + bytes > from)      /* too near to move */
    return 0;
  if (give_back (s, home, from, &all_zero) == -1 || image_flush (s) == -1 ||
      empty_switch_table (s, home, true) == -1)
    return -1;
  space_begin (s, home + bytes, false);
  if (s->file->fixed_size)
    return 0;
  if (space_reach (s, home + bytes) == -1)
    return -1;
  /* What held data must not come back when the file grows again. */
  return all_zero ? 0 : image_flush (s);
}

/* While neither requests nor updates of metadata are in flight. */
static int
empty_layer (struct qed *s)
{
  uint64_t place;

  if (make_empty_table (s, &place) == -1 || image_flush (s) == -1 ||
      empty_switch_table (s, place, true) == -1)
    return -1;
  empty_forget (s);
  space_begin (s, place + qed_table_bytes (&s->header), false);
  return reclaim (s, place) == -1 ? -1 : need_check_clear (s, false);
}

int
qed_empty (struct node *n)
{
  struct qed *s = qed_of_node (n);
  int r;

  if (n->read_only) {
    errno = EROFS;
    msg_error ("%s: empty: the image is read-only", n->name);
    return -1;
  }
  drain_begin (&s->requests);
  drain_begin (&s->updates);
  if (s->hooks)
    s->hooks->empty (s);
  r = header_known (s);
  if (r == 0)
    r = empty_layer (s);
  if (s->hooks && r == 0)
    s->hooks->emptied (s);
  drain_end (&s->updates);
  drain_end (&s->requests);
  return r;
}

int
qed_empty_image (const char *name, bool no_lock)
{
  const struct node_open_options options = {
    .lock = no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE
  };
  struct qed *s = open_bare (name, &options);
  CLEANUP_FREE char *backing = NULL;
  int r;

  if (s == NULL)
    return -1;
  /* What nobody could open afterwards is not to be emptied. */
  r = header_backing_name (s->file, &s->header, &backing);
  if (r == 0)
    r = header_clear_unknown (s);
  if (r == 0)
    r = qed_empty (&s->node);
  if (r == 0)
    r = image_flush (s);
  image_free (s);
  return r;
}
