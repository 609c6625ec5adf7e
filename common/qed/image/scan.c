/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Two passes: the first goes over the L1 table and notes which clusters
 * tables occupy, the second over all L2 tables.  So data that lies in a
 * table is told from a table that lies in data by the order of search
 * only; repairs must not assume which of the two is wrong.
 *
 * Tables are read in pieces, and what is a hole in the file is skipped,
 * so neither memory nor time follow from what a hostile header says.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "qed/image/scan.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Tables are read in pieces of this length.  Most are mostly holes, so behind
 * one, where more may follow, less is read first.
 */
#define PIECE ((uint64_t) 256 * 1024)
#define FIRST_PIECE ((uint64_t) 4 * 1024)

/* Entries that are looked at together for being empty. */
#define GROUP 64

/* Of fixed storage, tables from this length on. */
#define LONG_TABLE ((uint64_t) 1024 * 1024)

char *
finding_text (const struct finding *f, char buf[FINDING_LEN])
{
  static const char *const what[] = {
    [TABLE_OUTSIDE] = "no L2 table can be there",
    [TABLE_OVERLAPS] = "the clusters there hold another table",
    [TABLE_UNREADABLE] = "the L2 table there cannot be read",
    [DATA_OUTSIDE] = "no data cluster can be there",
    [DATA_IN_TABLE] = "the cluster there holds a table or the header",
    [DATA_SHARED] = "the cluster there is mapped at another place too",
  };
  const bool is_data = f->kind >= DATA_OUTSIDE;
  const char *why = what[f->kind];
  int n;

  if (f->cut)
    why = is_data ? "the file ends within the data cluster there"
      : "the file ends within the L2 table there";

  n = snprintf (buf, FINDING_LEN, "L1 entry %" PRIu64, f->l1_index);
  if (is_data)
    n += snprintf (buf + n, FINDING_LEN - n, ", L2 entry %" PRIu64,
                   f->l2_index);
  n += snprintf (buf + n, FINDING_LEN - n,
                 " points to offset %" PRIu64 " (0x%" PRIx64 ") of the "
                 "file: %s; it maps %" PRIu64 " bytes at offset %" PRIu64
                 " of the disk", f->entry, f->entry, why, f->length,
                 f->offset);
  if (f->kind == DATA_SHARED && f->other != SCAN_UNKNOWN)
    snprintf (buf + n, FINDING_LEN - n, ", and so it does at offset %" PRIu64,
              f->other);
  return buf;
}

void
scan_free (struct scan *scan)
{
  bitmap_free (&scan->used);
  bitmap_free (&scan->tables);
  bitmap_free (&scan->contested);
  bitmap_free (&scan->shared);
  bitmap_free (&scan->bad_l1);
  free (scan->buf);
  scan->buf = NULL;
}

/* Call a function with each entry of a table that is not 0. */
typedef int (*visitor) (struct qed *s, struct scan *scan, uint64_t context,
                        uint64_t index, uint64_t entry);

static int
visit_piece (struct qed *s, struct scan *scan, const uint8_t *buf,
             uint64_t length, uint64_t first, visitor visit,
             uint64_t context)
{
  const uint64_t n = length / QED_ENTRY_LEN;
  uint64_t i = 0;

  while (i < n) {
    const uint64_t entry = qed_entry_get (buf, i);

    if (i % GROUP == 0 && n - i >= GROUP &&
        is_zero (buf + i * QED_ENTRY_LEN, GROUP * QED_ENTRY_LEN)) {
      i += GROUP;
      continue;
    }
    if (entry != 0 && visit (s, scan, context, first + i, entry) == -1)
      return -1;
    i++;
  }
  return 0;
}

/* How much of a range of the file need not be read, since it is a hole?  A
 * long one is asked for once for all tables in it.  To ask an export takes
 * as long as to read a short table, so there only long ones are worth it.
 */
static uint64_t
hole_length (struct qed *s, struct scan *scan, uint64_t count,
             uint64_t offset)
{
  uint64_t length;

  if (offset < scan->hole || offset >= scan->hole_end) {
    if (s->file->fixed_size && qed_table_bytes (&s->header) < LONG_TABLE)
      return 0;
    if (node_zeroes (s->file, node_size (s->file) - offset, offset, &length)
        == -1)
      length = 0;
    scan->hole = offset;
    scan->hole_end = offset + length;
  }
  return round_down (MIN (count, scan->hole_end - offset), QED_ENTRY_LEN);
}

