/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Buffers: QED layers over a node that is given, which take what is about
 * to be overwritten and are emptied again and again.
 */

#include <config.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/unit/folder.h"
#include "tests/unit/memory-node.h"
#include "qed/qed.h"
#include "utils/rounding.h"
#include "tests/lib/next.h"
#include "tests/unit/unit.h"

#define SIZE (UINT64_C (8) * 1024 * 1024)
#define CLUSTER UINT64_C (4096)
#define NAME "buffer.qed"

/* ---- A buffer over a node in memory */

struct bench {
  struct memory_node *below;
  struct node *buffer;
};

static void
open_buffer (struct bench *b)
{
  b->buffer = qed_buffer_open (NAME);
  assert_non_null (b->buffer);
  qed_buffer_set_backing (b->buffer, &b->below->node, true);
  assert_int_equal (node_start (b->buffer), 0);
}

static void
make_buffer (struct bench *b)
{
  unlink (NAME);
  assert_int_equal (qed_buffer_create (NAME, SIZE), 0);
  b->below = memory_node_new (SIZE);
  memset (b->below->data, 'o', SIZE / 2);
  open_buffer (b);
}

static void
close_all (struct bench *b)
{
  assert_int_equal (node_close (b->buffer), 0);
  assert_int_equal (node_close (&b->below->node), 0);
}

static void
assert_reads (struct bench *b, uint8_t byte, uint64_t count, uint64_t offset)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  assert_int_equal (node_pread (b->buffer, buf, count, offset), 0);
  for (uint64_t i = 0; i < count; ++i)
    assert_int_equal (buf[i], byte);
}

static enum qed_held
held_at (struct bench *b, uint64_t offset, uint64_t *length)
{
  enum qed_held held = QED_HELD_NOT;

  assert_int_equal (qed_buffer_held (b->buffer, SIZE - offset, offset, &held,
                                     length), 0);
  return held;
}

static int
empty (struct bench *b)
{
  if (qed_buffer_empty_prepare (b->buffer) == -1 ||
      qed_buffer_empty_switch (b->buffer) == -1)
    return -1;
  qed_buffer_empty_finish (b->buffer);
  return 0;
}

/* ---- Tests */

static void
test_holding (void **state)
{
  struct bench b;
  uint64_t length;

  (void) state;
  make_buffer (&b);
  assert_int_equal (qed_buffer_nr_held (b.buffer), 0);
  assert_int_equal (held_at (&b, 0, &length), QED_HELD_NOT);
  assert_int_equal (length, SIZE);

  /* One byte in each of two clusters. */
  assert_int_equal (qed_buffer_hold (b.buffer, 2, 3 * CLUSTER - 1), 0);
  assert_int_equal (qed_buffer_nr_held (b.buffer), 2);
  assert_int_equal (held_at (&b, 0, &length), QED_HELD_NOT);
  assert_int_equal (length, 2 * CLUSTER);
  assert_int_equal (held_at (&b, 2 * CLUSTER, &length), QED_HELD_DATA);
  assert_int_equal (length, 2 * CLUSTER);

  /* Zeroes, in the middle of data and alone. */
  assert_int_equal (qed_buffer_hold (b.buffer, SIZE, 0), 0);
  assert_int_equal (qed_buffer_nr_held (b.buffer), SIZE / CLUSTER);
  assert_int_equal (held_at (&b, SIZE / 2, &length), QED_HELD_ZEROES);
  assert_int_equal (length, SIZE / 2);
  memset (b.below->data, 'n', SIZE);
  assert_reads (&b, 'o', SIZE / 2, 0);
  assert_reads (&b, 0, SIZE / 2, SIZE / 2);
  close_all (&b);
}

