/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * An entry that cannot be right may have been right but for one bit.
 * What it meant is then leaked: nothing else refers to it.  So, where
 * exactly one of the 64 offsets that differ in one bit is that of leaked
 * clusters, the entry is pointed there instead of being cleared.
 *
 * For a table, the clusters must also hold what can be an L2 table of
 * leaked clusters; that is hardly found by chance, save for tables that an
 * earlier image has left on storage of fixed size.  So what stands where
 * the entry points now must look less like a table.  For a data cluster
 * there is no such test, so tables with many bad entries are left alone:
 * they are no tables.
 *
 * None of this is done while NEED_CHECK is set.  After a crash, entries
 * may point behind the end of the file, and leaked clusters hold
 * anything.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "qed/image/scan.h"
#include "qed/repair/entries.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* More bad entries than this, and it is no table. */
#define MAX_BAD_ENTRIES 16

#define MAX_FINDINGS 4096

#define PIECE ((uint64_t) 256 * 1024)
#define LINE_LEN 256

struct entry_repair {
  struct qed *s;
  void (*report) (void *opaque, const char *line);
  void *opaque;

  struct scan scan;
  struct bitmap data_in;        /* clusters of tables that data lies in */
  uint64_t *sorted_l1;          /* nr_l1, once one of them is suspect */
  struct bitmap no_tables;      /* clusters where no lost table begins */
  struct finding *findings;     /* of L2 entries, in order */
  size_t nr;
  bool out_of_memory;
  uint64_t fixed;
};

/* Is there nothing that the entry could be right about?  Where a table
 * and data share a cluster, the table may be wrong.
 */
static bool
is_wrong (const struct qed *s, const struct finding *f)
{
  const uint64_t l1 = s->header.l1_table_offset;

  return f->kind == DATA_OUTSIDE ||
    (f->kind == DATA_IN_TABLE &&
     (f->entry < qed_header_bytes (&s->header) ||
      (f->entry >= l1 && f->entry < l1 + qed_table_bytes (&s->header))));
}

static void
entries_collect (void *opaque, const struct finding *f)
{
  struct entry_repair *er = opaque;

  if (f->kind == DATA_IN_TABLE &&
      bitmap_add (&er->data_in, f->entry >> er->s->cluster_bits) == -1)
    er->out_of_memory = true;
  if (is_wrong (er->s, f) && er->nr < MAX_FINDINGS)
    er->findings[er->nr++] = *f;
}

static int
entries_out_of_memory (const struct entry_repair *er)
{
  errno = ENOMEM;
  msg_error ("%s: repair: %m", er->s->node.name);
  return -1;
}

static int
scan_again (struct entry_repair *er)
{
  scan_free (&er->scan);
  bitmap_free (&er->data_in);
  er->scan = (struct scan) { .found = entries_collect, .opaque = er };
  er->nr = 0;
  if (scan_image (er->s, &er->scan) == -1)
    return -1;
  return er->out_of_memory ? entries_out_of_memory (er) : 0;
}

static bool
is_leaked (const struct entry_repair *er, uint64_t offset, uint64_t bytes)
{
  const struct qed *s = er->s;
  const uint64_t size = node_size (s->file);

  if (!is_aligned (offset, s->cluster_size) || offset > size ||
      bytes > size - offset)
    return false;
  for (uint64_t done = 0; done < bytes; done += s->cluster_size)
    if (bitmap_has (&er->scan.used, (offset + done) >> s->cluster_bits))
      return false;
  return true;
}

static int
claim_clusters (struct entry_repair *er, uint64_t offset, uint64_t bytes)
{
  const struct qed *s = er->s;

  for (uint64_t done = 0; done < bytes; done += s->cluster_size)
    if (bitmap_add (&er->scan.used,
                    (offset + done) >> s->cluster_bits) == -1)
      return entries_out_of_memory (er);
  return 0;
}

