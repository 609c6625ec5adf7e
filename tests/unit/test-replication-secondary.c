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
#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/unit/memory-node.h"
#include "tests/unit/replication-unit.h"
#include "tests/unit/unit.h"

#define SIZE (UINT64_C (1024) * 1024 + 512)
#define CLUSTER UINT64_C (4096)

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

/* The last sector of the buffers is longer than the disk. */
static void
test_a_disk_of_odd_size (void **state)
{
  const uint64_t size = 100001;
  struct bench b;

  (void) state;
  bench_open (&b, size, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (node_size (b.guest), size);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 2, size - 2);
  write_byte (b.guest, 'g', 1, size - 1);
  assert_byte (b.guest, 'o', size - 1, 0);
  assert_byte (b.guest, 'g', 1, size - 1);
  assert_int_equal (secondary_stop (b.s, true, false, &b.refusal), 0);
  await_failover (&b);
  assert_status (&b, REPLICATION_DONE, false);
  assert_byte (&b.disk->node, 'o', size - 1, 0);
  assert_byte (&b.disk->node, 'g', 1, size - 1);
  bench_close (&b);
  assert_clean_buffers ();
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

/* Fast must not mean copying first. */
static void
test_fast_zero (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  assert_int_equal (node_zero (b.primary, CLUSTER, 10, NODE_FAST), -1);
  assert_int_equal (errno, ENOTSUP);
  assert_status (&b, REPLICATION_RUNNING, false);
  assert_byte (b.primary, 'o', CLUSTER, 10);
  write_byte (b.primary, 'p', CLUSTER, 10);
  assert_int_equal (node_zero (b.primary, CLUSTER, 10, NODE_FAST), 0);
  assert_byte (b.primary, 0, CLUSTER, 10);
  assert_byte (b.guest, 'o', SIZE, 0);
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
  assert_int_equal (secondary_stop (b->s, stage != 4, false, &b->refusal), 0);
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

static void
commit_checkpoint (struct bench *b)
{
  assert_int_equal (secondary_checkpoint_commit (b->s, &b->refusal), 0);
  secondary_checkpoint_release (b->s);
}

static int
checkpoint_twice (struct bench *b)
{
  const int r = secondary_checkpoint (b->s, &b->refusal);

  assert_int_equal (secondary_checkpoint_prepare (b->s, NULL, &b->refusal), r);
  if (r == 0)
    commit_checkpoint (b);
  return r;
}

static int
command (struct bench *b, unsigned nr)
{
  b->refusal.desc[0] = '\0';
  switch (nr) {
  case 0: return secondary_start (b->s, &b->refusal);
  case 1: return checkpoint_twice (b);
  case 2: return secondary_stop (b->s, false, false, &b->refusal);
  default: return secondary_stop (b->s, true, false, &b->refusal);
  }
}

#define FAILED "failover: committing the buffers into the secondary disk: " \
  "Input/output error"
#define PROMOTED "This disk was promoted by a failover; replication-reset " \
  "says that it may be overwritten again"
#define NOT "Block replication is not running"

static void
test_every_command_in_every_stage (void **state)
{
  /* NULL: accepted. */
  static const char *const refusals[4][STAGES] = {
    { NULL, "Block replication is running or done", NULL, FAILED, NULL,
      PROMOTED },
    { NOT, NULL, NULL, FAILED, NULL, NULL },
    { NOT, NULL, NULL, FAILED, NULL, NULL },
    { NOT, NULL, NULL, NOT, NULL, NULL },
  };
  /* The stage afterwards; -1: as before. */
  static const int next[4][STAGES] = {
    { REPLICATION_RUNNING, -1, -1, -1, REPLICATION_RUNNING, -1 },
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
  bench_end (&b);

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
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  write_byte (b.guest, 'g', 10, 10 * CLUSTER);
  atomic_store (&b.disk->blocked, 1);
  assert_int_equal (secondary_stop (b.s, true, false, &b.refusal), 0);
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
  assert_int_equal (secondary_stop (b.s, false, false, &b.refusal), 0);
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
  assert_int_equal (secondary_stop (b.s, true, false, &b.refusal), 0);
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

/* Notice at once that it is complete. */
static void
fail_over_and_look (struct bench *b)
{
  assert_int_equal (secondary_stop (b->s, true, false, &b->refusal), 0);
  do
    secondary_query (b->s, &b->status);
  while (b->status.stage == REPLICATION_FAILOVER);
  assert_int_equal (b->status.stage, REPLICATION_DONE);
}

/* A failover is complete before its buffers are empty, and what is held from
 * then on stays.
 */
static void
test_a_start_right_after_a_failover (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  for (unsigned round = 0; round < 8; ++round) {
    fill_disk (&b, 'o');
    assert_int_equal (secondary_start (b.s, &b.refusal), 0);
    write_byte (b.guest, 'g', 100, 0);
    fail_over_and_look (&b);
    assert_int_equal (secondary_reset (b.s, &b.refusal), 0);
    assert_int_equal (secondary_start (b.s, &b.refusal), 0);
    secondary_disconnect (b.s, b.primary);
    b.primary = secondary_connect (b.s, &(struct history) { "" });
    write_byte (b.primary, 'p', 1000, 0);
    assert_int_equal (node_flush (b.guest), 0);
    assert_byte (b.guest, 'g', 100, 0);
    assert_byte (b.guest, 'o', 900, 100);
    assert_int_equal (secondary_stop (b.s, false, false, &b.refusal), 0);
  }
  bench_close (&b);
  assert_clean_buffers ();
}

/* If they cannot be emptied, it does not matter before the next start. */
static void
test_a_start_after_a_failover_that_left_something (void **state)
{
  struct rlimit before, none;

  (void) state;
  signal (SIGXFSZ, SIG_IGN);
  getrlimit (RLIMIT_FSIZE, &before);
  none = before;
  none.rlim_cur = 0;
  for (unsigned round = 0; round < 8; ++round) {
    struct bench b;

    bench_open (&b, SIZE, RECOVER_FAIL);
    assert_int_equal (secondary_start (b.s, &b.refusal), 0);
    write_byte (b.guest, 'g', 100, 0);
    fail_over_and_look (&b);
    setrlimit (RLIMIT_FSIZE, &none);
    write_byte (b.guest, 'h', 100, 0);
    usleep (1000 * round);
    setrlimit (RLIMIT_FSIZE, &before);
    assert_int_equal (secondary_reset (b.s, &b.refusal), 0);
    if (secondary_start (b.s, &b.refusal) == 0)
      assert_byte (b.guest, 'h', 100, 0);
    else
      assert_string_equal (b.refusal.desc, "The buffers are not empty");
    bench_close (&b);
  }
}

/* ---- A checkpoint in two steps */

static void
write_in_a_thread (struct unit_thread *t)
{
  struct bench *b = t->opaque;

  CHECK (node_pwrite (t->nr ? b->guest : b->primary, "t", 1, 500) == 0);
}

static void
test_prepare_and_abort (void **state)
{
  struct unit_thread threads[2];
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  write_byte (b.guest, 'g', 10, 10);
  assert_int_equal (secondary_checkpoint_prepare (b.s, NULL, &b.refusal), 0);
  start_threads (threads, 2, write_in_a_thread, &b);

  /* The requests wait, so the buffers do not change. */
  usleep (20000);
  assert_status (&b, REPLICATION_RUNNING, false);
  assert_byte (&b.disk->node, 'o', 1, 500);
  assert_int_equal (secondary_checkpoint (b.s, &b.refusal), -1);
  assert_int_equal (secondary_checkpoint_prepare (b.s, NULL, &b.refusal), -1);
  assert_int_equal (secondary_stop (b.s, false, false, &b.refusal), -1);
  assert_string_equal (b.refusal.desc, "A checkpoint is being prepared");

  secondary_checkpoint_abort (b.s);
  secondary_checkpoint_abort (b.s);
  join_threads (threads, 2);
  assert_byte (b.guest, 'o', 10, 0);
  assert_byte (b.guest, 'g', 10, 10);
  assert_byte (b.guest, 't', 1, 500);
  assert_int_equal (secondary_checkpoint_commit (b.s, &b.refusal), -1);
  assert_string_equal (b.refusal.desc, "No checkpoint is prepared");

  assert_int_equal (secondary_checkpoint_prepare (b.s, NULL, &b.refusal), 0);
  commit_checkpoint (&b);
  assert_byte (b.guest, 'p', 10, 0);
  assert_byte (b.guest, 'o', 10, 10);
  assert_status (&b, REPLICATION_RUNNING, false);
  assert_int_equal (b.status.checkpoints, 1);
  assert_int_equal (b.status.hidden_clusters, 0);
  bench_close (&b);
}

static void
test_failover_aborts_what_is_prepared (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  assert_int_equal (secondary_checkpoint_prepare (b.s, NULL, &b.refusal), 0);
  assert_int_equal (secondary_stop (b.s, true, false, &b.refusal), 0);
  assert_int_equal (secondary_checkpoint_commit (b.s, &b.refusal), -1);
  await_failover (&b);
  assert_byte (b.guest, 'o', 10, 0);
  bench_close (&b);
}

static void
test_close_aborts_what_is_prepared (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  assert_int_equal (secondary_checkpoint_prepare (b.s, NULL, &b.refusal), 0);
  bench_close (&b);
  assert_clean_buffers ();
}

/* ---- Errors */

/* A file can have this many bytes only, as if its file system was full. */
static void
limit_files (uint64_t size)
{
  const struct rlimit limit = { .rlim_cur = size, .rlim_max = RLIM_INFINITY };

  assert_int_equal (setrlimit (RLIMIT_FSIZE, &limit), 0);
}

static void
test_errors_of_the_disk_are_recorded (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);

  /* Old content cannot be read: the disk must not change. */
  atomic_store (&b.disk->fail_after[MEMORY_READ], 0);
  assert_false (works (node_pwrite (b.primary, "p", 1, 0)));
  atomic_store (&b.disk->fail_after[MEMORY_READ], MEMORY_NEVER);
  assert_byte (&b.disk->node, 'o', 1, 0);
  assert_status (&b, REPLICATION_RUNNING, true);
  assert_string_equal (b.status.desc, "copying old content into the hidden "
                       "buffer: Input/output error");

  /* The first one stays, whatever comes. */
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], 0);
  assert_false (works (node_pwrite (b.primary, "p", 1, 0)));
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], MEMORY_NEVER);
  assert_status (&b, REPLICATION_RUNNING, true);
  assert_non_null (strstr (b.status.desc, "copying old content"));
  assert_byte (b.guest, 'o', SIZE, 0);

  write_byte (b.primary, 'p', 10, 0);
  assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
  assert_byte (b.guest, 'p', 10, 0);
  assert_status (&b, REPLICATION_RUNNING, true);
  bench_close (&b);
}

