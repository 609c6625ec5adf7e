/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The copy of a primary's disk at the remote: equal at checkpoints, whatever
 * the remote does.
 */

#include <config.h>

#include "tests/unit/primary-unit.h"

static void
test_the_remote_is_equal_at_checkpoints (void **state)
{
  struct unit_thread threads[6];

  (void) state;
  start_remote ();
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  start_changing (threads, 6);
  for (int i = 0; i < 25; ++i) {
    checkpoint_and_compare ();
    for (int j = i % 4; j > 0; --j)
      pause_a_moment ();
  }
  stop_changing (threads, 6);
  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (first_difference (), -1);
  assert_int_equal (query ().checkpoints, 25);
  assert_false (query ().error);
  assert_int_equal (nr_messages (), 0);
}

static void
come_and_go (void (*start_it) (void))
{
  struct unit_thread threads[4];
  unsigned before;

  start_it ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  start_changing (threads, 4);
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 5 + i; ++j)
      pause_a_moment ();
    server_end (&server, SIGKILL);
    wait_for (!query ().remote_connected && query ().error);
    assert_non_null (strstr (query ().desc, "connection to the remote lost"));
    assert_non_null (strstr (query ().desc, "server closed"));
    if (i % 2)
      assert_refused (primary_checkpoint (primary, &refusal), server.uri);
    /* The guest goes on. */
    before = atomic_load (&nr_changes);
    wait_for (atomic_load (&nr_changes) > before + 200);
    start_it ();
    if (i % 3 == 0)
      wait_for (query ().remote_connected);
    checkpoint_and_compare ();
  }
  stop_changing (threads, 4);
  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (first_difference (), -1);
}

static void
test_the_remote_comes_and_goes (void **state)
{
  (void) state;
  come_and_go (start_remote);
}

static void
test_the_remote_loses_what_it_has_not_flushed (void **state)
{
  (void) state;
  come_and_go (start_forgetful_remote);
}

/* The remote is killed, and comes back with an empty disk when the primary
 * has noticed.
 */
static void
exchange_remote (void)
{
  server_end (&server, SIGKILL);
  wait_for (!query ().remote_connected);
  make_remote (DISK_SIZE);
  start_remote ();
}

/* A server that goes down loses what it has not flushed, all of it or
 * not.
 */
static void
test_what_was_not_flushed_is_sent_again (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  for (int i = 0; i < 20; ++i)
    assert_int_equal (write_at (i * 2 * AREA + 100, 5000, i + 1), 0);
  wait_for (query ().dirty_bytes == 0);
  assert_int_equal (first_difference (), -1);

  exchange_remote ();
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);

  /* But what was flushed is not. */
  exchange_remote ();
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), 100);
}

/* A remote that holds the connection and does not answer. */
static void
test_the_remote_hangs (void **state)
{
  struct unit_thread threads[4];
  unsigned before;

  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  server_hold (&server);

  /* With nothing to send the checkpoint asks whether somebody is there. */
  assert_refused (primary_checkpoint (primary, &refusal),
                  "server does not answer");
  start_changing (threads, 4);
  before = atomic_load (&nr_changes);
  wait_for (atomic_load (&nr_changes) > before + 500);
  assert_refused (primary_checkpoint (primary, &refusal), server.uri);
  before = atomic_load (&nr_changes);
  wait_for (atomic_load (&nr_changes) > before + 500);

  server_go_on (&server);
  wait_for (query ().remote_connected);
  checkpoint_and_compare ();
  assert_non_null (strstr (query ().last_error, "server does not answer"));

  /* Neither failover nor the end waits for it. */
  server_hold (&server);
  before = atomic_load (&nr_changes);
  wait_for (atomic_load (&nr_changes) > before + 100);
  assert_done (primary_stop (primary, true, &refusal));
  stop_changing (threads, 4);
  end_primary ();
}

/* A remote that flushes more slowly than writes may be held: what has been
 * flushed before they are held is not flushed again.
 */
static void
test_a_remote_that_flushes_slowly (void **state)
{
  (void) state;
  start_scripted_remote ("", "sleep 6");
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 5000, 7), 0);
  wait_for (query ().dirty_bytes == 0);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

/* One area that the remote does not take keeps no other one back. */
static void
test_the_remote_refuses_one_area (void **state)
{
  char fail[192];

  (void) state;
  snprintf (fail, sizeof fail, "[ $4 -ne %d ] || "
            "{ cat >/dev/null; echo EIO >&2; exit 1; }", 20 * AREA);
  start_scripted_remote (fail, "exit 0");
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  for (int i = 0; i < 40; ++i)
    assert_int_equal (write_at (i * AREA, AREA, i + 1), 0);
  wait_for (query ().dirty_bytes == AREA);
  assert_int_equal (first_difference (), 20 * AREA);
}

