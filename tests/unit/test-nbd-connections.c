/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The connections of an NBD node: lost, opened again, cut off. */

#include <config.h>

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>

#include "tests/unit/nbd-unit.h"

/* Nobody closes what somebody polls, or will in a moment: the number may
 * soon be of another file.  This takes the place of the C library's.
 */
static atomic_uint nr_closed_polled;

static void
check_open (const struct pollfd *fds, nfds_t nr)
{
  for (nfds_t i = 0; i < nr; ++i)
    if (fds[i].fd >= 0 && fcntl (fds[i].fd, F_GETFD) == -1)
      atomic_fetch_add (&nr_closed_polled, 1);
}

int
poll (struct pollfd *fds, nfds_t nr, int timeout)
{
  const struct timespec ts = {
    .tv_sec = timeout / 1000, .tv_nsec = timeout % 1000 * 1000000
  };
  int r, err;

  sched_yield ();
  check_open (fds, nr);
  r = ppoll (fds, nr, timeout < 0 ? NULL : &ts, NULL);
  err = errno;
  sched_yield ();
  check_open (fds, nr);
  errno = err;
  return r;
}

static void
test_nobody_answers (void **state)
{
  const struct node_open_options options = { .read_only = true };

  (void) state;
  assert_null (node_open (server.uri, &options));
  assert_int_equal (errno, ENOENT);
  assert_messages (1, "No such file or directory");
  assert_non_null (strstr (messages.last, server.uri));
}

/* Requests of all kinds, which meet the end of their server. */
static void
doomed_request (struct unit_thread *t)
{
  struct node *n = t->opaque;
  char buf[4096] = "";
  struct extent e;
  int r;

  switch (t->nr % 4) {
  case 0:
    r = node_pread (n, buf, sizeof buf, 512);
    break;
  case 1:
    r = n->read_only ? node_pread (n, buf, sizeof buf, 0) :
      node_pwrite (n, buf, sizeof buf, 0);
    break;
  case 2:
    r = n->read_only ? node_pread (n, buf, sizeof buf, 0) :
      node_zero (n, sizeof buf, 0, 0);
    break;
  default:
    r = node_extents (n, 4096, 0, &e);
  }
  CHECK (r == -1);
  CHECK (errno == EIO);
}

static void
kill_server_in_flight (struct node *n)
{
  struct unit_thread threads[12];

  start_threads (threads, 12, doomed_request, n);
  while (nr_requests ("Read") + nr_requests ("Write") +
         nr_requests ("Zero") + nr_requests ("Extents") < 12)
    pause_a_moment ();
  end_server (SIGKILL);
  join_threads (threads, 12);
}

/* Processor time of this process, in ms. */
static int64_t
cpu_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_PROCESS_CPUTIME_ID, &ts);
  return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void
test_server_dies_under_a_writable_node (void **state)
{
  struct node *n;
  char buf[512];
  int64_t before;

  (void) state;
  start_slow_server ("1M");
  n = open_node (false);
  assert_int_equal (node_start (n), 0);
  kill_server_in_flight (n);
  assert_messages (12, "server closed the connection (not connecting again, "
                   "since writes after the last flush may be lost)");
  assert_non_null (strstr (messages.last, server.uri));

  /* Drivers of dead connections rest. */
  before = cpu_ms ();
  for (int i = 0; i < 50; ++i)
    pause_a_moment ();
  assert_within (cpu_ms () - before, 0, 250);

  /* It stays dead when the server comes back. */
  start_server ("memory", "1M", NULL);
  for (unsigned i = 0; i < 8; ++i) {
    forget_messages ();
    assert_int_equal (node_pread (n, buf, sizeof buf, 512), -1);
    assert_int_equal (errno, EIO);
    assert_messages (1, "read of 512 bytes at offset 512: server closed");
  }
  forget_messages ();
  assert_int_equal (node_flush (n), -1);
  assert_int_equal (errno, EIO);
  assert_messages (1, ": flush: server closed the connection");
  assert_int_equal (node_close (n), 0);
}