static void
test_a_failed_write_to_the_disk_is_recorded (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], 0);
  assert_false (works (node_pwrite (b.primary, "p", 1, 0)));
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], MEMORY_NEVER);
  assert_status (&b, REPLICATION_RUNNING, true);
  assert_string_equal (b.status.desc, "writing to the secondary disk: "
                       "Input/output error");
  bench_close (&b);
}

static void
test_full_buffers (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  write_byte (b.guest, 'g', 10, 10);

  limit_files (65536);
  /* The guest's error is the guest's. */
  assert_int_equal (node_pwrite (b.guest, "g", 1, 10 * CLUSTER), -1);
  assert_status (&b, REPLICATION_RUNNING, false);
  /* The primary's is that of the replication. */
  assert_int_equal (node_pwrite (b.primary, "p", 1, 20 * CLUSTER), -1);
  assert_status (&b, REPLICATION_RUNNING, true);
  assert_non_null (strstr (b.status.desc, "hidden buffer: File too large"));
  limit_files (RLIM_INFINITY);

  assert_byte (&b.disk->node, 'o', 1, 20 * CLUSTER);
  assert_byte (b.guest, 'o', 10, 0);
  assert_byte (b.guest, 'g', 10, 10);
  assert_byte (b.guest, 'o', SIZE - 20, 20);
  write_byte (b.primary, 'p', SIZE, 0);
  assert_byte (b.guest, 'o', SIZE - 20, 20);
  bench_close (&b);
  assert_clean_buffers ();
}

