/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The index of a log's moments, against a model that replays the log
 * into an array, and against its own promises on memory.  Power loss is
 * drawn here by a second implementation of the manual's rules.
 */

#include <config.h>

#include <fcntl.h>
#include <sys/mman.h>

#include "writelog/format.h"
#include "writelog/moments/cover.h"
#include "writelog/moments/moment.h"
#include "writelog/moments/state.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

/* ---- A log in memory, and the disk that it is of */

#define MAX_ENTRIES 128
#define MAX_SECTORS 96          /* of the disk */
#define MAX_SECTOR_SIZE 4096
#define MAX_DISK (MAX_SECTORS * MAX_SECTOR_SIZE)

struct log {
  int fd;
  uint32_t sector_size;
  uint64_t offset;              /* where the next entry goes */
  uint64_t nr_entries;
  struct writelog_entry entries[MAX_ENTRIES]; /* the first of them */
};

static void
log_super (struct log *log)
{
  const struct writelog_super super = {
    .nr_entries = log->nr_entries, .sector_size = log->sector_size,
  };
  uint8_t buf[WRITELOG_SUPER_LEN];

  writelog_super_encode (&super, buf, WRITELOG_SUPER_LEN);
  assert_int_equal (pwrite (log->fd, buf, sizeof buf, 0), sizeof buf);
}

static void
log_begin (struct log *log, uint32_t sector_size)
{
  *log = (struct log) { .sector_size = sector_size, .offset = sector_size };
  log->fd = memfd_create ("log", MFD_CLOEXEC);
  assert_true (log->fd >= 0);
  assert_int_equal (ftruncate (log->fd, sector_size), 0);
}

/* What stands in sector s of the disk after the entry wrote it. */
static void
fill (uint8_t *buf, uint32_t sector_size, uint64_t entry, uint64_t sector)
{
  for (uint32_t i = 0; i < sector_size; i += 8) {
    const uint64_t word = (entry + 1) << 32 | sector << 16 | (i & 0xffff);

    memcpy (buf + i, &word, 8);
  }
}

static void
log_add (struct log *log, uint64_t sector, uint64_t nr_sectors,
         uint64_t flags, const char *text, size_t text_len)
{
  const struct writelog_entry entry = {
    .sector = sector, .nr_sectors = nr_sectors, .flags = flags,
    .data_len = text_len,
  };
  const uint64_t data = writelog_data_sectors (&entry);
  CLEANUP_FREE uint8_t *buf = calloc (1 + data, log->sector_size);
  const ssize_t len = (1 + data) * log->sector_size;

  assert_non_null (buf);
  writelog_entry_encode (&entry, buf);
  if (text)
    memcpy (buf + WRITELOG_ENTRY_LEN, text, text_len);
  for (uint64_t i = 0; i < data; ++i)
    fill (buf + (1 + i) * log->sector_size, log->sector_size,
          log->nr_entries, sector + i);
  assert_int_equal (pwrite (log->fd, buf, len, log->offset), len);
  log->offset += len;
  if (log->nr_entries < MAX_ENTRIES)
    log->entries[log->nr_entries] = entry;
  log->nr_entries++;
}

static void
log_mark (struct log *log, const char *text)
{
  log_add (log, 0, 0, WRITELOG_MARK, text, strlen (text));
}

static struct writelog_index *
log_open (struct log *log)
{
  struct writelog_reader *reader;
  char name[32];

  log_super (log);
  sprintf (name, "/proc/self/fd/%d", log->fd);
  reader = writelog_reader_open (name);
  return reader ? writelog_index_open (reader) : NULL;
}

/* ---- The model: replay into an array */

struct model {
  uint32_t sector_size;
  unsigned sectors;
  uint8_t disk[MAX_DISK];
};

static void
replay_sector (struct model *m, const struct log *log, uint64_t entry,
               uint64_t sector)
{
  uint8_t *to = m->disk + sector * m->sector_size;

  if (log->entries[entry].flags & WRITELOG_DISCARD)
    memset (to, 0, m->sector_size);
  else
    fill (to, m->sector_size, entry, sector);
}

static void
replay (struct model *m, const struct log *log, uint64_t from, uint64_t to)
{
  for (uint64_t e = from; e < to; ++e) {
    const struct writelog_entry *entry = &log->entries[e];

    for (uint64_t i = entry->sector; i < entry->sector + entry->nr_sectors
           && i < m->sectors; ++i)
      replay_sector (m, log, e, i);
  }
}

/* The manual's rules of power loss. */
static uint64_t
mix (uint64_t x)
{
  uint64_t z = x + 11400714819323198485ULL;

  z = (z ^ z >> 30) * 13787848793156543929ULL;
  z = (z ^ z >> 27) * 10723151780598845931ULL;
  return z ^ z >> 31;
}

