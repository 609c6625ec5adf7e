/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The map of dirty blocks against a model, in which a block is a number:
 * what the disk has, what the remote has, and what the remote would have
 * after power loss.  Whatever differs must be known to the map, also when
 * the remote goes down and when the primary is killed and has the map's
 * file only.
 */

#include <config.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

#include "filters/replication/dirty.h"
#include "utils/rounding.h"
#include "tests/lib/next.h"
#include "tests/unit/unit.h"

#define BLOCKS_OF_AREA (DIRTY_AREA / DIRTY_BLOCK)
#define NR_AREAS 150            /* more than two words of bits */
#define NR_BLOCKS (NR_AREAS * BLOCKS_OF_AREA - 3)
#define SIZE ((uint64_t) NR_BLOCKS * DIRTY_BLOCK - 1000)

static char dir[] = "/tmp/test-dirty-XXXXXX";
static char name[2][64];

static struct dirty map;
static struct dirty_file *file;
static unsigned current;        /* name of the file */

static unsigned version;        /* of the last write */
static unsigned local[NR_BLOCKS], remote[NR_BLOCKS], durable[NR_BLOCKS];
static unsigned flushed[NR_BLOCKS]; /* durable if the flush succeeds */
static bool flushing;

/* Copies under way. */
struct copy {
  uint64_t area;
  uint16_t blocks;
  unsigned content[BLOCKS_OF_AREA];
};
static struct copy copies[20];
static size_t nr_copies;

static void
open_map (void)
{
  file = dirty_file_open (name[current]);
  assert_non_null (file);
  assert_int_equal (dirty_init (&map, SIZE, file), 0);
}

static void
write_blocks (uint64_t *seed)
{
  const uint64_t start = random_below (seed, SIZE);
  const uint64_t limit = random_below (seed, 30) ? 20000 : SIZE;
  uint64_t count = 1 + random_below (seed, limit);

  if (count > SIZE - start)
    count = SIZE - start;
  assert_int_equal (dirty_mark (&map, start, count), 0);
  ++version;
  for (uint64_t b = start / DIRTY_BLOCK;
       b <= (start + count - 1) / DIRTY_BLOCK; ++b)
    local[b] = version;
}

static void
begin_copies (uint64_t *seed)
{
  uint64_t areas[20];
  bool end;
  size_t n;

  n = dirty_take (&map, areas, random_below (seed, 20 - nr_copies + 1), &end);
  for (size_t i = 0; i < n; ++i) {
    struct copy *c = &copies[nr_copies++];
    const uint64_t first = areas[i] * BLOCKS_OF_AREA;

    for (size_t j = 0; j < nr_copies - 1; ++j)
      assert_int_not_equal (copies[j].area, areas[i]);
    c->area = areas[i];
    c->blocks = dirty_begin_copy (&map, c->area);
    assert_int_not_equal (c->blocks, 0);
    for (unsigned k = 0; k < BLOCKS_OF_AREA; ++k)
      if (c->blocks >> k & 1) {
        assert_true (first + k < NR_BLOCKS);
        c->content[k] = local[first + k];
      }
  }
}

/* The remote may have carried it out although it says that it failed. */
static void
end_copy (uint64_t *seed, bool lost)
{
  const size_t i = random_below (seed, nr_copies);
  const struct copy c = copies[i];
  const bool ok = !lost && random_below (seed, 8);

  for (unsigned k = 0; k < BLOCKS_OF_AREA; ++k)
    if ((c.blocks >> k & 1) && (ok || random_below (seed, 2)))
      remote[c.area * BLOCKS_OF_AREA + k] = c.content[k];
  dirty_end_copy (&map, c.area, c.blocks, ok);
  copies[i] = copies[--nr_copies];
}

static void
flush (uint64_t *seed, bool lost)
{
  if (!flushing) {
    dirty_begin_flush (&map);
    memcpy (flushed, remote, sizeof flushed);
  }
  else {
    const bool ok = !lost && random_below (seed, 6);

    if (ok)
      memcpy (durable, flushed, sizeof durable);
    assert_int_equal (dirty_end_flush (&map, ok), 0);
  }
  flushing = !flushing;
}

/* Of each block the remote has kept what it had, or the last durable
 * content.
 */
