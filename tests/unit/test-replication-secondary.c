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

/* ---- Zero requests and trims */

static void
test_zero_and_trim_on_both_sides (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);

  assert_int_equal (node_zero (b.primary, 1000, 5000, NODE_MAY_TRIM), 0);
  assert_int_equal (node_discard (b.primary, 4 * CLUSTER, 4 * CLUSTER), 0);
  assert_byte (b.guest, 'o', SIZE, 0);
  assert_byte (b.primary, 0, 1000, 5000);

  /* What the guest has trimmed is zeroes, or as before: never data that
   * the primary writes there.
   */
  assert_int_equal (node_discard (b.guest, 2 * CLUSTER, 10 * CLUSTER), 0);
  assert_int_equal (node_zero (b.guest, 3000, 20 * CLUSTER + 7, 0), 0);
  write_byte (b.primary, 'p', 20 * CLUSTER, 5 * CLUSTER);
  assert_byte (b.guest, 0, 2 * CLUSTER, 10 * CLUSTER);
  assert_byte (b.guest, 'o', 7, 20 * CLUSTER);
  assert_byte (b.guest, 0, 3000, 20 * CLUSTER + 7);
  assert_byte (b.guest, 'o', CLUSTER - 3007, 20 * CLUSTER + 3007);
  bench_close (&b);
}

static void
test_a_trim_of_zeroes_stays_one (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  assert_int_equal (node_discard (b.guest, SIZE, 0), 0);
  write_byte (b.primary, 'p', SIZE, 0);
  assert_byte (b.guest, 0, SIZE, 0);
  bench_close (&b);
}

/* ---- Stages and commands */

enum { STAGES = 6 };
static const char *const stage_names[STAGES] = {
  "none", "running", "failover", "failover-failed", "done by stop",
  "done by failover"
};

/* Bring a secondary into one of the stages.  In failover the disk blocks
 * at its beginning.
 */
static void
enter_stage (struct bench *b, unsigned stage)
{
  bench_open (b, SIZE, RECOVER_FAIL);
  fill_disk (b, 'o');
  if (stage == 0)
    return;
  assert_int_equal (secondary_start (b->s, &b->refusal), 0);
  write_byte (b->primary, 'p', 100, 0);
  write_byte (b->guest, 'g', 100, 50);
  if (stage == 1)
    return;
  if (stage == 2)
    atomic_store (&b->disk->blocked, 1);
  if (stage == 3)
    atomic_store (&b->disk->fail_after[MEMORY_WRITE], 0);
  assert_int_equal (secondary_stop (b->s, stage != 4, &b->refusal), 0);
  if (stage != 2)
    await_failover (b);
  atomic_store (&b->disk->fail_after[MEMORY_WRITE], MEMORY_NEVER);
}

static void
leave_stage (struct bench *b)
{
  atomic_store (&b->disk->blocked, 0);
  bench_close (b);
}

static int
checkpoint_twice (struct bench *b)
{
  const int r = secondary_checkpoint (b->s, &b->refusal);

  assert_int_equal (secondary_checkpoint_prepare (b->s, &b->refusal), r);
  if (r == 0)
    assert_int_equal (secondary_checkpoint_commit (b->s, &b->refusal), 0);
  return r;
}

static int
command (struct bench *b, unsigned nr)
{
  b->refusal.desc[0] = '\0';
  switch (nr) {
  case 0: return secondary_start (b->s, &b->refusal);
  case 1: return checkpoint_twice (b);
  case 2: return secondary_stop (b->s, false, &b->refusal);
  default: return secondary_stop (b->s, true, &b->refusal);
  }
}

#define FAILED "failover: committing the buffers into the secondary disk: " \
  "Input/output error"
#define NOT "Block replication is not running"

static void
test_every_command_in_every_stage (void **state)
{
  /* NULL: accepted. */
  static const char *const refusals[4][STAGES] = {
    { NULL, "Block replication is running or done", NULL, FAILED, NULL,
      NULL },
    { NOT, NULL, NULL, FAILED, NULL, NULL },
    { NOT, NULL, NULL, FAILED, NULL, NULL },
    { NOT, NULL, NULL, NOT, NULL, NULL },
  };
  /* The stage afterwards; -1: as before. */
  static const int next[4][STAGES] = {
    { REPLICATION_RUNNING, -1, -1, -1, -1, -1 },
    { -1, -1, -1, -1, -1, -1 },
    { -1, REPLICATION_DONE, -1, -1, -1, -1 },
    { -1, REPLICATION_DONE, -1, -1, -1, -1 },
  };

  (void) state;
  for (unsigned nr = 0; nr < 4; ++nr)
    for (unsigned stage = 0; stage < STAGES; ++stage) {
      const char *const refusal = refusals[nr][stage];
      enum replication_stage before;
      struct bench b;
      int r;

      enter_stage (&b, stage);
      secondary_query (b.s, &b.status);
      before = b.status.stage;
      r = command (&b, nr);
      if (r != (refusal ? -1 : 0) ||
          (refusal && strcmp (refusal, b.refusal.desc)))
        print_error ("command %u in stage \"%s\": %d, %s\n", nr,
                     stage_names[stage], r, b.refusal.desc);
      assert_int_equal (r, refusal ? -1 : 0);
      if (refusal)
        assert_string_equal (b.refusal.desc, refusal);
      if (stage != 2)
        await_failover (&b);
      secondary_query (b.s, &b.status);
      assert_int_equal (b.status.stage, next[nr][stage] == -1
                        ? before : (unsigned) next[nr][stage]);
      leave_stage (&b);
    }
}

