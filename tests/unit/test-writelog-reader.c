/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The reader of write logs: whatever is in a file, it gives out whole
 * entries that keep the rules, and then ends, or stops with one message
 * that names the first entry that is not such a one.
 *
 * ROUNDS and SEED are those of the damaged logs.
 */

#include <config.h>

#include <inttypes.h>
#include <stdbool.h>

#include "utils/byteorder.h"
#include "writelog/reader.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C (1024) * 1024)

/* ---- A log in memory, with holes behind what there is of it */

struct mem_node {
  struct node node;
  uint8_t *data;
  size_t len;
  unsigned nr_reads;
  uint64_t nr_bytes;            /* read */
  unsigned fail_at;             /* this read fails, from 1 */
};

static unsigned nr_open;

static int
mem_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct mem_node *m = (struct mem_node *) n;
  const size_t have =
    offset < m->len ? MIN (count, m->len - offset) : 0;

  CHECK (offset <= node_size (n) && count <= node_size (n) - offset);
  m->nr_bytes += count;
  if (++m->nr_reads == m->fail_at) {
    errno = EIO;
    msg_error ("%s: read at offset %" PRIu64 ": %m", n->name, offset);
    return -1;
  }
  if (have > 0)
    memcpy (buf, m->data + offset, have);
  memset ((uint8_t *) buf + have, 0, count - have);
  return 0;
}

static int
mem_close (struct node *n)
{
  free (((struct mem_node *) n)->data);
  free (n->name);
  free (n);
  nr_open--;
  return 0;
}

static const struct node_ops mem_ops = {
  .type = "memory", .pread = mem_pread, .close = mem_close,
};

/* The data are copied to memory that ends where they end, so that a
 * sanitizer sees what is read behind them.
 */
static struct mem_node *
new_node (const uint8_t *data, size_t len, uint64_t size)
{
  struct mem_node *m = calloc (1, sizeof *m);

  assert_non_null (m);
  m->node.ops = &mem_ops;
  m->node.name = strdup ("x.log");
  m->node.read_only = true;
  m->node.align = 1;
  atomic_init (&m->node.size, size);
  m->data = malloc (MAX (len, (size_t) 1));
  assert_non_null (m->data);
  memcpy (m->data, data, len);
  m->len = len;
  nr_open++;
  return m;
}

static struct writelog_reader *
open_log (const uint8_t *data, size_t len)
{
  return writelog_reader_open_node (&new_node (data, len, len)->node);
}

/* ---- Making logs, without the code under test */

struct log {
  uint8_t data[512 * 1024];
  size_t len;
  uint32_t sector_size;
  uint64_t nr;
};

static void
put_super (struct log *log, uint64_t nr, uint32_t sector_size)
{
  put_le64 (log->data, 0x6a736677736872);
  put_le64 (log->data + 8, 1);
  put_le64 (log->data + 16, nr);
  put_le32 (log->data + 24, sector_size);
}

static void
begin_log (struct log *log, uint32_t sector_size)
{
  memset (log, 0, sizeof *log);
  log->sector_size = log->len = sector_size;
  put_super (log, 0, sector_size);
}

/* Add an entry with its data, and text if it is not NULL. */
static void
add (struct log *log, uint64_t sector, uint64_t nr, uint64_t flags,
     uint64_t data_len, const char *text)
{
  const size_t size = (1 + (flags & 4 ? 0 : nr)) * log->sector_size;
  uint8_t *p = log->data + log->len;

  assert_true (size <= sizeof log->data - log->len);
  put_le64 (p, sector);
  put_le64 (p + 8, nr);
  put_le64 (p + 16, flags);
  put_le64 (p + 24, data_len);
  if (text)
    memcpy (p + 32, text, strlen (text));
  if (size > log->sector_size)
    memset (p + log->sector_size, 'd', size - log->sector_size);
  log->len += size;
  put_super (log, ++log->nr, log->sector_size);
}

static void
add_mark (struct log *log, const char *text)
{
  add (log, 0, 0, 8, strlen (text), text);
}

