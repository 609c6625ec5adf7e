/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The layer that is thrown away, over a node in memory: against a model, with
 * several threads, on a huge disk, and when its file fails.
 */

#include <config.h>

#include <fcntl.h>
#include <sys/stat.h>

#include "node/scratch.h"
#include "tests/unit/memory-node.h"
#include "tests/unit/unit.h"

#define SIZE UINT64_C (100000)
#define NR_THREADS 4

static FILE *file;
static struct memory_node *memory;
static struct node *node;

static int
setup (void **state)
{
  uint64_t seed = 1;

  msg_set_handler (collect_message);
  forget_messages ();
  file = tmpfile ();
  assert_non_null (file);
  memory = memory_node_new (SIZE);
  memory->node.read_only = true;
  for (uint64_t i = 0; i < SIZE; ++i)
    memory->data[i] = i / 4096 % 3 ? next_random (&seed) : 0;
  node = scratch_open (&memory->node, fileno (file));
  assert_non_null (node);
  return 0;
}

static int
teardown (void **state)
{
  struct stat st;

  assert_int_equal (node_close (node), 0);
  assert_int_equal (fstat (fileno (file), &st), 0);
  assert_int_equal (st.st_size, 0);
  fclose (file);
  return 0;
}

/* Do something to a part of the disk, and the same to the model. */
static void
change (uint8_t *model, uint64_t *seed, uint64_t offset, uint64_t count)
{
  static __thread uint8_t buf[SIZE];

  switch (random_below (seed, 4)) {
  case 0:
    CHECK (node_zero (node, count, offset, 0) == 0);
    memset (model + offset, 0, count);
    break;
  case 1:
    CHECK (node_discard (node, count, offset) == 0);
    memset (model + offset, 0, count);
    break;
  default:
    memset (buf, next_random (seed), count);
    CHECK (node_pwrite (node, buf, count, offset) == 0);
    memcpy (model + offset, buf, count);
  }
}

static void
compare (const uint8_t *model)
{
  static uint8_t buf[SIZE];
  struct extent e;

  assert_int_equal (node_pread (node, buf, SIZE, 0), 0);
  assert_memory_equal (buf, model, SIZE);
  for (uint64_t at = 0; at < SIZE; at += e.length) {
    assert_int_equal (node_extents (node, SIZE - at, at, &e), 0);
    if (e.flags & EXTENT_ZERO)
      assert_true (is_zero (buf + at, e.length));
  }
}

static void
test_model (void **state)
{
  uint8_t *model = malloc (SIZE), *below = malloc (SIZE);
  uint64_t seed = 7;

  memcpy (model, memory->data, SIZE);
  memcpy (below, memory->data, SIZE);
  for (unsigned i = 0; i < 3000; ++i) {
    const uint64_t offset = random_below (&seed, SIZE);
    const uint64_t most = i % 50 == 0 ? SIZE : 700;

    change (model, &seed, offset,
            MIN (1 + random_below (&seed, most), SIZE - offset));
    if (i % 10 == 0)
      compare (model);
  }
  compare (model);
  assert_memory_equal (memory->data, below, SIZE);
  assert_int_equal (scratch_error (node), 0);
  free (model);
  free (below);
}

/* Each thread has bytes of its own, beside those of the others. */
static void
use_share (struct unit_thread *t)
{
  uint8_t *model = t->opaque, buf[64];

  for (unsigned i = 0; i < 2000; ++i) {
    const uint64_t offset =
      (random_below (&t->seed, SIZE / 256) * NR_THREADS + t->nr) * 64;

    change (model, &t->seed, offset, 1 + random_below (&t->seed, 64));
    CHECK (node_pread (node, buf, 64, offset) == 0);
    CHECK (memcmp (buf, model + offset, 64) == 0);
  }
}

static void
test_threads (void **state)
{
  uint8_t *model = malloc (SIZE);

  memcpy (model, memory->data, SIZE);
  run_threads (NR_THREADS, use_share, model);
  compare (model);
  free (model);
}

/* Nothing grows with the size of the disk. */
static void
test_huge (void **state)
{
  const uint64_t end = INT64_MAX;
  struct memory_node *below = memory_node_new (1);
  FILE *other = tmpfile ();
  struct node *huge;
  char buf[2] = "";

  atomic_store (&below->node.size, end); /* it is not read */
  huge = scratch_open (&below->node, fileno (other));
  assert_non_null (huge);
  assert_int_equal (node_zero (huge, end, 0, 0), 0);
  assert_int_equal (node_pwrite (huge, "x", 1, end - 1), 0);
  assert_int_equal (node_pread (huge, buf, 2, end - 2), 0);
  assert_memory_equal (buf, "\0x", 2);
  assert_int_equal (node_close (huge), 0);
  fclose (other);
}

static void
test_full (void **state)
{
  const int fd = open ("/dev/full", O_RDWR | O_CLOEXEC);
  const int kept = dup (fileno (file));
  uint8_t buf[10];

  assert_int_equal (dup2 (fd, fileno (file)), fileno (file));
  close (fd);
  assert_int_equal (node_pwrite (node, "0123456789", 10, 4096), -1);
  assert_int_equal (errno, ENOSPC);
  assert_messages (1, "No space left on device");
  assert_int_equal (scratch_error (node), ENOSPC);
  /* What could not be written has changed nothing. */
  assert_int_equal (node_pread (node, buf, 10, 4096), 0);
  assert_memory_equal (buf, memory->data + 4096, 10);
  /* A file that can be cut, for the end. */
  assert_int_equal (dup2 (kept, fileno (file)), fileno (file));
  close (kept);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_model, setup, teardown),
    cmocka_unit_test_setup_teardown (test_threads, setup, teardown),
    cmocka_unit_test_setup_teardown (test_huge, setup, teardown),
    cmocka_unit_test_setup_teardown (test_full, setup, teardown),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("scratch", tests, NULL, NULL);
}
