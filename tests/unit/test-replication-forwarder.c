/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A replication primary that forwards writes to a secondary through the layer
 * below it.
 */

#include <config.h>

#include "tests/unit/primary-unit.h"

static void
assert_disk_was_asked (unsigned changes, unsigned flushes)
{
  assert_int_equal (atomic_exchange (&disk.changes, 0), changes);
  assert_int_equal (atomic_exchange (&disk.flushes, 0), flushes);
}

static void
test_stages_of_a_forwarder (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_int_equal (query ().stage, REPLICATION_NONE);
  assert_requests (-1, -1, -1);
  assert_int_equal (errno, EIO);
  assert_disk_was_asked (0, 0);
  assert_refused (primary_stop (primary, false, &refusal),
                  "Block replication is not running");
  assert_refused (primary_stop (primary, true, &refusal),
                  "Block replication is not running");
  assert_done (primary_checkpoint (primary, &refusal));
  assert_refused (primary_start (primary, true, &refusal),
                  "a full copy needs a remote");

  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_RUNNING);
  assert_requests (-1, 0, 0);
  assert_disk_was_asked (3, 1);
  assert_refused (primary_start (primary, false, &refusal),
                  "Block replication is running or done");
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().checkpoints, 1);
  assert_disk_was_asked (0, 1);
  assert_int_equal (node_zero (node, 512, 0, NODE_FAST), -1);
  assert_int_equal (errno, ENOTSUP);
  assert_false (query ().error);

  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_requests (-1, -1, -1);
  assert_disk_was_asked (0, 0);

  /* It starts again, but not after a failover. */
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_RUNNING);
  assert_requests (-1, 0, 0);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().checkpoints, 1);
  assert_done (primary_stop (primary, false, &refusal));
  assert_done (primary_stop (primary, true, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_refused (primary_start (primary, false, &refusal),
                  "replication was stopped for a failover");
}

/* What cannot be forwarded is no concern of the guest. */
static void
test_a_forwarder_keeps_errors_to_itself (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_writes, true);
  assert_requests (-1, 0, 0);
  assert_true (query ().error);
  assert_string_equal (query ().desc, "forwarding a write at offset 512: "
                       "Input/output error");
  atomic_store (&disk.fail_writes, false);
  atomic_store (&disk.fail_flushes, true);
  assert_requests (-1, 0, 0);
  assert_string_equal (query ().desc, "forwarding a write at offset 512: "
                       "Input/output error");
  assert_refused (primary_checkpoint (primary, &refusal),
                  "the secondary lacks writes: forwarding a write");
  assert_requests (-1, 0, 0);
  assert_done (primary_stop (primary, true, &refusal));
  assert_true (query ().error);
}

/* It keeps what it has, takes no more than the queue holds, and in the end
 * gives up.  What the guest does succeeds.
 */
static void
test_a_forwarder_gives_up_a_secondary_that_hangs (void **state)
{
  enum { PIECE = 1024 * 1024, MAX_PIECES = 17 + 16 };
  unsigned pieces = 0, changes;

  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_done (primary_checkpoint (primary, &refusal));

  atomic_store (&disk.hang, true);
  do
    assert_int_equal (write_at (0, PIECE, 2), 0);
  while (!query ().error && ++pieces < 1000);
  assert_true (pieces <= MAX_PIECES);
  assert_string_equal (query ().desc, "forwarding: no answer for 2.0 "
                       "seconds");
  assert_int_equal (messages.nr, 1);
  assert_requests (-1, 0, 0);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "the secondary lacks writes: forwarding: no answer");

  /* Also when it is back. */
  atomic_store (&disk.hang, false);
  wait_for (atomic_load (&disk.changes) > 1);
  changes = atomic_load (&disk.changes);
  assert_true (changes <= 1 + 16);
  assert_requests (-1, 0, 0);
  assert_refused (primary_checkpoint (primary, &refusal), "no answer");
  assert_done (primary_stop (primary, false, &refusal));
  assert_true (primary_close (primary));
  primary = NULL;
  assert_true (atomic_load (&disk.changes) <= 1 + 16);
}

/* Nobody needs to write to find that out. */
static void
test_a_forwarder_tells_of_a_secondary_that_hangs (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_false (query ().error);
  assert_true (query ().remote_connected);
  wait_for (query ().error);
  assert_false (query ().remote_connected);
  assert_refused (primary_checkpoint (primary, &refusal), "no answer");
  atomic_store (&disk.hang, false);
}

/* A slow one is not given up as long as something arrives: here it takes
 * longer than the limit in all, but not from one time to the next.
 */
