/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The replication primary with a remote: stages, options, what commands
 * refuse, failover and checkpoints that hold writes.
 */

#include <config.h>

#include "tests/unit/primary-unit.h"

static void
test_stages_with_a_remote (void **state)
{
  (void) state;
  begin_primary (server.uri, NULL, 0);
  assert_requests (0, 0, 0);
  assert_refused (primary_stop (primary, false, &refusal),
                  "Block replication is not running");
  assert_done (primary_checkpoint (primary, &refusal));
  assert_false (query ().remote_connected);

  start_remote ();
  assert_done (primary_start (primary, false, &refusal));
  assert_true (query ().remote_connected);
  assert_int_equal (query ().stage, REPLICATION_RUNNING);
  assert_requests (0, 0, 0);
  assert_refused (primary_start (primary, false, &refusal),
                  "Block replication is running or done");
  assert_int_equal (write_at (1000, 50000, 7), 0);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().checkpoints, 1);
  assert_int_equal (query ().dirty_bytes, 0);
  assert_int_equal (first_difference (), -1);

  /* A stop gives the remote the rest. */
  assert_int_equal (write_at (100000, 50000, 8), 0);
  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_false (query ().remote_connected);
  assert_false (query ().error);
  assert_int_equal (first_difference (), -1);

  /* Then it is left alone, and gets what it lacks at the next start. */
  assert_requests (0, 0, 0);
  assert_int_equal (write_at (200000, 50000, 9), 0);
  assert_int_not_equal (first_difference (), -1);
  assert_done (primary_start (primary, false, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
  assert_int_equal (write_at (200000, 50000, 10), 0);
  assert_done (primary_stop (primary, true, &refusal));
  assert_refused (primary_start (primary, false, &refusal),
                  "replication was stopped for a failover");
  assert_int_equal (nr_messages (), 0);
}

static void
test_the_guest_sees_errors_of_its_own_disk (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_writes, true);
  atomic_store (&disk.fail_flushes, true);
  assert_requests (0, -1, -1);
  atomic_store (&disk.fail_writes, false);
  atomic_store (&disk.fail_flushes, false);
  assert_false (query ().error);
  assert_done (primary_checkpoint (primary, &refusal));
}

static void
assert_not_opened (const char *remote, const char *bitmap, const char *text)
{
  const struct primary_options options = {
    .remote = remote, .bitmap = bitmap,
  };

  forget_messages ();
  assert_null (primary_open (&options));
  assert_messages (1, text);
}

static void
test_bad_options (void **state)
{
  static const char foreign[8192] = "somebody's only copy";
  char buf[sizeof foreign];
  struct primary_options options = {
    .remote = server.uri, .bitmap = bitmap_file
  };
  int fd;

  (void) state;
  assert_not_opened ("/disk", NULL, "must be given as an NBD URI");
  assert_not_opened (NULL, bitmap_file, "only with a remote");
  assert_int_equal (access (bitmap_file, F_OK), -1);
  assert_not_opened (server.uri, "/nonexistent/map",
                     "No such file or directory");
  assert_not_opened (server.uri, dir, "/test-replication-");

  write_file (bitmap_file, foreign, sizeof foreign);
  assert_not_opened (server.uri, bitmap_file, "not a replication bitmap");
  fd = open (bitmap_file, O_RDONLY);
  assert_int_equal (read (fd, buf, sizeof buf), sizeof buf);
  close (fd);
  assert_memory_equal (buf, foreign, sizeof buf);
  write_file (bitmap_file, "short", 5);
  assert_not_opened (server.uri, bitmap_file, "not a replication bitmap");
  unlink (bitmap_file);

  begin_primary (server.uri, bitmap_file, 0);
  assert_not_opened (server.uri, bitmap_file, "Failed to get");
  end_primary ();

  /* Each field of the header that cannot be right. */
  for (int at = 0; at < 24; ++at) {
    char byte;

    fd = open (bitmap_file, O_RDWR);
    assert_int_equal (pread (fd, &byte, 1, at), 1);
    byte ^= 0x40;
    assert_int_equal (pwrite (fd, &byte, 1, at), 1);
    forget_messages ();
    if (at == 16 || at == 17) {
      /* A size that has as many words of bits. */
      primary = primary_open (&options);
      assert_non_null (primary);
      assert_int_equal (primary_begin (primary, &disk.node), -1);
      assert_messages (1, "the bitmap is for a disk of ");
      end_primary ();
    }
    else
      assert_null (primary_open (&options));
    assert_int_equal (nr_messages (), 1);
    byte ^= 0x40;
    assert_int_equal (pwrite (fd, &byte, 1, at), 1);
    close (fd);
  }
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, 0);
  end_primary ();

  disk.node.read_only = true;
  primary = primary_open (&options);
  forget_messages ();
  assert_int_equal (primary_begin (primary, &disk.node), -1);
  assert_messages (1, "cannot be read-only");
}