static void
hold_at_random (struct unit_thread *t)
{
  struct bench *b = t->opaque;

  for (unsigned i = 0; i < 200; ++i) {
    const uint64_t offset = random_below (&t->seed, SIZE);
    const uint64_t count =
      1 + random_below (&t->seed, MIN (SIZE - offset, 3 * CLUSTER));

    CHECK (qed_buffer_hold (b->buffer, count, offset) == 0);
    CHECK (node_zero (&b->below->node, count, offset, 0) == 0);
  }
}

/* Whoever comes first copies, and nobody copies what has changed. */
static void
test_holding_in_threads (void **state)
{
  struct bench b;

  (void) state;
  make_buffer (&b);
  run_threads (6, hold_at_random, &b);
  assert_reads (&b, 'o', SIZE / 2, 0);
  assert_reads (&b, 0, SIZE / 2, SIZE / 2);
  close_all (&b);
}

static void
test_what_is_held_survives_closing (void **state)
{
  struct bench b;

  (void) state;
  make_buffer (&b);
  assert_int_equal (qed_buffer_hold (b.buffer, CLUSTER, 0), 0);
  assert_int_equal (qed_buffer_hold (b.buffer, CLUSTER, SIZE - CLUSTER), 0);
  assert_int_equal (node_close (b.buffer), 0);
  memset (b.below->data, 'n', SIZE);
  open_buffer (&b);
  assert_int_equal (qed_buffer_nr_held (b.buffer), 2);
  assert_reads (&b, 'o', CLUSTER, 0);
  assert_reads (&b, 'n', CLUSTER, CLUSTER);
  assert_reads (&b, 0, CLUSTER, SIZE - CLUSTER);
  close_all (&b);
}

static void
test_emptying_and_back (void **state)
{
  struct bench b;

  (void) state;
  make_buffer (&b);
  assert_int_equal (qed_buffer_hold (b.buffer, CLUSTER, 0), 0);
  /* Nothing was switched, and what comes then is not put over its tables. */
  qed_buffer_empty_finish (b.buffer);
  assert_int_equal (qed_buffer_hold (b.buffer, CLUSTER, CLUSTER), 0);
  memset (b.below->data, 'n', SIZE);
  assert_int_equal (qed_buffer_empty_prepare (b.buffer), 0);
  assert_reads (&b, 'o', CLUSTER, 0);
  assert_int_equal (qed_buffer_empty_switch (b.buffer), 0);
  assert_int_equal (qed_buffer_empty_back (b.buffer), 0);
  qed_buffer_empty_finish (b.buffer);
  assert_reads (&b, 'o', CLUSTER, 0);
  assert_int_equal (node_close (b.buffer), 0);

  open_buffer (&b);
  assert_reads (&b, 'o', 2 * CLUSTER, 0);
  assert_int_equal (empty (&b), 0);
  assert_int_equal (qed_buffer_nr_held (b.buffer), 0);
  assert_reads (&b, 'n', CLUSTER, 0);
  close_all (&b);
}

/* Partial writes take the rest of the cluster from below. */
static void
test_writes (void **state)
{
  struct bench b;

  (void) state;
  make_buffer (&b);
  for (unsigned i = 0; i < 20; ++i) {
    assert_int_equal (node_pwrite (b.buffer, "xyz", 3, i), 0);
    assert_int_equal (node_pwrite (b.buffer, "xyz", 3, CLUSTER * (3 + i) - 1),
                      0);
    assert_reads (&b, 'o', 2 * CLUSTER - i - 3, i + 3);
    assert_reads (&b, 'x', 1, CLUSTER * (3 + i) - 1);
    assert_reads (&b, 'z', 1, CLUSTER * (3 + i) + 1);
    assert_int_equal (empty (&b), 0);
    assert_reads (&b, 'o', SIZE / 2, 0);
  }
  close_all (&b);
}