/* When not even the header can be written, neither before nor back,
 * nobody knows what is in the file: nothing more is accepted, but what
 * the guest sees does not change, and a rollback is possible.
 */
static void
test_a_checkpoint_that_cannot_be_written (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  write_byte (b.guest, 'g', 10, 10);

  limit_files (8);
  assert_int_equal (secondary_checkpoint (b.s, &b.refusal), -1);
  assert_string_equal (b.refusal.desc,
                       "Cannot empty the buffers: File too large");
  assert_status (&b, REPLICATION_RUNNING, true);
  assert_string_equal (b.status.desc,
                       "emptying the buffers: File too large");
  assert_byte (b.guest, 'o', 10, 0);
  assert_byte (b.guest, 'g', 10, 10);
  bench_end (&b);               /* nor can it be stopped */
  limit_files (RLIM_INFINITY);

  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_byte (&b.disk->node, 'o', SIZE, 0);
  bench_close (&b);
  assert_clean_buffers ();
}

/* ---- Space */

static uint64_t
blocks_of (const char *name, uint64_t *length)
{
  struct stat st;

  assert_int_equal (stat (name, &st), 0);
  *length = st.st_size;
  return (uint64_t) st.st_blocks * 512;
}

static void
wait_for_space (uint64_t most)
{
  uint64_t length;

  while (blocks_of (HIDDEN, &length) + blocks_of (ACTIVE, &length) > most)
    usleep (1000);
}

/* The next layer takes the space of the last one, and what layers no longer
 * need is given back little by little.
 */
