/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary of a replication over a disk in memory: what each export
 * reads and writes in each stage, what the commands answer, errors at
 * each place, failover while the guest goes on.  Crashes are played in
 * test-replication-crash.c, many threads in test-replication-threads.c.
 */

#include <config.h>

#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "memory-node.h"
#include "replication-unit.h"
#include "unit.h"

#define SIZE (UINT64_C (1024) * 1024 + 512)
#define CLUSTER UINT64_C (16384)

/* ---- The picture */

static void
test_the_picture (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);

  write_byte (b.primary, 'p', 100, 1000);
  assert_byte (b.primary, 'p', 100, 1000);
  assert_byte (&b.disk->node, 'p', 100, 1000);
  assert_byte (b.guest, 'o', 3000, 0);

  write_byte (b.guest, 'g', 100, 1050);
  assert_byte (b.guest, 'o', 50, 1000);
  assert_byte (b.guest, 'g', 100, 1050);
  assert_byte (b.primary, 'p', 100, 1000);
  assert_byte (b.primary, 'o', 100, 1100);

  assert_status (&b, REPLICATION_RUNNING, false);
  assert_int_equal (b.status.active_clusters, 1);
  assert_int_equal (b.status.hidden_clusters, 1);

  assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
  assert_byte (b.guest, 'o', 1000, 0);
  assert_byte (b.guest, 'p', 100, 1000);
  assert_byte (b.guest, 'o', 100, 1100);
  assert_status (&b, REPLICATION_RUNNING, false);
  assert_int_equal (b.status.active_clusters, 0);
  assert_int_equal (b.status.hidden_clusters, 0);
  assert_int_equal (b.status.checkpoints, 1);
  bench_close (&b);
}

/* ---- A write of the primary in the middle of a request of the guest */

struct meanwhile {
  struct bench b;
  enum { WRITES, ZEROES } kind;
};

static void
primary_meanwhile (void *opaque)
{
  struct meanwhile *m = opaque;

  if (m->kind == WRITES)
    write_byte (m->b.primary, 'p', SIZE, 0);
  else
    assert_int_equal (node_zero (m->b.primary, SIZE, 0, 0), 0);
}

static void
open_meanwhile (struct meanwhile *m, uint8_t byte)
{
  bench_open (&m->b, SIZE, RECOVER_FAIL);
  fill_disk (&m->b, byte);
  assert_int_equal (secondary_start (m->b.s, &m->b.refusal), 0);
  m->b.disk->opaque = m;
  m->b.disk->meanwhile = primary_meanwhile;
}

static void
test_a_read_meets_a_write (void **state)
{
  struct meanwhile m = { .kind = WRITES };

  (void) state;
  open_meanwhile (&m, 'o');
  assert_byte (m.b.guest, 'o', SIZE, 0);
  assert_byte (&m.b.disk->node, 'p', SIZE, 0);
  bench_close (&m.b);
}

static void
test_a_partial_write_meets_a_write (void **state)
{
  struct meanwhile m = { .kind = WRITES };

  (void) state;
  open_meanwhile (&m, 'o');
  write_byte (m.b.guest, 'g', 10, 10);
  assert_byte (&m.b.disk->node, 'p', SIZE, 0);
  assert_byte (m.b.guest, 'o', 10, 0);
  assert_byte (m.b.guest, 'g', 10, 10);
  assert_byte (m.b.guest, 'o', SIZE - 20, 20);
  bench_close (&m.b);
}

static void
test_block_status_meets_a_zero_request (void **state)
{
  struct meanwhile m = { .kind = ZEROES };
  struct extent e;

  (void) state;
  open_meanwhile (&m, 'o');
  assert_int_equal (node_extents (m.b.guest, SIZE, 0, &e), 0);
  assert_false (e.flags & EXTENT_ZERO);
  assert_byte (&m.b.disk->node, 0, SIZE, 0);
  assert_byte (m.b.guest, 'o', SIZE, 0);
  bench_close (&m.b);
}

static void
test_a_trim_meets_a_zero_request (void **state)
{
  struct meanwhile m = { .kind = ZEROES };

  (void) state;
  open_meanwhile (&m, 'o');
  assert_int_equal (node_discard (m.b.guest, CLUSTER, 0), 0);
  assert_byte (m.b.guest, 'o', SIZE - CLUSTER, CLUSTER);
  bench_close (&m.b);
}

/* ---- The end */

static void
test_stop_leaves_the_primarys_disk (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', SIZE, 0);
  write_byte (b.guest, 'g', 100, 0);
  assert_int_equal (secondary_stop (b.s, false, &b.refusal), 0);
  assert_status (&b, REPLICATION_DONE, false);
  assert_byte (b.guest, 'p', SIZE, 0);
  write_byte (b.guest, 'g', 100, 0);
  assert_byte (b.primary, 'g', 100, 0);
  bench_close (&b);
  assert_clean_buffers ();
}

static void
test_failover_leaves_what_the_guest_saw (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', SIZE / 2, 0);
  write_byte (b.guest, 'g', 100, 50);
  write_byte (b.guest, 'g', 1000, SIZE - 1000);
  assert_int_equal (secondary_stop (b.s, true, &b.refusal), 0);
  await_failover (&b);
  assert_status (&b, REPLICATION_DONE, false);
  assert_int_equal (b.status.failover_progress, 100);
  assert_byte (b.guest, 'o', 50, 0);
  assert_byte (b.guest, 'g', 100, 50);
  assert_byte (b.guest, 'o', SIZE - 1150, 150);
  assert_byte (b.guest, 'g', 1000, SIZE - 1000);
  assert_byte (&b.disk->node, 'o', SIZE - 1150, 150);
  assert_int_equal (node_pwrite (b.primary, "x", 1, 0), -1);
  assert_int_equal (errno, EIO);
  bench_close (&b);
  assert_clean_buffers ();
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_the_picture),
    cmocka_unit_test (test_a_read_meets_a_write),
    cmocka_unit_test (test_a_partial_write_meets_a_write),
    cmocka_unit_test (test_block_status_meets_a_zero_request),
    cmocka_unit_test (test_a_trim_meets_a_zero_request),
    cmocka_unit_test (test_stop_leaves_the_primarys_disk),
    cmocka_unit_test (test_failover_leaves_what_the_guest_saw),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