/* A layer lies where earlier ones have been, of which nothing shows. */
static void
test_earlier_layers_do_not_show (void **state)
{
  CLEANUP_FREE uint8_t *model = malloc (SIZE), *buf = malloc (SIZE);
  uint64_t seed = 3;
  struct bench b;

  (void) state;
  make_buffer (&b);
  for (unsigned layer = 0; layer < 60; ++layer) {
    const unsigned n = 1 + random_below (&seed, 40);

    memcpy (model, b.below->data, SIZE);
    for (unsigned i = 0; i < n; ++i) {
      const uint64_t offset = random_below (&seed, SIZE);
      const uint64_t count = 1 +
        random_below (&seed, MIN (SIZE - offset,
                                  random_below (&seed, 2) ? SIZE
                                  : 3 * CLUSTER));
      const uint8_t byte = 'a' + (layer + i) % 26;

      memset (buf, byte, count);
      switch (random_below (&seed, 4)) {
      case 0:
        assert_int_equal (node_zero (b.buffer, count, offset, 0), 0);
        memset (model + offset, 0, count);
        break;
      case 1:
        assert_int_equal (qed_buffer_hold (b.buffer, count, offset), 0);
        break;
      default:
        assert_int_equal (node_pwrite (b.buffer, buf, count, offset), 0);
        memset (model + offset, byte, count);
      }
    }
    assert_int_equal (node_pread (b.buffer, buf, SIZE, 0), 0);
    assert_memory_equal (buf, model, SIZE);
    assert_int_equal (layer % 9 == 8 ? qed_empty (b.buffer) : empty (&b), 0);
  }
  close_all (&b);
}

static void
test_the_note_stays (void **state)
{
  uint8_t note[QED_NOTE_LEN], found[QED_NOTE_LEN];
  struct qed_check_result result;
  struct bench b;

  (void) state;
  make_buffer (&b);
  memset (note, 0, sizeof note);
  assert_int_equal (qed_buffer_get_note (b.buffer, found), 0);
  assert_memory_equal (found, note, sizeof note);
  memset (note, 'n', sizeof note);
  assert_int_equal (qed_buffer_put_note (b.buffer, note, true), 0);
  assert_int_equal (qed_buffer_hold (b.buffer, SIZE, 0), 0);
  assert_int_equal (empty (&b), 0);
  assert_int_equal (qed_buffer_clean (b.buffer), 0);
  assert_int_equal (node_close (b.buffer), 0);

  open_buffer (&b);
  assert_int_equal (qed_buffer_get_note (b.buffer, found), 0);
  assert_memory_equal (found, note, sizeof note);
  close_all (&b);
  assert_int_equal (qed_check (NAME, QED_FIX_NONE, false, NODE_CACHE_WRITEBACK,
                               NULL, NULL,
                               &result), 0);
  assert_int_equal (result.corruptions + result.leaks, 0);
}

static atomic_bool emptied;

static void
put_notes (struct unit_thread *t)
{
  static const uint8_t note[QED_NOTE_LEN] = "note";
  struct bench *b = t->opaque;

  while (!atomic_load (&emptied))
    CHECK (qed_buffer_put_note (b->buffer, note, false) == 0);
}

/* The thread sanitizer sees whether one looks at what the other changes. */
static void
test_a_note_is_put_while_it_is_emptied (void **state)
{
  struct unit_thread thread;
  struct bench b;

  (void) state;
  make_buffer (&b);
  start_threads (&thread, 1, put_notes, &b);
  for (unsigned i = 0; i < 5; ++i)
    assert_int_equal (qed_buffer_clean (b.buffer), 0);
  atomic_store (&emptied, true);
  join_threads (&thread, 1);
  close_all (&b);
}

/* A buffer that has been kept is in order at any moment: what is mapped
 * was flushed before.
 */
