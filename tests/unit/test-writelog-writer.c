/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A write log that many threads write counts whole entries only, and all
 * that was flushed, after power loss at any point and after any request
 * to its medium has failed (write-log.md, promises 3, 4 and 6).
 *
 * Notes on the design
 *
 * The log lies on a medium in memory that remembers, like a disk with a
 * volatile cache, what was flushed and each sector written since.  At
 * random moments a power loss is played: what was flushed, plus a random
 * subset of the sectors written since.  Each state is read, all of it,
 * and then continued by a writer.  What stands in an entry follows from
 * its sector, so a byte that was not written is found.
 */

#include <config.h>

#include <inttypes.h>

#include "writelog/reader.h"
#include "utils/rounding.h"
#include "tests/unit/memory-node.h"
#include "tests/unit/unit.h"
#include "writelog/record/writer.h"

#define SECTOR 512
#define CAPACITY (4 * 1024 * 1024)
#define NR_THREADS 4
#define ENTRIES 60              /* of each thread */

/* With such sectors half of the entries are so long that they are written
 * one after the other.
 */
#define LONG_SECTOR 32768
#define LONG_ENTRIES 2          /* of each thread: these always fit */
#define FEW (ONE_IN > 1 ? 2 : 4) /* power losses, every other with promises */

/* ---- The medium */

struct sector_write {
  uint64_t sector;
  uint8_t data[SECTOR];
};

struct medium {
  struct node node;
  pthread_mutex_t lock;         /* protects all below */
  uint8_t *now, *flushed;       /* CAPACITY bytes; zeroes behind it */
  uint64_t flushed_size;
  struct sector_write *writes;  /* since the flush, in order */
  size_t nr_writes, max_writes;
  uint64_t seed;                /* 0: the power never fails */
  unsigned losses;              /* played */
  uint64_t must_count;          /* entries, whatever happens */
  unsigned requests;            /* that change it, so far */
  unsigned fail_at;             /* this request and all later ones, or 0 */
  uint64_t space;               /* a write behind it fails, and then all do
                                   until the node is made shorter, or 0 */
  bool full;
  bool never_cut;               /* making it shorter fails */
};

static void play_power_loss (struct medium *m);

/* Before each request that changes the medium.  Called with the lock. */
static int
event (struct medium *m)
{
  m->requests++;
  if (m->seed && random_below (&m->seed, ONE_IN > 1 ? 160 : 40) == 0) {
    m->losses++;
    play_power_loss (m);
  }
  if (m->fail_at && m->requests >= m->fail_at) {
    errno = EIO;
    return -1;
  }
  return 0;
}

static int
medium_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct medium *m = (struct medium *) n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  memset (buf, 0, count);
  if (offset < CAPACITY)
    memcpy (buf, m->now + offset, MIN (count, CAPACITY - offset));
  return 0;
}

static void
record_sectors (struct medium *m, uint64_t offset, uint64_t count)
{
  for (uint64_t s = offset / SECTOR; s * SECTOR < offset + count; ++s) {
    if (m->nr_writes == m->max_writes) {
      m->max_writes = m->max_writes * 2 + 64;
      m->writes = realloc (m->writes, m->max_writes * sizeof *m->writes);
      CHECK (m->writes);
    }
    m->writes[m->nr_writes].sector = s;
    memcpy (m->writes[m->nr_writes++].data, m->now + s * SECTOR, SECTOR);
  }
}

static int
medium_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                size_t count, uint64_t offset)
{
  struct medium *m = (struct medium *) n;
  uint64_t at = offset;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  CHECK (offset + count <= CAPACITY);
  if (event (m) == -1)
    return -1;
  m->full |= m->space && offset + count > m->space;
  if (m->full) {
    errno = ENOSPC;
    return -1;
  }
  for (int i = 0; i < iovcnt; ++i) {
    memcpy (m->now + at, iov[i].iov_base, iov[i].iov_len);
    at += iov[i].iov_len;
  }
  record_sectors (m, offset, count);
  return 0;
}

static int
medium_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct medium *m = (struct medium *) n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  CHECK (offset + count <= CAPACITY);
  if (event (m) == -1)
    return -1;
  memset (m->now + offset, 0, count);
  record_sectors (m, offset, count);
  return 0;
}

static int
medium_flush (struct node *n)
{
  struct medium *m = (struct medium *) n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (event (m) == -1)
    return -1;
  memcpy (m->flushed, m->now, CAPACITY);
  m->flushed_size = node_size (n);
  m->nr_writes = 0;
  return 0;
}

