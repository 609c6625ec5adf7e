/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The serial queue under load: one piece of work at a time, in order, each
 * once, and its result is its caller's.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "request/serial.h"
#include "tests/unit/unit.h"

static struct serial_queue queue;
static atomic_int inside;
static unsigned plain_count;    /* written only by work */
static unsigned nr_elsewhere;   /* the same: done in the queue's thread */

static int
setup (void **state)
{
  (void) state;
  plain_count = nr_elsewhere = 0;
  serial_queue_init (&queue);
  return serial_queue_start (&queue);
}

static int
teardown (void **state)
{
  (void) state;
  serial_queue_destroy (&queue);
  return 0;
}

struct piece {
  pthread_t owner;
  unsigned times;
  int r, err;                   /* what it shall return */
};

static int
work (void *opaque)
{
  struct piece *piece = opaque;
  const unsigned seen = plain_count;

  CHECK (atomic_fetch_add (&inside, 1) == 0);
  if (seen % 16 == 0)
    sched_yield ();
  CHECK (plain_count == seen);
  plain_count++;
  nr_elsewhere += !pthread_equal (pthread_self (), piece->owner);
  piece->times++;
  CHECK (atomic_fetch_sub (&inside, 1) == 1);
  errno = piece->err;
  return piece->r;
}

#define NR_THREADS 8
#define NR_PIECES 20000

static void
run_pieces (struct unit_thread *t)
{
  for (unsigned i = 0; i < NR_PIECES; ++i) {
    const bool fails = random_below (&t->seed, 3) == 0;
    struct piece piece = {
      .owner = pthread_self (), .r = fails ? -1 : 0, .err = t->nr + 1,
    };

    CHECK (serial_queue_run (&queue, work, &piece) == piece.r);
    CHECK (errno == piece.err);
    CHECK (piece.times == 1);
    if (random_below (&t->seed, 100) == 0)
      sched_yield ();
  }
}

static void
test_one_at_a_time (void **state)
{
  (void) state;
  run_threads (NR_THREADS, run_pieces, NULL);
  assert_int_equal (plain_count, NR_THREADS * NR_PIECES);
  /* They did meet. */
  assert_true (nr_elsewhere > 0);
}

/* Who finds the queue empty does not wait for another thread. */
static void
test_alone (void **state)
{
  struct unit_thread self = { .nr = 0, .seed = 1 };

  (void) state;
  run_pieces (&self);
  assert_int_equal (plain_count, NR_PIECES);
  assert_int_equal (nr_elsewhere, 0);
}

/* A gate holds the first one until all others have queued up. */
static unsigned order[NR_THREADS];
static unsigned nr_done;
static atomic_uint gate;

static int
pass_gate (void *opaque)
{
  while (atomic_load (&gate) == 0)
    sched_yield ();
  order[nr_done++] = (uintptr_t) opaque;
  return 0;
}

static void
pass (struct unit_thread *t)
{
  CHECK (serial_queue_run (&queue, pass_gate, t->opaque) == 0);
}

static bool
is_busy (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&queue.lock);

  return queue.busy;
}

/* Has one more come since this was the last that waits? */
static bool
has_come (const struct serial_work *last)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&queue.lock);

  return queue.last != last;
}

static void
test_in_order (void **state)
{
  struct unit_thread threads[NR_THREADS];

  (void) state;
  nr_done = 0;
  atomic_store (&gate, 0);
  for (uintptr_t i = 0; i < NR_THREADS; ++i) {
    const struct serial_work *last = queue.last;

    start_threads (&threads[i], 1, pass, (void *) i);
    while (i == 0 ? !is_busy () : !has_come (last))
      sched_yield ();
  }
  atomic_store (&gate, 1);
  for (unsigned i = 0; i < NR_THREADS; ++i)
    join_threads (&threads[i], 1);
  for (unsigned i = 0; i < NR_THREADS; ++i)
    assert_int_equal (order[i], i);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown (test_one_at_a_time, setup, teardown),
    cmocka_unit_test_setup_teardown (test_alone, setup, teardown),
    cmocka_unit_test_setup_teardown (test_in_order, setup, teardown),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("serial", tests, NULL, NULL);
}