static void
test_keeping (void **state)
{
  struct bench b;
  struct qed_check_result result;

  (void) state;
  make_buffer (&b);
  assert_int_equal (qed_buffer_hold (b.buffer, 5 * CLUSTER, 0), 0);
  assert_int_equal (qed_buffer_keep (b.buffer), 0);
  assert_int_equal (node_pwrite (b.buffer, "k", 1, 10 * CLUSTER), 0);
  assert_reads (&b, 'k', 1, 10 * CLUSTER);
  assert_reads (&b, 'o', CLUSTER - 1, 10 * CLUSTER + 1);
  close_all (&b);
  assert_int_equal (qed_check (NAME, QED_FIX_NONE, false, NODE_CACHE_WRITEBACK,
                               NULL, NULL,
                               &result), 0);
  assert_int_equal (result.corruptions, 0);
  assert_int_equal (result.allocated_clusters, 6);
}

static void
test_large_disks (void **state)
{
  const uint64_t size = UINT64_C (1) << 60;
  struct node *n;

  (void) state;
  unlink (NAME);
  assert_int_equal (qed_buffer_create (NAME, size), 0);
  n = qed_buffer_open (NAME);
  assert_non_null (n);
  assert_int_equal (node_size (n), size);
  assert_int_equal (node_close (n), 0);
}

/* ---- Opening what others have left */

static size_t
read_file (uint8_t **data)
{
  CLEANUP_CLOSE int fd = open (NAME, O_RDONLY);
  struct stat st;

  assert_int_equal (fstat (fd, &st), 0);
  *data = malloc (st.st_size);
  assert_int_equal (pread (fd, *data, st.st_size, 0), st.st_size);
  return st.st_size;
}

static void
patch (const void *buf, size_t count, uint64_t offset)
{
  CLEANUP_CLOSE int fd = open (NAME, O_RDWR);

  assert_int_equal (pwrite (fd, buf, count, offset), count);
}

/* A buffer that was emptied and used again when its process died, and
 * that a newer program has had before.
 */
static void
leave_buffer (struct bench *b)
{
  pid_t pid;
  int status;

  make_buffer (b);
  assert_int_equal (node_close (b->buffer), 0);
  pid = fork ();
  assert_int_not_equal (pid, -1);
  if (pid == 0) {
    open_buffer (b);
    CHECK (qed_buffer_hold (b->buffer, SIZE, 0) == 0);
    CHECK (empty (b) == 0);
    CHECK (qed_buffer_hold (b->buffer, 3 * CLUSTER, 0) == 0);
    _exit (0);
  }
  assert_int_equal (waitpid (pid, &status, 0), pid);
  assert_int_equal (status, 0);
  patch ("\x80", 1, 32);        /* an autoclear feature */
}

static void
test_opening_changes_nothing (void **state)
{
  uint8_t *before, *after;
  struct qed_check_result result;
  struct bench b;
  size_t count;

  (void) state;
  leave_buffer (&b);
  count = read_file (&before);
  open_buffer (&b);
  assert_int_equal (qed_buffer_nr_held (b.buffer), 3);
  assert_reads (&b, 'o', SIZE / 2, 0);
  assert_int_equal (node_close (b.buffer), 0);
  assert_int_equal (read_file (&after), count);
  assert_memory_equal (before, after, count);
  free (before);
  free (after);

  /* Emptying puts all of that right. */
  open_buffer (&b);
  assert_int_equal (qed_buffer_clean (b.buffer), 0);
  assert_int_equal (qed_buffer_hold (b.buffer, SIZE, 0), 0);
  assert_reads (&b, 'o', SIZE / 2, 0);
  assert_reads (&b, 0, SIZE / 2, SIZE / 2);
  assert_int_equal (qed_buffer_clean (b.buffer), 0);
  close_all (&b);
  assert_int_equal (qed_check (NAME, QED_FIX_NONE, false, NODE_CACHE_WRITEBACK,
                               NULL, NULL,
                               &result), 0);
  assert_int_equal (result.corruptions + result.leaks, 0);
  read_file (&after);
  assert_int_equal (after[32], 0);
  free (after);
}

/* Others put clusters where the second L1 table would be.  A process that
 * dies when it has prepared to empty such a buffer leaves it as it was.
 */
