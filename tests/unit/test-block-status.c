/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How often a file is asked for data and holes, and read and written, by
 * what allocates clusters over it, by who copies on read, and by who asks
 * for extents: system calls are counted, since a question may take as long
 * as to read gigabytes.
 */

#include <config.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>

#include "node/node.h"
#include "qed/qed.h"
#include "utils/rounding.h"
#include "tests/lib/next.h"
#define FOLDER_IN "/dev/shm"
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#define CLUSTER 65536
#define CLUSTERS 64
#define SIZE ((uint64_t) CLUSTERS * CLUSTER)

static uint8_t model[SIZE];

/* ---- Counting */

static struct {
  atomic_uint data, hole, read, written;
} calls;

off_t
lseek (int fd, off_t offset, int whence)
{
  if (whence == SEEK_DATA)
    calls.data++;
  else if (whence == SEEK_HOLE)
    calls.hole++;
  return NEXT_OFF (lseek) (fd, offset, whence);
}

ssize_t
pread (int fd, void *buf, size_t count, off_t offset)
{
  calls.read++;
  return NEXT_OFF (pread) (fd, buf, count, offset);
}

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  calls.written++;
  return NEXT_OFF (pwrite) (fd, buf, count, offset);
}

static void
forget_calls (void)
{
  calls.data = calls.hole = calls.read = calls.written = 0;
}

/* ---- Files */

/* base.raw, and the model of it: data blocks of 4 KiB, one in so many. */
static void
make_base (unsigned one_in)
{
  const int fd = open ("base.raw", O_CREAT | O_TRUNC | O_WRONLY, 0600);

  CHECK (fd >= 0 && ftruncate (fd, SIZE) == 0);
  memset (model, 0, sizeof model);
  for (uint64_t at = 0; one_in && at < SIZE; at += one_in * 4096) {
    memset (model + at, 1 + at / 4096 % 255, 4096);
    CHECK (pwrite (fd, model + at, 4096, at) == 4096);
  }
  CHECK (close (fd) == 0);
}

static struct node *
open_base (bool read_only)
{
  const struct node_open_options options = { .read_only = read_only };
  struct node *n = node_open ("base.raw", &options);

  CHECK (n != NULL);
  return n;
}

static struct node *
open_top (bool copy_on_read)
{
  const struct qed_create_options create = {
    .size = SIZE, .cluster_size = CLUSTER, .table_size = 4,
    .backing = "base.raw", .backing_is_raw = true
  };
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;

  options.copy_on_read = copy_on_read;
  unlink ("top.qed");
  CHECK (qed_create ("top.qed", &create) == 0);
  n = qed_open ("top.qed", &options);
  CHECK (n != NULL && node_start (n) == 0);
  return n;
}

/* Every cluster once, in an order that goes neither up nor down. */
static uint64_t
place (unsigned i)
{
  return (uint64_t) (i * 37 % CLUSTERS) * CLUSTER;
}

static void
check_content (struct node *n)
{
  static uint8_t buf[SIZE];

  CHECK (node_pread (n, buf, SIZE, 0) == 0);
  assert_memory_equal (buf, model, SIZE);
}

/* Write the second block of each cluster. */
static void
write_all (struct node *n)
{
  for (unsigned i = 0; i < CLUSTERS; ++i) {
    const uint64_t offset = place (i) + 4096;

    memset (model + offset, 0xee, 4096);
    CHECK (node_pwrite (n, model + offset, 4096, offset) == 0);
  }
}

/* ---- Tests */

/* To write a part of a cluster looks for no end of data, wherever the base
 * has data, and copies with one call each way; where it has none nothing is
 * read.
 */
static void
test_allocate (void **state)
{
  static const unsigned bases[] = { 1, 2, 3, 0 };

  for (size_t b = 0; b < sizeof bases / sizeof bases[0]; ++b) {
    struct node *n;

    make_base (bases[b]);
    n = open_top (false);
    forget_calls ();
    write_all (n);
    assert_int_equal (calls.hole, 0);
    /* It may have asked in vain, or where data begins in the cluster. */
    assert_within (calls.data, 0, 2 * CLUSTERS);
    assert_within (calls.read, 0, bases[b] ? CLUSTERS + 4 : 4);
    /* The cluster and the L2 entry; also once the table and the L1. */
    assert_within (calls.written, CLUSTERS, 2 * CLUSTERS + 4);
    check_content (n);
    CHECK (node_close (n) == 0);
  }
}