static void
remote_goes_down (uint64_t *seed)
{
  for (unsigned b = 0; b < NR_BLOCKS; ++b) {
    if (random_below (seed, 2))
      remote[b] = durable[b];
    durable[b] = remote[b];
  }
}

static void
lose_remote (uint64_t *seed)
{
  while (nr_copies > 0)
    end_copy (seed, true);
  if (flushing)
    flush (seed, true);
  remote_goes_down (seed);
  dirty_lost (&map);
}

static void
copy_file (const char *from, const char *to)
{
  char buf[65536];
  int in = open (from, O_RDONLY);
  int out = open (to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  ssize_t r;

  while ((r = read (in, buf, sizeof buf)) > 0)
    assert_int_equal (write (out, buf, r), r);
  assert_int_equal (r, 0);
  close (in);
  close (out);
}

/* The primary is killed, and the remote goes down as well. */
static void
crash (uint64_t *seed)
{
  copy_file (name[current], name[!current]);
  dirty_destroy (&map);
  dirty_file_abandon (file);
  current = !current;
  open_map ();
  nr_copies = 0;
  flushing = false;
  remote_goes_down (seed);
}

/* Every block that differs is dirty, or on its way. */
static void
check_map (void)
{
  uint64_t nr = 0;

  for (uint64_t area = 0; area < NR_AREAS; ++area) {
    uint16_t known = map.blocks[area];

    nr += __builtin_popcount (known);
    for (size_t i = 0; i < nr_copies; ++i)
      if (copies[i].area == area) {
        nr += __builtin_popcount (copies[i].blocks);
        known |= copies[i].blocks;
      }
    for (unsigned k = 0; k < BLOCKS_OF_AREA; ++k) {
      const uint64_t b = area * BLOCKS_OF_AREA + k;

      if (b < NR_BLOCKS && local[b] != remote[b] && !(known >> k & 1))
        fail_msg ("block %u of area %u differs and is not known", k,
                  (unsigned) area);
    }
  }
  assert_int_equal (dirty_bytes (&map), MIN (nr * DIRTY_BLOCK, SIZE));
}

/* With everything copied and flushed the file is clean. */
static void
settle (uint64_t *seed)
{
  if (flushing)
    flush (seed, true);
  while (dirty_bytes (&map) > 0 || dirty_is_unsure (&map)) {
    begin_copies (seed);
    while (nr_copies > 0)
      end_copy (seed, false);
    do
      flush (seed, false);
    while (flushing);
  }
  crash (seed);
  assert_int_equal (dirty_bytes (&map), 0);
  assert_memory_equal (local, remote, sizeof local);
}

static void
test_whatever_differs_is_dirty (void **state)
{
  uint64_t seed = 20261121;

  (void) state;
  for (unsigned i = 0; i < 60000; ++i) {
    switch (random_below (&seed, 1000)) {
    case 0 ... 299:
      write_blocks (&seed);
      break;
    case 300 ... 599:
      begin_copies (&seed);
      break;
    case 600 ... 979:
      if (nr_copies > 0)
        end_copy (&seed, false);
      break;
    case 980 ... 991:
      flush (&seed, false);
      break;
    case 992 ... 994:
      lose_remote (&seed);
      break;
    case 995 ... 998:
      crash (&seed);
      break;
    default:
      settle (&seed);
    }
    if (i % 8 == 0)
      check_map ();
  }
  settle (&seed);
}

/* Passes go over the map in ascending order, and tell their end. */
static void
test_passes (void **state)
{
  static const uint64_t dirty[] = { 0, 1, 63, 64, 149 };
  uint64_t areas[4];
  bool end;

  (void) state;
  for (int i = 0; i < 5; ++i)
    assert_int_equal (dirty_mark (&map, dirty[i] * DIRTY_AREA, 1), 0);
  assert_int_equal (dirty_take (&map, areas, 3, &end), 3);
  assert_memory_equal (areas, dirty, 3 * sizeof areas[0]);
  assert_false (end);
  assert_int_equal (dirty_mark (&map, DIRTY_AREA * 2, 1), 0);
  assert_int_equal (dirty_take (&map, areas, 2, &end), 2);
  assert_memory_equal (areas, dirty + 3, 2 * sizeof areas[0]);
  assert_true (end);
  assert_int_equal (dirty_take (&map, areas, 4, &end), 1);
  assert_int_equal (areas[0], 2);
  assert_true (end);
  assert_int_equal (dirty_take (&map, areas, 4, &end), 0);
  assert_true (end);
}

/* All blocks are being copied, and have changed again meanwhile. */
static void
test_bytes_of_all (void **state)
{
  uint64_t areas[NR_AREAS];
  bool end;

  (void) state;
  assert_int_equal (dirty_bytes (&map), 0);
  assert_int_equal (dirty_mark (&map, 0, SIZE), 0);
  assert_int_equal (dirty_bytes (&map), SIZE);
  assert_int_equal (dirty_take (&map, areas, NR_AREAS, &end), NR_AREAS);
  for (int i = 0; i < NR_AREAS; ++i)
    dirty_begin_copy (&map, areas[i]);
  assert_int_equal (dirty_mark (&map, 0, SIZE), 0);
  assert_int_equal (dirty_bytes (&map), SIZE);
}

/* The medium of the file: a write of it takes as long as this is set. */
static atomic_bool hold_writes;
static atomic_uint nr_held;
static atomic_uint nr_to_fail;  /* of the next writes */

extern ssize_t __real_pwrite (int fd, const void *buf, size_t count,
                              off_t offset) LINKED_AS ("__real_pwrite");
extern ssize_t __wrap_pwrite (int fd, const void *buf, size_t count,
                              off_t offset) LINKED_AS ("__wrap_pwrite");
ssize_t
__wrap_pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  atomic_fetch_add (&nr_held, 1);
  while (atomic_load (&hold_writes))
    usleep (1000);
  atomic_fetch_sub (&nr_held, 1);
  if (atomic_load (&nr_to_fail) > 0) {
    atomic_fetch_sub (&nr_to_fail, 1);
    errno = EIO;
    return -1;
  }
  return __real_pwrite (fd, buf, count, offset);
}