/* Returns 0, -1 if the visitor failed, 1 after a message if the table
 * could not be read.  *buf is memory for it, NULL at first.
 */
static int
visit_table (struct qed *s, struct scan *scan, uint8_t **buf, uint64_t table,
             visitor visit, uint64_t context)
{
  const uint64_t bytes = qed_table_bytes (&s->header);
  const uint64_t first = s->file->fixed_size ? PIECE : FIRST_PIECE;
  uint64_t done = 0, length, piece = first;

  for (; done < bytes; done += length) {
    length = hole_length (s, scan, bytes - done, table + done);
    if (length > 0) {
      piece = first;
      continue;
    }
    length = MIN (bytes - done, piece);
    piece = MIN (2 * piece, PIECE);
    if (*buf == NULL && (*buf = malloc (MIN (bytes, PIECE))) == NULL) {
      msg_error ("%s: reading a table: %m", s->node.name);
      return -1;
    }
    if (node_pread (s->file, *buf, length, table + done) == -1)
      return 1;
    if (visit_piece (s, scan, *buf, length, done / QED_ENTRY_LEN, visit,
                     context) == -1)
      return -1;
  }
  return 0;
}

static void
found (struct scan *scan, const struct finding *f)
{
  if (f->kind == TABLE_UNREADABLE)
    scan->result.check_errors++;
  else
    scan->result.corruptions += f->corruptions;
  if (scan->found)
    scan->found (scan->opaque, f);
}

static int
scan_out_of_memory (const struct qed *s)
{
  msg_error ("%s: reading the tables: %m", s->node.name);
  return -1;
}

static void
note_end (struct scan *scan, uint64_t end)
{
  if (scan->result.image_end < end)
    scan->result.image_end = end;
}

/* Note that clusters of the file hold header or tables.  Returns how
 * many of them did already, or -1.
 */
static int
mark_table (struct qed *s, struct scan *scan, uint64_t offset,
            uint64_t bytes)
{
  const uint64_t first = offset >> s->cluster_bits;
  const uint64_t n = bytes >> s->cluster_bits;
  int overlaps = 0;

  for (uint64_t i = first; i < first + n; ++i) {
    const int r = bitmap_add (&scan->tables, i);

    if (r == -1 || bitmap_add (&scan->used, i) == -1)
      return scan_out_of_memory (s);
    if (r == 1) {
      overlaps++;
      if (bitmap_add (&scan->contested, i) == -1)
        return scan_out_of_memory (s);
    }
  }
  note_end (scan, offset + bytes);
  return overlaps;
}

static struct finding
table_finding (const struct qed *s, enum finding_kind kind,
               uint64_t l1_index, uint64_t entry)
{
  const unsigned bits = s->cluster_bits + s->table_bits;

  return (struct finding) {
    .kind = kind, .l1_index = l1_index, .entry = entry, .corruptions = 1,
    .offset = l1_index << bits, .length = UINT64_C (1) << bits
  };
}

static bool
is_there (struct scan *scan, uint64_t l1_index, uint64_t l2_index,
          uint64_t offset, uint64_t bytes)
{
  return scan->is_there == NULL ||
    scan->is_there (scan->opaque, l1_index, l2_index, offset, bytes);
}

/* Does the file have the beginning of it only? */
static bool
is_cut (const struct qed *s, uint64_t offset, uint64_t bytes)
{
  const uint64_t size = node_size (s->file);

  return is_aligned (offset, s->cluster_size) &&
    offset >= qed_header_bytes (&s->header) &&
    offset < size && bytes > size - offset;
}

/* What overlaps the L1 table itself is no table at all, so what else is
 * on its clusters need not share the blame.
 */
static bool
overlaps_l1 (const struct qed *s, uint64_t table)
{
  const uint64_t bytes = qed_table_bytes (&s->header);
  const uint64_t l1 = s->header.l1_table_offset;

  return table < l1 + bytes && l1 < table + bytes;
}