static int
medium_resize (struct node *n, uint64_t size)
{
  struct medium *m = (struct medium *) n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (event (m) == -1)
    return -1;
  if (m->never_cut && size < node_size (n)) {
    errno = EIO;
    return -1;
  }
  if (size < CAPACITY)
    memset (m->now + size, 0, CAPACITY - size);
  m->full &= size > m->space;
  atomic_store (&n->size, size);
  return 0;
}

static int
medium_close (struct node *n)
{
  struct medium *m = (struct medium *) n;

  free (m->now);
  free (m->flushed);
  free (m->writes);
  pthread_mutex_destroy (&m->lock);
  free (n->name);
  free (m);
  return 0;
}

static const struct node_ops medium_ops = {
  .type = "medium",
  .close = medium_close,
  .pread = medium_pread,
  .pwritev = medium_pwritev,
  .flush = medium_flush,
  .zero = medium_zero,
  .resize = medium_resize,
};

/* One of fixed size is full of what was there before, but for the first
 * sector.
 */
static struct medium *
new_medium (bool fixed, uint64_t size)
{
  struct medium *m = calloc (1, sizeof *m);

  CHECK (m);
  m->now = calloc (1, CAPACITY);
  m->flushed = calloc (1, CAPACITY);
  m->node.ops = &medium_ops;
  m->node.name = strdup ("medium");
  m->node.align = m->node.zero_align = 1;
  m->node.fixed_size = fixed;
  CHECK (m->now && m->flushed && m->node.name);
  pthread_mutex_init (&m->lock, NULL);
  atomic_init (&m->node.size, size);
  m->flushed_size = size;
  if (fixed)
    memset (m->now + 4096, 0xee, size - 4096);
  memcpy (m->flushed, m->now, CAPACITY);
  return m;
}

/* A medium with these contents, whose power never fails. */
static struct medium *
copy_medium (const struct medium *m, const uint8_t *data, uint64_t size)
{
  struct medium *copy = new_medium (false, size);

  copy->node.fixed_size = m->node.fixed_size;
  memcpy (copy->now, data, CAPACITY);
  return copy;
}

/* ---- Entries: the kind and the data follow from the sector */

enum kind { WRITE, ZEROES, DISCARD, EMPTY_FLUSH };

static enum kind
kind_of (uint64_t sector)
{
  return sector % 10 < 6 ? WRITE : sector % 10 < 8 ? ZEROES :
    sector % 10 == 8 ? DISCARD : EMPTY_FLUSH;
}

static uint8_t
value_of (uint64_t sector)
{
  return kind_of (sector) == WRITE ? 1 + sector % 200 : 0;
}

static struct writelog_entry
entry_of (uint64_t sector)
{
  static const uint64_t flags[] = { 0, 0, WRITELOG_DISCARD, WRITELOG_FLUSH };
  const enum kind kind = kind_of (sector);

  return (struct writelog_entry) {
    .sector = sector, .flags = flags[kind],
    .nr_sectors = kind == EMPTY_FLUSH ? 0 : 1 + sector % 13,
  };
}

static int
append_with (struct writelog *log, uint64_t sector, bool promised)
{
  const struct writelog_entry entry = entry_of (sector);
  const uint64_t len =
    writelog_data_sectors (&entry) * writelog_sector_size (log);
  CLEANUP_FREE uint8_t *data = malloc (len + 1);
  const bool zeroes = kind_of (sector) == ZEROES;
  const struct writelog_piece pieces[] = {
    { .data = zeroes ? NULL : data, .len = len / 3 },
    { .data = zeroes ? NULL : data, .len = len - len / 3 },
  };

  CHECK (data);
  memset (data, value_of (sector), len);
  if (!promised)
    return writelog_append (log, &entry, pieces, 2);
  /* More than is needed, for a while. */
  if (writelog_promise (log, 3 + writelog_data_sectors (&entry)) == -1)
    return -1;
  writelog_withdraw (log, 2);
  return writelog_append_promised (log, &entry, pieces, 2);
}

static int
append_one (struct writelog *log, uint64_t sector)
{
  return append_with (log, sector, false);
}

