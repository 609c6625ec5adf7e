/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What is held back can always be logged, whatever overtakes it and
 * however full the log gets (write-log.md, promise 6 in the order of
 * durability); and what is stale of it is known exactly.
 *
 * Notes on the design
 *
 * Random entries are held, and overtaken, until a log of fixed size is
 * full.  A model has for each sector the number of the last entry that was
 * accepted, which is also what the entry's data are made of.  Then a flush
 * must succeed, and replaying the log must give the model.
 */

#include <config.h>

#include <inttypes.h>

#include "writelog/record/held.h"
#include "tests/unit/memory-node.h"
#include "writelog/reader.h"
#include "writelog/record/stale.h"
#include "tests/unit/unit.h"

#define SECTOR 32
#define SECTORS UINT64_C (200)  /* of the disk */
#define LOG_SECTORS 3000

/* ---- What is stale */

#define FEW_SECTORS UINT64_C (50)
#define OPERATIONS 40

struct model {
  uint64_t below;               /* entries before this are stale */
  uint64_t discards[OPERATIONS]; /* numbers, not stale */
  unsigned n;
};

static uint64_t
model_discards (const struct model *m, uint64_t oldest)
{
  uint64_t held = 0;

  for (unsigned i = 0; i < m->n; ++i)
    held += m->discards[i] >= oldest;
  return held;
}

static void
compare_with_model (const struct stale *s, const struct model *model,
                    uint64_t oldest, uint64_t next, bool exact)
{
  for (uint64_t i = 0; i < FEW_SECTORS; ++i) {
    const uint64_t held = model_discards (&model[i], oldest);
    const uint64_t nr = stale_nr_discards (s, i);

    CHECK (exact ? nr == held : nr >= held);
    CHECK (held > 0 || oldest < next || nr == 0);
    for (uint64_t n = oldest; n <= next; ++n) {
      uint64_t len, same = i;
      const bool stale = stale_at (s, n, i, FEW_SECTORS, &len);

      CHECK (stale == (n < model[i].below));
      while (same < FEW_SECTORS && (n < model[same].below) == stale)
        same++;
      CHECK (len == same - i);
    }
  }
}

static void
test_stale (void **state)
{
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    CLEANUP_FREE struct model *model = calloc (FEW_SECTORS, sizeof *model);
    uint64_t random = seed, oldest = 0, next = 0;
    struct stale s;

    CHECK (model && stale_init (&s) == 0);
    for (unsigned i = 0; i < OPERATIONS; ++i) {
      const uint64_t start = random_below (&random, FEW_SECTORS - 1);
      const uint64_t end =
        start + 1 + random_below (&random, FEW_SECTORS - start);
      const uint64_t kind = random_below (&random, 10);

      CHECK (stale_has_room (&s));
      if (kind < 4)
        stale_overtake (&s, start, end, next);
      else if (kind < 8)
        stale_discard (&s, start, end, next);
      else if (kind == 9) {
        oldest = MAX (oldest, random_below (&random, next + 1));
        stale_forget (&s, oldest);
      }
      for (uint64_t j = start; j < end; ++j) {
        if (kind < 4)
          model[j] = (struct model) { .below = next };
        else if (kind < 8)
          model[j].discards[model[j].n++] = next;
      }
      next += kind >= 4 && kind < 9;
      compare_with_model (&s, model, oldest, next, oldest == 0);
    }
    stale_forget (&s, next);
    assert_int_equal (s.n, 0);
    stale_free (&s);
  }
}

/* It takes bounded memory, and says when that is used up. */
static void
test_stale_room (void **state)
{
  struct stale s;
  uint64_t i, len;

  assert_int_equal (stale_init (&s), 0);
  for (i = 0; stale_has_room (&s) && i < 1000000; ++i)
    stale_overtake (&s, 2 * i, 2 * i + 1, i + 1);
  assert_within (i, 50000, 100000);
  assert_true (stale_at (&s, 0, 0, 10, &len));
  assert_int_equal (len, 1);
  stale_clear (&s);
  assert_true (stale_has_room (&s));
  assert_false (stale_at (&s, 0, 0, 10, &len));
  assert_int_equal (len, 10);
  stale_free (&s);
}

/* ---- A log that gets full */

struct load {
  struct memory_node *medium;
  struct writelog *log;
  struct hold *hold;
  uint64_t seed;
  uint16_t disk[SECTORS];       /* what was accepted: numbers of writes, 0
                                   for zeroes and discards */
  uint16_t number;
  bool held;                    /* something is */
};

