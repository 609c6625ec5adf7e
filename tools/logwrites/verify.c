/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites verify: is a disk what a log, replayed onto what the disk
 * was before, would make of it?
 *
 * Nothing is replayed: the index of the log gives the disk that is
 * expected, and the two are compared piece by piece.  So neither memory
 * nor room on a disk grows with the disk.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/logwrites/logwrites.h"
#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/sizes.h"
#include "writelog/moments/base.h"
#include "writelog/moments/moment.h"
#include "writelog/moments/state.h"
#include "utils/message.h"
#include "utils/rounding.h"

enum {
  VERIFY_BASE = TOOL_FIRST_CODE,
  VERIFY_SIZE,
};

static const struct tool_option options[] = {
  { VERIFY_BASE, "base", "FILE",
    "what the disk was before, if not all zeroes" },
  { VERIFY_SIZE, "size", "SIZE",
    "how large it was, if not as the log or the base says" },
  TOOL_OPTION_OUTPUT,
  TOOL_OPTION_HELP,
  { 0 }
};

#define EXIT_DIFFERENT 2

/* The disk is compared in pieces of this size. */
#define PIECE (UINT64_C (1024) * 1024)

#define EQUAL UINT64_MAX

struct verify {
  const char *log_name;
  int64_t size;                 /* as the user says; -1: not */
  struct writelog_index *index;
  struct writelog_totals totals;
  struct node *base;            /* may be NULL */
  struct node *disk;
  struct node *expected;
  char *buffers;                /* two of PIECE bytes */
};

/* ---- Comparing */

/* The first difference in a piece, or EQUAL. */
static int
compare_piece (struct verify *v, uint64_t count, uint64_t offset,
               uint64_t *difference)
{
  char *const a = v->buffers, *const b = v->buffers + PIECE;
  uint64_t i = 0;

  if (node_pread (v->expected, a, count, offset) == -1 ||
      node_pread (v->disk, b, count, offset) == -1)
    return -1;
  if (memcmp (a, b, count) == 0)
    return 0;
  while (a[i] == b[i])
    i++;
  *difference = offset + i;
  return 0;
}

/* How a node reads from an offset on.  Zeroes that were written may be a
 * hole in the log.
 */
static int
extent_at (const struct verify *v, struct node *n, uint64_t count,
           uint64_t offset, struct extent *e)
{
  struct node *const log = writelog_index_log (v->index);

  if (node_extents (n, count, offset, e) == -1)
    return -1;
  if ((e->flags & EXTENT_MAPPED) && e->where == log)
    return node_extents (log, e->length, e->offset, e);
  return 0;
}

/* How many bytes from an offset are known to be zeroes in both, or else
 * are to be compared next.
 */
static int
next_piece (const struct verify *v, uint64_t count, uint64_t offset,
            bool *both_zero, uint64_t *len)
{
  struct extent a, b;

  if (extent_at (v, v->expected, count, offset, &a) == -1 ||
      extent_at (v, v->disk, count, offset, &b) == -1)
    return -1;
  *both_zero = a.flags & b.flags & EXTENT_ZERO;
  *len = *both_zero ? MIN (a.length, b.length) : MIN (count, PIECE);
  return 0;
}

/* Where, in bytes, is the first difference?  A disk that ends before the
 * other differs there.
 */
static int
compare (struct verify *v, uint64_t *difference)
{
  const uint64_t size1 = node_size (v->expected);
  const uint64_t size2 = node_size (v->disk);
  const uint64_t end = MIN (size1, size2);
  uint64_t offset = 0, len;
  bool both_zero;

  *difference = EQUAL;
  for (; offset < end && *difference == EQUAL; offset += len) {
    if (next_piece (v, end - offset, offset, &both_zero, &len) == -1)
      return -1;
    if (!both_zero && compare_piece (v, len, offset, difference) == -1)
      return -1;
  }
  if (*difference == EQUAL && size1 != size2)
    *difference = end;
  return 0;
}

/* ---- What is compared */

/* The disk is as long as the user says, or the log has noted; else as the
 * base; without one, as long as DISK, if all entries have a place there.
 */
static int
expected_size (const struct verify *v, uint64_t *size)
{
  const struct writelog_totals *const t = &v->totals;
  const uint64_t disk_size = node_size (v->disk);

  if (v->size >= 0 || t->disk_size > 0) {
    *size = v->size >= 0 ? (uint64_t) v->size : t->disk_size;
    return 0;
  }
  if (v->base == NULL) {
    *size = div_round_up (disk_size, t->sector_size) * t->sector_size >=
      t->end ? disk_size : t->end;
    return 0;
  }
  *size = node_size (v->base);
  if (div_round_up (*size, t->sector_size) * t->sector_size >= t->end)
    return 0;
  errno = EINVAL;
  msg_error ("%s: %" PRIu64 " bytes are too few: entry %" PRIu64
             " of the log %s goes up to %" PRIu64, v->base->name, *size,
             t->end_entry, v->log_name, t->end);
  return -1;
}