static void
test_a_remote_that_does_not_fit_is_refused (void **state)
{
  char uri[160];

  (void) state;
  begin_primary (server.uri, NULL, GIVE_UP);
  assert_refused (primary_start (primary, false, &refusal),
                  "No such file or directory");
  assert_int_equal (query ().stage, REPLICATION_NONE);
  assert_false (query ().error);

  server_start (&server, "memory", "1M", NULL);
  assert_refused (primary_start (primary, false, &refusal),
                  "the remote has 1048576 bytes, and the disk 4206649");
  server_end (&server, SIGTERM);

  server_start (&server, "-r", "file", remote_file, NULL);
  assert_refused (primary_start (primary, false, &refusal),
                  "the export is read-only");
  server_end (&server, SIGTERM);

  start_remote ();
  server_hold (&server);
  assert_refused (primary_start (primary, false, &refusal),
                  "server does not answer");
  server_go_on (&server);
  assert_int_equal (query ().stage, REPLICATION_NONE);
  assert_done (primary_start (primary, false, &refusal));
  end_primary ();
  server_end (&server, SIGTERM);

  server_start (&server, "--filter=exportname", "file", remote_file,
                "exportname=one", "exportname-strict=true", NULL);
  snprintf (uri, sizeof uri, "nbd+unix:///two?socket=%s", server.sock);
  begin_primary (uri, NULL, 0);
  assert_refused (primary_start (primary, false, &refusal), "export");
  assert_int_equal (nr_messages (), 0);
}

/* One that takes writes when the gate is gone; it makes another file when
 * the first of them has come.
 */
static void
start_gated_remote (void)
{
  char wait[256];

  close (open (gate_file, O_WRONLY | O_CREAT, 0600));
  snprintf (wait, sizeof wait, "touch %s; while [ -e %s ]; do sleep 0.05; "
            "done", began_file, gate_file);
  start_scripted_remote (wait, "exit 0");
}

/* All in one area, of which only one copy is under way at a time. */
static void
write_until_finished (struct unit_thread *t)
{
  while (!atomic_load (&finished)) {
    CHECK (write_at (random_below (&t->seed, AREA - 5000), 5000,
                     next_random (&t->seed)) == 0);
    pause_a_moment ();
  }
}

/* The remote flushes, so the checkpoint goes on to hold the guest's writes,
 * but it takes none.  They do not wait for the remote's time limit, which
 * is longer than that of this test.
 */
static void
test_the_remote_hangs_while_writes_are_held (void **state)
{
  struct unit_thread threads[2];

  (void) state;
  start_gated_remote ();
  begin_primary (server.uri, NULL, 3600 * 1000);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 5000, 7), 0);
  atomic_store (&finished, false);
  start_threads (threads, 2, write_until_finished, NULL);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "the remote has not taken everything within 5.0 seconds");
  stop_changing (threads, 2);
  assert_true (query ().dirty_bytes > 0);

  unlink (gate_file);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

/* Fail over when a write has come to a remote that takes its time. */
static void
fail_over_while_sending (void)
{
  char wait[160];

  snprintf (wait, sizeof wait, "touch %s; sleep 0.1", gate_file);
  start_scripted_remote (wait, "exit 0");
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 5000, 7), 0);
  wait_for (access (gate_file, F_OK) == 0);
  assert_done (primary_stop (primary, true, &refusal));
}

/* Nothing that was sent arrives when a failover is done.  On a busy machine
 * it may take longer than the failover waits, which is told; but not always.
 */
static void
test_a_failover_waits_for_what_was_sent (void **state)
{
  (void) state;
  fail_over_while_sending ();
  for (unsigned i = 0; i < 10 && nr_messages () > 0; ++i) {
    assert_messages (1, "may arrive there later");
    wait_for (first_difference () == -1);
    end_primary ();
    server_end (&server, SIGKILL);
    unlink (gate_file);
    make_remote (DISK_SIZE);
    forget_messages ();
    fail_over_while_sending ();
  }
  assert_int_equal (nr_messages (), 0);
  assert_int_equal (first_difference (), -1);
  assert_false (query ().remote_connected);
}

static void
kill_the_server (struct unit_thread *t)
{
  (void) t;
  wait_for (query ().stage == REPLICATION_DONE);
  server_end (&server, SIGKILL);
}

/* A failover does not wait for long for a remote that does not answer, and
 * says so, also if the connection is lost meanwhile.
 */