static int
write_entry (struct entry_repair *er, uint64_t place, uint64_t value)
{
  uint8_t buf[QED_ENTRY_LEN];

  TRACE_META ("qed: repair: entry at %" PRIu64 " = %" PRIu64, place, value);
  qed_entry_put (buf, 0, value);
  er->fixed++;
  return node_pwrite (er->s->file, buf, sizeof buf, place);
}

/* ---- Tables */

/* Do these entries refer to leaked clusters only, each to another one?
 * *nr counts them.
 */
static int
check_entries (struct entry_repair *er, const uint8_t *buf, uint64_t n,
               struct bitmap *seen, uint64_t *nr, bool *good)
{
  for (uint64_t i = 0; i < n; ++i) {
    const uint64_t entry = qed_entry_get (buf, i);
    int r;

    if (entry == QED_UNALLOCATED || entry == QED_ZERO)
      continue;
    if (!is_leaked (er, entry, er->s->cluster_size)) {
      *good = false;
      return 0;
    }
    r = bitmap_add (seen, entry >> er->s->cluster_bits);
    if (r == -1)
      return entries_out_of_memory (er);
    if (r == 1) {
      *good = false;
      return 0;
    }
    ++*nr;
  }
  return 0;
}

/* Is this an L2 table that has lost its L1 entry? */
static int
is_lost_table (struct entry_repair *er, uint64_t offset, bool *good)
{
  struct qed *s = er->s;
  const uint64_t bytes = qed_table_bytes (&s->header);
  CLEANUP_FREE uint8_t *buf = malloc (MIN (bytes, PIECE));
  struct bitmap seen = BITMAP_EMPTY;
  uint64_t nr = 0;
  int r = 0;

  *good = is_leaked (er, offset, bytes);
  if (buf == NULL)
    return entries_out_of_memory (er);
  if (*good && !s->file->fixed_size) {
    uint64_t hole;

    if (node_zeroes (s->file, bytes, offset, &hole) == -1)
      return -1;
    *good = hole < bytes;
  }
  for (uint64_t done = 0; r == 0 && *good && done < bytes; done += PIECE) {
    const uint64_t length = MIN (bytes - done, PIECE);

    r = node_pread (s->file, buf, length, offset + done);
    if (r == 0)
      r = check_entries (er, buf, length / QED_ENTRY_LEN, &seen, &nr, good);
  }
  /* Nor does a table refer to its own clusters. */
  for (uint64_t i = 0; i < s->header.table_size; ++i)
    if (bitmap_has (&seen, (offset >> s->cluster_bits) + i))
      *good = false;
  if (nr == 0)
    *good = false;
  bitmap_free (&seen);
  return r;
}