/* Number of the first entry behind flush n. */
static uint64_t
behind_flush (const struct log *log, uint64_t n)
{
  uint64_t e = 0;

  for (; n > 0; ++e)
    if (log->entries[e].flags & WRITELOG_FLUSH)
      n--;
  return e;
}

static uint64_t
next_flush (const struct log *log, uint64_t e)
{
  while (e < log->nr_entries && !(log->entries[e].flags & WRITELOG_FLUSH))
    e++;
  return e;
}

static void
replay_crash (struct model *m, const struct log *log, uint64_t n,
              uint64_t seed)
{
  static const unsigned chances[] = { 1, 8, 16, 32, 48, 56, 63, 64 };
  const uint64_t start = behind_flush (log, n);
  const uint64_t count = next_flush (log, start) - start;
  const uint64_t key = mix (mix (seed) + n);
  const unsigned chance = chances[mix (key + 2) & 7];
  const bool whole = mix (key + 3) & 1;
  uint64_t moment = count;

  replay (m, log, 0, start);
  if (seed == 0)
    return;
  if (mix (key + 1) % 4 != 0)
    moment = mix (key + 1) / 4 % (count + 1);
  for (uint64_t e = start; e < start + moment; ++e) {
    const struct writelog_entry *entry = &log->entries[e];

    for (uint64_t i = entry->sector; i < entry->sector + entry->nr_sectors
           && i < m->sectors; ++i)
      if ((entry->flags & WRITELOG_FUA) ||
          mix (mix (key + e) + (whole ? 0 : i)) % 64 < chance)
        replay_sector (m, log, e, i);
  }
}

/* ---- Random logs */

static uint64_t
random_flags (uint64_t *random)
{
  static const uint64_t flags[] = {
    0, 0, 0, 0, WRITELOG_METADATA, WRITELOG_FUA, WRITELOG_FUA,
    WRITELOG_FLUSH, WRITELOG_FLUSH | WRITELOG_FUA, WRITELOG_DISCARD,
    WRITELOG_DISCARD, WRITELOG_DISCARD | WRITELOG_FUA,
  };

  return flags[random_below (random, sizeof flags / sizeof flags[0])];
}

static void
add_random (struct log *log, unsigned sectors, uint64_t *random)
{
  const uint64_t sector = random_below (random, sectors);
  const uint64_t limit = random_below (random, 4) ? 8 : sectors;
  const uint64_t nr = MIN (random_below (random, limit) + 1,
                           sectors - sector);

  switch (random_below (random, 12)) {
  case 0:
    log_add (log, 0, 0, WRITELOG_FLUSH, NULL, 0);
    break;
  case 1:
    log_mark (log, log->sector_size > WRITELOG_ENTRY_LEN ? "m" : "");
    break;
  case 2:
    log_add (log, sector, UINT64_C (1) << 40, WRITELOG_DISCARD, NULL, 0);
    break;
  default:
    log_add (log, sector, nr, random_flags (random), NULL, 0);
  }
}

static void
make_random (struct log *log, unsigned sectors, uint64_t *random)
{
  static const uint32_t sizes[] = { 32, 512, 4096 };
  const uint64_t nr = random_below (random, MAX_ENTRIES);

  log_begin (log, sizes[random_below (random, 3)]);
  while (log->nr_entries < nr)
    add_random (log, sectors, random);
}

/* A base of random bytes with a hole in its middle, if size is not 0. */
static struct node *
make_base (uint64_t size, uint64_t *random)
{
  const struct node_open_options options = { .read_only = true };
  const int fd = memfd_create ("base", MFD_CLOEXEC);
  char name[32];

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, size), 0);
  for (uint64_t at = 0; at + 8 <= size; at += 8)
    if (at / 8192 % 2 == 0) {
      const uint64_t word = next_random (random);

      assert_int_equal (pwrite (fd, &word, 8, at), 8);
    }
  sprintf (name, "/proc/self/fd/%d", fd);
  return node_open (name, &options);
}

static void
close_base (struct node *base)
{
  int fd = -1;

  if (base == NULL)
    return;
  sscanf (base->name, "/proc/self/fd/%d", &fd);
  node_close (base);
  close (fd);
}

static void
model_begin (struct model *m, const struct log *log, unsigned sectors,
             struct node *base)
{
  m->sector_size = log->sector_size;
  m->sectors = sectors;
  memset (m->disk, 0, sizeof m->disk);
  if (base)
    CHECK (node_pread (base, m->disk,
                       MIN (node_size (base),
                            (uint64_t) sectors * log->sector_size), 0) == 0);
}

/* ---- Comparing a moment with the model */