static void
test_space_is_used_again_and_given_back (void **state)
{
  const uint64_t tables = 3 * 16 * CLUSTER; /* two L1, one L2 */
  struct bench b;
  uint64_t length;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  fill_disk (&b, 'o');
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  for (unsigned i = 0; i < 30; ++i) {
    write_byte (b.primary, 'a' + i, SIZE, 0);
    write_byte (b.guest, 'A' + i, SIZE, 0);
    assert_byte (b.guest, 'A' + i, SIZE, 0);
    assert_status (&b, REPLICATION_RUNNING, false);
    assert_int_equal (b.status.active_clusters, 1 + SIZE / CLUSTER);
    assert_int_equal (b.status.hidden_clusters, 1 + SIZE / CLUSTER);
    assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
    assert_byte (b.guest, 'a' + i, SIZE, 0);
    assert_within (blocks_of (HIDDEN, &length), SIZE,
                     SIZE + 2 * CLUSTER + tables);
    /* As long as one layer, and the steps in which a file grows. */
    assert_within (length, SIZE, SIZE + 2 * CLUSTER + tables + (8 << 20));
  }
  for (unsigned i = 0; i < 10; ++i)
    assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
  wait_for_space (SIZE / 4);

  /* All of it when nothing happens any more. */
  write_byte (b.primary, 'z', SIZE, 0);
  assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
  wait_for_space (SIZE / 4);
  bench_close (&b);
  assert_clean_buffers ();
}

/* Checkpoints one after the other, with much and with little between. */
static void
test_many_checkpoints_at_once (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  for (unsigned i = 1; i < 100; ++i) {
    write_byte (b.primary, i, SIZE - CLUSTER, 0);
    write_byte (b.guest, 100 + i, CLUSTER + 7, 2 * CLUSTER + i);
    assert_byte (b.guest, 100 + i, CLUSTER + 7, 2 * CLUSTER + i);
    assert_byte (b.guest, i - 1, 2 * CLUSTER, 0);
    assert_byte (b.guest, i - 1, 10 * CLUSTER, 5 * CLUSTER);
    if (i % 7 != 0)
      assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
    else {
      write_byte (b.primary, i, 10, 0);
      assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
      assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
    }
    assert_byte (b.guest, i, SIZE - CLUSTER, 0);
  }
  bench_close (&b);
  assert_clean_buffers ();
}

/* ---- Refusals at the beginning */

static void
make_image (const char *name, uint64_t size, const char *backing)
{
  const struct qed_create_options options = {
    .size = size, .cluster_size = CLUSTER, .table_size = 1,
    .backing = backing
  };

  unlink (name);
  assert_int_equal (qed_create (name, &options), 0);
}

static void
make_file (const char *name, const char *content)
{
  CLEANUP_CLOSE int fd = open (name, O_CREAT | O_TRUNC | O_RDWR, 0600);

  assert_int_equal (write (fd, content, strlen (content)),
                    strlen (content));
}

/* The server does not start, and says this. */
#define assert_refused(b, recover, text)                \
  do {                                                  \
    forget_messages ();                                 \
    assert_int_equal (bench_begin (b, recover), -1);    \
    assert_messages (1, text);                          \
  } while (0)

static void
test_refusals_at_the_beginning (void **state)
{
  struct bench b = { .disk = memory_node_new (SIZE) };
  struct node *other;

  (void) state;
  make_image (ACTIVE, SIZE, NULL);
  make_image (HIDDEN, SIZE + 512, NULL);
  assert_refused (&b, RECOVER_FAIL, "must have the same size");
  make_image (ACTIVE, SIZE + 512, NULL);
  assert_refused (&b, RECOVER_FAIL, "but the disk has");
  make_image (ACTIVE, SIZE, NULL);
  make_file (HIDDEN, "this is no image, but long enough to be the header "
             "of one, if it only had a magic number");
  assert_refused (&b, RECOVER_FAIL, "Image not in QED format");

  unlink (HIDDEN);
  assert_int_equal (link (ACTIVE, HIDDEN), 0);
  assert_refused (&b, RECOVER_FAIL, "are the same file");

  make_image (HIDDEN, SIZE, NULL);
  other = qed_open (HIDDEN, &QED_DEFAULT_OPTIONS);
  assert_non_null (other);
  assert_refused (&b, RECOVER_FAIL, "Failed to get");
  assert_int_equal (node_close (other), 0);

  b.disk->node.read_only = true;
  assert_refused (&b, RECOVER_FAIL, "the secondary disk is read-only");
  b.disk->node.read_only = false;

  /* After all that they are still good. */
  assert_int_equal (bench_begin (&b, RECOVER_FAIL), 0);
  bench_close (&b);
  assert_clean_buffers ();
}