static void
mark_an_area (struct unit_thread *t)
{
  CHECK (dirty_mark (&map, *(uint64_t *) t->opaque * DIRTY_AREA, 1) == 0);
}

/* While the file is written to, only those wait who change what it does not
 * know of.
 */
static void
test_nobody_waits_for_the_file_in_vain (void **state)
{
  struct unit_thread thread[2];
  uint64_t areas[3], first = 7, second = 7;
  bool end;

  (void) state;
  alarm (60);
  assert_int_equal (dirty_mark (&map, 5 * DIRTY_AREA, 1), 0);
  atomic_store (&hold_writes, true);
  start_threads (&thread[0], 1, mark_an_area, &first);
  while (atomic_load (&nr_held) == 0)
    usleep (1000);

  assert_int_equal (dirty_bytes (&map), 2 * DIRTY_BLOCK);
  assert_int_equal (dirty_mark (&map, 5 * DIRTY_AREA + DIRTY_BLOCK, 1), 0);
  assert_int_equal (dirty_bytes (&map), 3 * DIRTY_BLOCK);
  assert_int_equal (dirty_take (&map, areas, 3, &end), 2);
  assert_false (dirty_is_clean (&map, 7));

  /* This one has to wait for the other's write. */
  start_threads (&thread[1], 1, mark_an_area, &second);
  assert_int_equal (atomic_load (&nr_held), 1);
  atomic_store (&hold_writes, false);
  join_threads (thread, 2);

  /* The file has all of them. */
  dirty_destroy (&map);
  dirty_file_abandon (file);
  open_map ();
  assert_false (dirty_is_clean (&map, 5));
  assert_false (dirty_is_clean (&map, 7));
}

/* Does the file as it is say to the next one that it cannot be trusted? */
static bool
says_that_it_failed (void)
{
  static const char none[36];
  char boot[36];
  const int fd = open (name[current], O_RDONLY);

  assert_true (fd >= 0);
  assert_int_equal (pread (fd, boot, sizeof boot, 32), sizeof boot);
  close (fd);
  return memcmp (boot, none, sizeof none) == 0;
}

/* A bit that cannot be written, and then not even that the file lacks it: as
 * long as that is so nothing may change that the file does not know, as
 * whoever is killed would leave a file that is believed.
 */