static void
test_a_failover_says_what_was_not_answered (void **state)
{
  (void) state;
  for (unsigned killed = 0; killed < 2; ++killed) {
    struct unit_thread thread;

    start_gated_remote ();
    begin_primary (server.uri, NULL, 3600 * 1000);
    assert_done (primary_start (primary, false, &refusal));
    assert_int_equal (write_at (0, 5000, 7), 0);
    wait_for (access (began_file, F_OK) == 0);
    start_threads (&thread, killed, kill_the_server, NULL);
    assert_done (primary_stop (primary, true, &refusal));
    join_threads (&thread, killed);
    assert_messages (1, "may arrive there later");
    unlink (gate_file);
    /* Or the shell would write when the next test has begun. */
    wait_for (first_difference () == -1);
    make_remote (DISK_SIZE);
    unlink (began_file);
    forget_messages ();
    end_primary ();
    server_end (&server, SIGKILL);
  }
}

static void
test_the_end_does_not_wait_for_a_remote_that_hangs (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, bitmap_file, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  server_hold (&server);
  assert_int_equal (write_at (3 * AREA, 5000, 5), 0);
  end_primary ();
  server_go_on (&server);
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, AREA);
}

/* Prepared by one thread, ended by another. */
static void
commit_it (struct unit_thread *t)
{
  struct replication_refusal r;

  if (t->opaque)
    CHECK (primary_checkpoint_commit (primary, &r) == 0);
  primary_checkpoint_release (primary);
}

static void
test_a_prepared_checkpoint_holds_writes (void **state)
{
  struct unit_thread threads[2];
  unsigned before;

  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_refused (primary_checkpoint_commit (primary, &refusal),
                  "no checkpoint has been prepared");
  primary_checkpoint_release (primary);
  assert_done (primary_start (primary, false, &refusal));
  start_changing (threads, 2);
  for (unsigned i = 0; i < 4; ++i) {
    char buf[100];

    assert_done (primary_checkpoint_prepare (primary, NULL, &refusal));
    before = atomic_load (&disk.changes);
    assert_refused (primary_checkpoint_prepare (primary, NULL, &refusal),
                    "a checkpoint has been prepared");
    assert_refused (primary_checkpoint (primary, &refusal),
                    "a checkpoint has been prepared");
    assert_refused (primary_start (primary, false, &refusal),
                    "a checkpoint has been prepared");
    assert_int_equal (node_pread (node, buf, sizeof buf, 0), 0);
    pause_a_moment ();
    assert_int_equal (atomic_load (&disk.changes), before);
    run_threads (1, commit_it, i % 2 ? primary : NULL);
    wait_for (atomic_load (&disk.changes) > before + 10);
  }
  assert_int_equal (query ().checkpoints, 2);

  /* A failover does not wait for anybody. */
  assert_done (primary_checkpoint_prepare (primary, NULL, &refusal));
  assert_done (primary_stop (primary, true, &refusal));
  before = atomic_load (&disk.changes);
  wait_for (atomic_load (&disk.changes) > before + 10);
  stop_changing (threads, 2);
}

/* The end of the server does not wait for a command that waits. */
static void
checkpoint_in_vain (struct unit_thread *t)
{
  struct replication_refusal r;

  (void) t;
  CHECK (primary_checkpoint (primary, &r) == -1);
  CHECK (strstr (r.desc, "interrupted"));
}

static void
test_commands_can_be_cancelled (void **state)
{
  struct unit_thread thread;

  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  server_hold (&server);
  assert_int_equal (write_at (0, 1000, 3), 0);
  start_threads (&thread, 1, checkpoint_in_vain, NULL);
  pause_a_moment ();
  primary_interrupt (primary, true);
  join_threads (&thread, 1);
  server_go_on (&server);
  primary_interrupt (primary, false);
  assert_done (primary_checkpoint (primary, &refusal));
  end_primary ();
  assert_int_equal (first_difference (), -1);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_stages_with_a_remote),
    TEST (test_the_guest_sees_errors_of_its_own_disk),
    TEST (test_bad_options),
    TEST (test_a_remote_that_does_not_fit_is_refused),
    TEST (test_the_remote_hangs_while_writes_are_held),
    TEST (test_a_failover_waits_for_what_was_sent),
    TEST (test_a_failover_says_what_was_not_answered),
    TEST (test_the_end_does_not_wait_for_a_remote_that_hangs),
    TEST (test_a_prepared_checkpoint_holds_writes),
    TEST (test_commands_can_be_cancelled),
  };

  return cmocka_run_group_tests_name ("replication-primary", tests,
                                      make_folder, remove_folder);
}