static void
test_refusals_of_names (void **state)
{
  static const struct secondary_options same = {
    .active = "missing.qed", .hidden = "./missing.qed"
  };
  static const struct secondary_options nowhere = {
    .active = "missing/active.qed", .hidden = HIDDEN
  };

  (void) state;
  forget_messages ();
  assert_null (secondary_open (&same));
  assert_messages (1, "are the same file");
  forget_messages ();
  assert_null (secondary_open (&nowhere));
  assert_messages (1, "cannot be created: No such file");
}

/* A backing image that the user's own buffers name is not looked at. */
static void
test_backing_names_are_ignored (void **state)
{
  struct bench b = { .disk = memory_node_new (SIZE) };

  (void) state;
  fill_disk (&b, 'o');
  make_image (ACTIVE, SIZE, "no-such-file");
  make_image (HIDDEN, SIZE, "no-such-file");
  assert_int_equal (bench_begin (&b, RECOVER_FAIL), 0);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  write_byte (b.primary, 'p', 10, 0);
  assert_byte (b.guest, 'o', SIZE, 0);
  bench_close (&b);
}

static void
test_empty_files_become_buffers (void **state)
{
  struct bench b = { .disk = memory_node_new (SIZE) };

  (void) state;
  unlink (ACTIVE);
  make_file (HIDDEN, "");
  assert_int_equal (bench_begin (&b, RECOVER_FAIL), 0);
  bench_close (&b);
  assert_clean_buffers ();
}

/* ---- Buffers left by a crash */

/* Leave what a process that is killed while running leaves. */
static void
crash (struct bench *b)
{
  int status;
  pid_t pid;

  bench_open (b, SIZE, RECOVER_FAIL);
  fill_disk (b, 'o');
  bench_end (b);
  pid = fork ();
  CHECK (pid != -1);
  if (pid == 0) {
    CHECK (bench_begin (b, RECOVER_FAIL) == 0);
    CHECK (secondary_start (b->s, &b->refusal) == 0);
    CHECK (node_pwrite (b->primary, "p", 1, 0) == 0);
    CHECK (node_pwrite (b->guest, "g", 1, 1) == 0);
    _exit (0);
  }
  CHECK (waitpid (pid, &status, 0) == pid && status == 0);
  b->disk->data[0] = 'p';       /* the child's was a copy */
}

static void
patch (const char *name, const void *buf, size_t count, uint64_t offset)
{
  CLEANUP_CLOSE int fd = open (name, O_RDWR);

  assert_int_equal (pwrite (fd, buf, count, offset), count);
}

static void
test_left_over_buffers (void **state)
{
  struct bench b;

  (void) state;
  crash (&b);
  assert_refused (&b, RECOVER_FAIL, "replication-recover=rollback");
  assert_non_null (strstr (messages.last, "replication-recover=discard"));
  assert_refused (&b, RECOVER_FAIL, "are not empty");
  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_status (&b, REPLICATION_NONE, false);
  assert_byte (&b.disk->node, 'o', SIZE, 0);
  bench_close (&b);
  assert_clean_buffers ();

  crash (&b);
  assert_int_equal (bench_begin (&b, RECOVER_DISCARD), 0);
  assert_byte (&b.disk->node, 'p', 1, 0);
  assert_byte (&b.disk->node, 'o', SIZE - 1, 1);
  bench_close (&b);
  assert_clean_buffers ();
}

/* A copy that had begun is not complete because the server was restarted. */
static void
test_a_first_copy_is_a_mixture_after_a_restart (void **state)
{
  struct history self;
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  secondary_disconnect (b.s, b.primary);
  assert_int_equal (history_make (&self), 0);
  b.primary = secondary_connect (b.s, &self);
  assert_non_null (b.primary);
  write_byte (b.primary, 'p', CLUSTER, 0);
  bench_end (&b);
  assert_int_equal (bench_begin (&b, RECOVER_FAIL), 0);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  secondary_query (b.s, &b.status);
  assert_false (b.status.consistent);
  assert_int_equal (secondary_stop (b.s, true, false, &b.refusal), -1);
  assert_non_null (strstr (b.refusal.desc, "not consistent"));
  assert_status (&b, REPLICATION_RUNNING, false);
  assert_int_equal (secondary_stop (b.s, true, true, &b.refusal), 0);
  await_failover (&b);
  bench_close (&b);
}

