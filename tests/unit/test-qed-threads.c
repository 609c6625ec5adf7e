/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Many threads on one QED image: each finds what it wrote, where they
 * share clusters, L2 slices and tables, and with a cache that holds one
 * slice, so that lookups meet slices which are being replaced.  Where
 * writes overlap, each byte is one of those written.  Meant to be run
 * under ThreadSanitizer as well.
 */

#include <config.h>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "qed/image/image.h"
#include "qed/qed.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

#define NR_THREADS 8
#define CLUSTER UINT64_C (4096)
#define DISK_SIZE (UINT64_C (48) * 1024 * 1024) /* 12 L2 tables */
#define REQUESTS 300

static char dir[] = "/tmp/test-qed-threads-XXXXXX";
static char *path, *base;

struct bench {
  struct node *image;
  uint8_t *model;               /* disjoint: DISK_SIZE bytes, each thread's
                                   own part of each cluster */
};

/* A place of this thread: its eighth of some cluster.  All threads keep
 * to the same few clusters of each L2 table.
 */
static uint64_t
random_place (struct unit_thread *t, uint64_t *count)
{
  const uint64_t part = CLUSTER / NR_THREADS;
  const uint64_t cluster = random_below (&t->seed, 48) * 256 +
    random_below (&t->seed, 4);
  const uint64_t skip = random_below (&t->seed, part);

  *count = 1 + random_below (&t->seed, part - skip);
  return cluster * CLUSTER + t->nr * part + skip;
}

static void
one_request (struct unit_thread *t, struct bench *b)
{
  uint8_t buf[CLUSTER];
  uint64_t count;
  const uint64_t offset = random_place (t, &count);
  const unsigned kind = random_below (&t->seed, 10);
  struct extent e;

  switch (kind) {
  case 0: case 1: case 2: case 3:
    memset (buf, 1 + random_below (&t->seed, 255), count);
    CHECK (node_pwrite (b->image, buf, count, offset) == 0);
    memcpy (b->model + offset, buf, count);
    break;
  case 4:
    CHECK (node_zero (b->image, count, offset, NODE_MAY_TRIM) == 0);
    memset (b->model + offset, 0, count);
    break;
  case 5:
    CHECK (node_extents (b->image, DISK_SIZE - offset, offset, &e) == 0);
    CHECK (e.length > 0 && e.length <= DISK_SIZE - offset);
    break;
  case 6:
    CHECK (node_flush (b->image) == 0);
    break;
  case 7:
    CHECK (node_cache (b->image, count, offset) == 0);
    break;
  default:
    CHECK (node_pread (b->image, buf, count, offset) == 0);
    CHECK (memcmp (buf, b->model + offset, count) == 0);
  }
}

static void
disjoint_requests (struct unit_thread *t)
{
  for (unsigned i = 0; i < REQUESTS; ++i)
    one_request (t, t->opaque);
}

/* All write the same places: a byte says which thread wrote it, and a
 * request of whole sectors in one cluster is not torn inside a byte.
 */
static void
overlapping_requests (struct unit_thread *t)
{
  struct bench *b = t->opaque;
  uint8_t buf[3 * CLUSTER];

  for (unsigned i = 0; i < REQUESTS / 3; ++i) {
    const uint64_t offset = random_below (&t->seed, 16) * 1000;
    const uint64_t count = 1 + random_below (&t->seed, sizeof buf - 1);

    if (random_below (&t->seed, 2)) {
      memset (buf, 1 + t->nr, count);
      CHECK (node_pwrite (b->image, buf, count, offset) == 0);
    }
    else {
      CHECK (node_pread (b->image, buf, count, offset) == 0);
      for (uint64_t j = 0; j < count; ++j)
        CHECK (buf[j] <= NR_THREADS || buf[j] == 0xbb);
    }
  }
}

static void
write_base (void)
{
  CLEANUP_FREE uint8_t *data = malloc (DISK_SIZE);
  CLEANUP_CLOSE int fd = open (base, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  CHECK (data && fd >= 0);
  memset (data, 0xbb, DISK_SIZE);
  CHECK (write (fd, data, DISK_SIZE) == (ssize_t) DISK_SIZE);
}

static void
check_image (void)
{
  CLEANUP_FREE char *command;

  CHECK (asprintf (&command, "qemu-img check -q -f qed %s", path) != -1);
  assert_int_equal (system (command), 0);
}

static struct node *
open_image (bool backing, uint64_t cache_size)
{
  const struct qed_create_options create = {
    .size = DISK_SIZE, .cluster_size = CLUSTER, .table_size = 2,
    .backing = backing ? base : NULL, .backing_is_raw = true,
  };
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;

  options.l2_cache_size = cache_size;
  if (backing)
    write_base ();
  assert_int_equal (qed_create (path, &create), 0);
  n = qed_open (path, &options);
  assert_non_null (n);
  assert_int_equal (node_start (n), 0);
  return n;
}

static void
disjoint (bool backing, uint64_t cache_size)
{
  struct bench b = { .image = open_image (backing, cache_size) };
  CLEANUP_FREE uint8_t *buf = malloc (DISK_SIZE);

  b.model = malloc (DISK_SIZE);
  assert_non_null (b.model);
  assert_non_null (buf);
  memset (b.model, backing ? 0xbb : 0, DISK_SIZE);
  run_threads (NR_THREADS, disjoint_requests, &b);

  assert_int_equal (node_pread (b.image, buf, DISK_SIZE, 0), 0);
  assert_memory_equal (buf, b.model, DISK_SIZE);
  assert_int_equal (node_close (b.image), 0);
  check_image ();
  free (b.model);
}

static void
test_shared_clusters (void **state)
{
  disjoint (false, QED_DEFAULT_CACHE_SIZE);
}

static void
test_one_slice (void **state)
{
  disjoint (false, QED_MIN_CACHE_SIZE);
}

static void
test_one_slice_over_backing (void **state)
{
  disjoint (true, QED_MIN_CACHE_SIZE);
}

static void
overlapping (bool backing)
{
  struct bench b = { .image = open_image (backing, QED_MIN_CACHE_SIZE) };

  run_threads (NR_THREADS, overlapping_requests, &b);
  assert_int_equal (node_close (b.image), 0);
  check_image ();
}

static void
test_overlapping (void **state)
{
  overlapping (false);
}

static void
test_overlapping_over_backing (void **state)
{
  overlapping (true);
}

static int
setup (void **state)
{
  alarm (HANG_SECONDS);
  if (mkdtemp (dir) == NULL || asprintf (&path, "%s/disk.qed", dir) == -1 ||
      asprintf (&base, "%s/base.raw", dir) == -1)
    return -1;
  return 0;
}

static int
teardown (void **state)
{
  unlink (path);
  unlink (base);
  free (path);
  free (base);
  return rmdir (dir);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_shared_clusters),
    cmocka_unit_test (test_one_slice),
    cmocka_unit_test (test_one_slice_over_backing),
    cmocka_unit_test (test_overlapping),
    cmocka_unit_test (test_overlapping_over_backing),
  };

  return cmocka_run_group_tests_name ("qed threads", tests, setup, teardown);
}