/* Does a request succeed, or fail with EIO? */
static bool
works (int r)
{
  if (r == -1)
    assert_int_equal (errno, EIO);
  return r == 0;
}

static void
test_every_export_in_every_stage (void **state)
{
  static const bool guest_works[STAGES] = { false, true, true, true, true,
                                            true };
  static const bool primary_works[STAGES] = { true, true, false, false, true,
                                              false };
  /* What the guest reads at the beginning. */
  static const char *const seen[STAGES] = { "", "og", "og", "og", "pp",
                                            "og" };
  const uint64_t far = SIZE / 2;

  (void) state;
  for (unsigned stage = 0; stage < STAGES; ++stage) {
    struct bench b;
    struct extent e;
    char c;

    enter_stage (&b, stage);
    for (unsigned i = 0; i < 2; ++i) {
      struct node *n = i ? b.guest : b.primary;
      const bool expected = i ? guest_works[stage] : primary_works[stage];

      assert_int_equal (works (node_pread (n, &c, 1, far)), expected);
      assert_int_equal (works (node_pwrite (n, "x", 1, far)), expected);
      assert_int_equal (works (node_zero (n, 9, far, 0)), expected);
      assert_int_equal (works (node_discard (n, 9, far)), expected);
      assert_int_equal (works (node_extents (n, 9, far, &e)), expected);
    }
    assert_true (works (node_flush (b.guest)));
    assert_int_equal (works (node_flush (b.primary)), primary_works[stage]);
    if (guest_works[stage]) {
      assert_byte (b.guest, seen[stage][0], 50, 0);
      assert_byte (b.guest, seen[stage][1], 50, 50);
    }
    leave_stage (&b);
  }
}

static void
test_status_in_every_stage (void **state)
{
  static const enum replication_stage stages[STAGES] = {
    REPLICATION_NONE, REPLICATION_RUNNING, REPLICATION_FAILOVER,
    REPLICATION_FAILOVER_FAILED, REPLICATION_DONE, REPLICATION_DONE
  };

  (void) state;
  for (unsigned stage = 0; stage < STAGES; ++stage) {
    struct bench b;

    enter_stage (&b, stage);
    assert_status (&b, stages[stage], stage == 3);
    assert_string_equal (b.status.desc, stage == 0 ? NOT
                         : stage == 3 ? FAILED : "");
    assert_int_equal (b.status.failover_progress, stage == 5 ? 100 : 0);
    assert_int_equal (b.status.checkpoints, stage == 4);
    leave_stage (&b);
  }
}

/* In failover-failed the disk does not change where the buffers have the
 * cluster, and a new start finishes it.
 */
static void
test_a_failed_failover_is_finished_later (void **state)
{
  struct bench b;

  (void) state;
  enter_stage (&b, 3);
  write_byte (b.guest, 'n', 10, 200);
  write_byte (b.guest, 'n', 10, 10 * CLUSTER);
  assert_byte (&b.disk->node, 'o', 10, 200);
  assert_byte (&b.disk->node, 'n', 10, 10 * CLUSTER);
  secondary_close (b.s);

  forget_messages ();
  assert_int_equal (bench_begin (&b, RECOVER_FAIL), -1);
  assert_messages (1, "failover that was interrupted");
  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_status (&b, REPLICATION_DONE, false);
  assert_byte (&b.disk->node, 'o', 50, 0);
  assert_byte (&b.disk->node, 'g', 100, 50);
  assert_byte (b.guest, 'n', 10, 200);
  assert_byte (b.guest, 'n', 10, 10 * CLUSTER);
  assert_int_equal (node_pwrite (b.primary, "x", 1, 0), -1);
  bench_close (&b);
  assert_clean_buffers ();
}

/* The disk fails while the guest writes what has been committed. */
static void
test_the_guest_does_not_notice_a_failing_commit (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  write_byte (b.guest, 'g', 10, 10 * CLUSTER);
  atomic_store (&b.disk->blocked, 1);
  assert_int_equal (secondary_stop (b.s, true, &b.refusal), 0);
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], 0);
  write_byte (b.guest, 'n', 10, 10 * CLUSTER);
  assert_byte (b.guest, 'n', 10, 10 * CLUSTER);
  atomic_store (&b.disk->blocked, 0);
  await_failover (&b);
  assert_status (&b, REPLICATION_FAILOVER_FAILED, true);
  assert_byte (b.guest, 'n', 10, 10 * CLUSTER);
  bench_close (&b);
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
    cmocka_unit_test (test_zero_and_trim_on_both_sides),
    cmocka_unit_test (test_a_trim_of_zeroes_stays_one),
    cmocka_unit_test (test_every_command_in_every_stage),
    cmocka_unit_test (test_every_export_in_every_stage),
    cmocka_unit_test (test_status_in_every_stage),
    cmocka_unit_test (test_a_failed_failover_is_finished_later),
    cmocka_unit_test (test_the_guest_does_not_notice_a_failing_commit),
    cmocka_unit_test (test_stop_leaves_the_primarys_disk),
    cmocka_unit_test (test_failover_leaves_what_the_guest_saw),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