static void
begin (struct load *load, uint64_t seed, uint64_t log_sectors)
{
  const struct writelog_options options = {
    .sector_size = SECTOR, .interval = 50,
  };

  *load = (struct load) { .seed = seed };
  load->medium = memory_node_new (log_sectors * SECTOR);
  load->log = writelog_open_node (&load->medium->node, &options);
  CHECK (load->log);
  load->hold = hold_new (load->log, 4096, "/tmp");
  CHECK (load->hold && writelog_start (load->log) == 0);
}

/* One random entry.  Discards come together, and are cut often. */
static int
random_entry (struct load *load)
{
  uint8_t data[40 * SECTOR];
  const uint64_t kind = random_below (&load->seed, 10);
  const bool fua = random_below (&load->seed, 3) == 0;
  struct writelog_entry entry = {
    .sector = random_below (&load->seed, SECTORS - 40),
    .nr_sectors = 1 + random_below (&load->seed, fua ? 2 : 40),
    .flags = (kind >= 7 ? WRITELOG_DISCARD : 0) | (fua ? WRITELOG_FUA : 0),
  };
  const uint16_t value = kind < 5 ? ++load->number : 0;
  const struct writelog_piece piece = {
    .data = kind < 5 ? data : NULL, .len = entry.nr_sectors * SECTOR,
  };

  for (size_t i = 0; i < sizeof data; i += sizeof value)
    memcpy (data + i, &value, sizeof value);
  if ((fua ? hold_overtake : hold_add) (load->hold, &entry, &piece,
                                        kind >= 7 ? 0 : 1) == -1)
    return -1;
  for (uint64_t i = 0; i < entry.nr_sectors; ++i)
    load->disk[entry.sector + i] = value;
  load->held |= !fua;
  return 0;
}

static int
flush (struct load *load)
{
  const struct hold_mark mark = hold_mark (load->hold);

  load->held = false;
  return hold_release (load->hold, &mark);
}

/* Read the log as it is now.  Returns how many sectors it has. */
static uint64_t
check_log (struct load *load)
{
  struct memory_node *copy = memory_node_new (node_size (&load->medium->node));
  struct writelog_reader *r;
  struct writelog_item item;
  uint16_t disk[SECTORS] = { 0 };
  uint64_t sectors;

  CHECK (writelog_flush (load->log) == 0);
  memcpy (copy->data, load->medium->data, node_size (&copy->node));
  r = writelog_reader_open_node (&copy->node);
  CHECK (r);
  while (writelog_reader_next (r, &item) == 1) {
    for (uint64_t i = 0; i < item.entry.nr_sectors; ++i)
      if (item.entry.flags & WRITELOG_DISCARD)
        disk[item.entry.sector + i] = 0;
      else
        memcpy (&disk[item.entry.sector + i],
                copy->data + item.data_offset + i * SECTOR, sizeof disk[0]);
  }
  CHECK (r->next == r->super.nr_entries);
  sectors = r->offset / SECTOR;
  writelog_reader_close (r);
  CHECK (memcmp (disk, load->disk, sizeof disk) == 0);
  return sectors;
}

/* What was accepted when the log was full can be logged: by a flush with
 * its own entry, or at the end.
 */
static void
test_full (void **state)
{
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    struct load load;
    unsigned entries = 0;

    forget_messages ();
    begin (&load, seed, LOG_SECTORS / 3 + seed);
    while (random_entry (&load) == 0) {
      if (load.held && seed % 3 && random_below (&load.seed, 60) == 0)
        CHECK (flush (&load) == 0);
      entries++;
    }
    CHECK (errno == ENOSPC && entries > 10);
    CHECK (writelog_check (load.log) == -1 && nr_messages () == 1);
    if (load.held && seed % 2) {
      CHECK (flush (&load) == 0);
      check_log (&load);
    }
    CHECK (hold_close (load.hold) == 0);
    check_log (&load);
    CHECK (writelog_close (load.log) == 0);
  }
}

/* Of what was promised nothing remains when all has been logged: the log
 * can be filled to its last sector.
 */
static void
test_promises_are_kept (void **state)
{
  const struct writelog_entry one = { .flags = WRITELOG_FLUSH };

  for (uint64_t seed = 1; seed <= 100; ++seed) {
    struct load load;

    begin (&load, seed, LOG_SECTORS);
    for (unsigned i = 0; i < 70; ++i) {
      CHECK (random_entry (&load) == 0);
      if (random_below (&load.seed, 20) == 0)
        CHECK (flush (&load) == 0);
      if (random_below (&load.seed, 20) == 0) {
        const struct hold_mark mark = hold_mark (load.hold);

        CHECK (random_entry (&load) == 0);
        if (random_below (&load.seed, 2))
          hold_forget (load.hold, &mark);       /* the disk's flush failed */
        else
          CHECK (hold_release (load.hold, &mark) == 0);
      }
    }
    CHECK (flush (&load) == 0);
    while (writelog_append (load.log, &one, NULL, 0) == 0)
      ;
    assert_int_equal (check_log (&load), LOG_SECTORS);
    CHECK (hold_close (load.hold) == 0);
    CHECK (writelog_close (load.log) == 0);
  }
}

