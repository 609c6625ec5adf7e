/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Claims under contention: no two that conflict are held at the same
 * time, order of arrival is kept, and who has no reason to wait does
 * not.
 */

#include <config.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "request/claim.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

static struct claims claims;

static int
setup (void **state)
{
  (void) state;
  claims_init (&claims);
  return 0;
}

static int
teardown (void **state)
{
  (void) state;
  claims_destroy (&claims);
  return 0;
}

static bool
conflict (const struct claim *a, const struct claim *b)
{
  return MAX (a->start, b->start) < MIN (a->end, b->end) &&
    !(a->mode == CLAIM_SHARED && b->mode == CLAIM_SHARED);
}

/* Everybody who is granted has nobody before him that he should have
 * waited for.
 */
static void
check_order (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims.lock);

  for (struct claim *c = claims.first; c; c = c->next) {
    unsigned in_its_way = 0;

    for (struct claim *earlier = claims.first; earlier != c;
         earlier = earlier->next)
      in_its_way += conflict (earlier, c);
    CHECK ((c->blockers == 0) == (in_its_way == 0));
  }
}

/* Who holds what, in units; as seen by the holders. */
#define UNITS 64

static atomic_int holders[UNITS]; /* shared ones; exclusive: -1 */

static void
enter (uint64_t start, uint64_t end, enum claim_mode mode)
{
  for (uint64_t i = start; i < end; ++i) {
    if (mode == CLAIM_EXCLUSIVE)
      CHECK (atomic_exchange (&holders[i], -1) == 0);
    else
      CHECK (atomic_fetch_add (&holders[i], 1) >= 0);
  }
}

static void
leave (uint64_t start, uint64_t end, enum claim_mode mode)
{
  for (uint64_t i = start; i < end; ++i) {
    if (mode == CLAIM_EXCLUSIVE)
      CHECK (atomic_exchange (&holders[i], 0) == -1);
    else
      CHECK (atomic_fetch_sub (&holders[i], 1) > 0);
  }
}

/* Guarded by an exclusive claim and nothing else. */
static unsigned plain_counts[UNITS];

static void
hammer (struct unit_thread *t)
{
  for (unsigned round = 0; round < 2000; ++round) {
    const uint64_t start = random_below (&t->seed, UNITS);
    const uint64_t count =
      1 + random_below (&t->seed, MIN (UNITS - start, UINT64_C (12)));
    const enum claim_mode mode =
      random_below (&t->seed, 2) ? CLAIM_SHARED : CLAIM_EXCLUSIVE;
    struct claim claim;

    claim_acquire (&claims, &claim, start, count, mode);
    CLEANUP_CLAIM struct claim_holder holder = { &claims, &claim };
    enter (start, start + count, mode);
    if (mode == CLAIM_EXCLUSIVE)
      for (uint64_t i = 0; i < count; ++i)
        plain_counts[start + i]++;
    if (round % 16 == 0)
      check_order ();
    sched_yield ();
    leave (start, start + count, mode);
  }
}

static void
test_no_two_conflicting_holders (void **state)
{
  (void) state;
  run_threads (12, hammer, NULL);
  for (unsigned i = 0; i < UNITS; ++i) {
    assert_int_equal (atomic_load (&holders[i]), 0);
    assert_true (plain_counts[i] > 0);
  }
  assert_null (claims.first);
  assert_null (claims.last);
}

/* All hold at the same time, or this never ends. */
#define NR_TOGETHER 8

static pthread_barrier_t together;

static void
hold_own_range (struct unit_thread *t)
{
  struct claim claim;

  claim_acquire (&claims, &claim, t->nr * 100, 100, CLAIM_EXCLUSIVE);
  pthread_barrier_wait (&together);
  claim_release (&claims, &claim);
}

static void
hold_shared (struct unit_thread *t)
{
  struct claim claim;

  claim_acquire (&claims, &claim, t->nr, 100, CLAIM_SHARED);
  pthread_barrier_wait (&together);
  claim_release (&claims, &claim);
}

static void
test_disjoint_claims_do_not_wait (void **state)
{
  (void) state;
  pthread_barrier_init (&together, NULL, NR_TOGETHER);
  run_threads (NR_TOGETHER, hold_own_range, NULL);
  pthread_barrier_destroy (&together);
}