/* One of each kind. */
static void
make_log (struct log *log, uint32_t sector_size)
{
  begin_log (log, sector_size);
  add (log, 1, 3, 0, 0, NULL);
  add (log, 0, 0, 1, 0, NULL);
  add (log, 77, 1, 2 | 16, 99, NULL);
  add (log, 5, UINT64_C (1) << 40, 4, 0, NULL);
  add_mark (log, "");
  if (sector_size > 32)
    add_mark (log, "half way");
  add (log, 8, 2, 1 | 2, 0, NULL);
  add (log, 8, 0, 1, 0, NULL);
}

/* ---- A second reader */

struct expected {
  uint64_t nr;                  /* good entries */
  uint64_t offset;              /* of what follows them */
  bool good;                    /* there is nothing wrong with the log */
  bool open;                    /* it can be opened */
};

/* Returns the length of an entry, or 0 if there is none.  A size is a power
 * of two, so 1 << 63 bytes are a whole number of sectors.
 */
static uint64_t
entry_length (const uint8_t *log, size_t len, uint64_t offset, uint32_t size)
{
  const uint64_t sector = get_le64 (log + offset);
  const uint64_t nr = get_le64 (log + offset + 8);
  const uint64_t flags = get_le64 (log + offset + 16);
  const uint64_t data_len = get_le64 (log + offset + 24);
  const uint64_t most = ((uint64_t) 1 << 63) / size;
  uint64_t length = size;

  if ((sector | nr | flags | data_len) == 0 || flags > 31 ||
      sector > most || nr > most - sector)
    return 0;
  if ((flags & 8) && (nr > 0 || data_len > size - 32))
    return 0;
  for (uint64_t i = 32 + (flags & 8 ? data_len : 0); i < size; ++i)
    if (log[offset + i])
      return 0;
  if (!(flags & 4))
    length += nr * size;
  return length <= len - offset ? length : 0;
}

static struct expected
expect (const uint8_t *log, size_t len)
{
  struct expected e = { 0 };
  uint64_t nr;
  uint32_t size;

  if (len < 28 || get_le64 (log) != 0x6a736677736872 ||
      get_le64 (log + 8) != 1)
    return e;
  nr = get_le64 (log + 16);
  size = get_le32 (log + 24);
  if (size < 32 || size > 8 * MIB || (size & (size - 1)) || len < size)
    return e;

  e.open = true;
  for (e.offset = size; e.nr < nr; e.nr++) {
    const uint64_t length = e.offset + size <= len ?
      entry_length (log, len, e.offset, size) : 0;

    if (length == 0)
      return e;
    e.offset += length;
  }
  e.good = true;
  return e;
}

/* ---- Comparing */

static void
check_item (const struct writelog_item *item, const uint8_t *log,
            uint32_t sector_size, uint64_t number)
{
  const uint8_t *p = log + item->offset;

  assert_int_equal (item->number, number);
  assert_int_equal (item->data_offset, item->offset + sector_size);
  assert_int_equal (item->entry.sector, get_le64 (p));
  assert_int_equal (item->entry.nr_sectors, get_le64 (p + 8));
  assert_int_equal (item->entry.flags, get_le64 (p + 16));
  assert_int_equal (item->entry.data_len, get_le64 (p + 24));
  if (item->entry.flags & 8) {
    const size_t len = strnlen ((const char *) p + 32, get_le64 (p + 24));

    assert_non_null (item->mark);
    assert_int_equal (strlen (item->mark), len);
    assert_memory_equal (item->mark, p + 32, len);
  }
  else
    assert_null (item->mark);
}