static void
test_rollback_with_a_failing_disk (void **state)
{
  struct bench b;

  (void) state;
  crash (&b);
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], 0);
  assert_refused (&b, RECOVER_ROLLBACK, "failed on purpose");
  atomic_store (&b.disk->fail_after[MEMORY_WRITE], MEMORY_NEVER);
  atomic_store (&b.disk->fail_after[MEMORY_FLUSH], 0);
  assert_refused (&b, RECOVER_ROLLBACK, "failed on purpose");
  atomic_store (&b.disk->fail_after[MEMORY_FLUSH], MEMORY_NEVER);
  b.disk->data[0] = '?';
  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_byte (&b.disk->node, 'o', SIZE, 0);
  bench_close (&b);
}

/* What had not been flushed may be missing in the buffers. */
static void
test_after_another_boot (void **state)
{
  struct bench b;

  (void) state;
  crash (&b);
  patch (HIDDEN, "another boot", 12, CLUSTER - QED_NOTE_LEN + 32);
  assert_refused (&b, RECOVER_FAIL, "replication-recover=discard");
  assert_refused (&b, RECOVER_ROLLBACK, "the machine was restarted");
  assert_int_equal (bench_begin (&b, RECOVER_DISCARD), 0);
  assert_byte (&b.disk->node, 'p', 1, 0);
  bench_close (&b);
  assert_clean_buffers ();
}

/* ---- Buffers that are not what they should be */

/* All bytes of the two files and of the disk. */
struct snapshot {
  size_t count[3];
  uint8_t *data[3];
};

static void
read_all (const char *name, uint8_t **data, size_t *count)
{
  CLEANUP_CLOSE int fd = open (name, O_RDONLY);
  struct stat st;

  *count = 0;
  *data = NULL;
  if (fd == -1)
    return;
  assert_int_equal (fstat (fd, &st), 0);
  *count = st.st_size;
  *data = malloc (*count + 1);
  assert_int_equal (pread (fd, *data, *count, 0), *count);
}

static void
take_snapshot (struct bench *b, struct snapshot *shot)
{
  read_all (ACTIVE, &shot->data[0], &shot->count[0]);
  read_all (HIDDEN, &shot->data[1], &shot->count[1]);
  shot->count[2] = SIZE;
  shot->data[2] = malloc (SIZE);
  memcpy (shot->data[2], b->disk->data, SIZE);
}

static void
free_snapshot (struct snapshot *shot)
{
  for (size_t i = 0; i < 3; ++i)
    free (shot->data[i]);
}

/* The server does not start, the last thing that it says is this, and
 * nothing has changed.
 */
static void
assert_untouched (struct bench *b, enum secondary_recover recover,
                  const char *text)
{
  struct snapshot before, after;

  take_snapshot (b, &before);
  forget_messages ();
  assert_int_equal (bench_begin (b, recover), -1);
  if (strstr (messages.last, text) == NULL)
    fail_msg ("the last message: %s", messages.last);
  take_snapshot (b, &after);
  for (size_t i = 0; i < 3; ++i) {
    assert_int_equal (before.count[i], after.count[i]);
    if (after.data[i])
      assert_memory_equal (before.data[i], after.data[i], after.count[i]);
  }
  free_snapshot (&before);
  free_snapshot (&after);
}

static uint64_t
entry_at (const char *name, uint64_t offset)
{
  CLEANUP_CLOSE int fd = open (name, O_RDONLY);
  uint8_t buf[8];
  uint64_t value = 0;

  assert_int_equal (pread (fd, buf, sizeof buf, offset), sizeof buf);
  for (int i = 7; i >= 0; --i)
    value = value << 8 | buf[i];
  return value;
}

static void
put_entry (const char *name, uint64_t offset, uint64_t value)
{
  uint8_t buf[8];

  for (unsigned i = 0; i < 8; ++i)
    buf[i] = value >> 8 * i;
  patch (name, buf, sizeof buf, offset);
}

enum { DAMAGES = 5 };

static void
damage (const char *name, unsigned how)
{
  const uint64_t l1 = entry_at (name, 40);
  const uint64_t l2 = entry_at (name, l1);

  switch (how) {
  case 0: put_entry (name, l1, UINT64_MAX); break;
  case 1: put_entry (name, l1, UINT64_C (1) << 40); break;
  case 2: put_entry (name, l1 + 8, l2); break;
  case 3: put_entry (name, l2, UINT64_C (1) << 40); break;
  case 4: put_entry (name, l2, l2); break;
  }
}

static void
test_left_over_buffers_are_not_touched (void **state)
{
  struct bench b;

  (void) state;
  crash (&b);
  assert_untouched (&b, RECOVER_FAIL, "replication-recover=rollback");
  bench_close (&b);
}

static const char *const buffers[] = { ACTIVE, HIDDEN };