static void
test_shared_claims_do_not_wait (void **state)
{
  (void) state;
  pthread_barrier_init (&together, NULL, NR_TOGETHER);
  run_threads (NR_TOGETHER, hold_shared, NULL);
  pthread_barrier_destroy (&together);
}

/* Claims that arrive one after the other, and the order in which they
 * are granted.
 */
struct arrival {
  uint64_t start, count;
  enum claim_mode mode;
};

static atomic_uint nr_granted;
static atomic_uint grants[8];

static unsigned
nr_claims (void)
{
  unsigned n = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&claims.lock);
  for (struct claim *c = claims.first; c; c = c->next)
    n++;
  return n;
}

static void
take_one (struct unit_thread *t)
{
  const struct arrival *a = t->opaque;
  struct claim claim;

  claim_acquire (&claims, &claim, a->start, a->count, a->mode);
  atomic_store (&grants[atomic_fetch_add (&nr_granted, 1)], t->nr);
  claim_release (&claims, &claim);
}

/* Start a thread and wait until its claim is in the list. */
static void
arrive (struct unit_thread *t, unsigned nr, struct arrival *a)
{
  const unsigned before = nr_claims ();

  *t = (struct unit_thread) { .nr = nr, .opaque = a, .run = take_one };
  assert_int_equal (pthread_create (&t->thread, NULL, unit_thread_main, t),
                    0);
  while (nr_claims () == before)
    sched_yield ();
}

static void
test_order_of_arrival (void **state)
{
  /* Each conflicts with the one before it only, but for the last. */
  struct arrival arrivals[] = {
    { 90, 20, CLAIM_EXCLUSIVE },
    { 105, 20, CLAIM_SHARED },
    { 120, 20, CLAIM_EXCLUSIVE },
    { 135, 20, CLAIM_SHARED },
    { 0, 1000, CLAIM_EXCLUSIVE },
  };
  const unsigned n = sizeof arrivals / sizeof arrivals[0];
  struct unit_thread threads[n];
  struct claim first, apart, behind;

  (void) state;
  atomic_store (&nr_granted, 0);
  claim_acquire (&claims, &first, 0, 100, CLAIM_EXCLUSIVE);
  for (unsigned i = 0; i < n; ++i)
    arrive (&threads[i], i, &arrivals[i]);

  /* None may pass, and one that meets nobody need not wait. */
  claim_acquire (&claims, &apart, 5000, 1, CLAIM_EXCLUSIVE);
  claim_acquire (&claims, &behind, 1000, 10, CLAIM_EXCLUSIVE);
  check_order ();
  assert_int_equal (atomic_load (&nr_granted), 0);
  claim_release (&claims, &behind);
  claim_release (&claims, &apart);

  claim_release (&claims, &first);
  join_threads (threads, n);
  assert_int_equal (atomic_load (&nr_granted), n);
  for (unsigned i = 0; i < n; ++i)
    assert_int_equal (atomic_load (&grants[i]), i);
}

/* Shared claims come all the time, and yet the exclusive one, which
 * overlaps them all, gets its turn: those that arrive later wait.
 */
static atomic_bool had_its_turn;

static void
share_on (struct unit_thread *t)
{
  struct claim a;

  (void) t;
  while (!atomic_load (&had_its_turn)) {
    claim_acquire (&claims, &a, 0, 10, CLAIM_SHARED);
    sched_yield ();
    claim_release (&claims, &a);
  }
}

static void
test_shared_claims_do_not_starve_an_exclusive_one (void **state)
{
  struct unit_thread threads[6];
  struct claim claim;

  (void) state;
  atomic_store (&had_its_turn, false);
  start_threads (threads, 6, share_on, NULL);
  for (unsigned i = 0; i < 50; ++i) {
    claim_acquire (&claims, &claim, 5, 1, CLAIM_EXCLUSIVE);
    check_order ();
    claim_release (&claims, &claim);
  }
  atomic_store (&had_its_turn, true);
  join_threads (threads, 6);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_no_two_conflicting_holders),
    TEST (test_disjoint_claims_do_not_wait),
    TEST (test_shared_claims_do_not_wait),
    TEST (test_order_of_arrival),
    TEST (test_shared_claims_do_not_starve_an_exclusive_one),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("claim", tests, NULL, NULL);
}