static void
check_walk (struct writelog_reader *r, const uint8_t *log,
            const struct expected *e)
{
  const uint32_t sector_size = get_le32 (log + 24);
  struct writelog_item item;
  char place[128];

  for (uint64_t i = 0; i < e->nr; ++i) {
    assert_int_equal (writelog_reader_next (r, &item), 1);
    check_item (&item, log, sector_size, i);
  }
  assert_int_equal (nr_messages (), 0);
  errno = 0;
  assert_int_equal (writelog_reader_next (r, &item), e->good ? 0 : -1);
  if (e->good) {
    assert_int_equal (r->offset, e->offset);
    return;
  }
  assert_int_equal (errno, EINVAL);
  snprintf (place, sizeof place,
            "x.log: entry %" PRIu64 " at offset %" PRIu64 ": ",
            e->nr, e->offset);
  assert_messages (1, place);
}

/* The reader does with these bytes what the rules say. */
static void
check_log (const uint8_t *log, size_t len)
{
  const struct expected e = expect (log, len);
  struct writelog_reader *r;

  forget_messages ();
  errno = 0;
  r = open_log (log, len);
  if (!e.open) {
    assert_null (r);
    assert_int_equal (errno, EINVAL);
    assert_messages (1, "x.log: not a write log: super block at offset 0: ");
  }
  else {
    assert_non_null (r);
    check_walk (r, log, &e);
    writelog_reader_close (r);
  }
  assert_int_equal (nr_open, 0);
}

static int
setup (void **state)
{
  (void) state;
  forget_messages ();
  return 0;
}

/* ---- The tests */

static struct log a_log;        /* too long for the stack */

static const uint32_t sector_sizes[] = { 32, 64, 512, 4096, 32768 };
#define NR_SIZES (sizeof sector_sizes / sizeof sector_sizes[0])

static void
every_entry_is_given_out (void **state)
{
  (void) state;
  for (size_t i = 0; i < NR_SIZES; ++i) {
    make_log (&a_log, sector_sizes[i]);
    assert_true (expect (a_log.data, a_log.len).good);
    check_log (a_log.data, a_log.len);
  }
}

static void
a_log_without_entries_is_one (void **state)
{
  struct writelog_item item;
  struct writelog_reader *r;

  (void) state;
  begin_log (&a_log, 512);
  r = open_log (a_log.data, a_log.len);
  assert_non_null (r);
  assert_int_equal (writelog_reader_next (r, &item), 0);
  assert_int_equal (writelog_reader_next (r, &item), 0);
  writelog_reader_close (r);
  assert_int_equal (nr_messages (), 0);
}

static void
bytes_behind_the_last_entry_are_ignored (void **state)
{
  (void) state;
  make_log (&a_log, 512);
  memset (a_log.data + a_log.len, 0xff, 1000);
  assert_true (expect (a_log.data, a_log.len + 1000).good);
  check_log (a_log.data, a_log.len + 1000);
}

static void
a_walk_can_begin_anew_and_anywhere (void **state)
{
  struct writelog_item item;
  struct writelog_reader *r;
  uint64_t number = 0, offset = 0;

  (void) state;
  make_log (&a_log, 512);
  r = open_log (a_log.data, a_log.len);
  assert_non_null (r);
  while (r->next < a_log.nr) {
    if (r->next == 3) {
      number = r->next;
      offset = r->offset;
    }
    assert_int_equal (writelog_reader_next (r, &item), 1);
  }
  writelog_reader_seek (r, number, offset);
  assert_int_equal (writelog_reader_next (r, &item), 1);
  check_item (&item, a_log.data, 512, 3);
  writelog_reader_rewind (r);
  assert_int_equal (writelog_reader_next (r, &item), 1);
  check_item (&item, a_log.data, 512, 0);
  writelog_reader_close (r);
}

static void
logs_cut_at_any_byte (void **state)
{
  (void) state;
  for (size_t i = 0; i < 3; ++i) {
    make_log (&a_log, sector_sizes[i]);
    for (size_t len = 0; len < a_log.len; ++len) {
      assert_false (expect (a_log.data, len).good);
      check_log (a_log.data, len);
    }
  }
}