static void
check_bytes (struct node *n, const struct model *m, uint64_t *random)
{
  static uint8_t buf[MAX_DISK];
  const uint64_t size = node_size (n);

  assert_int_equal (node_pread (n, buf, size, 0), 0);
  assert_memory_equal (buf, m->disk, size);
  for (unsigned i = 0; i < 4; ++i) {
    const uint64_t offset = random_below (random, size);
    const uint64_t count = random_below (random, size - offset + 1);

    memset (buf, 0x5a, sizeof buf);
    assert_int_equal (node_pread (n, buf, count, offset), 0);
    assert_memory_equal (buf, m->disk + offset, count);
    assert_int_equal (buf[count], 0x5a);
  }
}

/* What the extents say is what is read. */
static void
check_extents (struct node *n, const struct model *m,
               const struct writelog_index *index, struct node *base)
{
  static uint8_t buf[MAX_DISK];
  const uint64_t size = node_size (n);
  struct extent e;

  for (uint64_t at = 0; at < size; at += e.length) {
    assert_int_equal (node_extents (n, size - at, at, &e), 0);
    assert_within (e.length, 1, size - at);
    if (e.flags & EXTENT_ZERO)
      memset (buf, 0, e.length);
    else {
      assert_true (e.flags & EXTENT_MAPPED);
      assert_true (e.where == (e.depth ? base : writelog_index_log (index)));
      assert_int_equal (node_pread ((struct node *) e.where, buf, e.length,
                                    e.offset), 0);
    }
    assert_memory_equal (buf, m->disk + at, e.length);
  }
}

static void
check_moment (const struct writelog_index *index,
              const struct writelog_moment *moment, const struct model *m,
              struct node *base, uint64_t *random)
{
  /* Mostly not a whole number of sectors. */
  const uint64_t size = (uint64_t) m->sectors * m->sector_size -
    random_below (random, m->sector_size);
  struct node *n = writelog_moment_open (index, moment, base, size);

  assert_non_null (n);
  assert_int_equal (node_size (n), size);
  check_bytes (n, m, random);
  check_extents (n, m, index, base);
  assert_int_equal (node_close (n), 0);
}

static struct model model;

/* Each moment of a random log. */
static void
check_log (struct log *log, unsigned sectors, struct node *base,
           uint64_t *random)
{
  struct writelog_index *index = log_open (log);
  struct writelog_moment moment;

  assert_non_null (index);
  for (uint64_t n = 0; n <= log->nr_entries; ++n) {
    assert_int_equal (writelog_moment_entries (index, n, &moment), 0);
    model_begin (&model, log, sectors, base);
    replay (&model, log, 0, n);
    check_moment (index, &moment, &model, base, random);
  }
  assert_int_equal (writelog_moment_entries (index, log->nr_entries + 1,
                                             &moment), -1);
  assert_int_equal (errno, ENOENT);
  writelog_index_close (index);
}

/* Some power losses of a random log. */
static void
check_crashes (struct log *log, unsigned sectors, struct node *base,
               uint64_t *random)
{
  struct writelog_index *index = log_open (log);
  struct writelog_moment moment;
  struct writelog_totals totals;

  assert_non_null (index);
  writelog_index_totals (index, &totals);
  for (uint64_t n = 0; n <= totals.flushes; ++n)
    for (uint64_t seed = 0; seed < 12; ++seed) {
      assert_int_equal (writelog_moment_crash (index, n, seed,
                                               TEAR_SECTOR, &moment), 0);
      model_begin (&model, log, sectors, base);
      replay_crash (&model, log, n, seed);
      check_moment (index, &moment, &model, base, random);
    }
  assert_int_equal (writelog_moment_crash (index, totals.flushes + 1, 1,
                                           TEAR_SECTOR,
                                           &moment), -1);
  assert_int_equal (errno, ENOENT);
  writelog_index_close (index);
}

static void
each_random_log (void (*check) (struct log *log, unsigned sectors,
                                struct node *base, uint64_t *random))
{
  const char *rounds = getenv ("ROUNDS");
  const char *seed = getenv ("SEED");
  uint64_t random = seed ? strtoull (seed, NULL, 0) | 1 : 88172645463325252;
  const unsigned n = rounds ? atoi (rounds) : 30;
  struct log log;

  for (unsigned i = 0; i < n; ++i) {
    const unsigned sectors = 1 + random_below (&random, MAX_SECTORS);
    struct node *base = NULL;

    make_random (&log, sectors, &random);
    if (random_below (&random, 3))
      base = make_base (random_below (&random, 2 * sectors *
                                      log.sector_size), &random);
    check (&log, sectors, base, &random);
    close_base (base);
    close (log.fd);
  }
}