static void
test_a_file_that_cannot_say_that_it_failed (void **state)
{
  (void) state;
  assert_int_equal (dirty_mark (&map, 9 * DIRTY_AREA, 1), 0);
  atomic_store (&nr_to_fail, 2);
  assert_int_equal (dirty_mark (&map, 5 * DIRTY_AREA, 1), -1);
  assert_true (dirty_is_wrong (&map));
  assert_false (says_that_it_failed ());

  /* The same area, another one, and one that the file has. */
  for (uint64_t area = 5; area < 7; ++area) {
    atomic_store (&nr_to_fail, 1);
    assert_int_equal (dirty_mark (&map, area * DIRTY_AREA, 1), -1);
    assert_true (dirty_is_wrong (&map));
    assert_int_equal (atomic_load (&nr_to_fail), 0);
  }
  assert_int_equal (dirty_mark (&map, 9 * DIRTY_AREA, 1), 0);
  assert_true (dirty_is_wrong (&map));

  assert_int_equal (dirty_mark (&map, 5 * DIRTY_AREA, 1), 0);
  assert_false (dirty_is_wrong (&map));
  assert_true (says_that_it_failed ());
  assert_int_equal (dirty_mark (&map, 8 * DIRTY_AREA, 1), 0);
}

/* The same where all of the map was to be another one. */
static void
test_a_map_that_cannot_be_replaced (void **state)
{
  (void) state;
  atomic_store (&nr_to_fail, 1);
  assert_int_equal (dirty_forget (&map), -1);
  for (int i = 0; i < 2; ++i) {
    assert_true (dirty_is_wrong (&map));
    atomic_store (&nr_to_fail, 1);
    assert_int_equal (dirty_mark (&map, 5 * DIRTY_AREA, 1), -1);
    assert_int_equal (atomic_load (&nr_to_fail), 0);
  }
  atomic_store (&nr_to_fail, 0);
  assert_int_equal (dirty_mark (&map, 5 * DIRTY_AREA, 1), 0);
  assert_false (dirty_is_wrong (&map));
  assert_true (says_that_it_failed ());
}

static int
setup (void **state)
{
  (void) state;
  if (mkdtemp (dir) == NULL)
    return -1;
  snprintf (name[0], sizeof name[0], "%s/0", dir);
  snprintf (name[1], sizeof name[1], "%s/1", dir);
  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  open_map ();
  return 0;
}

static int
teardown (void **state)
{
  (void) state;
  dirty_destroy (&map);
  dirty_file_abandon (file);
  unlink (name[0]);
  unlink (name[1]);
  rmdir (dir);
  memcpy (dir + strlen (dir) - 6, "XXXXXX", 6);
  return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

/* A file of zeroes, of this length. */
static void
make_zeroes (uint64_t length)
{
  const int fd = open (name[1], O_CREAT | O_TRUNC | O_RDWR, 0600);

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, length), 0);
  close (fd);
}

/* What a crash leaves of the first making is made again; what only looks like
 * that is left as it is.
 */
static void
test_a_file_that_a_crash_has_left (void **state)
{
  const uint64_t words = div_round_up (NR_AREAS, 64);
  const uint64_t whole = 4096 + words * 8;
  struct dirty_file *f;
  struct dirty d;

  (void) state;
  make_zeroes (whole);
  f = dirty_file_open (name[1]);
  assert_non_null (f);
  assert_int_equal (dirty_init (&d, SIZE, f), 0);
  assert_int_equal (dirty_bytes (&d), 0);
  assert_int_equal (dirty_file_end (f), 0);
  dirty_destroy (&d);

  make_zeroes (whole + 8);
  f = dirty_file_open (name[1]);
  assert_non_null (f);
  assert_int_equal (dirty_init (&d, SIZE, f), -1);
  assert_string_equal (strstr (messages.last, "not a replication"),
                       "not a replication bitmap (wrong magic); it is left "
                       "as it is");
  dirty_file_abandon (f);
  dirty_destroy (&d);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_passes),
    TEST (test_bytes_of_all),
    TEST (test_nobody_waits_for_the_file_in_vain),
    TEST (test_a_file_that_cannot_say_that_it_failed),
    TEST (test_a_map_that_cannot_be_replaced),
    TEST (test_whatever_differs_is_dirty),
    TEST (test_a_file_that_a_crash_has_left),
  };

  return cmocka_run_group_tests_name ("replication-dirty", tests, NULL, NULL);
}
