/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fuzzing write logs: any file is read, indexed, and its moments are opened.
 * A moment holds what replaying the entries one after the other gives, each
 * state that explore would try can be opened by its name, and a log that is
 * continued holds what it held and what was added.
 */

#include <config.h>

#include <inttypes.h>

#include "node/node.h"
#include "tests/fuzz/fuzz.h"
#include "utils/rounding.h"
#include "writelog/explore/plan.h"
#include "writelog/moments/moment.h"
#include "writelog/moments/state.h"
#include "writelog/reader.h"
#include "writelog/record/writer.h"

#define LOG "fuzz.log"
#define WINDOW (UINT64_C (64) * 1024) /* of the disk, that is looked at */
#define MAX_ENTRIES UINT64_C (64) /* of which states are compared */

static void
replay_item (struct writelog_reader *r, const struct writelog_item *item,
             uint8_t *disk)
{
  const uint64_t unit = r->super.sector_size;
  uint64_t offset, count;

  if (__builtin_mul_overflow (item->entry.sector, unit, &offset) ||
      offset >= WINDOW)
    return;
  if (__builtin_mul_overflow (item->entry.nr_sectors, unit, &count) ||
      count > WINDOW - offset)
    count = WINDOW - offset;

  if (item->entry.flags & WRITELOG_DISCARD)
    memset (disk + offset, 0, count);
  else if (count > 0)
    WANT (node_pread (r->node, disk + offset, count, item->data_offset)
          == 0);
}

/* Replay the first n entries.  Returns how many there are, or -1. */
static int64_t
replay (uint64_t n, uint8_t *disk)
{
  struct writelog_reader *r = writelog_reader_open (LOG);
  struct writelog_item item;
  int64_t nr = 0;
  int more;

  if (r == NULL)
    return -1;
  memset (disk, 0, WINDOW);
  while ((more = writelog_reader_next (r, &item)) == 1)
    if ((uint64_t) nr++ < n)
      replay_item (r, &item, disk);
  writelog_reader_close (r);
  return more == -1 ? -1 : nr;
}

static void
read_moment (const struct writelog_index *index, const char *name,
             uint8_t *disk)
{
  struct writelog_moment moment;
  struct node *n;

  if (writelog_moment_parse (index, name, TEAR_SECTOR, &moment) == -1)
    return;
  n = writelog_moment_open (index, &moment, NULL, WINDOW);
  WANT (n);
  for (uint64_t at = 0; at < WINDOW;) {
    struct extent e;

    WANT (node_extents (n, WINDOW - at, at, &e) == 0 && e.length > 0);
    WANT (node_pread (n, disk + at, e.length, at) == 0);
    at += e.length;
  }
  node_close (n);
  writelog_moment_free (&moment);
}

static void
check_states (const struct writelog_index *index, uint64_t nr,
              struct script *script)
{
  static uint8_t replayed[WINDOW], seen[WINDOW], again[WINDOW];
  char name[100];

  for (unsigned i = 0; i < 4; ++i) {
    const uint64_t n = fuzz_byte (script) % (MIN (nr, MAX_ENTRIES) + 1);

    snprintf (name, sizeof name, "entry/%" PRIu64, n);
    WANT (replay (n, replayed) == (int64_t) nr);
    memset (seen, 0xa5, WINDOW);
    read_moment (index, name, seen);
    WANT (memcmp (seen, replayed, WINDOW) == 0);
  }
  for (unsigned i = 0; i < 4; ++i) {
    snprintf (name, sizeof name, "crash/%u/%u", fuzz_byte (script) % 8,
              fuzz_byte (script));
    memset (seen, 0, WINDOW);
    memset (again, 0, WINDOW);
    read_moment (index, name, seen);
    read_moment (index, name, again);
    WANT (memcmp (seen, again, WINDOW) == 0);
  }
  snprintf (name, sizeof name, "lost/%u/%u-%u:%u-%u", fuzz_byte (script) % 64,
            fuzz_byte (script) % 64, fuzz_byte (script) % 64,
            fuzz_byte (script) % 8, fuzz_byte (script) % 8);
  read_moment (index, name, seen);
}

/* Of the states of explore a few are opened: what a name says is the state. */
static void
check_plan (const struct writelog_index *index, uint64_t nr,
            struct script *script)
{
  static uint8_t seen[WINDOW], replayed[WINDOW];
  struct plan_wish wish = {
    .seeds = fuzz_byte (script) % 4, .to = MIN (nr, MAX_ENTRIES),
    .limit = 1 + fuzz_byte (script) % 16, .zero_base = fuzz_byte (script) % 2,
    .tear = TEAR_SECTOR,
  };
  struct plan plan;

  for (unsigned i = 0; i < PLAN_KINDS; ++i)
    wish.kinds[i] = fuzz_byte (script) % 2;
  WANT (plan_make (&plan, index, &wish) == 0);
  WANT (plan.nr <= wish.limit && plan.nr <= plan.distinct);
  WANT (plan.distinct <= plan.found);
  for (size_t i = 0; i < plan.nr && i < 4; ++i) {
    CLEANUP_FREE char *name = plan_name (&plan, &plan.states[i]);

    WANT (name && plan.states[i].entries <= wish.to);
    if (strlen (name) > 4096)
      continue;
    memset (seen, 0xa5, WINDOW);
    read_moment (index, name, seen);
    if (plan_is_prefix (&plan.states[i])) {
      WANT (replay (plan.states[i].entries, replayed) == (int64_t) nr);
      WANT (memcmp (seen, replayed, WINDOW) == 0);
    }
  }
  plan_free (&plan);
}

static void
look (struct script *script)
{
  static uint8_t disk[WINDOW];
  const int64_t nr = replay (UINT64_MAX, disk);
  struct writelog_reader *r = writelog_reader_open (LOG);
  struct writelog_index *index;

  if (r == NULL)
    return;
  index = writelog_index_open (r);
  WANT ((index == NULL) == (nr == -1));
  if (index == NULL)
    return;

  struct writelog_totals totals;

  writelog_index_totals (index, &totals);
  WANT (totals.entries == (uint64_t) nr);
  check_states (index, nr, script);
  check_plan (index, nr, script);
  writelog_index_close (index);
}

/* Go on with it. */
static void
append (void)
{
  static uint8_t before[WINDOW], after[WINDOW];
  const struct writelog_options options = { .append = true, .interval = 4 };
  struct writelog *log = writelog_open (LOG, &options);
  const int64_t nr = replay (UINT64_MAX, before);
  uint32_t unit;

  if (log == NULL)
    return;
  unit = writelog_sector_size (log);
  if (unit <= 4096 && writelog_start (log) == 0 &&
      writelog_begin (log) == 0) {
    const struct writelog_entry entry = {
      .sector = 3, .nr_sectors = 1, .data_len = unit
    };
    CLEANUP_FREE uint8_t *data = malloc (unit);
    const struct writelog_piece piece = { .data = data, .len = unit };

    WANT (data);
    memset (data, 0x5a, unit);
    if (writelog_append (log, &entry, &piece, 1) == 0 &&
        writelog_flush (log) == 0) {
      WANT (replay (UINT64_MAX, after) == MAX (nr, (int64_t) 0) + 1);
      if (nr == -1)
        memset (before, 0, WINDOW);
      memset (before + 3 * unit, 0x5a, unit);
      WANT (memcmp (before, after, WINDOW) == 0);
    }
  }
  writelog_close (log);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct script script = fuzz_script (data, size);

  fuzz_begin ();
  fuzz_write (LOG, data, size);
  look (&script);
  append ();
  return 0;
}