static void
test_moments_are_what_replaying_gives (void **state)
{
  each_random_log (check_log);
}

static void
test_power_losses_follow_the_manual (void **state)
{
  each_random_log (check_crashes);
}

/* ---- What power losses there are */

/* A flush, 5 writes of 8 sectors each to places of their own, one with
 * FUA, and a flush.
 */
enum { WRITES = 5, LENGTH = 8 };

static void
make_interval (struct log *log)
{
  log_begin (log, 512);
  log_add (log, 0, LENGTH * WRITES, 0, NULL, 0);
  log_add (log, 0, 0, WRITELOG_FLUSH, NULL, 0);
  for (unsigned i = 0; i < WRITES; ++i)
    log_add (log, i * LENGTH, LENGTH,
             i == 2 ? WRITELOG_FUA : i == 4 ? WRITELOG_DISCARD : 0, NULL, 0);
  log_add (log, 0, LENGTH, WRITELOG_FLUSH, NULL, 0);
}

/* How much of a write is there. */
enum { NOTHING = 1, PART = 2, ALL = 4 };

static unsigned
how_much (const uint8_t *disk, const struct model *before, unsigned write)
{
  unsigned nr = 0;

  for (unsigned i = write * LENGTH; i < (write + 1) * LENGTH; ++i)
    nr += memcmp (disk + i * 512, before->disk + i * 512, 512) != 0;
  return nr == 0 ? NOTHING : nr < LENGTH ? PART : ALL;
}

static void
read_crash (const struct writelog_index *index, uint64_t n, uint64_t seed,
            uint8_t *disk, size_t size)
{
  struct writelog_moment moment;
  struct node *node;

  assert_int_equal (writelog_moment_crash (index, n, seed,
                                           TEAR_SECTOR, &moment), 0);
  node = writelog_moment_open (index, &moment, NULL, size);
  assert_non_null (node);
  assert_int_equal (node_pread (node, disk, size, 0), 0);
  node_close (node);
}

/* Over many seeds each ordinary write is there, is not, and is there in
 * part; FUA writes are whole, in the order of the log; and each set of
 * writes occurs in which all FUA writes up to the last one are.
 */
static void
test_every_power_loss_occurs (void **state)
{
  enum { SIZE = LENGTH * WRITES * 512 };
  unsigned seen[WRITES] = { 0 }, sets = 0;
  uint32_t sets_seen = 0;
  uint8_t disk[SIZE];
  struct log log;
  struct writelog_index *index;

  make_interval (&log);
  index = log_open (&log);
  model_begin (&model, &log, LENGTH * WRITES, NULL);
  replay (&model, &log, 0, 2);
  for (uint64_t seed = 1; seed < 4000; ++seed) {
    unsigned set = 0;
    bool torn = false;

    read_crash (index, 1, seed, disk, SIZE);
    for (unsigned i = 0; i < WRITES; ++i) {
      const unsigned much = how_much (disk, &model, i);

      seen[i] |= much;
      torn |= much == PART;
      if (much == ALL)
        set |= 1 << i;
      if (i > 2 && much != NOTHING)
        assert_true (set & 1 << 2); /* it came after the FUA write */
    }
    if (!torn)
      sets_seen |= UINT32_C (1) << set;
  }
  for (unsigned i = 0; i < WRITES; ++i)
    assert_int_equal (seen[i], i == 2 ? NOTHING | ALL : NOTHING | PART | ALL);
  for (unsigned set = 0; set < 32; ++set)
    sets += sets_seen >> set & 1;
  /* 4 without the FUA write, 16 with it. */
  assert_int_equal (sets, 20);
  writelog_index_close (index);
  close (log.fd);
}

static void
test_seed_0_is_the_flush (void **state)
{
  struct writelog_moment flush = { 0 }, crash = { 0 }, start = { 0 };
  struct writelog_index *index;
  struct log log;

  make_interval (&log);
  index = log_open (&log);
  for (uint64_t n = 1; n <= 2; ++n) {
    assert_int_equal (writelog_moment_flag (index, WRITELOG_FLUSH, n,
                                            &flush), 0);
    assert_int_equal (writelog_moment_crash (index, n, 0,
                                             TEAR_SECTOR, &crash), 0);
    assert_int_equal (flush.entries, n == 1 ? 2 : 3 + WRITES);
    assert_int_equal (crash.entries, flush.entries);
    assert_int_equal (crash.certain, flush.entries);
  }
  assert_int_equal (writelog_moment_crash (index, 0, 0,
                                           TEAR_SECTOR, &start), 0);
  assert_int_equal (start.entries, 0);
  /* Behind the last flush there is nothing to lose. */
  assert_int_equal (writelog_moment_crash (index, 2, 1234,
                                           TEAR_SECTOR, &crash), 0);
  assert_int_equal (crash.entries, flush.entries);
  assert_int_equal (crash.certain, flush.entries);
  writelog_index_close (index);
  close (log.fd);
}