static uint64_t
nr_entries (struct writelog *log)
{
  struct writelog_status status;

  writelog_query (log, &status);
  free (status.last_mark);
  free (status.error);
  return status.entries;
}

/* When the notes on what is stale are full, what is held is logged early,
 * and still cut.
 */
static void
test_logged_early (void **state)
{
  const struct writelog_piece piece = { .len = SECTOR };
  const struct writelog_piece pieces = { .len = 5 * SECTOR };
  struct writelog_entry entry = { .sector = 1, .nr_sectors = 5 };
  const uint64_t n = 70000;
  uint64_t before;
  struct load load;

  begin (&load, 1, 6 * n);
  assert_int_equal (hold_add (load.hold, &entry, &pieces, 1), 0);
  entry = (struct writelog_entry) { .nr_sectors = 1, .flags = WRITELOG_FUA };
  for (uint64_t i = 0; i < n; ++i, entry.sector += 2)
    assert_int_equal (hold_overtake (load.hold, &entry, &piece, 1), 0);
  /* Three pieces of the first one, and the flush. */
  assert_int_equal (nr_entries (load.log), n + 3);
  assert_int_equal (flush (&load), 0);
  assert_int_equal (nr_entries (load.log), n + 4);

  entry = (struct writelog_entry) {
    .nr_sectors = 1, .flags = WRITELOG_DISCARD
  };
  for (uint64_t i = 0; i < n; ++i, entry.sector += 2)
    assert_int_equal (hold_add (load.hold, &entry, NULL, 0), 0);
  before = nr_entries (load.log);
  assert_within (before, n + 4 + 50000, 2 * n);
  assert_int_equal (flush (&load), 0);
  assert_int_equal (nr_entries (load.log), 2 * n + 5);
  assert_int_equal (hold_close (load.hold), 0);
  assert_int_equal (writelog_close (load.log), 0);
}

/* What is acknowledged can be logged: after a failure nothing is. */
static void
test_failed_log (void **state)
{
  const struct writelog_entry entry = { .nr_sectors = 1 };
  const struct writelog_piece piece = { .len = SECTOR };
  struct load load;

  begin (&load, 1, LOG_SECTORS);
  forget_messages ();
  errno = EIO;
  writelog_fail (load.log, "for the test");
  assert_int_equal (hold_add (load.hold, &entry, &piece, 1), -1);
  assert_int_equal (errno, EIO);
  assert_messages (1, "for the test");
  assert_int_equal (hold_close (load.hold), 0);
  assert_int_equal (writelog_close (load.log), 0);
}

/* ---- No memory */

static bool no_memory;

extern void *__real_realloc (void *p, size_t size);
extern void *__wrap_realloc (void *p, size_t size);

void *
__wrap_realloc (void *p, size_t size)
{
  if (!no_memory)
    return __real_realloc (p, size);
  errno = ENOMEM;
  return NULL;
}

/* Without memory to note what is stale all that is held is logged early. */
static void
test_no_memory (void **state)
{
  const struct writelog_entry entry = { .nr_sectors = 1 };
  const struct writelog_entry fua = {
    .sector = 5, .nr_sectors = 1, .flags = WRITELOG_FUA,
  };
  const struct writelog_entry discard = {
    .sector = 9, .nr_sectors = 3, .flags = WRITELOG_DISCARD,
  };
  const struct writelog_piece piece = { .len = SECTOR };
  struct load load;

  begin (&load, 1, LOG_SECTORS);
  assert_int_equal (hold_add (load.hold, &entry, &piece, 1), 0);
  no_memory = true;
  for (unsigned i = 0; i < 100; ++i) {
    assert_int_equal (hold_overtake (load.hold, &fua, &piece, 1), 0);
    assert_int_equal (hold_add (load.hold, &discard, NULL, 0), 0);
  }
  no_memory = false;
  assert_int_equal (hold_close (load.hold), 0);
  assert_int_equal (nr_entries (load.log), 201);
  assert_int_equal (writelog_close (load.log), 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_stale),
    cmocka_unit_test (test_stale_room),
    cmocka_unit_test (test_full),
    cmocka_unit_test (test_promises_are_kept),
    cmocka_unit_test (test_logged_early),
    cmocka_unit_test (test_failed_log),
    cmocka_unit_test (test_no_memory),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