static void
check_entry (struct writelog_reader *r, const struct writelog_item *item)
{
  const struct writelog_entry wanted = entry_of (item->entry.sector);
  const uint64_t len =
    writelog_data_sectors (&item->entry) * r->super.sector_size;
  CLEANUP_FREE uint8_t *data = malloc (len + 1);

  CHECK (data);
  CHECK (memcmp (&item->entry, &wanted, sizeof wanted) == 0);
  CHECK (node_pread (r->node, data, len, item->data_offset) == 0);
  /* Each byte is like the one before it. */
  CHECK (len == 0 || data[0] == value_of (item->entry.sector));
  CHECK (len == 0 || memcmp (data, data + 1, len - 1) == 0);
}

/* Read a log, which must be whole.  Returns how many entries it has. */
static uint64_t
check_log (struct node *node)
{
  struct writelog_reader *r = writelog_reader_open_node (node);
  struct writelog_item item;
  uint64_t n;
  int more;

  CHECK (r);
  while ((more = writelog_reader_next (r, &item)) == 1)
    check_entry (r, &item);
  CHECK (more == 0);
  n = r->super.nr_entries;
  writelog_reader_close (r);
  return n;
}

/* ---- Power loss */

static const struct writelog_options continue_log = {
  .append = true, .interval = 1000,
};

/* Continue a log by an entry. */
static void
check_continued (struct medium *m, const uint8_t *data, uint64_t size,
                 uint64_t entries)
{
  struct medium *medium = copy_medium (m, data, size);
  struct writelog *log = writelog_open_node (&medium->node, &continue_log);
  struct writelog_status status;

  CHECK (log && writelog_start (log) == 0);
  CHECK (append_one (log, 11) == 0);
  CHECK (writelog_flush (log) == 0);
  writelog_query (log, &status);
  CHECK (status.entries == entries + 1);
  free (status.last_mark);
  free (status.error);
  CHECK (check_log (&copy_medium (m, medium->now,
                                  node_size (&medium->node))->node)
         == entries + 1);
  CHECK (writelog_close (log) == 0);
}

static void
play_power_loss (struct medium *m)
{
  CLEANUP_FREE uint8_t *state = malloc (CAPACITY);
  const uint64_t keep = random_below (&m->seed, 101);
  const uint64_t size =
    random_below (&m->seed, 2) ? m->flushed_size : node_size (&m->node);
  uint64_t entries;

  CHECK (state);
  memcpy (state, m->flushed, CAPACITY);
  for (size_t i = 0; i < m->nr_writes; ++i)
    if (random_below (&m->seed, 100) < keep)
      memcpy (state + m->writes[i].sector * SECTOR, m->writes[i].data,
              SECTOR);
  entries = check_log (&copy_medium (m, state, size)->node);
  CHECK (entries >= m->must_count);
  check_continued (m, state, size, entries);
}

/* ---- The load */

struct load {
  struct medium *medium;
  struct writelog *log;
  int entries;                  /* of each thread */
  bool promises;                /* half of the entries are promised */
  _Atomic uint64_t appended;    /* entries, successfully */
};

static void
flush_one (struct load *load)
{
  const uint64_t before = atomic_load (&load->appended);
  struct medium *m = load->medium;

  if (writelog_flush (load->log) == 0) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
    m->must_count = MAX (m->must_count, before);
  }
  else
    CHECK (m->fail_at);
}

static void
appender (struct unit_thread *t)
{
  struct load *load = t->opaque;

  for (int i = 0; i < load->entries; ++i) {
    if (append_with (load->log, random_below (&t->seed, 10000),
                     load->promises && i % 2) == 0)
      atomic_fetch_add (&load->appended, 1);
    else
      CHECK (load->medium->fail_at || load->medium->space ||
             load->medium->node.fixed_size);
    if (random_below (&t->seed, 10) == 0)
      flush_one (load);
  }
}

static void
start_load_with (struct load *load, struct medium *m, uint32_t sector_size,
                 uint64_t interval)
{
  const struct writelog_options options = {
    .sector_size = sector_size, .interval = interval,
  };

  *load = (struct load) {
    .medium = m,
    .entries = sector_size == LONG_SECTOR ? LONG_ENTRIES : ENTRIES,
  };
  load->log = writelog_open_node (&m->node, &options);
  CHECK (load->log && writelog_start (load->log) == 0);
}

static void
start_load (struct load *load, struct medium *m, uint32_t sector_size)
{
  start_load_with (load, m, sector_size, 7);
}