/* What is read does not depend on how it is asked for. */
static void
test_a_power_loss_reads_the_same_in_any_order (void **state)
{
  enum { SIZE = LENGTH * WRITES * 512 };
  uint8_t whole[SIZE], pieces[SIZE];
  uint64_t random = 4711;
  struct log log;
  struct writelog_index *index;

  make_interval (&log);
  index = log_open (&log);
  for (uint64_t seed = 1; seed < 100; ++seed) {
    struct writelog_moment moment;
    struct node *n;

    read_crash (index, 1, seed, whole, SIZE);
    assert_int_equal (writelog_moment_crash (index, 1, seed,
                                             TEAR_SECTOR, &moment), 0);
    n = writelog_moment_open (index, &moment, NULL, SIZE);
    memset (pieces, 0xff, SIZE);
    for (unsigned i = 0; i < 200; ++i) {
      const uint64_t at = random_below (&random, SIZE);
      const uint64_t limit = MIN (SIZE - at, UINT64_C (2000));
      const uint64_t len = random_below (&random, limit) + 1;

      assert_int_equal (node_pread (n, pieces + at, len, at), 0);
      assert_memory_equal (pieces + at, whole + at, len);
    }
    node_close (n);
  }
  writelog_index_close (index);
  close (log.fd);
}

/* ---- Names */

static void
assert_moment (const struct writelog_index *index, const char *name,
               uint64_t entries)
{
  struct writelog_moment moment;

  assert_int_equal (writelog_moment_parse (index, name,
                                           TEAR_SECTOR, &moment), 0);
  assert_int_equal (moment.entries, entries);
  assert_int_equal (moment.certain, entries);
}

static void
test_names_of_moments (void **state)
{
  static const char *const bad[] = {
    "entry/10", "entry/", "entry/-1", "entry/+1", "entry/ 1", "entry/1 ",
    "entry/0x1", "entry/18446744073709551616", "entry/1/", "entry", "entry1",
    "flush/0", "flush/3", "fua/0", "fua/2", "mark/c", "mark/", "mark",
    "mark/a ", "crash/3/0", "crash/0", "crash/0/", "crash//1", "crash/0/x",
    "crash/0/-1", "crash/0/18446744073709551616", "Entry/1", "/", "q",
  };
  struct writelog_moment moment;
  struct writelog_index *index;
  struct log log;

  log_begin (&log, 512);
  log_mark (&log, "a");                                 /* 0 */
  log_add (&log, 0, 1, 0, NULL, 0);
  log_add (&log, 0, 0, WRITELOG_FLUSH, NULL, 0);        /* 2 */
  log_mark (&log, "b/c d");
  log_add (&log, 0, 1, WRITELOG_FLUSH | WRITELOG_FUA, NULL, 0); /* 4 */
  log_mark (&log, "a");
  log_add (&log, 0, 0, WRITELOG_MARK, "x\0y", 3);       /* 6 */
  log_add (&log, 5, 1, 0, NULL, 0);
  log_mark (&log, "\xff\xfe\177");
  index = log_open (&log);
  assert_non_null (index);

  assert_moment (index, "", 9);
  assert_moment (index, "entry/0", 0);
  assert_moment (index, "entry/9", 9);
  assert_moment (index, "entry/009", 9);
  assert_moment (index, "mark/a", 0);
  assert_moment (index, "mark/b/c d", 3);
  assert_moment (index, "mark/x", 6);
  assert_moment (index, "mark/\xff\xfe\177", 8);
  assert_moment (index, "flush/1", 3);
  assert_moment (index, "flush/2", 5);
  assert_moment (index, "fua/1", 5);
  assert_moment (index, "crash/0/0", 0);
  assert_moment (index, "crash/2/0", 5);
  assert_int_equal (writelog_moment_parse
                    (index, "crash/2/18446744073709551615", TEAR_SECTOR,
                     &moment), 0);
  assert_int_equal (nr_messages (), 0);

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
    forget_messages ();
    assert_int_equal (writelog_moment_parse (index, bad[i],
                                             TEAR_SECTOR, &moment), -1);
    assert_int_equal (errno, ENOENT);
    assert_messages (1, "entry/0 to entry/9, flush/N up to 2, fua/N up to 1, "
                     "crash/N/SEED from 0 up to 2, cut/N/SEED like that, "
                     "lost/N/SET, and 5 marks "
                     "(a, b/c d, a, x, \xff\xfe?)");
    assert_non_null (strstr (messages.last, bad[i]));
  }
  /* Nobody's terminal is at the mercy of a client or of a log. */
  forget_messages ();
  assert_int_equal (writelog_moment_parse (index, "mark/\n\033[2J",
                                           TEAR_SECTOR, &moment),
                    -1);
  assert_messages (1, "no moment 'mark/??[2J':");
  forget_messages ();
  writelog_index_close (index);
  close (log.fd);
}