/* Values at which something changes. */
static uint64_t
extreme_value (unsigned i, uint32_t sector_size)
{
  const uint64_t limit = (UINT64_C (1) << 63) / sector_size;
  const uint64_t values[] = {
    0, 1, 2, 3, 4, 8, 9, 12, 16, 31, 32, 33, 512 - 32, 512 - 31,
    UINT64_C (1) << 31,
    UINT32_MAX, UINT64_C (1) << 32, limit - 1, limit, limit + 1,
    UINT64_C (1) << 62, INT64_MAX, UINT64_C (1) << 63, UINT64_MAX - 1,
    UINT64_MAX, UINT64_MAX / sector_size, UINT64_MAX / sector_size + 1,
  };

  return i < sizeof values / sizeof values[0] ? values[i] : 0xdead;
}
#define LAST_VALUE 0xdead

static void
check_two_values (bool is_mark, unsigned field1, uint64_t value1,
                  unsigned field2, uint64_t value2)
{
  uint8_t *entry;

  begin_log (&a_log, 512);
  add (&a_log, 7, 2, 0, 0, NULL);
  entry = a_log.data + a_log.len;
  if (is_mark)
    add_mark (&a_log, "mark");
  else
    add (&a_log, 9, 9, 4, 0, NULL);
  put_le64 (entry + 8 * field1, value1);
  put_le64 (entry + 8 * field2, value2);
  check_log (a_log.data, a_log.len);
}

static void
any_two_fields_of_an_entry_at_extreme_values (void **state)
{
  (void) state;
  for (unsigned field1 = 0; field1 < 4; ++field1)
    for (unsigned field2 = 0; field2 < 4; ++field2)
      for (unsigned i = 0; extreme_value (i, 512) != LAST_VALUE; ++i)
        for (unsigned j = 0; extreme_value (j, 512) != LAST_VALUE; ++j) {
          check_two_values (true, field1, extreme_value (i, 512),
                            field2, extreme_value (j, 512));
          check_two_values (false, field1, extreme_value (i, 512),
                            field2, extreme_value (j, 512));
        }
}

static void
fields_of_the_super_block_at_extreme_values (void **state)
{
  (void) state;
  for (size_t s = 0; s < 3; ++s) {
    for (unsigned i = 0; extreme_value (i, 512) != LAST_VALUE; ++i) {
      const uint64_t value = extreme_value (i, 512);

      for (unsigned field = 0; field < 3; ++field) {
        make_log (&a_log, sector_sizes[s]);
        put_le64 (a_log.data + 8 * field, value);
        check_log (a_log.data, a_log.len);
      }
      make_log (&a_log, sector_sizes[s]);
      put_le32 (a_log.data + 24, value);
      check_log (a_log.data, a_log.len);
    }
    for (unsigned bit = 0; bit < 32; ++bit) {
      make_log (&a_log, sector_sizes[s]);
      put_le32 (a_log.data + 24, UINT32_C (1) << bit);
      check_log (a_log.data, a_log.len);
    }
  }
}

/* With the largest sectors there are, in a file as long as one can be,
 * of which almost all is a hole.
 */
static void
a_count_of_all_ones_ends_at_the_first_hole (void **state)
{
  struct writelog_item item;
  struct writelog_reader *r;
  struct mem_node *m;

  (void) state;
  for (unsigned shift = 5; shift <= 23; ++shift) {
    memset (&a_log, 0, sizeof a_log);
    put_super (&a_log, UINT64_MAX, UINT32_C (1) << shift);
    forget_messages ();
    m = new_node (a_log.data, 28, INT64_MAX);
    r = writelog_reader_open_node (&m->node);
    assert_non_null (r);
    assert_int_equal (writelog_reader_next (r, &item), -1);
    assert_messages (1, ": nothing has been written there");
    assert_non_null (strstr (messages.last, "x.log: entry 0 at offset "));
    assert_true (m->nr_bytes < MIB);
    writelog_reader_close (r);
  }
}