static void
hang_sometimes (struct unit_thread *t)
{
  atomic_bool *const end = t->opaque;

  for (unsigned i = 0; i < 10; ++i) {
    const unsigned before = atomic_load (&disk.changes);

    atomic_store (&disk.hang, true);
    usleep (300000);
    atomic_store (&disk.hang, false);
    while (atomic_load (&disk.changes) < before + 20)
      usleep (1000);
  }
  atomic_store (end, true);
}

static void
test_a_forwarder_bears_a_slow_secondary (void **state)
{
  atomic_bool end = false;
  struct unit_thread thread;

  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  start_threads (&thread, 1, hang_sometimes, &end);
  while (!atomic_load (&end))
    assert_int_equal (write_at (0, 300000, 1), 0);
  join_threads (&thread, 1);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_false (query ().error);
}

/* A secondary copies what zeroes replace, so a long request takes long; in
 * one piece it would look as if it hung.
 */
static void
test_a_forwarder_cuts_long_requests (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.longest, 0);
  assert_int_equal (node_zero (node, DISK_SIZE, 0, 0), 0);
  assert_int_equal (node_discard (node, DISK_SIZE, 0), 0);
  assert_int_equal (node_flush (node), 0);
  assert_within (atomic_load (&disk.longest), 1, 1024 * 1024);
}

/* Milliseconds for which the guest waits that writes when nothing else is
 * under way, while this does not return.
 */
static int64_t
time_of_a_lonely_write (void)
{
  const int64_t begin = clock_ms ();
  int64_t end;

  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (300, 512, 1), 0);
  end = clock_ms ();
  atomic_store (&disk.hang, false);
  assert_int_equal (node_flush (node), 0);
  return end - begin;
}

/* Who does one thing after the other mostly finds it done, unless the
 * machine has other things to do.  A wait that was in vain is not the last
 * one: there are others when the secondary is fast again, which it need not
 * be at once on a busy machine.
 */
static void
test_a_forwarder_waits_for_a_moment (void **state)
{
  unsigned found = 0;

  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_true (time_of_a_lonely_write () >= 20);
  while (time_of_a_lonely_write () < 20)
    ;

  atomic_store (&disk.dawdle, true);
  while (found < 50) {
    const unsigned before = atomic_load (&disk.changes);

    assert_int_equal (write_at (300, 512, before), 0);
    found += atomic_load (&disk.changes) > before;
    assert_int_equal (node_flush (node), 0);
  }
}

static void
answer_later (struct unit_thread *t)
{
  (void) t;
  wait_for (atomic_load (&disk.hanging) > 0);
  usleep ((GIVE_UP + 500) * 1000);
  atomic_store (&disk.hang, false);
}

/* A flush may take longer than other requests. */
static void
test_a_forwarder_bears_a_slow_flush (void **state)
{
  struct unit_thread thread;

  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_int_equal (node_flush (node), 0);
  atomic_store (&disk.hang, true);
  start_threads (&thread, 1, answer_later, NULL);
  assert_done (primary_checkpoint (primary, &refusal));
  join_threads (&thread, 1);
  assert_false (query ().error);
}

/* The last of several writes to a place is what remains there. */
static void
test_a_forwarder_keeps_the_order (void **state)
{
  enum { SIZE = 4 * AREA };
  CLEANUP_FREE char *model = calloc (1, SIZE);
  uint64_t seed = 5;

  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.dawdle, true);
  for (unsigned i = 0; i < 3000; ++i) {
    const uint64_t offset = random_below (&seed, SIZE);
    const uint64_t count =
      1 + random_below (&seed, MIN (SIZE - offset, UINT64_C (20000)));

    if (random_below (&seed, 4) == 0) {
      memset (model + offset, 0, count);
      assert_int_equal (node_zero (node, count, offset, 0), 0);
    }
    else {
      memset (model + offset, i, count);
      assert_int_equal (node_pwrite (node, model + offset, count, offset), 0);
    }
  }
  assert_int_equal (node_flush (node), 0);
  assert_memory_equal (disk.data, model, SIZE);
  assert_false (query ().error);
}

static void
checkpoint_is_interrupted (struct unit_thread *t)
{
  struct replication_refusal r;

  (void) t;
  CHECK (primary_checkpoint (primary, &r) == -1);
  CHECK (strstr (r.desc, "interrupted"));
}

static void
answer_soon (struct unit_thread *t)
{
  (void) t;
  wait_for (query ().stage == REPLICATION_DONE);
  pause_a_moment ();
  atomic_store (&disk.hang, false);
}