static void
test_a_full_copy (void **state)
{
  (void) state;
  write_file (remote_file, "old", 3);
  assert_int_equal (truncate (remote_file, DISK_SIZE), 0);
  fill_random (disk.data + 10 * AREA, 3 * AREA, 11);
  fill_random (disk.data + DISK_SIZE - 100, 100, 12);
  server_start (&server, "--filter=log", "file", remote_file, log_option,
                NULL);
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, true, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
  assert_int_equal (nr_messages (), 0);
  end_primary ();
  server_end (&server, SIGTERM);
  /* Once each area that is not zero on both sides, in one request where it is
   * not zero.
   */
  assert_int_equal (server_nr_requests (log_file, "Write"), 4);
  assert_int_equal (server_nr_requests (log_file, "Zero"), 1);
}

/* Dirty areas only, in runs. */
static void
test_only_dirty_blocks_are_copied (void **state)
{
  (void) state;
  server_start (&server, "--filter=log", "file", remote_file, log_option,
                NULL);
  begin_primary (server.uri, bitmap_file, 0);
  for (int i = 0; i < 16; i += 8)
    assert_int_equal (write_at (AREA + i * 4096 + 10, 20, 11), 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
  end_primary ();
  server_end (&server, SIGTERM);
  assert_int_equal (server_nr_requests (log_file, "Write"), 2);
}

static void
test_a_disk_that_wants_aligned_requests (void **state)
{
  (void) state;
  disk.node.align = 16384;
  atomic_store (&disk.node.size, 63 * AREA + 16384);
  make_remote (63 * AREA + 16384);
  fill_random (disk.data + 5 * AREA + 30000, 100000, 4);
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, true, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (write_at (20 * AREA + 16384, 32768, 5), 0);
  assert_int_equal (node_zero (node, 16384, 6 * AREA, 0), 0);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

/* The remote refuses, and then thinks better of it. */
static void
remote_errors (const char *what, const char *text)
{
  char option[64];

  snprintf (option, sizeof option, "error-%s=ENOSPC", what);
  write_file (error_file, "", 0);
  server_start (&server, "--filter=error", "file", remote_file, option,
                "error-rate=100%", error_option, NULL);
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 1000000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal), text);
  assert_int_equal (write_at (2000000, 1000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal), text);
  assert_true (query ().error);
  assert_non_null (strstr (query ().desc, text));
  assert_true (query ().remote_connected);
  assert_true (query ().dirty_bytes > 0);
  unlink (error_file);
  /* The first one may meet what was refused before. */
  wait_for (primary_checkpoint (primary, &refusal) == 0);
  assert_false (query ().error);
  assert_non_null (strstr (query ().last_error, text));
  assert_int_equal (first_difference (), -1);
}

static void
test_the_remote_is_full (void **state)
{
  (void) state;
  remote_errors ("pwrite", "writing to the remote: No space left");
}

static void
test_the_remote_cannot_flush (void **state)
{
  char flush[200];

  (void) state;
  /* The error filter knows no flush. */
  snprintf (flush, sizeof flush, "flush=if [ -e %s ]; then echo EIO >&2; "
            "exit 1; fi", error_file);
  write_file (error_file, "", 0);
  server_start (&server, "eval", "get_size=echo 4206649",
                "can_write=exit 0", "can_flush=exit 0",
                "pread=dd if=/dev/zero bs=$3 count=1 2>/dev/null",
                "pwrite=cat >/dev/null",
                flush, NULL);
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 1000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "flushing the remote: Input/output error");
  /* What it may have lost is dirty again, at the latest when a flush
   * after it has failed.
   */
  wait_for (query ().dirty_bytes > 0);
  unlink (error_file);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().dirty_bytes, 0);
}

static void
test_the_disk_cannot_be_read (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_reads, true);
  assert_int_equal (write_at (2 * AREA, 1000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "reading the disk at offset 131072: Input/output error");
  assert_true (query ().error);
  atomic_store (&disk.fail_reads, false);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_the_remote_is_equal_at_checkpoints),
    TEST (test_the_remote_comes_and_goes),
    TEST (test_the_remote_loses_what_it_has_not_flushed),
    TEST (test_what_was_not_flushed_is_sent_again),
    TEST (test_the_remote_hangs),
    TEST (test_a_remote_that_flushes_slowly),
    TEST (test_the_remote_refuses_one_area),
    TEST (test_a_full_copy),
    TEST (test_only_dirty_blocks_are_copied),
    TEST (test_a_disk_that_wants_aligned_requests),
    TEST (test_the_remote_is_full),
    TEST (test_the_remote_cannot_flush),
    TEST (test_the_disk_cannot_be_read),
  };

  return cmocka_run_group_tests_name ("replication-mirror", tests,
                                      make_folder, remove_folder);
}