/* An entry that claims all of a huge sparse file is skipped, not read. */
static void
long_data_are_not_read (void **state)
{
  struct writelog_item item;
  struct writelog_reader *r;
  struct mem_node *m;

  (void) state;
  begin_log (&a_log, 512);
  put_le64 (a_log.data + 512 + 8, (UINT64_C (1) << 54) - 16);
  put_super (&a_log, 2, 512);
  m = new_node (a_log.data, 1024, INT64_MAX);
  r = writelog_reader_open_node (&m->node);
  assert_non_null (r);
  assert_int_equal (writelog_reader_next (r, &item), 1);
  assert_int_equal (item.entry.nr_sectors, (UINT64_C (1) << 54) - 16);
  assert_int_equal (writelog_reader_next (r, &item), -1);
  assert_messages (1, "entry 1 at offset ");
  assert_true (m->nr_bytes < MIB);
  writelog_reader_close (r);
}

/* Walk over so many entries, each with so many sectors of data. */
static struct mem_node
count_reads (unsigned nr_entries, unsigned nr_sectors)
{
  struct writelog_item item;
  struct writelog_reader *r;
  struct mem_node *m, result;

  begin_log (&a_log, 512);
  for (unsigned i = 0; i < nr_entries; ++i)
    add (&a_log, i, nr_sectors, 0, 0, NULL);
  m = new_node (a_log.data, a_log.len, a_log.len);
  r = writelog_reader_open_node (&m->node);
  assert_non_null (r);
  while (writelog_reader_next (r, &item) == 1)
    ;
  assert_int_equal (r->next, nr_entries);
  result = *m;
  writelog_reader_close (r);
  return result;
}

static void
reading_ahead_fits_the_log (void **state)
{
  (void) state;
  /* Small entries: few reads. */
  assert_within (count_reads (500, 1).nr_reads, 1, 12);
  assert_within (count_reads (100, 8).nr_reads, 1, 12);
  /* Long ones: little more than their own sectors. */
  assert_within (count_reads (7, 128).nr_bytes, 7 * 512, 8 * 4096);
}

static void
a_mark_ends_at_its_first_zero_byte (void **state)
{
  struct writelog_item item;
  struct writelog_reader *r;

  (void) state;
  begin_log (&a_log, 512);
  add (&a_log, 0, 0, 8, 100, "short");
  add (&a_log, 0, 0, 8, 3, "longer than it says"); /* so it is damaged */
  r = open_log (a_log.data, a_log.len);
  assert_non_null (r);
  assert_int_equal (writelog_reader_next (r, &item), 1);
  assert_string_equal (item.mark, "short");
  assert_int_equal (writelog_reader_next (r, &item), -1);
  assert_messages (1, "entry 1 at offset 1024: bytes behind it");
  writelog_reader_close (r);
}

/* The longest text of the largest sector is longer than what is read
 * ahead.
 */
static void
the_longest_mark_is_read (void **state)
{
  const size_t size = 8 * MIB;
  CLEANUP_FREE uint8_t *data = calloc (2, size);
  struct writelog_item item;
  struct writelog_reader *r;

  (void) state;
  assert_non_null (data);
  memset (&a_log, 0, sizeof a_log);
  put_super (&a_log, 1, size);
  memcpy (data, a_log.data, 28);
  put_le64 (data + size + 16, 8);
  put_le64 (data + size + 24, size - 32);
  memset (data + size + 32, 'm', size - 32);
  r = open_log (data, 2 * size);
  assert_non_null (r);
  assert_int_equal (writelog_reader_next (r, &item), 1);
  assert_int_equal (strlen (item.mark), size - 32);
  writelog_reader_close (r);
}

static void
a_failing_read_fails_the_reader_once (void **state)
{
  struct writelog_item item;
  unsigned nr_reads = 0;

  (void) state;
  make_log (&a_log, 512);
  for (unsigned fail_at = 1; fail_at <= nr_reads + 1; ++fail_at) {
    struct mem_node *m = new_node (a_log.data, a_log.len, a_log.len);
    struct writelog_reader *r;
    int ret = -1;

    m->fail_at = fail_at;
    forget_messages ();
    errno = 0;
    r = writelog_reader_open_node (&m->node);
    if (r) {
      while ((ret = writelog_reader_next (r, &item)) == 1)
        ;
      nr_reads = MAX (nr_reads, m->nr_reads);
    }
    if (ret == -1) {
      assert_int_equal (errno, EIO);
      assert_messages (1, "x.log: read at offset ");
    }
    writelog_reader_close (r);
    assert_int_equal (nr_open, 0);
    if (fail_at == 1)
      nr_reads = 1;
  }
  assert_true (nr_reads > 1);
}

