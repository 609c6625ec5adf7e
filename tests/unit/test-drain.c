/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Drain under load: nobody is inside while drained, drains take turns,
 * and requests go on afterwards.
 */

#include <config.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "request/drain.h"
#include "tests/unit/unit.h"

static struct drain drain;
static atomic_int inside, draining;
static unsigned plain_count;    /* written only while drained */

static int
setup (void **state)
{
  (void) state;
  drain_init (&drain);
  return 0;
}

static int
teardown (void **state)
{
  (void) state;
  assert_int_equal (atomic_load (&inside), 0);
  assert_int_equal (atomic_load (&drain.state), 0);
  drain_destroy (&drain);
  return 0;
}

#define NR_REQUESTS 20000
#define NR_DRAINS 300
#define NR_DRAINERS 3

static void
make_requests (unsigned n)
{
  unsigned seen;

  for (unsigned i = 0; i < n; ++i) {
    request_begin (&drain);
    atomic_fetch_add (&inside, 1);
    seen = plain_count;
    if (i % 64 == 0)
      sched_yield ();
    CHECK (atomic_load (&draining) == 0);
    CHECK (plain_count == seen);
    atomic_fetch_sub (&inside, 1);
    request_end (&drain);
  }
}

static void
make_drains (unsigned n)
{
  for (unsigned i = 0; i < n; ++i) {
    drain_begin (&drain);
    CHECK (atomic_fetch_add (&draining, 1) == 0);
    for (int j = 0; j < 5; ++j) {
      CHECK (atomic_load (&inside) == 0);
      plain_count++;
      sched_yield ();
    }
    CHECK (atomic_fetch_sub (&draining, 1) == 1);
    drain_end (&drain);
    sched_yield ();
  }
}

static void
request_or_drain (struct unit_thread *t)
{
  if (t->nr < NR_DRAINERS)
    make_drains (NR_DRAINS);
  else
    make_requests (NR_REQUESTS);
}

static void
test_nobody_is_inside_while_drained (void **state)
{
  (void) state;
  plain_count = 0;
  run_threads (NR_DRAINERS + 8, request_or_drain, NULL);
  assert_int_equal (plain_count, 5 * NR_DRAINERS * NR_DRAINS);
}

/* Requests are inside at the same time, or this never ends. */
static pthread_barrier_t together;

static void
meet_inside (struct unit_thread *t)
{
  (void) t;
  request_begin (&drain);
  pthread_barrier_wait (&together);
  request_end (&drain);
}

static void
test_requests_do_not_wait_for_each_other (void **state)
{
  (void) state;
  pthread_barrier_init (&together, NULL, 8);
  run_threads (8, meet_inside, NULL);
  pthread_barrier_destroy (&together);
}

static atomic_uint nr_done;

static void
one_request (struct unit_thread *t)
{
  (void) t;
  make_requests (1);
  atomic_fetch_add (&nr_done, 1);
}

static void
one_drain (struct unit_thread *t)
{
  (void) t;
  make_drains (1);
  atomic_fetch_add (&nr_done, 1);
}

/* Time for others to do what they must not do. */
static void
wait_a_little (void)
{
  usleep (50 * 1000);
}

static void
test_requests_wait_for_the_end_of_a_drain (void **state)
{
  struct unit_thread threads[4];

  (void) state;
  atomic_store (&nr_done, 0);
  drain_begin (&drain);
  start_threads (threads, 4, one_request, NULL);
  wait_a_little ();
  assert_int_equal (atomic_load (&nr_done), 0);
  assert_int_equal (atomic_load (&inside), 0);
  drain_end (&drain);
  join_threads (threads, 4);
  assert_int_equal (atomic_load (&nr_done), 4);
}

static void
test_drain_waits_for_requests_in_flight (void **state)
{
  struct unit_thread threads[2];

  (void) state;
  atomic_store (&nr_done, 0);
  request_begin (&drain);
  request_begin (&drain);       /* as if by another thread */
  start_threads (threads, 2, one_drain, NULL);
  wait_a_little ();
  assert_int_equal (atomic_load (&nr_done), 0);
  request_end (&drain);
  wait_a_little ();
  assert_int_equal (atomic_load (&nr_done), 0);
  request_end (&drain);
  join_threads (threads, 2);
  assert_int_equal (atomic_load (&nr_done), 2);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_nobody_is_inside_while_drained),
    TEST (test_requests_do_not_wait_for_each_other),
    TEST (test_requests_wait_for_the_end_of_a_drain),
    TEST (test_drain_waits_for_requests_in_flight),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("drain", tests, NULL, NULL);
}
