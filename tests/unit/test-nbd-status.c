/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Block status of an NBD node, and zeroes. */

#include <config.h>

#include <signal.h>

#include <libnbd.h>

#include "tests/unit/nbd-unit.h"

/* A file with data here and there; the kernel is the judge of where. */
static void
make_sparse_file (uint64_t size)
{
  char data[4096];
  int fd = open (disk, O_RDWR | O_CREAT | O_TRUNC, 0600);

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, size), 0);
  memset (data, 'd', sizeof data);
  for (uint64_t at = 64 * 1024; at < size; at += 256 * 1024)
    for (unsigned i = 0; i < 8; ++i)
      assert_int_equal (pwrite (fd, data, sizeof data,
                                at + i * sizeof data), sizeof data);
  assert_int_equal (fsync (fd), 0);
  close (fd);
}

static unsigned
compare_extents (struct node *n)
{
  const uint64_t size = node_size (n);
  int fd = open (disk, O_RDONLY);
  uint64_t at = 0;
  unsigned nr = 0;
  struct extent e;

  assert_true (fd >= 0);
  while (at < size) {
    const off_t data = lseek (fd, at, SEEK_DATA);
    const bool hole = data == -1 || (uint64_t) data > at;
    const uint64_t end = data == -1 ? size :
      hole ? (uint64_t) data : (uint64_t) lseek (fd, at, SEEK_HOLE);

    assert_int_equal (node_extents (n, size - at, at, &e), 0);
    assert_within (e.length, 1, end - at);
    assert_int_equal (e.flags & (EXTENT_HOLE | EXTENT_ZERO),
                      hole ? EXTENT_HOLE | EXTENT_ZERO : 0);
    assert_true (e.flags & EXTENT_MAPPED);
    assert_int_equal (e.offset, at);
    assert_ptr_equal (e.where, n);
    assert_int_equal (e.depth, 0);

    /* A shorter question gets a shorter answer. */
    assert_int_equal (node_extents (n, 1, at, &e), 0);
    assert_int_equal (e.length, 1);
    at = end;
    nr++;
  }
  close (fd);
  return nr;
}

static void
test_extents (void **state)
{
  struct node *n;
  unsigned nr, asked;

  (void) state;
  make_sparse_file (16 * MIB);
  start_server ("--filter=log", "file", disk, log_option, NULL);
  n = open_node (false);
  nr = compare_extents (n);
  assert_true (nr > 100);
  assert_int_equal (node_close (n), 0);
  asked = nr_requests ("Extents");

  /* Nobody writes, so one reply serves for many questions. */
  n = open_node (true);
  assert_int_equal (compare_extents (n), nr);
  assert_int_equal (node_start (n), 0);
  assert_int_equal (compare_extents (n), nr);
  assert_int_equal (node_close (n), 0);
  assert_within (nr_requests ("Extents") - asked, 1, 2);
}

/* Writes show in the block status that is asked for after them. */
static void
test_extents_follow_writes (void **state)
{
  struct node *n;
  struct extent e;
  char buf[65536];

  (void) state;
  start_server ("memory", "1M", NULL);
  n = open_node (false);
  assert_int_equal (node_extents (n, MIB, 0, &e), 0);
  assert_true (e.flags & EXTENT_ZERO);
  memset (buf, 'w', sizeof buf);
  assert_int_equal (node_pwrite (n, buf, sizeof buf, 0), 0);
  assert_int_equal (node_extents (n, MIB, 0, &e), 0);
  assert_false (e.flags & EXTENT_ZERO);
  assert_within (e.length, 1, sizeof buf);
  assert_int_equal (node_close (n), 0);
}

/* Of a node that is written to the server is asked once for data, and
 * again where it was zeroed or discarded; a copy of a cluster asks nothing.
 */