/* ---- Damage by chance */

static uint64_t
environment (const char *name, uint64_t otherwise)
{
  const char *value = getenv (name);

  return value ? strtoull (value, NULL, 10) : otherwise;
}

static void
make_random_log (struct log *log, uint64_t *random)
{
  static const uint64_t flags[] = { 0, 0, 0, 1, 2, 3, 4, 16, 18 };
  const unsigned nr = random_below (random, 20);

  begin_log (log, sector_sizes[random_below (random, NR_SIZES - 1)]);
  for (unsigned i = 0; i < nr; ++i)
    if (random_below (random, 5) == 0)
      add (log, 0, 0, 8, random_below (random, log->sector_size - 31), NULL);
    else
      add (log, 1 + random_below (random, 1 << 20), random_below (random, 4),
           flags[random_below (random, 9)], 0, NULL);
}

/* Mostly in the words of the super block and of entries. */
static void
damage (struct log *log, uint64_t *random)
{
  const unsigned times = 1 + random_below (random, 4);

  for (unsigned i = 0; i < times; ++i) {
    size_t at = random_below (random, log->len);

    if (random_below (random, 4) > 0)
      at = MIN (round_down (at, log->sector_size) +
                random_below (random, 32), log->len - 1);
    if (random_below (random, 3) == 0)
      log->data[at] = random_below (random, 256);
    else
      log->data[at] ^= 1 << random_below (random, 8);
  }
  if (random_below (random, 8) == 0)
    put_le64 (log->data + 16, next_random (random));
}

static void
random_damage (void **state)
{
  const uint64_t rounds = environment ("ROUNDS", 20000 / ONE_IN);
  const uint64_t seed = environment ("SEED", 1);
  unsigned nr_good = 0;

  (void) state;
  print_message ("SEED=%" PRIu64 " ROUNDS=%" PRIu64 "\n", seed, rounds);
  for (uint64_t i = 0; i < rounds; ++i) {
    uint64_t random = (seed + i) * UINT64_C (0x9e3779b97f4a7c15) | 1;
    size_t len;

    make_random_log (&a_log, &random);
    damage (&a_log, &random);
    len = random_below (&random, 4) > 0 ? a_log.len :
      random_below (&random, a_log.len + 1);
    nr_good += expect (a_log.data, len).good;
    check_log (a_log.data, len);
  }
  /* Both happen. */
  assert_within (nr_good, rounds / 100, rounds - rounds / 100);
}

#define TEST(f) cmocka_unit_test_setup (f, setup)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (every_entry_is_given_out),
    TEST (a_log_without_entries_is_one),
    TEST (bytes_behind_the_last_entry_are_ignored),
    TEST (a_walk_can_begin_anew_and_anywhere),
    TEST (logs_cut_at_any_byte),
    TEST (any_two_fields_of_an_entry_at_extreme_values),
    TEST (fields_of_the_super_block_at_extreme_values),
    TEST (a_count_of_all_ones_ends_at_the_first_hole),
    TEST (long_data_are_not_read),
    TEST (reading_ahead_fits_the_log),
    TEST (a_mark_ends_at_its_first_zero_byte),
    TEST (the_longest_mark_is_read),
    TEST (a_failing_read_fails_the_reader_once),
    TEST (random_damage),
  };

  msg_set_handler (collect_message);
  /* With ROUNDS as many as wanted it may take long. */
  if (getenv ("ROUNDS") == NULL)
    alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("writelog-reader", tests, NULL, NULL);
}