static void
test_server_dies_before_start (void **state)
{
  struct node *n;
  char buf[512];

  (void) state;
  start_server ("memory", "1M", NULL);
  n = open_node (false);
  end_server (SIGKILL);
  for (unsigned i = 0; i < 3; ++i) {
    forget_messages ();
    assert_int_equal (node_pwrite (n, buf, sizeof buf, 512), -1);
    assert_int_equal (errno, EIO);
    assert_messages (1, "write of 512 bytes at offset 512: server closed");
  }
  assert_int_equal (node_start (n), 0);
  assert_int_equal (node_pread (n, buf, sizeof buf, 512), -1);
  assert_int_equal (errno, EIO);
  assert_int_equal (node_close (n), 0);
}

/* Read until it works; each attempt that does not says why. */
static void
read_until_success (struct unit_thread *t)
{
  char buf[4096];
  unsigned streak = 0;

  for (unsigned tries = 0; streak < 8; ++tries) {
    CHECK (tries < 5000);
    if (node_pread (t->opaque, buf, sizeof buf, 0) == 0) {
      CHECK (memcmp (buf, "served again", 12) == 0);
      streak++;
      continue;
    }
    CHECK (errno == EIO);
    streak = 0;
    pause_a_moment ();
  }
}

static void
start_server_with_file (uint64_t size)
{
  int fd = open (disk, O_RDWR | O_CREAT | O_TRUNC, 0600);

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, size), 0);
  assert_int_equal (pwrite (fd, "served again", 12, 0), 12);
  close (fd);
  start_server ("file", disk, NULL);
}

static void
reconnect (bool started)
{
  struct node *n;
  char buf[512];
  unsigned attempts = 0;

  start_slow_server ("1M");
  n = open_node (true);
  if (started) {
    assert_int_equal (node_start (n), 0);
    kill_server_in_flight (n);
    /* Of what it met last, which a busy machine may leave at the loss. */
    assert_messages (12, ": ");
    assert_true (strstr (messages.last, ": cannot connect: ") ||
                 strstr (messages.last, ": server closed the connection"));
  }
  else
    end_server (SIGKILL);

  /* No server; then one that serves something else; then the right one. */
  for (unsigned i = 0; i < 8; ++i) {
    forget_messages ();
    assert_int_equal (node_pread (n, buf, sizeof buf, 512), -1);
    assert_int_equal (errno, EIO);
    assert_messages (1, "read of 512 bytes at offset 512: ");
    attempts += strstr (messages.last, ": cannot connect: ") != NULL;
  }
  assert_true (attempts > 0);

  start_server_with_file (2 * MIB);
  do {
    assert_int_equal (node_pread (n, buf, sizeof buf, 512), -1);
    assert_int_equal (errno, EIO);
    pause_a_moment ();
  } while (!strstr (messages.last,
                    "size has changed from 1048576 to 2097152 bytes"));
  end_server (SIGKILL);

  start_server_with_file (MIB);
  run_threads (started ? 12 : 1, read_until_success, n);

  if (!started) {
    assert_int_equal (node_start (n), 0);
    run_threads (12, read_until_success, n);
  }
  assert_int_equal (node_close (n), 0);
}

static void
test_read_only_node_connects_again (void **state)
{
  (void) state;
  reconnect (true);
}

static void
test_read_only_node_connects_again_before_start (void **state)
{
  (void) state;
  reconnect (false);
}

/* A server that is stopped and started again in an orderly way, where nbdkit
 * answers ESHUTDOWN for as long as a connection lasts, or is killed and
 * started again.  Nobody who only reads need learn of it.
 */
static atomic_bool restarted;

static void
read_through (struct unit_thread *t)
{
  struct node *n = t->opaque;
  char buf[512];
  struct extent e;

  while (!atomic_load (&restarted)) {
    CHECK (node_pread (n, buf, sizeof buf, 0) == 0);
    CHECK (memcmp (buf, "served again", 12) == 0);
    CHECK (node_extents (n, 4096, t->nr * 65536, &e) == 0);
    CHECK (node_cache (n, 4096, 0) == 0);
  }
}

