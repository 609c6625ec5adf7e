/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* After an I/O error nothing is assumed: a call that failed may have done
 * its work, so what decides from memory is read or written again first.
 *
 * Notes on the design
 *
 * A sequence of requests runs over a medium of which one change after the
 * other fails: it is not done, or is done all the same; alone, or with the
 * next ones.  The model knows for each sector of the disk which values it
 * may have: after success the new one, after a failure the old and the new
 * one.  That must be true at once, after a restart, and after a power loss
 * (where what was written since the last flush may be there or not), and
 * qemu-img must find the tables good.
 */

#include <config.h>

#include <inttypes.h>
#include <sys/wait.h>

#include "qed/image/need-check.h"
#include "qed/open.h"
#define MEDIUM_FIXED_SIZE (UINT64_C (512) * 1024)
#include "tests/unit/folder.h"
#include "tests/unit/medium.h"
#include "tests/unit/qemu-judge.h"
#include "tests/unit/unit.h"

#define CLUSTER 4096
#define TABLE_SIZE 2             /* clusters; QEMU 7.2 cannot open 1 */
#define TABLE_SPAN (TABLE_SIZE * UINT64_C (512) * CLUSTER)
#define SECTOR MEDIUM_SECTOR

/* The disk: some clusters at the beginning of each of some tables. */
#define NR_TABLES 2
#define PART (6 * CLUSTER)
#define DISK_SIZE (NR_TABLES * TABLE_SPAN)
#define NR_SECTORS (NR_TABLES * PART / SECTOR)

static const struct qed_options small_options = {
  .l2_cache_size = 65536, .detect_zeroes = QED_DETECT_UNMAP
};

/* ---- The model: a bit for each value that a sector may be full of */

struct model {
  uint64_t now[NR_SECTORS];     /* in this process and after a restart */
  uint64_t lost[NR_SECTORS];    /* after a power loss */
};

#define BIT(value) (UINT64_C (1) << (value))
#define BASE 63                 /* in the backing image; 0 without one */

static uint64_t
disk_offset (unsigned sector)
{
  return sector / (PART / SECTOR) * TABLE_SPAN +
    sector % (PART / SECTOR) * (uint64_t) SECTOR;
}

static void
check_disk (struct node *n, const uint64_t *allowed, const char *when)
{
  uint8_t buf[SECTOR];

  for (unsigned i = 0; i < NR_SECTORS; ++i) {
    CHECK (node_pread (n, buf, SECTOR, disk_offset (i)) == 0);
    if (buf[0] > BASE || !(allowed[i] & BIT (buf[0]))) {
      fprintf (stderr, "%s: offset %" PRIu64 " of the disk is %u\n", when,
               disk_offset (i), buf[0]);
      CHECK (!"a sector has a value that it must not have");
    }
    for (unsigned j = 1; j < SECTOR; ++j)
      CHECK (buf[j] == buf[0]);
  }
}

/* ---- The requests */

struct run {
  struct node *image;
  struct medium *medium;
  struct model model;
  uint8_t base;                 /* the value of what is unallocated */
  uint64_t seed;
};

static void
expect (struct run *run, unsigned first, unsigned n, uint8_t value, int r)
{
  for (unsigned i = first; i < first + n; ++i) {
    if (r == 0)
      run->model.now[i] = 0;
    run->model.now[i] |= BIT (value);
    run->model.lost[i] |= run->model.now[i];
  }
}

static void
write_or_zero (struct run *run)
{
  const unsigned per_part = PART / SECTOR;
  const unsigned in_part = random_below (&run->seed, per_part);
  const unsigned n = 1 + random_below (&run->seed,
                                       MIN (per_part - in_part, 20u));
  const unsigned first =
    random_below (&run->seed, NR_TABLES) * per_part + in_part;
  const uint8_t value = 1 + random_below (&run->seed, BASE - 1);
  const uint64_t count = n * SECTOR, offset = disk_offset (first);
  uint8_t buf[PART];

  switch (random_below (&run->seed, 4)) {
  case 0:
    expect (run, first, n, 0,
            node_zero (run->image, count, offset, NODE_MAY_TRIM));
    break;
  case 1:                       /* detected */
    memset (buf, 0, count);
    expect (run, first, n, 0, node_pwrite (run->image, buf, count, offset));
    break;
  default:
    memset (buf, value, count);
    expect (run, first, n, value,
            node_pwrite (run->image, buf, count, offset));
  }
}

static void
flush (struct run *run)
{
  if (node_flush (run->image) == 0)
    memcpy (run->model.lost, run->model.now, sizeof run->model.now);
}

static void
empty (struct run *run)
{
  const int r = qed_empty (run->image);

  expect (run, 0, NR_SECTORS, run->base, r);
  /* It is durable. */
  if (r == 0)
    memcpy (run->model.lost, run->model.now, sizeof run->model.now);
}

static void
resize (struct run *run)
{
  const uint64_t size = node_size (run->image);

  if (node_resize (run->image, size + CLUSTER) == -1)
    CHECK (node_size (run->image) == size);
}

/* What somebody has read is there for all, and the next flush covers it,
 * although the request that wrote it may have failed.
 */