static void
test_preparing_what_others_made (void **state)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct bench b;
  struct node *n;

  (void) state;
  make_buffer (&b);
  assert_int_equal (node_close (b.buffer), 0);
  options.backing = "none";
  n = qed_open (NAME, &options);
  assert_non_null (n);
  assert_int_equal (node_pwrite (n, "x", 1, 3 * CLUSTER), 0);
  assert_int_equal (node_close (n), 0);

  open_buffer (&b);
  assert_int_equal (qed_buffer_empty_prepare (b.buffer), 0);
  assert_int_equal (node_close (b.buffer), 0);
  open_buffer (&b);
  assert_reads (&b, 'o', 3 * CLUSTER, 0);
  assert_reads (&b, 'x', 1, 3 * CLUSTER);
  assert_reads (&b, 0, CLUSTER - 1, 3 * CLUSTER + 1);
  close_all (&b);
}

/* Nothing of earlier layers is in the last cluster behind the end of the
 * disk: others may make the disk of what is left longer.
 */
static void
test_the_tail_of_the_last_cluster (void **state)
{
  const uint64_t size = SIZE - 512;

  (void) state;
  for (unsigned way = 0; way < 2; ++way) {
    struct extent e;
    struct bench b;
    uint8_t *data;

    unlink (NAME);
    assert_int_equal (qed_buffer_create (NAME, size), 0);
    b.below = memory_node_new (size);
    memset (b.below->data, 'o', size);
    open_buffer (&b);
    assert_int_equal (qed_buffer_hold (b.buffer, size, 0), 0);
    assert_int_equal (empty (&b), 0);
    assert_int_equal (way ? node_pwrite (b.buffer, "x", 1, size - 1)
                      : qed_buffer_hold (b.buffer, 1, size - 1), 0);
    assert_int_equal (node_extents (b.buffer, 512, size - 512, &e), 0);
    close_all (&b);
    read_file (&data);
    assert_int_equal (data[e.offset], 'o');
    for (unsigned i = 512; i < 1024; ++i)
      assert_int_equal (data[e.offset + i], 0);
    free (data);
  }
}

/* What was left is there until the moment of emptying. */
static void
test_emptying_what_was_left (void **state)
{
  struct bench b;

  (void) state;
  leave_buffer (&b);
  for (unsigned i = 0; i < 5; ++i) {
    open_buffer (&b);
    memset (b.below->data, 'n', 3 * CLUSTER);
    assert_int_equal (qed_buffer_empty_prepare (b.buffer), 0);
    assert_reads (&b, 'o', 3 * CLUSTER, 0);
    assert_int_equal (qed_buffer_empty_switch (b.buffer), 0);
    assert_int_equal (qed_buffer_empty_back (b.buffer), 0);
    assert_reads (&b, 'o', 3 * CLUSTER, 0);
    assert_int_equal (empty (&b), 0);
    assert_reads (&b, 'n', 3 * CLUSTER, 0);
    memset (b.below->data, 'o', 3 * CLUSTER);
    assert_int_equal (qed_buffer_hold (b.buffer, 3 * CLUSTER, 0), 0);
    assert_int_equal (node_close (b.buffer), 0);
  }
  assert_int_equal (node_close (&b.below->node), 0);
}

/* ---- Space that is just being given back */

/* A hole of this many bytes or more is not made while this is set. */
#define LARGE_HOLE (1024 * 1024)
static atomic_bool hold_holes;
static atomic_uint nr_holes_held;

extern int __real_fallocate (int fd, int mode, off_t offset, off_t count)
  LINKED_AS ("__real_fallocate");
extern int __wrap_fallocate (int fd, int mode, off_t offset, off_t count)
  LINKED_AS ("__wrap_fallocate");
int
__wrap_fallocate (int fd, int mode, off_t offset, off_t count)
{
  if (count >= LARGE_HOLE && atomic_load (&hold_holes)) {
    atomic_fetch_add (&nr_holes_held, 1);
    while (atomic_load (&hold_holes))
      usleep (1000);
  }
  return __real_fallocate (fd, mode, offset, count);
}