static void
read_while_restarted (bool started, int sig)
{
  const unsigned nr = started ? 8 : 1;
  struct unit_thread threads[8];
  struct node *n;

  start_server_with_file (MIB);
  n = open_node (true);
  if (started)
    assert_int_equal (node_start (n), 0);
  atomic_store (&restarted, false);
  start_threads (threads, nr, read_through, n);
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 5; ++j)
      pause_a_moment ();
    end_server (sig);
    start_server_with_file (MIB);
  }
  atomic_store (&restarted, true);
  join_threads (threads, nr);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);
}

static void
test_read_only_node_outlives_a_restart (void **state)
{
  (void) state;
  read_while_restarted (true, SIGTERM);
  read_while_restarted (true, SIGKILL);
}

static void
test_read_only_node_outlives_a_restart_before_start (void **state)
{
  (void) state;
  read_while_restarted (false, SIGTERM);
  read_while_restarted (false, SIGKILL);
}

/* One that stays away costs the first request a moment, not each of them:
 * that would be half an hour here.
 */
static void
test_dead_server_is_awaited_once (void **state)
{
  struct node *n;
  char buf[512];

  (void) state;
  for (unsigned started = 0; started < 2; ++started) {
    start_server ("memory", "1M", NULL);
    n = open_node (true);
    if (started)
      assert_int_equal (node_start (n), 0);
    end_server (SIGKILL);
    forget_messages ();
    for (unsigned i = 0; i < HANG_SECONDS; ++i) {
      assert_int_equal (node_pread (n, buf, sizeof buf, 0), -1);
      assert_int_equal (errno, EIO);
    }
    assert_int_equal (nr_messages (), HANG_SECONDS);
    assert_int_equal (node_close (n), 0);
  }
}

/* A server that goes away and comes back all the time: reads fail or
 * are right, and nothing hangs.
 */
static atomic_bool finished;

static void
read_on (struct unit_thread *t)
{
  char buf[512];

  while (!atomic_load (&finished)) {
    if (node_pread (t->opaque, buf, sizeof buf, 0) == 0)
      CHECK (memcmp (buf, "served again", 12) == 0);
    else
      CHECK (errno == EIO);
  }
}

static void
test_server_comes_and_goes (void **state)
{
  struct unit_thread threads[8];
  struct node *n;

  (void) state;
  start_server_with_file (MIB);
  n = open_node (true);
  assert_int_equal (node_start (n), 0);
  atomic_store (&finished, false);
  atomic_store (&nr_closed_polled, 0);
  start_threads (threads, 8, read_on, n);
  for (int i = 0; i < 5; ++i) {
    for (int j = 0; j < 20; ++j)
      pause_a_moment ();
    end_server (SIGKILL);
    start_server_with_file (MIB);
  }
  atomic_store (&finished, true);
  join_threads (threads, 8);
  run_threads (8, read_until_success, n);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (atomic_load (&nr_closed_polled), 0);
}

/* The caller wants to know when the server is lost, and says it himself. */
static atomic_uint nr_lost;

static void
count_lost (void *opaque)
{
  CHECK (opaque == &nr_lost);
  atomic_fetch_add (&nr_lost, 1);
}

static void
doomed_write (struct unit_thread *t)
{
  char buf[4096] = "";

  CHECK (node_pwrite (t->opaque, buf, sizeof buf, 0) == -1);
  CHECK (errno == EIO);
}

static void
lose_server (bool cut)
{
  const struct node_open_options options = {
    .lost = count_lost, .opaque = &nr_lost,
  };
  struct unit_thread threads[8];
  struct node *n;
  char cause[100] = "";

  atomic_store (&nr_lost, 0);
  start_slow_server ("1M");     /* stopping it takes a moment */
  n = align_open (server.uri, &options);
  assert_non_null (n);
  assert_int_equal (node_start (n), 0);
  assert_false (node_is_lost (n, cause, sizeof cause));
  server_hold (&server);
  start_threads (threads, 8, doomed_write, n);
  pause_a_moment ();
  assert_int_equal (atomic_load (&nr_lost), 0);
  if (cut)
    node_cut (n);
  else
    kill (server.pid, SIGKILL);
  join_threads (threads, 8);

  /* Whoever noticed it may tell when requests have failed already. */
  while (atomic_load (&nr_lost) == 0)
    pause_a_moment ();
  assert_true (node_is_lost (n, NULL, 0));
  assert_true (node_is_lost (n, cause, sizeof cause));
  assert_string_equal (cause, cut ? "server does not answer" :
                       "server closed the connection");
  assert_int_equal (node_flush (n), -1);
  assert_int_equal (errno, EIO);
  node_cut (n);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (atomic_load (&nr_lost), 1);
  assert_int_equal (nr_messages (), 0);
  end_server (SIGKILL);
}

