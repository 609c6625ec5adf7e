/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Background jobs: results, progress, cancel, and sleeping. */

#include <config.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "request/job.h"
#include "tests/unit/unit.h"

static int
succeed (struct job *job, void *opaque)
{
  (void) job;
  *(int *) opaque = 42;
  errno = EAGAIN;
  return 0;
}

static int
fail_with_errno (struct job *job, void *opaque)
{
  (void) job;
  errno = *(int *) opaque;
  return -1;
}

static void
test_results (void **state)
{
  int value = 0, err = ENOSPC;
  struct job *job;

  (void) state;
  job = job_start ("succeed", succeed, &value);
  assert_non_null (job);
  assert_int_equal (job_wait (job), 0);
  assert_int_equal (value, 42);

  job = job_start ("fail", fail_with_errno, &err);
  assert_non_null (job);
  errno = 0;
  assert_int_equal (job_wait (job), -1);
  assert_int_equal (errno, ENOSPC);

  job = job_start ("fail", fail_with_errno, &err);
  assert_non_null (job);
  errno = 0;
  assert_int_equal (job_finish (job), -1);
  assert_int_equal (errno, ENOSPC);

  assert_int_equal (job_finish (NULL), 0);
}

/* Sleeps until it is cancelled, however long that takes. */
static int
sleep_until_cancelled (struct job *job, void *opaque)
{
  unsigned *rounds = opaque;

  while (!job_cancelled (job)) {
    CHECK (job_sleep (job, -1));
    ++*rounds;
  }
  /* From now on nobody sleeps. */
  CHECK (job_sleep (job, -1));
  CHECK (job_sleep (job, 1000000));
  return 0;
}

static void
test_finish_wakes_a_sleeper (void **state)
{
  (void) state;
  for (unsigned i = 0; i < 200; ++i) {
    unsigned rounds = 0;
    struct job *job = job_start ("sleeper", sleep_until_cancelled, &rounds);

    assert_non_null (job);
    if (i % 2)
      usleep (100);
    assert_int_equal (job_finish (job), 0);
    assert_within (rounds, 0, 1);
  }
}

/* A queue of one: the job takes what was put and sleeps when there is
 * nothing.  If a wake-up were lost both would wait for ever.
 */
struct slot {
  atomic_uint put, taken;
};

static int
take_all (struct job *job, void *opaque)
{
  struct slot *slot = opaque;

  while (!job_cancelled (job)) {
    while (atomic_load (&slot->taken) < atomic_load (&slot->put))
      atomic_fetch_add (&slot->taken, 1);
    CHECK (job_sleep (job, -1));
  }
  return 0;
}

static void
test_no_wake_up_is_lost (void **state)
{
  struct slot slot = { 0 };
  struct job *job = job_start ("taker", take_all, &slot);

  (void) state;
  assert_non_null (job);
  for (unsigned i = 1; i <= 20000; ++i) {
    atomic_store (&slot.put, i);
    job_wake (job);
    if (i % 3 == 0)
      while (atomic_load (&slot.taken) < i)
        sched_yield ();
  }
  while (atomic_load (&slot.taken) < 20000)
    sched_yield ();
  assert_int_equal (job_finish (job), 0);
}

/* Woken before it sleeps, and by many. */
static int
sleep_twice (struct job *job, void *opaque)
{
  pthread_barrier_t *woken = opaque;

  pthread_barrier_wait (woken);
  CHECK (job_sleep (job, -1));
  /* Wake-ups are not counted: that one is used up. */
  CHECK (!job_sleep (job, 1));
  CHECK (!job_sleep (job, 0));
  CHECK (!job_cancelled (job));
  return 0;
}

static void
wake_it (struct unit_thread *t)
{
  job_wake (t->opaque);
}

static void
test_wake_up_before_sleep (void **state)
{
  pthread_barrier_t woken;
  struct job *job;

  (void) state;
  pthread_barrier_init (&woken, NULL, 2);
  job = job_start ("twice", sleep_twice, &woken);
  assert_non_null (job);
  run_threads (4, wake_it, job);
  pthread_barrier_wait (&woken);
  assert_int_equal (job_wait (job), 0);
  pthread_barrier_destroy (&woken);
}

static int
read_own_name (struct job *job, void *opaque)
{
  char *name = opaque;

  /* The name is given after the thread was started. */
  while (pthread_getname_np (pthread_self (), name, 16) == 0 &&
         strcmp (name, "fifteen-letters") != 0 && !job_cancelled (job))
    job_sleep (job, 1);
  return 0;
}

static void
test_threads_have_names (void **state)
{
  char name[16];
  struct job *job = job_start ("fifteen-letters", read_own_name, name);

  (void) state;
  assert_non_null (job);
  assert_int_equal (job_wait (job), 0);
  assert_string_equal (name, "fifteen-letters");
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_results),
    cmocka_unit_test (test_finish_wakes_a_sleeper),
    cmocka_unit_test (test_no_wake_up_is_lost),
    cmocka_unit_test (test_wake_up_before_sleep),
    cmocka_unit_test (test_threads_have_names),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("job", tests, NULL, NULL);
}