static void
test_marks (void **state)
{
  char longest[512 - WRITELOG_ENTRY_LEN + 1];
  struct writelog_index *index;
  struct log log;
  uint64_t entry = 1;
  char *name;
  bool first = false;

  memset (longest, 'l', sizeof longest - 1);
  longest[sizeof longest - 1] = '\0';
  log_begin (&log, 512);
  log_mark (&log, longest);
  log_add (&log, 7, 1, 0, NULL, 0);
  log_mark (&log, "again");
  log_mark (&log, "");
  log_mark (&log, "again");
  index = log_open (&log);
  assert_non_null (index);

  assert_int_equal (writelog_index_mark (index, 0, &name, &entry, &first), 0);
  assert_string_equal (name, longest);
  assert_int_equal (entry, 0);
  assert_true (first);
  free (name);
  assert_int_equal (writelog_index_mark (index, 2, &name, &entry, &first), 0);
  assert_string_equal (name, "");
  assert_int_equal (entry, 3);
  assert_true (first);
  free (name);
  assert_int_equal (writelog_index_mark (index, 3, &name, &entry, &first), 0);
  assert_string_equal (name, "again");
  assert_int_equal (entry, 4);
  assert_false (first);
  free (name);
  assert_moment (index, "mark/", 3);
  writelog_index_close (index);
  close (log.fd);
}

/* Texts stay in the log; if that changes under the server, this is an
 * error of the one who asks for a mark.
 */
static void
test_a_mark_that_changes_is_an_error (void **state)
{
  const uint8_t flags[8] = { WRITELOG_FLUSH };
  struct writelog_moment moment;
  struct writelog_index *index;
  struct log log;

  log_begin (&log, 512);
  log_mark (&log, "mark");
  index = log_open (&log);
  assert_non_null (index);
  assert_int_equal (pwrite (log.fd, flags, 8, 512 + 16), 8);
  assert_int_equal (writelog_moment_parse (index, "mark/mark",
                                           TEAR_SECTOR, &moment), -1);
  assert_int_equal (errno, EIO);
  assert_messages (1, "entry 0 at offset 512: the mark has changed");
  forget_messages ();
  writelog_index_close (index);
  close (log.fd);
}

/* ---- Logs at the limits */

static void
test_an_empty_log (void **state)
{
  struct writelog_totals totals;
  struct writelog_moment moment;
  struct writelog_index *index;
  uint8_t buf[1000];
  struct extent e;
  struct node *n;
  struct log log;

  log_begin (&log, 512);
  index = log_open (&log);
  assert_non_null (index);
  writelog_index_totals (index, &totals);
  assert_int_equal (totals.entries, 0);
  assert_int_equal (totals.end, 0);
  assert_moment (index, "", 0);
  assert_int_equal (writelog_moment_crash (index, 0, 7,
                                           TEAR_SECTOR, &moment), 0);
  n = writelog_moment_open (index, &moment, NULL, 1000);
  memset (buf, 1, sizeof buf);
  assert_int_equal (node_pread (n, buf, 1000, 0), 0);
  for (unsigned i = 0; i < 1000; ++i)
    assert_int_equal (buf[i], 0);
  assert_int_equal (node_extents (n, 1000, 0, &e), 0);
  assert_int_equal (e.length, 1000);
  assert_int_equal (e.flags, EXTENT_ZERO | EXTENT_HOLE);
  node_close (n);
  writelog_index_close (index);
  close (log.fd);
}

static void
test_a_discard_of_the_largest_disk (void **state)
{
  const uint64_t max = (UINT64_C (1) << 63) / 512;
  struct writelog_totals totals;
  struct writelog_moment moment;
  struct writelog_index *index;
  uint8_t buf[1024], wanted[1024] = { 0 };
  struct extent e;
  struct node *n;
  struct log log;

  log_begin (&log, 512);
  log_add (&log, max - 2, 2, 0, NULL, 0);
  log_add (&log, 0, max, WRITELOG_DISCARD, NULL, 0);
  log_add (&log, max - 1, 1, 0, NULL, 0);
  fill (wanted + 512, 512, 2, max - 1);
  index = log_open (&log);
  assert_non_null (index);
  writelog_index_totals (index, &totals);
  assert_int_equal (totals.end, max * 512);
  assert_int_equal (totals.end_entry, 0);
  assert_int_equal (writelog_moment_parse (index, "",
                                           TEAR_SECTOR, &moment), 0);
  /* The largest disk lacks a byte of the last sector. */
  n = writelog_moment_open (index, &moment, NULL, INT64_MAX);
  assert_int_equal (node_pread (n, buf, 1023, (max - 2) * 512), 0);
  assert_memory_equal (buf, wanted, 1023);
  assert_int_equal (node_extents (n, INT64_MAX - 5, 5, &e), 0);
  assert_int_equal (e.length, totals.end - 512 - 5);
  assert_int_equal (e.flags, EXTENT_ZERO | EXTENT_HOLE);
  node_close (n);
  writelog_index_close (index);
  close (log.fd);
}