/* Only the first of two reads copies, and neither looks for the end. */
static void
test_copy_on_read (void **state)
{
  uint8_t buf[4096];
  struct node *n;

  make_base (2);
  n = open_top (true);
  forget_calls ();
  for (unsigned round = 0; round < 2; ++round) {
    for (unsigned i = 0; i < CLUSTERS; ++i) {
      CHECK (node_pread (n, buf, sizeof buf, place (i)) == 0);
      assert_memory_equal (buf, model + place (i), sizeof buf);
    }
    assert_int_equal (calls.hole, 0);
    assert_within (calls.data, 0, round ? 0 : 3 * CLUSTERS);
    assert_within (calls.written, 0, round ? 0 : 2 * CLUSTERS + 4);
    assert_within (calls.read, CLUSTERS,
                   round ? CLUSTERS : 2 * CLUSTERS + 4);
    forget_calls ();
  }
  check_content (n);
  CHECK (node_close (n) == 0);
}

/* Data are looked at once, in whichever direction somebody goes. */
static void
test_extents_of_data (void **state)
{
  make_base (1);
  for (int way = 0; way < 3; ++way) {
    struct node *n = open_base (true);
    struct extent e;

    forget_calls ();
    for (unsigned i = 0; i < SIZE / 4096; ++i) {
      const uint64_t nr = way == 0 ? i : way == 1 ? SIZE / 4096 - 1 - i
        : i * 389 % (SIZE / 4096);

      CHECK (node_extents (n, 4096, nr * 4096, &e) == 0);
      assert_int_equal (e.length, 4096);
      assert_int_equal (e.flags & EXTENT_ZERO, 0);
    }
    /* 1024 blocks, and what is known doubles each time. */
    assert_within (calls.hole, 1, 12);
    assert_within (calls.data, 1, 12);
    CHECK (node_close (n) == 0);
  }
}

/* Each extent of a fragmented file is found with three calls, and as it
 * is.
 */
static void
test_extents_of_fragments (void **state)
{
  for (int backward = 0; backward < 2; ++backward) {
    struct node *n;
    struct extent e;

    make_base (3);
    n = open_base (true);
    forget_calls ();
    for (unsigned i = 0; i < SIZE / 4096; ++i) {
      const unsigned nr = backward ? SIZE / 4096 - 1 - i : i;

      CHECK (node_extents (n, SIZE - nr * 4096, nr * 4096, &e) == 0);
      assert_int_equal (!(e.flags & EXTENT_ZERO), nr % 3 == 0);
      assert_int_equal (e.length, MIN ((3 - nr % 3) * 4096 -
                                       (nr % 3 ? 0 : 8192),
                                       SIZE - nr * 4096));
    }
    assert_within (calls.data + calls.hole, 1, 3 * SIZE / 4096);
    CHECK (node_close (n) == 0);
  }
}

/* A hole cuts what is known of a node that is written to, of which the
 * longer part stays; growth changes nothing of it.
 */
static void
test_holes (void **state)
{
  struct node *n;
  struct extent e;

  make_base (1);
  n = open_base (false);
  CHECK (node_extents (n, SIZE, 0, &e) == 0);
  assert_int_equal (e.length, SIZE);
  CHECK (node_resize (n, 2 * SIZE) == 0);
  forget_calls ();
  CHECK (node_extents (n, SIZE, 0, &e) == 0);
  assert_int_equal (e.length, SIZE);
  CHECK (node_zero (n, CLUSTER, 2 * CLUSTER, NODE_MAY_TRIM) == 0);
  CHECK (node_extents (n, SIZE, 3 * CLUSTER, &e) == 0);
  assert_int_equal (e.length, SIZE - 3 * CLUSTER);
  CHECK (node_discard (n, CLUSTER, SIZE - CLUSTER) == 0);
  CHECK (node_extents (n, SIZE, 3 * CLUSTER, &e) == 0);
  assert_int_equal (e.length, SIZE - 4 * CLUSTER);
  assert_int_equal (calls.data + calls.hole, 0);

  CHECK (node_extents (n, SIZE, 2 * CLUSTER, &e) == 0);
  assert_int_equal (e.length, CLUSTER);
  assert_true (e.flags & EXTENT_ZERO);
  CHECK (node_extents (n, SIZE, 0, &e) == 0);
  assert_int_equal (e.length, 2 * CLUSTER);
  CHECK (node_resize (n, CLUSTER) == 0);
  CHECK (node_resize (n, SIZE) == 0);
  CHECK (node_extents (n, SIZE, 0, &e) == 0);
  assert_int_equal (e.length, CLUSTER);
  CHECK (node_close (n) == 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_allocate),
    cmocka_unit_test (test_copy_on_read),
    cmocka_unit_test (test_extents_of_data),
    cmocka_unit_test (test_extents_of_fragments),
    cmocka_unit_test (test_holes),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