/* All that was held is needed for a rollback, so it is no repair to drop
 * what cannot be read.
 */
static void
test_damaged_buffers (void **state)
{
  (void) state;
  for (unsigned how = 0; how < DAMAGES; ++how)
    for (unsigned i = 0; i < 2; ++i) {
      struct bench b;

      crash (&b);
      damage (buffers[i], how);
      assert_untouched (&b, RECOVER_FAIL, "the buffer is damaged");
      assert_untouched (&b, RECOVER_ROLLBACK, "the buffer is damaged");
      assert_non_null (strstr (messages.last, buffers[i]));
      assert_int_equal (bench_begin (&b, RECOVER_DISCARD), 0);
      assert_byte (&b.disk->node, 'p', 1, 0);
      assert_byte (&b.disk->node, 'o', SIZE - 1, 1);
      assert_int_equal (secondary_start (b.s, &b.refusal), 0);
      write_byte (b.primary, 'q', 10, 0);
      assert_byte (b.guest, 'p', 1, 0);
      assert_byte (b.guest, 'o', SIZE - 1, 1);
      bench_close (&b);
      assert_clean_buffers ();
    }
}

/* What the guest wrote is in them only. */
static void
test_damaged_buffers_of_a_failover (void **state)
{
  (void) state;
  for (unsigned i = 0; i < 2; ++i) {
    struct bench b;
    uint64_t l1, entry;

    enter_stage (&b, 3);
    bench_end (&b);
    l1 = entry_at (buffers[i], 40);
    entry = entry_at (buffers[i], l1);
    damage (buffers[i], 0);
    for (enum secondary_recover how = RECOVER_FAIL; how <= RECOVER_DISCARD;
         ++how) {
      assert_untouched (&b, how, "the buffer is damaged");
      assert_non_null (strstr (messages.last, buffers[i]));
      assert_non_null (strstr (messages.last, "failover"));
    }
    put_entry (buffers[i], l1, entry);
    assert_int_equal (bench_begin (&b, RECOVER_DISCARD), 0);
    assert_byte (&b.disk->node, 'g', 100, 50);
    bench_close (&b);
  }
}

/* The disk was right without them, so it is whatever became of them: of what
 * was not flushed any part may be on the medium.
 */
static void
test_damaged_buffers_that_are_obsolete (void **state)
{
  const uint8_t obsolete = 3;

  (void) state;
  for (unsigned how = 0; how < DAMAGES; ++how)
    for (unsigned i = 0; i < 2; ++i) {
      struct bench b;

      crash (&b);
      damage (buffers[i], how);
      patch (HIDDEN, &obsolete, 1, CLUSTER - QED_NOTE_LEN + 16);
      assert_int_equal (bench_begin (&b, RECOVER_FAIL), 0);
      assert_byte (&b.disk->node, 'p', 1, 0);
      assert_byte (&b.disk->node, 'o', SIZE - 1, 1);
      bench_close (&b);
      assert_clean_buffers ();
    }
}

/* What is left of it after somebody has repaired it is committed. */
static void
test_a_failover_with_a_repaired_buffer (void **state)
{
  struct qed_check_result result;
  struct bench b;

  (void) state;
  enter_stage (&b, 3);
  write_byte (b.guest, 'h', 1, 0);
  bench_end (&b);
  damage (ACTIVE, 3);
  assert_int_equal (qed_check (ACTIVE, QED_FIX_ALL, false,
                               NODE_CACHE_WRITEBACK, NULL, NULL, &result), 0);
  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_status (&b, REPLICATION_DONE, false);
  assert_byte (&b.disk->node, 'o', SIZE, 0);
  bench_close (&b);
  assert_clean_buffers ();
}

/* Nobody knows what these were for. */
static void
test_buffers_that_cannot_be_opened (void **state)
{
  struct bench b;

  (void) state;
  crash (&b);
  assert_int_equal (truncate (HIDDEN, CLUSTER + 8), 0);
  for (enum secondary_recover how = RECOVER_FAIL; how <= RECOVER_DISCARD;
       ++how)
    assert_untouched (&b, how, "goes beyond the end of the file");
  unlink (HIDDEN);
  assert_int_equal (bench_begin (&b, RECOVER_DISCARD), 0);
  bench_close (&b);
  assert_clean_buffers ();
}

static void
test_a_failover_without_its_active_buffer (void **state)
{
  struct bench b;

  (void) state;
  enter_stage (&b, 3);
  bench_end (&b);
  assert_int_equal (rename (ACTIVE, "away.qed"), 0);
  for (enum secondary_recover how = RECOVER_FAIL; how <= RECOVER_DISCARD;
       ++how)
    assert_untouched (&b, how, "the active buffer is missing");
  assert_int_equal (rename ("away.qed", ACTIVE), 0);
  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_byte (&b.disk->node, 'g', 100, 50);
  bench_close (&b);
}