/* Logs that end early are refused, with entry and offset, whatever their
 * super block says; nothing is allocated for what it says.
 */
static void
test_damaged_logs_are_refused (void **state)
{
  struct log log;

  log_begin (&log, 512);
  log_add (&log, 0, 2, 0, NULL, 0);
  log_add (&log, 0, 3, 0, NULL, 0);
  assert_int_equal (ftruncate (log.fd, log.offset - 1), 0);
  forget_messages ();
  assert_null (log_open (&log));
  assert_messages (1, "entry 1 at offset 2048: the log ends inside it");
  close (log.fd);

  log_begin (&log, 512);
  log_add (&log, 0, 2, 0, NULL, 0);
  log.nr_entries = UINT64_MAX;
  forget_messages ();
  assert_null (log_open (&log));
  assert_messages (1, "entry 1 at offset 2048: the log ends before it");
  forget_messages ();
  close (log.fd);
}

/* ---- Memory */

enum { MANY = 1000000 / ONE_IN };

/* A log of discards with sectors of 32 bytes, written in one go. */
static void
make_many (struct log *log, unsigned nr,
           void (*range) (unsigned i, uint64_t *sector, uint64_t *nr_sectors))
{
  const size_t len = (size_t) nr * 32;
  CLEANUP_FREE uint8_t *buf = malloc (len);

  assert_non_null (buf);
  log_begin (log, 32);
  for (unsigned i = 0; i < nr; ++i) {
    struct writelog_entry entry = { .flags = WRITELOG_DISCARD };

    range (i, &entry.sector, &entry.nr_sectors);
    writelog_entry_encode (&entry, buf + (size_t) i * 32);
  }
  for (size_t done = 0; done < len; ) {
    const ssize_t r = pwrite (log->fd, buf + done, len - done, 32 + done);

    assert_true (r > 0);
    done += r;
  }
  log->nr_entries = nr;
}

static void
apart (unsigned i, uint64_t *sector, uint64_t *nr_sectors)
{
  *sector = i * UINT64_C (2654435761) % (1 << 30) * 8;
  *nr_sectors = 8;
}

static void
nested (unsigned i, uint64_t *sector, uint64_t *nr_sectors)
{
  *sector = i;
  *nr_sectors = 2 * (MANY - i);
}

static void
nested_from_inside (unsigned i, uint64_t *sector, uint64_t *nr_sectors)
{
  nested (MANY - 1 - i, sector, nr_sectors);
}

/* Half of them make a million pieces, and the others take as many nodes
 * of the tree over them as they can: 36.
 */
static void
worst (unsigned i, uint64_t *sector, uint64_t *nr_sectors)
{
  const unsigned from = (1 << 20) + 1 - (MANY - 1);
  const unsigned to = 0x1e7fff - (MANY - 1);

  *sector = i < MANY / 2 ? 2 * i : from;
  *nr_sectors = i < MANY / 2 ? 1 : to - from;
}

static void
overlapping (unsigned i, uint64_t *sector, uint64_t *nr_sectors)
{
  *sector = i;
  *nr_sectors = MANY / 2 + i % 7;
}

static void
check_memory (void (*range) (unsigned i, uint64_t *sector,
                             uint64_t *nr_sectors), const char *what)
{
  struct writelog_totals totals;
  struct writelog_index *index;
  struct log log;

  make_many (&log, MANY, range);
  index = log_open (&log);
  assert_non_null (index);
  writelog_index_totals (index, &totals);
  assert_int_equal (totals.entries, MANY);
  print_message ("%s: %.1f bytes an entry\n", what,
                 (double) totals.memory / MANY);
  assert_within (totals.memory, MANY, 300 * (uint64_t) MANY);
  writelog_index_close (index);
  close (log.fd);
}

static void
test_memory_of_a_million_entries (void **state)
{
  check_memory (apart, "apart");
  check_memory (nested, "nested");
  check_memory (nested_from_inside, "nested from inside");
  check_memory (worst, "worst");
  check_memory (overlapping, "overlapping");
}