static void
test_loss_is_told (void **state)
{
  (void) state;
  lose_server (false);
}

static void
test_a_server_that_hangs_can_be_cut_off (void **state)
{
  (void) state;
  lose_server (true);
}

/* Without a descriptor of our own a server could not be cut off. */
static void
test_descriptors_run_out (void **state)
{
  const struct node_open_options options = { .read_only = true };
  struct rlimit limit, low;
  struct node *n;
  int lowest;

  (void) state;
  start_server ("memory", "1M", NULL);
  lowest = dup (0);
  assert_true (lowest >= 0);
  close (lowest);
  assert_int_equal (getrlimit (RLIMIT_NOFILE, &limit), 0);
  low = limit;
  low.rlim_cur = lowest + 1;    /* the socket itself */
  assert_int_equal (setrlimit (RLIMIT_NOFILE, &low), 0);
  n = node_open (server.uri, &options);
  assert_int_equal (setrlimit (RLIMIT_NOFILE, &limit), 0);
  assert_null (n);
  assert_int_equal (errno, EMFILE);
  assert_messages (1, "another descriptor of the socket: "
                   "Too many open files");
}

/* Several nodes wait for the end of what was cut. */
static void
connect_later (struct unit_thread *t)
{
  const struct node_open_options options = { .timeout = 60000 };
  struct node *n = node_open (server.uri, &options);

  CHECK (n);
  CHECK (node_close (n) == 0);
}

static void
test_waiting_for_what_was_cut (void **state)
{
  struct unit_thread threads[8];
  struct node *n;

  (void) state;
  atomic_store (&nr_closed_polled, 0);
  for (int i = 0; i < 10; ++i) {
    start_server ("memory", "1M", NULL);
    n = open_node (false);
    assert_int_equal (node_start (n), 0);
    server_hold (&server);
    node_cut (n);
    assert_int_equal (node_close (n), 0);
    start_threads (threads, 8, connect_later, NULL);
    pause_a_moment ();
    server_go_on (&server);
    join_threads (threads, 8);
    end_server (SIGKILL);
  }
  assert_int_equal (nr_messages (), 0);
  assert_int_equal (atomic_load (&nr_closed_polled), 0);
}

/* Closing does not wait for a server that does not answer. */
static void
test_close_without_an_answer (void **state)
{
  struct node *n;

  (void) state;
  start_server ("memory", "1M", NULL);
  n = open_node (false);
  assert_int_equal (node_start (n), 0);
  server_hold (&server);
  assert_int_equal (node_close (n), 0);
}

/* Attempts to connect end, and tell the caller why they failed. */
static void
connect_in_vain (struct node_open_options options, const char *text)
{
  char cause[100] = "";

  options.cause = cause;
  options.cause_size = sizeof cause;
  assert_null (align_open (server.uri, &options));
  assert_non_null (strstr (cause, text));
  assert_int_equal (nr_messages (), 0);
}

static void
test_connecting_has_a_limit (void **state)
{
  const uint64_t one = 1;
  int cancel = eventfd (0, EFD_CLOEXEC);

  (void) state;
  connect_in_vain ((struct node_open_options) { .timeout = 60000 },
                   "No such file or directory");
  start_server ("-r", "memory", "1M", NULL);
  connect_in_vain ((struct node_open_options) { .timeout = 60000 },
                   "the export is read-only");
  server_hold (&server);
  connect_in_vain ((struct node_open_options) { .timeout = 100 },
                   "server does not answer");
  assert_int_equal (errno, ETIMEDOUT);
  assert_int_equal (write (cancel, &one, sizeof one), sizeof one);
  connect_in_vain ((struct node_open_options) { .cancel = cancel },
                   "server does not answer");
  close (cancel);
}