static void
assert_no_checkpoint (struct bench *b)
{
  for (enum secondary_recover how = RECOVER_FAIL; how <= RECOVER_ROLLBACK;
       ++how) {
    assert_untouched (b, how, "holds no checkpoint to roll back to");
    assert_non_null (strstr (messages.last, ACTIVE));
    assert_non_null (strstr (messages.last, HIDDEN));
  }
}

static void
test_rollback_with_another_hidden_buffer (void **state)
{
  struct bench b;
  struct node *n;

  (void) state;
  crash (&b);
  assert_int_equal (rename (HIDDEN, "away.qed"), 0);
  assert_no_checkpoint (&b);
  make_file (HIDDEN, "");
  assert_no_checkpoint (&b);
  make_image (HIDDEN, SIZE, NULL);
  assert_no_checkpoint (&b);

  /* Somebody's image is no checkpoint either. */
  n = qed_open (HIDDEN, &QED_DEFAULT_OPTIONS);
  assert_non_null (n);
  assert_int_equal (node_pwrite (n, "x", 1, 0), 0);
  assert_int_equal (node_close (n), 0);
  assert_no_checkpoint (&b);

  assert_int_equal (rename ("away.qed", HIDDEN), 0);
  assert_int_equal (bench_begin (&b, RECOVER_ROLLBACK), 0);
  assert_byte (&b.disk->node, 'o', SIZE, 0);
  bench_close (&b);
  assert_clean_buffers ();
}

static void
test_discard_without_the_hidden_buffer (void **state)
{
  struct bench b;

  (void) state;
  crash (&b);
  unlink (HIDDEN);
  assert_int_equal (bench_begin (&b, RECOVER_DISCARD), 0);
  assert_byte (&b.disk->node, 'p', 1, 0);
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
    cmocka_unit_test (test_a_disk_of_odd_size),
    cmocka_unit_test (test_zero_and_trim_on_both_sides),
    cmocka_unit_test (test_fast_zero),
    cmocka_unit_test (test_a_trim_of_zeroes_stays_one),
    cmocka_unit_test (test_every_command_in_every_stage),
    cmocka_unit_test (test_every_export_in_every_stage),
    cmocka_unit_test (test_status_in_every_stage),
    cmocka_unit_test (test_a_failed_failover_is_finished_later),
    cmocka_unit_test (test_the_guest_does_not_notice_a_failing_commit),
    cmocka_unit_test (test_stop_leaves_the_primarys_disk),
    cmocka_unit_test (test_failover_leaves_what_the_guest_saw),
    cmocka_unit_test (test_a_start_right_after_a_failover),
    cmocka_unit_test (test_a_start_after_a_failover_that_left_something),
    cmocka_unit_test (test_prepare_and_abort),
    cmocka_unit_test (test_failover_aborts_what_is_prepared),
    cmocka_unit_test (test_close_aborts_what_is_prepared),
    cmocka_unit_test (test_errors_of_the_disk_are_recorded),
    cmocka_unit_test (test_a_failed_write_to_the_disk_is_recorded),
    cmocka_unit_test (test_full_buffers),
    cmocka_unit_test (test_a_checkpoint_that_cannot_be_written),
    cmocka_unit_test (test_space_is_used_again_and_given_back),
    cmocka_unit_test (test_many_checkpoints_at_once),
    cmocka_unit_test (test_refusals_at_the_beginning),
    cmocka_unit_test (test_refusals_of_names),
    cmocka_unit_test (test_backing_names_are_ignored),
    cmocka_unit_test (test_empty_files_become_buffers),
    cmocka_unit_test (test_left_over_buffers),
    cmocka_unit_test (test_a_first_copy_is_a_mixture_after_a_restart),
    cmocka_unit_test (test_rollback_with_a_failing_disk),
    cmocka_unit_test (test_after_another_boot),
    cmocka_unit_test (test_left_over_buffers_are_not_touched),
    cmocka_unit_test (test_damaged_buffers),
    cmocka_unit_test (test_damaged_buffers_of_a_failover),
    cmocka_unit_test (test_damaged_buffers_that_are_obsolete),
    cmocka_unit_test (test_a_failover_with_a_repaired_buffer),
    cmocka_unit_test (test_buffers_that_cannot_be_opened),
    cmocka_unit_test (test_a_failover_without_its_active_buffer),
    cmocka_unit_test (test_rollback_with_another_hidden_buffer),
    cmocka_unit_test (test_discard_without_the_hidden_buffer),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