/* What has been sent arrives before a failover is done, or not at all. */
static void
test_nothing_arrives_after_a_failover (void **state)
{
  struct unit_thread thread;
  unsigned sent;

  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  for (unsigned i = 0; i < 100; ++i)
    assert_int_equal (write_at (i * 512, 512, i), 0);
  wait_for (atomic_load (&disk.hanging) > 0);
  start_threads (&thread, 1, answer_soon, NULL);
  assert_done (primary_stop (primary, true, &refusal));
  sent = atomic_load (&disk.changes);
  assert_true (sent > 0);
  pause_a_moment ();
  assert_int_equal (atomic_load (&disk.changes), sent);
  join_threads (&thread, 1);
  assert_int_equal (nr_messages (), 0);
}

/* A failover waits neither for a checkpoint nor for the guest, and not for
 * long for what has been sent.
 */
static void
test_failover_of_a_forwarder_that_hangs (void **state)
{
  struct unit_thread thread;

  (void) state;
  begin_primary (NULL, NULL, HANG_SECONDS * 1000);
  primary_expect_failover (primary); /* does no harm before the start */
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  start_threads (&thread, 1, checkpoint_is_interrupted, NULL);
  pause_a_moment ();
  primary_expect_failover (primary);
  join_threads (&thread, 1);
  assert_done (primary_stop (primary, true, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_false (query ().error);
  assert_messages (1, "may arrive there later");
  atomic_store (&disk.hang, false);
}

static void
stop_in_vain (struct unit_thread *t)
{
  struct replication_refusal r;

  (void) t;
  CHECK (primary_stop (primary, false, &r) == 0);
}

/* A failover ends a stop that waits, and what has been sent arrives before
 * it is done all the same.
 */
static void
test_failover_while_a_forwarder_stops (void **state)
{
  struct unit_thread threads[2];
  unsigned arrived;

  (void) state;
  begin_primary (NULL, NULL, HANG_SECONDS * 1000);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  wait_for (atomic_load (&disk.hanging) == 1);
  start_threads (&threads[0], 1, stop_in_vain, NULL);
  start_threads (&threads[1], 1, answer_soon, NULL);
  pause_a_moment ();
  primary_expect_failover (primary);
  assert_done (primary_stop (primary, true, &refusal));
  arrived = atomic_load (&disk.changes);
  join_threads (threads, 2);
  assert_int_equal (arrived, 1);
  assert_int_equal (nr_messages (), 0);
}

/* What the guest was told is done is done. */
static void
test_a_clean_end_of_a_forwarder (void **state)
{
  for (unsigned with_stop = 0; with_stop < 2; ++with_stop) {
    (void) state;
    begin_primary (NULL, NULL, 0);
    assert_done (primary_start (primary, false, &refusal));
    atomic_store (&disk.changes, 0);
    atomic_store (&disk.dawdle, true);
    for (unsigned i = 0; i < 500; ++i)
      assert_int_equal (write_at (i % 4 * 3 * 512, 512, i), 0);
    if (with_stop) {
      assert_done (primary_stop (primary, false, &refusal));
      assert_int_equal (atomic_load (&disk.changes), 500);
    }
    primary_interrupt (primary, true); /* as the filter does */
    end_primary ();
    assert_int_equal (atomic_load (&disk.changes), 500);
  }
}

/* It stays behind, until it returns. */
static void
test_the_end_of_a_forwarder_that_hangs (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_writes, true);
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_false (primary_close (primary));
  assert_non_null (strstr (messages.last, "not closed"));
  /* Nobody waits a second time. */
  assert_false (primary_close (primary));
  atomic_store (&disk.hang, false);
  wait_for (primary_close (primary));
  primary = NULL;
  assert_int_equal (atomic_load (&disk.changes), 1);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_stages_of_a_forwarder),
    TEST (test_a_forwarder_keeps_errors_to_itself),
    TEST (test_a_forwarder_gives_up_a_secondary_that_hangs),
    TEST (test_a_forwarder_tells_of_a_secondary_that_hangs),
    TEST (test_a_forwarder_bears_a_slow_secondary),
    TEST (test_a_forwarder_cuts_long_requests),
    TEST (test_a_forwarder_waits_for_a_moment),
    TEST (test_a_forwarder_bears_a_slow_flush),
    TEST (test_a_forwarder_keeps_the_order),
    TEST (test_nothing_arrives_after_a_failover),
    TEST (test_failover_of_a_forwarder_that_hangs),
    TEST (test_failover_while_a_forwarder_stops),
    TEST (test_a_clean_end_of_a_forwarder),
    TEST (test_the_end_of_a_forwarder_that_hangs),
  };

  return cmocka_run_group_tests_name ("replication-forwarder", tests,
                                      make_folder, remove_folder);
}