static int
visit_l1_first (struct qed *s, struct scan *scan, uint64_t context,
                uint64_t index, uint64_t entry)
{
  struct finding f = table_finding (s, TABLE_OUTSIDE, index, entry);

  if (image_table_ok (s, entry) && overlaps_l1 (s, entry))
    f.kind = TABLE_OVERLAPS;
  else if (image_table_ok (s, entry) &&
           is_there (scan, index, SCAN_TABLE, entry,
                     qed_table_bytes (&s->header))) {
    const int r = mark_table (s, scan, entry, qed_table_bytes (&s->header));

    if (r == 0 && scan->unit)
      scan->unit (scan->opaque, index, SCAN_TABLE, entry);
    if (r <= 0)
      return r;
    f.kind = TABLE_OVERLAPS;
    f.corruptions = r;
  }
  f.cut = is_cut (s, entry, qed_table_bytes (&s->header));
  found (scan, &f);
  return bitmap_add (&scan->bad_l1, index) == -1 ? scan_out_of_memory (s) : 0;
}

static int
visit_l2 (struct qed *s, struct scan *scan, uint64_t l1_index,
          uint64_t index, uint64_t entry)
{
  const uint64_t cluster = entry >> s->cluster_bits;
  struct finding f = {
    .kind = DATA_OUTSIDE, .l1_index = l1_index, .l2_index = index,
    .entry = entry, .length = s->cluster_size, .corruptions = 1,
    .other = SCAN_UNKNOWN,
    .offset = ((l1_index << s->table_bits) + index) << s->cluster_bits
  };
  int r;

  if (entry == QED_ZERO)
    return 0;

  scan->result.allocated_clusters++;
  if (scan->previous && scan->previous + s->cluster_size != entry)
    scan->result.fragmented_clusters++;
  scan->previous = entry;

  if (image_cluster_ok (s, entry) &&
      is_there (scan, l1_index, index, entry, s->cluster_size)) {
    if (bitmap_has (&scan->tables, cluster))
      f.kind = DATA_IN_TABLE;
    else {
      r = bitmap_add (&scan->used, cluster);
      if (r == -1)
        return scan_out_of_memory (s);
      if (r == 0) {
        note_end (scan, entry + s->cluster_size);
        if (scan->unit)
          scan->unit (scan->opaque, l1_index, index, entry);
        return 0;
      }
      f.kind = DATA_SHARED;
      if (bitmap_add (&scan->shared, cluster) == -1)
        return scan_out_of_memory (s);
    }
  }
  f.cut = is_cut (s, entry, s->cluster_size);
  found (scan, &f);
  return 0;
}

/* Is a table on clusters that another one, found after it, claims too? */
static bool
is_contested (const struct qed *s, const struct scan *scan, uint64_t table)
{
  const uint64_t first = table >> s->cluster_bits;

  if (scan->contested.members == 0)
    return false;
  for (uint64_t i = first; i < first + s->header.table_size; ++i)
    if (bitmap_has (&scan->contested, i))
      return true;
  return false;
}

static int
visit_l1_second (struct qed *s, struct scan *scan, uint64_t context,
                 uint64_t index, uint64_t entry)
{
  struct finding f = table_finding (s, TABLE_UNREADABLE, index, entry);
  int r;

  if (bitmap_has (&scan->bad_l1, index))
    return 0;
  scan->previous = 0;
  r = visit_table (s, scan, &scan->buf, entry, visit_l2, index);
  if (r == 1)
    found (scan, &f);
  /* Nobody can tell which of two tables on one cluster is meant, so
   * neither is to be followed.
   */
  if (r != -1 && is_contested (s, scan, entry) &&
      bitmap_add (&scan->bad_l1, index) == -1)
    return scan_out_of_memory (s);
  return r == -1 ? -1 : 0;
}

int
scan_image (struct qed *s, struct scan *scan)
{
  const uint64_t l1 = s->header.l1_table_offset;
  const uint64_t nr_clusters = node_size (s->file) >> s->cluster_bits;
  CLEANUP_FREE uint8_t *buf = NULL;

  scan->hole = scan->hole_end = 0;      /* of an earlier scan */
  scan->result.total_clusters =
    div_round_up (s->header.image_size, s->cluster_size);
  if (mark_table (s, scan, 0, qed_header_bytes (&s->header)) == -1 ||
      mark_table (s, scan, l1, qed_table_bytes (&s->header)) == -1 ||
      visit_table (s, scan, &buf, l1, visit_l1_first, 0) != 0 ||
      visit_table (s, scan, &buf, l1, visit_l1_second, 0) != 0)
    return -1;

  if (!s->file->fixed_size && nr_clusters > scan->used.members)
    scan->result.leaks = nr_clusters - scan->used.members;
  return 0;
}