static void
test_data_is_asked_for_once (void **state)
{
  uint8_t buf[65536];
  struct extent e;
  struct node *n;
  uint64_t length;
  unsigned asked;

  (void) state;
  start_server ("--filter=log", "memory", "1M", log_option, NULL);
  n = open_node (false);
  memset (buf, 'w', sizeof buf);
  for (uint64_t at = 0; at < MIB; at += sizeof buf)
    assert_int_equal (node_pwrite (n, buf, sizeof buf, at), 0);

  asked = nr_requests ("Extents");
  for (uint64_t at = 0; at < MIB; at += 4096) {
    assert_int_equal (node_zeroes (n, 4096, at, &length), 0);
    assert_int_equal (length, 0);
  }
  assert_int_equal (nr_requests ("Extents"), asked);
  for (uint64_t at = 0; at < MIB; at += 4096) {
    assert_int_equal (node_extents (n, 4096, at, &e), 0);
    assert_int_equal (e.length, 4096);
    assert_false (e.flags & EXTENT_ZERO);
  }
  assert_within (nr_requests ("Extents") - asked, 1, 1);

  for (int discard = 0; discard < 2; ++discard) {
    const uint64_t at = MIB / 2 + discard * 65536;

    assert_int_equal (discard ? node_discard (n, 65536, at)
                      : node_zero (n, 65536, at, NODE_MAY_TRIM), 0);
    assert_int_equal (node_extents (n, MIB - at, at, &e), 0);
    assert_true (e.flags & EXTENT_ZERO);
    assert_int_equal (e.length, 65536);
  }
  assert_int_equal (node_close (n), 0);
}

static void
test_server_without_block_status (void **state)
{
  struct node *n;
  struct extent e;

  (void) state;
  start_server ("--no-sr", "memory", "1M", NULL);
  n = open_node (true);
  assert_int_equal (node_extents (n, 100000, 1000, &e), 0);
  assert_int_equal (e.length, 100000);
  assert_int_equal (e.flags, EXTENT_MAPPED);
  assert_int_equal (e.offset, 1000);
  assert_int_equal (node_close (n), 0);
}

static void
write_and_zero (struct node *n, unsigned flags)
{
  char buf[4096];

  memset (buf, 'x', sizeof buf);
  assert_int_equal (node_pwrite (n, buf, sizeof buf, 8192), 0);
  assert_int_equal (node_zero (n, sizeof buf, 8192, flags), 0);
  assert_int_equal (node_pread (n, buf, sizeof buf, 8192), 0);
  for (size_t i = 0; i < sizeof buf; ++i)
    assert_int_equal (buf[i], 0);
}

static void
test_server_without_zero (void **state)
{
  struct node *n;

  (void) state;
  start_server ("--filter=nozero", "--filter=log", "memory", "1M",
                "zeromode=none", log_option, NULL);
  n = open_node (false);
  assert_false (n->can_fast_zero);
  assert_int_equal (node_zero (n, 4096, 0, NODE_FAST), -1);
  assert_int_equal (errno, ENOTSUP);
  write_and_zero (n, NODE_MAY_TRIM);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);
  assert_int_equal (nr_requests ("Zero"), 0);
  assert_int_equal (nr_requests ("Write"), 2);
}

/* The server promises fast zeroes and then says that it has none. */
static void
test_fast_zero_is_refused (void **state)
{
  struct node *n;

  (void) state;
  start_server ("--filter=nozero", "--filter=log", "memory", "1M",
                "zeromode=plugin", "fastzeromode=slow", log_option, NULL);
  n = open_node (false);
  assert_true (n->can_fast_zero);
  assert_int_equal (node_zero (n, 4096, 0, NODE_FAST), -1);
  assert_int_equal (errno, ENOTSUP);
  write_and_zero (n, 0);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);
  assert_int_equal (nr_requests ("Zero"), 1);
}

/* Only with NODE_MAY_TRIM may the server give the space back. */
static void
test_zero_says_whether_it_may_trim (void **state)
{
  struct node *n;
  FILE *fp;
  char line[1024], seen[8] = "";

  (void) state;
  start_server ("--filter=log", "memory", "1M", log_option, NULL);
  n = open_node (false);
  assert_int_equal (node_zero (n, 4096, 0, 0), 0);
  assert_int_equal (node_zero (n, 4096, 0, NODE_MAY_TRIM), 0);
  assert_int_equal (node_zero (n, 4096, 0, NODE_FAST), 0);
  assert_int_equal (node_close (n), 0);

  fp = fopen (logfile, "r");
  assert_non_null (fp);
  while (fgets (line, sizeof line, fp))
    if (strstr (line, " Zero ")) {
      strcat (seen, strstr (line, "trim=1") ? "t" : "-");
      strcat (seen, strstr (line, "fast=1") ? "f" : "-");
    }
  fclose (fp);
  assert_string_equal (seen, "--t--f");
}