static int
open_index (struct verify *v)
{
  struct writelog_reader *const log = writelog_reader_open (v->log_name);

  if (log == NULL)
    return -1;
  v->index = writelog_index_open (log);
  if (v->index == NULL)
    return -1;
  writelog_index_totals (v->index, &v->totals);
  return 0;
}

static struct node *
open_disk (const char *name)
{
  return align_open (name, &(struct node_open_options) { .read_only = true });
}

static int
open_all (struct verify *v, const char *base, const char *disk)
{
  struct writelog_moment end;
  uint64_t size;

  if (open_index (v) == -1 ||
      (base && (v->base = open_disk (base)) == NULL) ||
      (v->disk = open_disk (disk)) == NULL ||
      writelog_check_base (v->index, v->base) == -1 ||
      expected_size (v, &size) == -1)
    return -1;
  writelog_moment_entries (v->index, v->totals.entries, &end);
  v->expected = writelog_moment_open (v->index, &end, v->base, size);
  return v->expected ? 0 : -1;
}

static void
close_all (struct verify *v)
{
  node_close (v->expected);
  node_close (v->disk);
  node_close (v->base);
  writelog_index_close (v->index);
}

/* ---- The result */

/* The last entry that has to do with a sector; an entry without sectors
 * if there is none.
 */
static int
find_last_entry (const struct verify *v, uint64_t sector,
                 struct writelog_item *last)
{
  struct writelog_reader *const log = writelog_reader_open (v->log_name);
  struct writelog_item item;
  int r;

  last->entry.nr_sectors = 0;
  if (log == NULL)
    return -1;
  while ((r = writelog_reader_next (log, &item)) == 1)
    if (item.entry.sector <= sector &&
        sector - item.entry.sector < item.entry.nr_sectors)
      *last = item;
  writelog_reader_close (log);
  return r;
}

static int
print_difference (const struct verify *v, uint64_t offset)
{
  const uint64_t sector = offset / v->totals.sector_size;
  struct writelog_item last;

  printf ("%s is not what the log %s says: the first sector that differs is "
          "%" PRIu64 "\n", v->disk->name, v->log_name, sector);
  if (offset >= node_size (v->disk))
    printf ("The disk ends there, at byte %" PRIu64 ".\n", offset);
  else if (offset >= node_size (v->expected))
    printf ("The %s ends there, at byte %" PRIu64 ".\n",
            v->size >= 0 || v->totals.disk_size > 0 ? "logged disk" : "base",
            offset);
  else
    printf ("The first byte that differs is at %" PRIu64 ".\n", offset);

  if (find_last_entry (v, sector, &last) == -1)
    return -1;
  if (last.entry.nr_sectors > 0)
    printf ("The last entry for this sector is %" PRIu64 " at offset %" PRIu64
            ".\n", last.number, last.offset);
  else
    printf ("The log has no entry for this sector.\n");
  return 0;
}

static json_t *
result_to_json (const struct verify *v, uint64_t difference)
{
  if (difference == EQUAL)
    return json_pack ("{s:b}", "equal", 1);
  return json_pack ("{s:b, s:I, s:I}", "equal", 0, "sector",
                    (json_int_t) (difference / v->totals.sector_size),
                    "offset", (json_int_t) difference);
}

static int
print_result (const struct verify *v, uint64_t difference, bool json)
{
  if (json)
    return tool_print_json (result_to_json (v, difference));
  if (difference != EQUAL)
    return print_difference (v, difference);
  printf ("%s is what the log %s says: %" PRIu64 " entries\n",
          v->disk->name, v->log_name, v->totals.entries);
  return 0;
}

/* ---- The command */

static int
verify (struct verify *v, const char *base, const char *disk, bool json)
{
  CLEANUP_FREE char *buffers = malloc (2 * PIECE);
  uint64_t difference;

  if (buffers == NULL) {
    msg_error ("%s: %m", disk);
    return EXIT_FAILURE;
  }
  v->buffers = buffers;
  if (open_all (v, base, disk) == -1 ||
      compare (v, &difference) == -1 ||
      print_result (v, difference, json) == -1)
    return EXIT_FAILURE;
  return difference == EQUAL ? EXIT_SUCCESS : EXIT_DIFFERENT;
}

static int
run (int argc, char *argv[])
{
  struct verify v = { .size = -1 };
  const char *base = NULL;
  bool json = false;
  int c, status;

  while ((c = tool_next_option (&logwrites_verify_command, argc, argv)) != -1)
    switch (c) {
    case VERIFY_BASE:
      base = optarg;
      break;
    case VERIFY_SIZE:
      v.size = parse_size (optarg);
      if (v.size == -1)
        tool_usage_error ("--size: '%s' is not a size", optarg);
      break;
    case TOOL_OUTPUT:
      json = tool_parse_output (optarg);
      break;
    }
  if (optind != argc - 2)
    tool_usage_error ("Expecting a log and a disk");
  v.log_name = argv[optind];
  status = verify (&v, base, argv[optind + 1], json);
  close_all (&v);
  return status;
}

const struct tool_command logwrites_verify_command = {
  "verify", "LOG DISK", "Compare a disk with what a log says it is.",
  options, run
};