static void
power_loss (bool fixed, uint32_t sector_size, unsigned rounds)
{
  unsigned losses = 0;

  for (uint64_t seed = 1; seed <= rounds; ++seed) {
    struct medium *m = new_medium (fixed, fixed ? CAPACITY : 0);
    struct load load;

    start_load (&load, m, sector_size);
    load.promises = seed % 2;
    if (load.promises)
      writelog_use_promises (load.log);
    m->seed = seed;
    run_threads (NR_THREADS, appender, &load);
    CHECK (load.appended == (uint64_t) NR_THREADS * load.entries);
    losses += m->losses;
    CHECK (writelog_close (load.log) == 0);
  }
  CHECK (losses > 0);
}

static void
test_power_loss_file (void **state)
{
  power_loss (false, 512, FEW);
  power_loss (false, 1024, FEW);
  power_loss (false, LONG_SECTOR, ONE_IN > 1 ? 10 : 40);
}

static void
test_power_loss_device (void **state)
{
  power_loss (true, 512, FEW);
  power_loss (true, 1024, FEW);
}

/* ---- The interval */

static uint64_t
counted_now (struct medium *m)
{
  struct writelog_super super = { 0 };
  const char *why;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  CHECK (writelog_super_decode (m->now, SECTOR, &super, &why) ==
         WRITELOG_SUPER_OK);
  return super.nr_entries;
}

static void
counted_appender (struct unit_thread *t)
{
  struct load *load = t->opaque;

  for (int i = 0; i < ENTRIES; ++i) {
    uint64_t appended;

    CHECK (append_one (load->log, random_below (&t->seed, 10000)) == 0);
    appended = atomic_fetch_add (&load->appended, 1) + 1;
    CHECK (counted_now (load->medium) >= appended);
  }
}

/* Not only some of the threads that append at the same time see to it
 * that what they have appended is counted in time.
 */
static void
test_interval_of_one (void **state)
{
  struct medium *m = new_medium (false, 0);
  struct load load;

  start_load_with (&load, m, 512, 1);
  run_threads (NR_THREADS, counted_appender, &load);
  CHECK (writelog_close (load.log) == 0);
}

/* ---- Failure */

/* From some request on, the medium fails all that changes it. */
static void
fail_medium (bool fixed, uint32_t sector_size, unsigned fail_at)
{
  struct medium *m = new_medium (fixed, fixed ? CAPACITY : 0);
  struct writelog_status status;
  struct load load;
  uint64_t entries;

  forget_messages ();
  start_load (&load, m, sector_size);
  m->fail_at = fail_at;
  run_threads (NR_THREADS, appender, &load);

  assert_int_equal (append_one (load.log, 1), -1);
  assert_int_equal (errno, EIO);
  assert_int_equal (writelog_check (load.log), -1);
  writelog_query (load.log, &status);
  assert_non_null (status.error);
  free (status.error);
  assert_true (status.entries >= load.appended);
  assert_messages (1, "nothing more can be logged");

  entries = check_log (&copy_medium (m, m->now,
                                     node_size (&m->node))->node);
  assert_true (entries >= m->must_count);
  writelog_close (load.log);
}

static void
test_medium_fails (void **state)
{
  for (unsigned fail_at = 8; fail_at < 300; fail_at += 13 * ONE_IN)
    fail_medium (fail_at % 2, 512, fail_at);
  /* Beginning takes a few requests. */
  for (unsigned round = 0; round < 30 / ONE_IN; ++round)
    fail_medium (false, LONG_SECTOR, 5 + round % 6);
}

/* The medium is full, and nothing else is wrong with it: all that was
 * appended is there, and counted in the end.
 */
static void
test_full (void **state)
{
  struct medium *m = new_medium (true, 100 * 1024);
  struct load load;
  CLEANUP_FREE uint8_t *data = malloc (CAPACITY);

  forget_messages ();
  start_load (&load, m, 512);
  run_threads (NR_THREADS, appender, &load);
  assert_messages (1, "does not fit: the log is full: No space left on "
                   "device");
  assert_int_equal (writelog_flush (load.log), 0);
  memcpy (data, m->now, CAPACITY);
  assert_int_equal (check_log (&copy_medium (m, data, 100 * 1024)->node),
                    load.appended);
  assert_int_equal (writelog_close (load.log), 0);
}

/* The file system is full, and takes space also for what is written in
 * place: all that was appended is counted by a flush nevertheless, if
 * nobody is writing meanwhile.
 */