/* Serve the file by qemu-nbd, whose later versions know lengths of 64 bits.
 * Returns its process.
 */
static pid_t
start_qemu_nbd (char *uri, size_t size)
{
  char command[512];
  unsigned pid = 0;
  FILE *fp;

  snprintf (uri, size, "nbd+unix:///?socket=%s/qemu", dir);
  snprintf (command, sizeof command, "qemu-nbd -f raw -t -e 4 -k %s/qemu "
            "--discard=unmap --fork --pid-file=%s/pid %s", dir, dir, disk);
  assert_int_equal (system (command), 0);
  snprintf (command, sizeof command, "%s/pid", dir);
  fp = fopen (command, "r");
  assert_non_null (fp);
  assert_int_equal (fscanf (fp, "%u", &pid), 1);
  fclose (fp);
  unlink (command);
  return pid;
}

/* Do libnbd and the server agree on lengths of 64 bits? */
static bool
has_long_lengths (const char *uri)
{
  bool r = false;
#if LIBNBD_HAVE_NBD_GET_EXTENDED_HEADERS_NEGOTIATED
  struct nbd_handle *nbd = nbd_create ();

  assert_non_null (nbd);
  assert_int_equal (nbd_connect_uri (nbd, uri), 0);
  r = nbd_get_extended_headers_negotiated (nbd) == 1;
  nbd_close (nbd);
#endif
  return r;
}

/* Longer than 32 bits can say: in one piece where that can be said. */
static void
test_long_ranges (void **state)
{
  const struct node_open_options options = { .read_only = false };
  const uint64_t size = 9 * GIB;
  char uri[128], path[128];
  struct extent e = { .length = 0 };
  unsigned nr = 0;
  struct node *n;
  pid_t server;
  bool at_once;

  (void) state;
  make_sparse_file (MIB);
  assert_int_equal (truncate (disk, size), 0);
  server = start_qemu_nbd (uri, sizeof uri);
  at_once = has_long_lengths (uri);
  n = nbd_node_open (uri, &options);
  assert_non_null (n);
  assert_int_equal (node_pwrite (n, "x", 1, 6 * GIB - 1), 0);
  assert_int_equal (node_pwrite (n, "y", 1, 6 * GIB), 0);
  assert_int_equal (node_discard (n, 4 * GIB + MIB, MIB), 0);
  assert_int_equal (node_zero (n, 6 * GIB, 0, NODE_MAY_TRIM), 0);
  for (uint64_t at = 0; at < 6 * GIB; at += e.length, nr++) {
    assert_int_equal (node_extents (n, size - at, at, &e), 0);
    assert_int_equal (e.flags & EXTENT_ZERO, EXTENT_ZERO);
  }
  assert_int_equal (nr, at_once ? 1 : 2);
  assert_int_equal (node_pread (n, path, 1, 6 * GIB - 1), 0);
  assert_int_equal (path[0], 0);
  assert_int_equal (node_pread (n, path, 1, 6 * GIB), 0);
  assert_int_equal (path[0], 'y');
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);
  kill (server, SIGTERM);
  snprintf (path, sizeof path, "%s/qemu", dir);
  unlink (path);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_extents),
    TEST (test_extents_follow_writes),
    TEST (test_data_is_asked_for_once),
    TEST (test_server_without_block_status),
    TEST (test_server_without_zero),
    TEST (test_fast_zero_is_refused),
    TEST (test_zero_says_whether_it_may_trim),
    TEST (test_long_ranges),
  };

  return cmocka_run_group_tests_name ("nbd-status", tests, make_folder,
                                      remove_folder);
}