/* TLS with a key from a local file, which the user may name but an
 * image file may not.
 */
static void
test_key_files (void **state)
{
  struct node_open_options options = { .read_only = true };
  char tls_uri[256], psk_option[80];
  struct node *n;
  char buf[512];
  FILE *fp = fopen (disk, "w");

  (void) state;
  assert_non_null (fp);
  fputs ("alice:5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e"
         "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e\n", fp);
  fclose (fp);
  snprintf (psk_option, sizeof psk_option, "--tls-psk=%s", disk);
  start_server ("--tls=require", psk_option, "memory", "1M", NULL);
  snprintf (tls_uri, sizeof tls_uri,
            "nbds+unix://alice@/?socket=%s&tls-psk-file=%s",
            server.sock, disk);

  n = node_open (tls_uri, &options);
  assert_non_null (n);
  assert_int_equal (node_start (n), 0);
  assert_int_equal (node_pread (n, buf, sizeof buf, 0), 0);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);

  options.from_file = true;
  assert_null (node_open (tls_uri, &options));
  assert_messages (1, "local file access");
}

static void
becomes (const char *uri, const char *expected)
{
  CLEANUP_FREE char *absolute = node_absolute_uri (uri);

  assert_string_equal (absolute, expected);
}

/* Paths in a URI are made absolute, and nothing else. */
static void
test_absolute_uri (void **state)
{
  char folder[128], expected[512], longer[256];
  const int cwd = open (".", O_RDONLY | O_DIRECTORY);

  (void) state;
  snprintf (folder, sizeof folder, "%s/a b&c", dir);
  assert_int_equal (mkdir (folder, 0700), 0);
  assert_int_equal (chdir (folder), 0);

  snprintf (expected, sizeof expected, "nbds+unix://u@/x?tls-psk-file="
            "%s/a%%20b%%26c/k&y=z&socket=%s/a%%20b%%26c/s%%20t#f", dir, dir);
  becomes ("nbds+unix://u@/x?tls-psk-file=k&y=z&socket=s%20t#f", expected);
  snprintf (expected, sizeof expected, "nbd+unix:///?socket="
            "%s/a%%20b%%26c/../s", dir);
  becomes ("nbd+unix:///?socket=../s", expected);

  becomes ("nbd://host/socket=s", "nbd://host/socket=s");
  becomes ("nbd+unix:///?socket=", "nbd+unix:///?socket=");
  becomes ("nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s");
  becomes ("nbd+unix:///?socket=%2fs", "nbd+unix:///?socket=%2fs");
  becomes ("nbd+unix:///?mysocket=s", "nbd+unix:///?mysocket=s");

  /* As an absolute one this would not fit into an address. */
  snprintf (longer, sizeof longer, "nbd+unix:///?socket=%0100d", 0);
  becomes (longer, longer);

  assert_int_equal (fchdir (cwd), 0);
  close (cwd);
  rmdir (folder);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_nobody_answers),
    TEST (test_server_dies_under_a_writable_node),
    TEST (test_server_dies_before_start),
    TEST (test_read_only_node_connects_again),
    TEST (test_read_only_node_connects_again_before_start),
    TEST (test_read_only_node_outlives_a_restart),
    TEST (test_read_only_node_outlives_a_restart_before_start),
    TEST (test_dead_server_is_awaited_once),
    TEST (test_server_comes_and_goes),
    TEST (test_loss_is_told),
    TEST (test_a_server_that_hangs_can_be_cut_off),
    TEST (test_descriptors_run_out),
    TEST (test_waiting_for_what_was_cut),
    TEST (test_close_without_an_answer),
    TEST (test_connecting_has_a_limit),
    TEST (test_key_files),
    TEST (test_absolute_uri),
  };

  return cmocka_run_group_tests_name ("nbd-connections", tests, make_folder,
                                      remove_folder);
}
