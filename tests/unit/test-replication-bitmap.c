/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The map of what the remote lacks, in a file that outlives the primary.
 */

#include <config.h>

#include "tests/unit/primary-unit.h"

/* Whatever is dirty is sent at a clean end, and the bitmap's file is
 * clean.
 */
static void
test_a_clean_end_leaves_a_clean_bitmap (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (12345, 1000000, 5), 0);
  end_primary ();
  assert_int_equal (first_difference (), -1);
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, 0);
}

/* Areas are remembered in all stages. */
static void
test_the_bitmap_survives (void **state)
{
  (void) state;
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (write_at (0, 10, 1), 0);
  assert_int_equal (query ().dirty_bytes, 4096);
  end_primary ();

  start_remote ();
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, AREA);
  assert_done (primary_start (primary, false, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().dirty_bytes, 0);
  server_end (&server, SIGKILL);
  assert_int_equal (write_at (5 * AREA - 1, 2, 2), 0);
  assert_done (primary_stop (primary, true, &refusal));
  assert_int_equal (write_at (64 * AREA + 12344, 1, 3), 0);
  end_primary ();

  start_remote ();
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, 2 * AREA + 16384);
  assert_done (primary_start (primary, false, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

/* The process ends at any moment; the disk is in memory that it shares
 * with the next one.
 */
static void
crash_while_changing (uint64_t seed)
{
  struct unit_thread threads[3];
  const unsigned delay = random_below (&seed, 120000);

  start_threads (threads, 3, change_until_finished, NULL);
  while (random_below (&seed, 3)) {
    usleep (random_below (&seed, 20000));
    primary_checkpoint (primary, &refusal);
  }
  usleep (delay);
  kill (getpid (), SIGKILL);
}

/* A fault of nbdkit 1.32: it may abort when a client goes away with requests
 * in flight.  That is as if it had been killed.
 */
static bool
remote_has_aborted (void)
{
  pause_a_moment ();
  if (waitpid (server.pid, NULL, WNOHANG) == 0)
    return false;
  server.pid = 0;
  start_forgetful_remote ();
  return true;
}

static void
test_the_bitmap_survives_a_crash (void **state)
{
  char *const private = disk.data;
  uint64_t seed = 4711;

  (void) state;
  disk.data = mmap (NULL, DISK_SIZE, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  assert_ptr_not_equal (disk.data, MAP_FAILED);
  start_forgetful_remote ();
  for (int i = 0; i < 12; ++i) {
    const uint64_t child_seed = next_random (&seed);
    pid_t pid = fork ();
    int status;

    assert_true (pid >= 0);
    if (pid == 0) {
      begin_primary (server.uri, bitmap_file, 0);
      if (child_seed % 4 && primary_start (primary, false, &refusal) == -1)
        _exit (1);
      crash_while_changing (child_seed);
    }
    assert_int_equal (waitpid (pid, &status, 0), pid);
    /* It may have aborted so late that this one could not start. */
    if (remote_has_aborted () && WIFEXITED (status))
      continue;
    assert_true (WIFSIGNALED (status) && WTERMSIG (status) == SIGKILL);
    if (i % 3 == 0) {
      server_end (&server, SIGKILL);
      start_forgetful_remote ();
    }
    if (i % 2) {
      begin_primary (server.uri, bitmap_file, 0);
      assert_done (primary_start (primary, false, &refusal));
      checkpoint_and_compare ();
      assert_int_equal (query ().dirty_bytes, 0);
      end_primary ();
    }
  }
  munmap (disk.data, DISK_SIZE);
  disk.data = private;
}

/* A host that went down may have lost bits. */
static void
test_after_a_power_failure_all_is_dirty (void **state)
{
  pid_t pid = fork ();
  char id[36];
  int fd;

  (void) state;
  assert_true (pid >= 0);
  if (pid == 0) {
    begin_primary (server.uri, bitmap_file, 0);
    kill (getpid (), SIGKILL);
  }
  assert_int_equal (waitpid (pid, NULL, 0), pid);
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, 0);
  primary_close (primary);
  primary = NULL;

  /* After a clean end it does not matter who used it. */
  memset (id, 'x', sizeof id);
  fd = open (bitmap_file, O_RDWR);
  assert_int_equal (pwrite (fd, id, sizeof id, 32), sizeof id);
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, 0);
  end_primary ();
  assert_int_equal (nr_messages (), 0);

  assert_int_equal (pwrite (fd, id, sizeof id, 32), sizeof id);
  assert_int_equal (pwrite (fd, "\1", 1, 24), 1);
  close (fd);
  begin_primary (server.uri, bitmap_file, 0);
  assert_int_equal (query ().dirty_bytes, DISK_SIZE);
  assert_messages (1, "all areas count as dirty");
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_a_clean_end_leaves_a_clean_bitmap),
    TEST (test_the_bitmap_survives),
    TEST (test_the_bitmap_survives_a_crash),
    TEST (test_after_a_power_failure_all_is_dirty),
  };

  return cmocka_run_group_tests_name ("replication-bitmap", tests,
                                      make_folder, remove_folder);
}