static uint8_t
byte_of (uint64_t cluster)
{
  return cluster % 251 + 1;
}

#define NR_HOLDERS 8
static atomic_uint nr_started;

/* Every eighth cluster. */
static void
hold_in_turn (struct unit_thread *t)
{
  struct bench *b = t->opaque;
  const unsigned self = atomic_fetch_add (&nr_started, 1);

  for (uint64_t i = self; i < SIZE / CLUSTER; i += NR_HOLDERS)
    CHECK (qed_buffer_hold (b->buffer, 1, i * CLUSTER) == 0);
}

/* Those who want space that is becoming a hole wait until it is one, all at
 * once, and get places of their own then.
 */
static void
test_space_that_is_becoming_a_hole (void **state)
{
  struct unit_thread threads[NR_HOLDERS];
  struct bench b;
  uint64_t held;

  (void) state;
  alarm (120);
  make_buffer (&b);
  for (uint64_t i = 0; i < SIZE / CLUSTER; ++i)
    memset (b.below->data + i * CLUSTER, byte_of (i), CLUSTER);
  assert_int_equal (qed_buffer_hold (b.buffer, SIZE, 0), 0);
  atomic_store (&hold_holes, true);
  /* Half of the space is kept after the second time. */
  assert_int_equal (empty (&b), 0);
  assert_int_equal (empty (&b), 0);
  while (atomic_load (&nr_holes_held) == 0)
    usleep (1000);

  start_threads (threads, NR_HOLDERS, hold_in_turn, &b);
  do {                          /* until all wait */
    held = qed_buffer_nr_held (b.buffer);
    usleep (100000);
  } while (held == 0 || held != qed_buffer_nr_held (b.buffer));
  assert_true (held < SIZE / CLUSTER);
  atomic_store (&hold_holes, false);
  join_threads (threads, NR_HOLDERS);

  memset (b.below->data, 'n', SIZE);
  for (uint64_t i = 0; i < SIZE / CLUSTER; ++i)
    assert_reads (&b, byte_of (i), CLUSTER, i * CLUSTER);
  close_all (&b);
}

static void
test_opening_repairs_nothing (void **state)
{
  uint8_t *before, *after, *l1;
  struct bench b;
  size_t count;

  (void) state;
  leave_buffer (&b);
  read_file (&before);
  l1 = before + 40;
  patch ("\xff\xff\xff\xff\xff\xff\xff\xff", 8,
         l1[0] | l1[1] << 8 | l1[2] << 16 | (uint64_t) l1[3] << 24);
  free (before);
  count = read_file (&before);
  b.buffer = qed_buffer_open (NAME);
  assert_non_null (b.buffer);
  assert_true (b.buffer->read_only);
  close_all (&b);
  assert_int_equal (read_file (&after), count);
  assert_memory_equal (before, after, count);
  free (before);
  free (after);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_holding),
    cmocka_unit_test (test_holding_in_threads),
    cmocka_unit_test (test_what_is_held_survives_closing),
    cmocka_unit_test (test_emptying_and_back),
    cmocka_unit_test (test_writes),
    cmocka_unit_test (test_earlier_layers_do_not_show),
    cmocka_unit_test (test_the_note_stays),
    cmocka_unit_test (test_a_note_is_put_while_it_is_emptied),
    cmocka_unit_test (test_keeping),
    cmocka_unit_test (test_large_disks),
    cmocka_unit_test (test_opening_changes_nothing),
    cmocka_unit_test (test_preparing_what_others_made),
    cmocka_unit_test (test_the_tail_of_the_last_cluster),
    cmocka_unit_test (test_emptying_what_was_left),
    cmocka_unit_test (test_space_that_is_becoming_a_hole),
    cmocka_unit_test (test_opening_repairs_nothing),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