static int
compare_entries (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* The L1 entries as they were before any was repaired. */
static int
sort_l1 (struct entry_repair *er)
{
  const struct qed *s = er->s;

  if (er->sorted_l1)
    return 0;
  er->sorted_l1 = calloc (s->nr_l1, sizeof *er->sorted_l1);
  if (er->sorted_l1 == NULL)
    return entries_out_of_memory (er);
  for (uint64_t i = 0; i < s->nr_l1; ++i)
    er->sorted_l1[i] = atomic_load (&s->l1[i]);
  qsort (er->sorted_l1, s->nr_l1, sizeof *er->sorted_l1, compare_entries);
  return 0;
}

/* Is there a second L1 entry with this value? */
static bool
is_twice (const struct entry_repair *er, uint64_t table)
{
  const uint64_t *l1 = er->sorted_l1, *end = l1 + er->s->nr_l1;
  const uint64_t *e = bsearch (&table, l1, er->s->nr_l1, sizeof *l1,
                               compare_entries);

  return e && ((e > l1 && e[-1] == table) || (e + 1 < end && e[1] == table));
}

/* May this L1 entry be wrong?  If two are equal, nobody can tell which
 * of them is.  One that was repaired has become that of a leaked table,
 * which no other one has.
 */
static int
is_suspect (struct entry_repair *er, uint64_t index, bool *suspect)
{
  const struct qed *s = er->s;
  const uint64_t table = atomic_load (&s->l1[index]);

  *suspect = table != 0 && bitmap_has (&er->scan.bad_l1, index);
  for (uint64_t i = 0; table != 0 && !*suspect && i < s->header.table_size;
       ++i)
    *suspect = bitmap_has (&er->data_in, (table >> s->cluster_bits) + i);
  if (!*suspect)
    return 0;
  if (sort_l1 (er) == -1)
    return -1;
  *suspect = !is_twice (er, table);
  return 0;
}

/* The same, but what is none is read once only: all of many entries may
 * differ in one bit from it.  None becomes one, since fewer and fewer
 * clusters are leaked.
 */
static int
is_lost_table_still (struct entry_repair *er, uint64_t offset, bool *good)
{
  const uint64_t cluster = offset >> er->s->cluster_bits;

  *good = false;
  if (bitmap_has (&er->no_tables, cluster))
    return 0;
  if (is_lost_table (er, offset, good) == -1)
    return -1;
  if (!*good && bitmap_add (&er->no_tables, cluster) == -1)
    return entries_out_of_memory (er);
  return 0;
}

/* The one lost table that an L1 entry may have meant, or 0. */
static int
find_table (struct entry_repair *er, uint64_t entry, uint64_t *table)
{
  *table = 0;
  for (unsigned bit = 0; bit < 64; ++bit) {
    const uint64_t offset = entry ^ UINT64_C (1) << bit;
    bool good;

    if (offset < qed_header_bytes (&er->s->header) ||
        !is_leaked (er, offset, qed_table_bytes (&er->s->header)))
      continue;
    if (is_lost_table_still (er, offset, &good) == -1)
      return -1;
    if (good && *table) {
      *table = 0;
      return 0;
    }
    if (good)
      *table = offset;
  }
  return 0;
}

/* Do more entries make sense than not, where an L1 entry points? */
static int
looks_like_table (struct entry_repair *er, uint64_t offset, bool *result)
{
  struct qed *s = er->s;
  const uint64_t bytes = qed_table_bytes (&s->header);
  CLEANUP_FREE uint8_t *buf = malloc (MIN (bytes, PIECE));
  int64_t more = 0;

  if (buf == NULL)
    return entries_out_of_memory (er);
  for (uint64_t done = 0; done < bytes; done += PIECE) {
    const uint64_t length = MIN (bytes - done, PIECE);

    if (node_pread (s->file, buf, length, offset + done) == -1)
      return -1;
    for (uint64_t i = 0; i < length / QED_ENTRY_LEN; ++i) {
      const uint64_t entry = qed_entry_get (buf, i);

      if (entry != QED_UNALLOCATED && entry != QED_ZERO)
        more += image_cluster_ok (s, entry) &&
          !bitmap_has (&er->scan.tables, entry >> s->cluster_bits) ? 1 : -1;
    }
  }
  *result = more > 0;
  return 0;
}

static int
repair_table (struct entry_repair *er, uint64_t index)
{
  struct qed *s = er->s;
  const uint64_t entry = atomic_load (&s->l1[index]);
  bool good = false;
  char line[LINE_LEN];
  uint64_t table;

  if (!bitmap_has (&er->scan.bad_l1, index) &&
      looks_like_table (er, entry, &good) == -1)
    return -1;
  if (good)
    return 0;
  if (find_table (er, entry, &table) == -1)
    return -1;
  if (table == 0)
    return 0;
  snprintf (line, sizeof line, "L1 entry %" PRIu64 " points to offset %" PRIu64
            " (0x%" PRIx64 ") of the file, but for one bit to a lost L2 "
            "table at %" PRIu64, index, entry, entry, table);
  if (er->report)
    er->report (er->opaque, line);
  atomic_store (&s->l1[index], table);
  if (claim_clusters (er, table, qed_table_bytes (&s->header)) == -1)
    return -1;
  return write_entry (er, s->header.l1_table_offset + index * QED_ENTRY_LEN,
                      table);
}

static int
repair_tables (struct entry_repair *er)
{
  bool suspect;

  for (uint64_t i = 0; i < er->s->nr_l1; ++i)
    if (is_suspect (er, i, &suspect) == -1 ||
        (suspect && repair_table (er, i) == -1))
      return -1;
  return 0;
}

/* ---- Data */

/* The one leaked cluster that an entry may have meant, or 0.  On storage
 * of fixed size what stands behind the image was never in it.
 */
static uint64_t
find_cluster (const struct entry_repair *er, uint64_t entry)
{
  const struct qed *s = er->s;
  const uint64_t end = s->file->fixed_size ? er->scan.result.image_end
    : node_size (s->file);
  uint64_t found = 0;

  for (unsigned bit = 0; bit < 64; ++bit) {
    const uint64_t offset = entry ^ UINT64_C (1) << bit;

    if (offset >= qed_header_bytes (&s->header) && offset < end &&
        is_leaked (er, offset, s->cluster_size)) {
      if (found)
        return 0;
      found = offset;
    }
  }
  return found;
}

static int
repair_cluster (struct entry_repair *er, const struct finding *f)
{
  struct qed *s = er->s;
  const uint64_t cluster = find_cluster (er, f->entry);
  char line[LINE_LEN];

  if (cluster == 0 || f->l1_index >= s->nr_l1)
    return 0;
  snprintf (line, sizeof line, "L1 entry %" PRIu64 ", L2 entry %" PRIu64
            " points to offset %" PRIu64 " (0x%" PRIx64 ") of the file, but "
            "for one bit to a lost cluster at %" PRIu64, f->l1_index,
            f->l2_index, f->entry, f->entry, cluster);
  if (er->report)
    er->report (er->opaque, line);
  if (claim_clusters (er, cluster, s->cluster_size) == -1)
    return -1;
  return write_entry (er, atomic_load (&s->l1[f->l1_index]) +
                      f->l2_index * QED_ENTRY_LEN, cluster);
}

static int
repair_data (struct entry_repair *er)
{
  size_t i, end;

  for (i = 0; i < er->nr; i = end) {
    for (end = i; end < er->nr &&
           er->findings[end].l1_index == er->findings[i].l1_index; ++end)
      ;
    if (end - i > MAX_BAD_ENTRIES)
      continue;
    for (size_t j = i; j < end; ++j)
      if (repair_cluster (er, &er->findings[j]) == -1)
        return -1;
  }
  return 0;
}

static int
repair_all (struct entry_repair *er)
{
  if (scan_again (er) == -1)
    return -1;
  if (er->scan.result.corruptions == 0)
    return 0;
  if (repair_tables (er) == -1 || node_flush (er->s->file) == -1 ||
      scan_again (er) == -1 || repair_data (er) == -1)
    return -1;
  return node_flush (er->s->file);
}

int
repair_entries (struct qed *s,
                void (*report) (void *opaque, const char *line),
                void *opaque, uint64_t *fixed)
{
  struct entry_repair er = { .s = s, .report = report, .opaque = opaque };
  int r;

  *fixed = 0;
  if (s->header.features & QED_NEED_CHECK)
    return 0;
  er.findings = malloc (MAX_FINDINGS * sizeof *er.findings);
  if (er.findings == NULL)
    return entries_out_of_memory (&er);
  r = repair_all (&er);
  *fixed = er.fixed;
  free (er.findings);
  free (er.sorted_l1);
  scan_free (&er.scan);
  bitmap_free (&er.data_in);
  bitmap_free (&er.no_tables);
  return r;
}