static void
test_full_without_writing_in_place (void **state)
{
  struct medium *m = new_medium (false, 0);
  struct load load;
  CLEANUP_FREE uint8_t *data = malloc (CAPACITY);

  forget_messages ();
  start_load (&load, m, 512);
  m->space = 20 * 1024;
  run_threads (1, appender, &load);
  assert_messages (1, "could not be written: No space left on device");
  assert_int_equal (writelog_flush (load.log), 0);
  memcpy (data, m->now, CAPACITY);
  assert_int_equal (check_log (&copy_medium (m, data,
                                             node_size (&m->node))->node),
                    load.appended);
  assert_int_equal (writelog_close (load.log), 0);
}

/* ---- Marks */

static void
test_marks (void **state)
{
  struct medium *m = new_medium (false, 0);
  char longest[512 - 32 + 1];
  struct writelog_status status;
  struct writelog_reader *r;
  struct writelog_item item;
  struct load load;

  memset (longest, 'm', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  start_load (&load, m, 512);
  assert_int_equal (writelog_mark (load.log, "first"), 0);
  assert_int_equal (writelog_mark (load.log, longest), 0);
  writelog_query (load.log, &status);
  assert_string_equal (status.last_mark, longest);
  assert_int_equal (status.entries, 2);
  assert_int_equal (status.sectors, 3);
  assert_null (status.error);
  free (status.last_mark);

  /* They are on the medium, and counted there. */
  r = writelog_reader_open_node (&copy_medium (m, m->flushed,
                                               m->flushed_size)->node);
  assert_non_null (r);
  assert_int_equal (writelog_reader_next (r, &item), 1);
  assert_string_equal (item.mark, "first");
  assert_int_equal (writelog_reader_next (r, &item), 1);
  assert_string_equal (item.mark, longest);
  assert_int_equal (writelog_reader_next (r, &item), 0);
  writelog_reader_close (r);
  assert_int_equal (writelog_close (load.log), 0);
}

/* What was not flushed is whole in the file, and counted, also if that
 * cannot be cut behind it.
 */
static void
test_file_that_cannot_be_cut (void **state)
{
  struct medium *m = new_medium (false, 0);
  struct writelog_item item;
  struct writelog_reader *r;
  struct node *left;
  struct load load;

  start_load (&load, m, 512);
  CHECK (append_one (load.log, 10) == 0 && append_one (load.log, 20) == 0);
  m->never_cut = true;
  assert_int_equal (writelog_finish (load.log), -1);
  left = &copy_medium (m, m->flushed, m->flushed_size)->node;
  assert_int_equal (writelog_close (load.log), 0);

  r = writelog_reader_open_node (left);
  assert_non_null (r);
  assert_int_equal (r->super.nr_entries, 2);
  while (writelog_reader_next (r, &item) == 1)
    ;
  assert_int_equal (r->next, 2);
  writelog_reader_close (r);
}

/* A node that forgets that its flush failed: what the log held then may be
 * gone, so no later flush counts it.
 */
static void
test_a_flush_fails_once (void **state)
{
  const struct writelog_options options = { .interval = 100 };
  struct memory_node *m = memory_node_new (1024 * 1024);
  struct writelog *log = writelog_open_node (&m->node, &options);

  forget_messages ();
  assert_non_null (log);
  assert_int_equal (writelog_start (log), 0);
  CHECK (append_one (log, 10) == 0);
  assert_int_equal (writelog_flush (log), 0);
  CHECK (append_one (log, 20) == 0);
  atomic_store (&m->fail_after[MEMORY_FLUSH], 0);
  assert_int_equal (writelog_flush (log), -1);
  atomic_store (&m->fail_after[MEMORY_FLUSH], MEMORY_NEVER);
  for (unsigned i = 0; i < 2; ++i) {
    assert_int_equal (writelog_flush (log), -1);
    assert_int_equal (errno, EIO);
  }
  assert_int_equal (writelog_finish (log), -1);
  /* Of the super block, the number of entries. */
  assert_int_equal (m->data[16], 1);
  writelog_close (log);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_power_loss_file),
    cmocka_unit_test (test_power_loss_device),
    cmocka_unit_test (test_interval_of_one),
    cmocka_unit_test (test_medium_fails),
    cmocka_unit_test (test_full),
    cmocka_unit_test (test_full_without_writing_in_place),
    cmocka_unit_test (test_marks),
    cmocka_unit_test (test_file_that_cannot_be_cut),
    cmocka_unit_test (test_a_flush_fails_once),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