static void
look_at_disk (struct run *run)
{
  uint8_t value;

  check_disk (run->image, run->model.now, "at once");
  for (unsigned i = 0; i < NR_SECTORS; ++i) {
    CHECK (node_pread (run->image, &value, 1, disk_offset (i)) == 0);
    run->model.now[i] = BIT (value);
  }
}

/* ---- Judging */

/* Another process opens the image, of which this is the file. */
static void
check_file (struct run *run, const uint8_t *data, uint64_t length,
            const uint64_t *allowed, uint64_t size, const char *when)
{
  struct qed_options options = small_options;
  struct medium *m = medium_new (run->medium->node.fixed_size,
                                 run->medium->node.name, data, length);
  struct node *n = open_image (&m->node, &options, NULL);

  CHECK (n && !n->read_only);
  CHECK (size == 0 || node_size (n) == size);
  check_disk (n, allowed, when);
  CHECK (node_close (n) == 0);
}

static void
check_power_loss (struct run *run, unsigned times)
{
  while (times--) {
    uint64_t length;
    CLEANUP_FREE uint8_t *state = medium_lose_power (run->medium, &length);

    check_file (run, state, length, run->model.lost, 0, "after a power loss");
  }
}

static void
check_restart (struct run *run, bool ask_qemu)
{
  static const char path[] = "killed.qed";
  struct medium *m = run->medium;

  check_file (run, m->now, m->size, run->model.now, node_size (run->image),
              "after a restart");
  if (ask_qemu) {
    write_file (path, m->now, m->size);
    CHECK (qemu_img_check (path) % 3 == 0); /* clean, or leaks */
  }
}

/* ---- Runs */

static void
create (const char *path, const char *backing)
{
  const struct qed_create_options options = {
    .size = DISK_SIZE, .cluster_size = CLUSTER, .table_size = TABLE_SIZE,
    .backing = backing, .backing_is_raw = true,
  };

  unlink (path);
  CHECK (qed_create (path, &options) == 0);
}

/* Run requests on a medium with faults.  Returns how many changes the
 * medium saw.
 */
static uint64_t
run_requests (bool fixed, const char *backing, uint64_t seed,
              uint64_t fault_at, uint64_t nr_faults, bool lies)
{
  static const char path[] = "new.qed";
  struct qed_options options = small_options;
  struct run run = { .base = backing ? BASE : 0, .seed = seed };
  uint64_t changes;

  create (path, backing);
  run.medium = new_medium (fixed, path);
  run.medium->seed = seed * 77 + fault_at + 1;
  for (unsigned i = 0; i < NR_SECTORS; ++i)
    run.model.now[i] = run.model.lost[i] = BIT (run.base);
  run.image = open_image (&run.medium->node, &options, NULL);
  CHECK (run.image);
  run.medium->fault_at = fault_at;
  run.medium->nr_faults = nr_faults;
  run.medium->lies = lies;

  for (unsigned i = 0; i < 14; ++i) {
    const unsigned kind = random_below (&run.seed, 12);

    if (kind < 8)
      write_or_zero (&run);
    else if (kind < 10)
      flush (&run);
    else if (kind == 10)
      need_check_rest (qed_of_node (run.image));
    else if (random_below (&run.seed, 2))
      empty (&run);
    else
      resize (&run);
    look_at_disk (&run);
    if (run.medium->nr_changes > fault_at && random_below (&run.seed, 3) == 0)
      check_power_loss (&run, 1);
  }
  /* The fault is over, so what is done from here on succeeds. */
  run.medium->nr_faults = 0;
  expect (&run, 0, 1, 0, node_zero (run.image, SECTOR, 0, 0));
  flush (&run);                 /* may still tell of an earlier one */
  flush (&run);
  check_restart (&run, fault_at % 32 == seed);
  check_power_loss (&run, 2);
  changes = run.medium->nr_changes;
  CHECK (node_close (run.image) == 0 || nr_faults);
  return changes;
}

/* Each change fails, or where sanitizers make it slow some of them. */
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define SEEDS 1
#define STEP 7
#else
#define SEEDS 2
#define STEP 1
#endif

static void
fail_everywhere (bool fixed, const char *backing)
{
  msg_set_handler (collect_message);
  for (uint64_t seed = 1; seed <= SEEDS; ++seed) {
    const uint64_t changes =
      run_requests (fixed, backing, seed, UINT64_MAX, 0, false);

    for (uint64_t at = 0; at < changes; at += STEP)
      for (unsigned nr_faults = 1; nr_faults <= 3; nr_faults += 2) {
        run_requests (fixed, backing, seed, at, nr_faults, false);
        run_requests (fixed, backing, seed, at, nr_faults, true);
      }
  }
}

static void
test_file (void **state)
{
  fail_everywhere (false, NULL);
}

static void
test_backing (void **state)
{
  static const char path[] = "base.raw";
  CLEANUP_FREE uint8_t *data = malloc (DISK_SIZE);

  CHECK (data);
  memset (data, BASE, DISK_SIZE);
  write_file (path, data, DISK_SIZE);
  fail_everywhere (false, path);
}

static void
test_fixed_size (void **state)
{
  fail_everywhere (true, NULL);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_file),
    cmocka_unit_test (test_backing),
    cmocka_unit_test (test_fixed_size),
  };

  return cmocka_run_group_tests_name ("qed faults", tests, make_folder,
                                      remove_folder);
}