/* ---- Threads */

struct shared {
  struct log *log;
  struct writelog_index *index;
};

static void
read_moments (struct unit_thread *t)
{
  struct shared *shared = t->opaque;
  CLEANUP_FREE struct model *m = calloc (1, sizeof *m);
  CLEANUP_FREE uint8_t *buf = malloc (MAX_DISK);
  const uint64_t size = 64 * shared->log->sector_size;

  for (unsigned i = 0; i < 300; ++i) {
    const uint64_t n = random_below (&t->seed, shared->log->nr_entries + 1);
    struct writelog_moment moment;
    struct node *node;

    model_begin (m, shared->log, 64, NULL);
    if (i % 2) {
      CHECK (writelog_moment_entries (shared->index, n, &moment) == 0);
      replay (m, shared->log, 0, n);
    }
    else {
      CHECK (writelog_moment_crash (shared->index, 1, n,
                                    TEAR_SECTOR, &moment) == 0);
      replay_crash (m, shared->log, 1, n);
    }
    node = writelog_moment_open (shared->index, &moment, NULL, size);
    CHECK (node);
    CHECK (node_pread (node, buf, size, 0) == 0);
    CHECK (memcmp (buf, m->disk, size) == 0);
    CHECK (writelog_moment_parse (shared->index, "mark/m",
                                  TEAR_SECTOR, &moment) == 0);
    node_close (node);
  }
}

/* Any bounds: close together, far from each other, and the same. */
static uint64_t
random_bound (uint64_t *seed)
{
  return UINT64_C (1) << 61 >> random_below (seed, 61) <<
    random_below (seed, 2) >> random_below (seed, 2);
}

static void
test_ranges_that_cover_a_place (void **state)
{
  enum { SPANS = 50 };
  uint64_t seed = 1;

  for (int round = 0; round < 400; ++round) {
    struct cover_span spans[SPANS], built[SPANS];
    const size_t n = 1 + random_below (&seed, SPANS);
    struct cover c;

    for (size_t i = 0; i < n; ++i) {
      const uint64_t start =
        random_bound (&seed) + (round % 2 ? random_below (&seed, 99) : 0);
      const uint64_t length = round % 3 ? 1 + random_below (&seed, 9)
        : random_bound (&seed);

      spans[i] = (struct cover_span) { start, start + length, i };
    }
    memcpy (built, spans, sizeof built);
    assert_int_equal (cover_build (&c, built, n), 0);
    for (size_t i = 0; i < 4 * n; ++i) {
      const struct cover_span *near = &spans[i / 4];
      const uint64_t place = (i & 2 ? near->end : near->start) - (i & 1);
      struct cover_lists lists;

      if (place < c.bounds[0] || place >= c.bounds[c.nr_pieces])
        continue;
      cover_below (&c, cover_find (&c, place), UINT32_MAX, &lists);
      for (size_t j = n; j-- > 0;)
        if (spans[j].start <= place && place < spans[j].end)
          assert_int_equal (cover_pop (&lists), j);
      assert_int_equal (cover_pop (&lists), COVER_NONE);
    }
    cover_free (&c);
  }
}

static void
test_threads_share_an_index (void **state)
{
  uint64_t random = 31337;
  struct shared shared;
  struct log log;

  log_begin (&log, 512);
  log_mark (&log, "m");
  log_add (&log, 0, 64, WRITELOG_FLUSH, NULL, 0);
  while (log.nr_entries < MAX_ENTRIES)
    add_random (&log, 64, &random);
  shared = (struct shared) { .log = &log, .index = log_open (&log) };
  assert_non_null (shared.index);
  assert_int_equal (node_start (writelog_index_log (shared.index)), 0);
  run_threads (4, read_moments, &shared);
  writelog_index_close (shared.index);
  close (log.fd);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_moments_are_what_replaying_gives),
    cmocka_unit_test (test_power_losses_follow_the_manual),
    cmocka_unit_test (test_every_power_loss_occurs),
    cmocka_unit_test (test_seed_0_is_the_flush),
    cmocka_unit_test (test_a_power_loss_reads_the_same_in_any_order),
    cmocka_unit_test (test_names_of_moments),
    cmocka_unit_test (test_marks),
    cmocka_unit_test (test_a_mark_that_changes_is_an_error),
    cmocka_unit_test (test_an_empty_log),
    cmocka_unit_test (test_a_discard_of_the_largest_disk),
    cmocka_unit_test (test_damaged_logs_are_refused),
    cmocka_unit_test (test_memory_of_a_million_entries),
    cmocka_unit_test (test_ranges_that_cover_a_place),
    cmocka_unit_test (test_threads_share_an_index),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, NULL, NULL);
}
