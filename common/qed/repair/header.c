/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * All of an image hangs on 64 bytes.  If a bit of them has changed, most
 * often a rule of the header is broken, and there are few bits whose
 * change makes it good again.  Each of these headers, and the one with
 * the L1 table where new images have it, is tried by reading all tables
 * through it: the right one accounts for every cluster of the file, a
 * wrong one finds nonsense, or nothing.
 *
 * - A header that cannot be used is replaced by the one through which
 *   the most clusters are in use and the fewest leaked or wrongly
 *   referred to, if it makes more sense than not.  (That nothing is wrong
 *   is not enough: through a header that leads nowhere nothing is.)
 * - One that can be used, but shows faults, only by one with another
 *   place of the L1 table through which nothing is wrong and nothing
 *   leaked.  On storage of fixed size nobody can tell what is leaked, data
 *   may look like a table, and tables of an earlier image may be left; so
 *   there the place can only be the one where new images have it, one bit
 *   must be wrong, and more clusters be in use than through the header
 *   that is there.
 *
 * Unknown feature bits are none of that: a newer program may have set
 * them for a reason.
 *
 * A file that ends within the L1 table has lost what the table refers
 * to, but for what stands before it.  The table gets clusters of zeroes
 * for those that it has lost.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qed/image/scan.h"
#include "qed/repair/header.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define HEADER_BITS (QED_HEADER_LEN * 8)
#define LINE_LEN 256

struct header_repair {
  struct node *file;
  uint8_t buf[QED_HEADER_LEN];  /* the header as it is */
  void (*report) (void *opaque, const char *line);
  void *opaque;
};

/* What is seen through a header. */
struct quality {
  bool usable;
  bool at_home;                 /* the L1 table is where new images have it */
  uint64_t corruptions, leaks;
  uint64_t used, found;         /* clusters; without header and L1 table */
};

static int
look_through (struct header_repair *m, const uint8_t *buf, struct quality *q)
{
  struct scan scan = { .found = NULL };
  struct qed_header h;
  struct qed *s;
  int r = 0;

  *q = (struct quality) { .usable = false };
  if (qed_header_decode (buf, NULL, &h) == -1)
    return 0;
  s = image_view (m->file, &h);
  if (s == NULL)
    return -1;
  if (image_table_ok (s, h.l1_table_offset)) {
    r = scan_image (s, &scan);
    q->usable = true;
    q->corruptions = scan.result.corruptions + scan.result.check_errors;
    q->leaks = scan.result.leaks;
    q->used = scan.used.members;
    q->found = q->used - h.header_size - h.table_size;
    q->at_home = h.l1_table_offset == qed_header_bytes (&h);
    scan_free (&scan);
  }
  free (s);
  return r;
}

static void
flip (uint8_t *buf, unsigned bit)
{
  buf[bit / 8] ^= 1 << bit % 8;
}

static uint64_t
faults (const struct quality *q)
{
  return q->corruptions + q->leaks;
}

static bool
makes_sense (const struct quality *q)
{
  return q->usable && (q->corruptions == 0 || q->found > faults (q));
}

static bool
better (const struct header_repair *m, const struct quality *a,
        const struct quality *b)
{
  if (!makes_sense (a))
    return false;
  if (!b->usable)
    return true;
  if (m->file->fixed_size && a->found > 0 && b->found > 0 &&
      a->at_home != b->at_home)
    return a->at_home;
  return a->used + faults (b) > b->used + faults (a);
}

/* Shall the best header replace the one that is there? */
static bool
is_convincing (const struct header_repair *m, const struct quality *best,
               const struct quality *now)
{
  if (!best->usable || !now->usable)
    return best->usable;
  return best->corruptions == 0 &&
    (m->file->fixed_size ? best->used > now->used : best->leaks == 0);
}

/* Try the header in m->buf; keep it if it is better than the best. */
static int
try_header (struct header_repair *m, uint8_t *best_buf, struct quality *best)
{
  struct quality q;

  if (look_through (m, m->buf, &q) == -1)
    return -1;
  if (better (m, &q, best)) {
    *best = q;
    memcpy (best_buf, m->buf, sizeof m->buf);
  }
  return 0;
}

/* Is the L1 table where new images have it? */
static bool
is_at_home (const struct header_repair *m)
{
  uint8_t buf[QED_HEADER_LEN];

  memcpy (buf, m->buf, sizeof buf);
  qed_l1_behind_header (buf);
  return memcmp (buf, m->buf, sizeof buf) == 0;
}

/* Find the best header that could have been meant. */
static int
find_header (struct header_repair *m, bool only_l1_offset, uint8_t *best_buf,
             struct quality *best)
{
  const bool only_home = only_l1_offset && m->file->fixed_size;
  uint8_t now[QED_HEADER_LEN];
  int r = 0;

  *best = (struct quality) { .usable = false };
  for (unsigned i = 0; r == 0 && i < HEADER_BITS; ++i) {
    if (qed_is_feature_bit (i) ||
        (only_l1_offset && !qed_is_l1_offset_bit (i)))
      continue;
    flip (m->buf, i);
    if (!only_home || is_at_home (m))
      r = try_header (m, best_buf, best);
    flip (m->buf, i);
  }
  memcpy (now, m->buf, sizeof now);
  qed_l1_behind_header (m->buf);
  if (r == 0 && !only_home)
    r = try_header (m, best_buf, best);
  memcpy (m->buf, now, sizeof now);
  return r;
}

/* Returns 1, or -1. */
static int
write_header (struct header_repair *m, const uint8_t *buf)
{
  char line[LINE_LEN];
  unsigned first = 0;

  while (m->buf[first] == buf[first])
    first++;
  snprintf (line, sizeof line, "QED header: byte %u is wrong: with %02x "
            "instead of %02x the tables make sense", first,
            buf[first], m->buf[first]);
  if (m->report)
    m->report (m->opaque, line);
  if (node_pwrite (m->file, buf, sizeof m->buf, 0) == -1 ||
      node_flush (m->file) == -1)
    return -1;
  return 1;
}

/* If the file ends within the L1 table, make it longer. */
static int
extend_l1_table (struct header_repair *m)
{
  const uint64_t size = node_size (m->file);
  struct qed_header h;
  uint64_t end;

  if (m->file->fixed_size || qed_header_decode (m->buf, NULL, &h) == -1)
    return 0;
  end = h.l1_table_offset + qed_table_bytes (&h);
  if (end <= size || (h.l1_table_offset >= size &&
                      h.l1_table_offset != qed_header_bytes (&h)))
    return 0;
  if (m->report)
    m->report (m->opaque, "the file ends within the L1 table: what that "
               "referred to is lost");
  return node_resize (m->file, end) == -1 ? -1 : 1;
}

int
repair_header (struct node *file,
               void (*report) (void *opaque, const char *line), void *opaque)
{
  struct header_repair m = {
    .file = file, .report = report, .opaque = opaque
  };
  uint8_t best_buf[QED_HEADER_LEN];
  struct quality now, best;

  if (node_size (file) < sizeof m.buf)
    return 0;
  if (node_pread (file, m.buf, sizeof m.buf, 0) == -1 ||
      look_through (&m, m.buf, &now) == -1)
    return -1;
  if (now.usable && now.corruptions == 0 && now.leaks == 0)
    return 0;
  if (find_header (&m, now.usable, best_buf, &best) == -1)
    return -1;
  if (is_convincing (&m, &best, &now))
    return write_header (&m, best_buf);
  return now.usable ? 0 : extend_l1_table (&m);
}
