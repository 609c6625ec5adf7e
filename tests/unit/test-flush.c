/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Flush coalescing against a model of a medium: what a flush that
 * returned 0 promises is there, with as few real flushes as possible,
 * and failures reach those whom they concern.
 */

#include <config.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "request/flush.h"
#include "tests/unit/unit.h"

#define NR_WRITERS 12

/* The medium: writes of each thread are numbered from 1. */
static struct {
  atomic_uint written[NR_WRITERS];   /* have reached the cache */
  atomic_uint completed[NR_WRITERS]; /* and flusher_written was called */
  atomic_uint durable[NR_WRITERS];   /* covered by a flush that succeeded
                                        and began after them */
  atomic_uint nr_flushes;
  atomic_int running;
  atomic_int failures;          /* how many of the next flushes fail */
  atomic_bool fail_at_random;
  atomic_bool closed;           /* a gate: flushes wait behind it */
} medium;

static struct flusher flusher;

static int
flush_medium (void *opaque)
{
  unsigned seen[NR_WRITERS];
  unsigned nr;

  CHECK (opaque == &medium);
  CHECK (atomic_fetch_add (&medium.running, 1) == 0);
  nr = atomic_fetch_add (&medium.nr_flushes, 1);
  for (unsigned i = 0; i < NR_WRITERS; ++i)
    seen[i] = atomic_load (&medium.written[i]);
  do
    usleep (200);
  while (atomic_load (&medium.closed));
  CHECK (atomic_fetch_sub (&medium.running, 1) == 1);

  if (atomic_load (&medium.failures) > 0) {
    atomic_fetch_sub (&medium.failures, 1);
    errno = ENOSPC;
    return -1;
  }
  if (atomic_load (&medium.fail_at_random) && nr % 3 == 0) {
    errno = EIO;
    return -1;
  }
  for (unsigned i = 0; i < NR_WRITERS; ++i)
    atomic_store (&medium.durable[i], seen[i]);
  errno = ENOTTY;               /* means nothing when 0 is returned */
  return 0;
}

static int
setup (void **state)
{
  (void) state;
  memset (&medium, 0, sizeof medium);
  flusher_init (&flusher, flush_medium, &medium);
  return 0;
}

static int
teardown (void **state)
{
  (void) state;
  flusher_destroy (&flusher);
  return 0;
}

static void
write_one (unsigned writer)
{
  atomic_fetch_add (&medium.written[writer], 1);
  flusher_written (&flusher);
  atomic_fetch_add (&medium.completed[writer], 1);
}

static int
flush_and_check (void)
{
  unsigned before[NR_WRITERS];
  int r;

  for (unsigned i = 0; i < NR_WRITERS; ++i)
    before[i] = atomic_load (&medium.completed[i]);
  r = flusher_flush (&flusher);
  if (r == 0)
    for (unsigned i = 0; i < NR_WRITERS; ++i)
      CHECK (atomic_load (&medium.durable[i]) >= before[i]);
  return r;
}

static void
write_and_flush (struct unit_thread *t)
{
  for (unsigned round = 0; round < 300; ++round) {
    const unsigned n = random_below (&t->seed, 4);

    for (unsigned i = 0; i < n; ++i)
      write_one (t->nr);
    if (random_below (&t->seed, 4) == 0) {
      sched_yield ();
      continue;
    }
    if (flush_and_check () == -1) {
      CHECK (atomic_load (&medium.fail_at_random));
      CHECK (errno == EIO);
      CHECK (flusher_has_failed (&flusher));
    }
  }
}

static void
test_what_is_flushed_is_durable (void **state)
{
  (void) state;
  run_threads (NR_WRITERS, write_and_flush, NULL);
  assert_false (flusher_has_failed (&flusher));
}

static void
test_what_is_flushed_is_durable_until_a_failure (void **state)
{
  (void) state;
  atomic_store (&medium.fail_at_random, true);
  run_threads (NR_WRITERS, write_and_flush, NULL);
  assert_true (flusher_has_failed (&flusher));
}

/* Of the first flush nobody knows what an earlier process has left to it. */
static void
test_nothing_new_costs_nothing (void **state)
{
  (void) state;
  assert_int_equal (flush_and_check (), 0);
  assert_int_equal (atomic_load (&medium.nr_flushes), 1);
  for (unsigned i = 2; i < 5; ++i) {
    write_one (0);
    write_one (1);
    for (unsigned j = 0; j < 6; ++j)
      assert_int_equal (flush_and_check (), 0);
    assert_int_equal (atomic_load (&medium.nr_flushes), i);
  }
}

/* One is in a flush, behind the gate; the others write and want to
 * flush too.
 */
static atomic_uint nr_written, nr_failed;

static void
write_once_and_flush (struct unit_thread *t)
{
  write_one (t->nr);
  atomic_fetch_add (&nr_written, 1);
  if (flush_and_check () == -1) {
    CHECK (errno == ENOSPC);
    atomic_fetch_add (&nr_failed, 1);
  }
}

static void
flush_side_by_side (int failures)
{
  struct unit_thread threads[NR_WRITERS];

  atomic_store (&nr_written, 0);
  atomic_store (&nr_failed, 0);
  atomic_store (&medium.failures, failures);
  atomic_store (&medium.closed, true);
  start_threads (threads, 1, write_once_and_flush, NULL);
  while (atomic_load (&medium.running) == 0)
    sched_yield ();
  start_threads (threads + 1, NR_WRITERS - 1, write_once_and_flush, NULL);
  while (atomic_load (&nr_written) < NR_WRITERS)
    sched_yield ();
  atomic_store (&medium.closed, false);
  join_threads (threads, NR_WRITERS);
}

static void
test_those_who_wait_share_a_flush (void **state)
{
  (void) state;
  flush_side_by_side (0);
  assert_int_equal (atomic_load (&medium.nr_flushes), 2);
  assert_int_equal (atomic_load (&nr_failed), 0);
}

static void
test_coalescing_under_load (void **state)
{
  (void) state;
  for (unsigned i = 0; i < 20; ++i)
    flush_side_by_side (0);
  assert_within (atomic_load (&medium.nr_flushes), 20, 40);
}

static void
test_failure_is_reported_to_all_that_waited (void **state)
{
  (void) state;
  flush_side_by_side (1);
  assert_int_equal (atomic_load (&nr_failed), NR_WRITERS);
  assert_true (flusher_has_failed (&flusher));
}

/* What was lost may be what newer writes depend on, and nobody will write
 * it again.
 */
static void
test_a_failure_stays (void **state)
{
  (void) state;
  write_one (0);
  assert_int_equal (flush_and_check (), 0);
  atomic_store (&medium.failures, 1);
  write_one (0);
  for (int i = 0; i < 3; ++i) {
    assert_int_equal (flush_and_check (), -1);
    assert_int_equal (errno, ENOSPC);
  }
  write_one (1);
  assert_int_equal (flush_and_check (), -1);
  assert_int_equal (errno, ENOSPC);
  assert_true (flusher_has_failed (&flusher));
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_what_is_flushed_is_durable),
    TEST (test_what_is_flushed_is_durable_until_a_failure),
    TEST (test_nothing_new_costs_nothing),
    TEST (test_those_who_wait_share_a_flush),
    TEST (test_coalescing_under_load),
    TEST (test_failure_is_reported_to_all_that_waited),
    TEST (test_a_failure_stays),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("flush", tests, NULL, NULL);
}
