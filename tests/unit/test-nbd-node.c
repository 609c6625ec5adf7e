/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* NBD nodes against real servers: nbdkit with its own plugins and
 * filters, which also tells, by its log, what was asked of it.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "node/node.h"
#include "utils/rounding.h"
#include "tests/unit/server.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C (1024) * 1024)
#define GIB (1024 * MIB)

static char dir[] = "/tmp/test-nbd-node-XXXXXX";
static char disk[64], logfile[64], log_option[80];
static struct server server;

#define start_server(...) server_start (&server, __VA_ARGS__)
#define end_server(sig) server_end (&server, (sig))

static struct node *
open_node (bool read_only)
{
  const struct node_open_options options = { .read_only = read_only };
  struct node *n = align_open (server.uri, &options);

  assert_non_null (n);
  assert_int_equal (n->align, 1);
  return n;
}

/* How many requests of this kind has the server's log? */
static unsigned
nr_requests (const char *kind)
{
  char line[1024], begin[64];
  unsigned nr = 0;
  FILE *fp = fopen (logfile, "r");

  assert_non_null (fp);
  snprintf (begin, sizeof begin, " %s ", kind);
  while (fgets (line, sizeof line, fp))
    nr += strstr (line, begin) != NULL;
  fclose (fp);
  return nr;
}

static int
setup (void **state)
{
  (void) state;
  forget_messages ();
  return 0;
}

static int
teardown (void **state)
{
  (void) state;
  /* It would wait for a node that a failed test has left open. */
  end_server (SIGKILL);
  unlink (disk);
  unlink (logfile);
  return 0;
}

/* Random requests of one thread on its own part of the export, against
 * a model in memory.
 */
#define AREA (256 * 1024)
#define MAX_REQUEST UINT64_C (20000)

struct area {
  struct node *node;
  uint64_t offset;              /* of the area in the node */
  unsigned rounds;
};

/* Write in up to 5 parts, empty ones among them. */
static int
write_parts (struct node *n, char *data, size_t count, uint64_t offset,
             uint64_t *seed)
{
  struct iovec iov[5];
  int nr = 0;
  size_t done = 0;

  while (nr < 4) {
    const size_t len = random_below (seed, count - done + 1);

    iov[nr++] = (struct iovec) { .iov_base = data + done, .iov_len = len };
    done += len;
  }
  iov[nr++] = (struct iovec) {
    .iov_base = data + done, .iov_len = count - done
  };
  return node_pwritev (n, iov, nr, offset);
}

static void
hammer_area (const struct area *a, uint64_t *seed)
{
  CLEANUP_FREE char *model = calloc (1, AREA);
  CLEANUP_FREE char *buf = malloc (AREA);
  struct extent e;

  for (unsigned i = 0; i < a->rounds; ++i) {
    const uint64_t start = random_below (seed, AREA);
    const size_t count =
      1 + random_below (seed, MIN (AREA - start, MAX_REQUEST));
    const uint64_t offset = a->offset + start;

    switch (random_below (seed, 10)) {
    case 0 ... 3:
      CHECK (node_pread (a->node, buf, count, offset) == 0);
      CHECK (memcmp (buf, model + start, count) == 0);
      break;
    case 4 ... 6:
      for (size_t j = 0; j < count; ++j)
        model[start + j] = next_random (seed);
      if (i % 2)
        CHECK (node_pwrite (a->node, model + start, count, offset) == 0);
      else
        CHECK (write_parts (a->node, model + start, count, offset,
                            seed) == 0);
      break;
    case 7:
      memset (model + start, 0, count);
      CHECK (node_zero (a->node, count, offset,
                        i % 2 ? NODE_MAY_TRIM : 0) == 0);
      break;
    case 8:
      /* May change its range to zeroes, and nothing else. */
      CHECK (node_discard (a->node, count, offset) == 0);
      CHECK (node_pread (a->node, buf, AREA, a->offset) == 0);
      for (size_t j = 0; j < AREA; ++j) {
        CHECK (buf[j] == model[j] ||
               (buf[j] == 0 && j >= start && j < start + count));
        model[j] = buf[j];
      }
      break;
    default:
      CHECK (node_flush (a->node) == 0);
      CHECK (node_cache (a->node, count, offset) == 0);
      CHECK (node_extents (a->node, count, offset, &e) == 0);
      CHECK (e.length > 0 && e.length <= count);
      if (e.flags & EXTENT_ZERO)
        for (size_t j = 0; j < e.length; ++j)
          CHECK (model[start + j] == 0);
    }
  }
  CHECK (node_pread (a->node, buf, AREA, a->offset) == 0);
  CHECK (memcmp (buf, model, AREA) == 0);
}

static void
hammer_thread (struct unit_thread *t)
{
  struct area a = *(struct area *) t->opaque;

  a.offset += (uint64_t) t->nr * AREA;
  hammer_area (&a, &t->seed);
}

/* With one thread before node_start, with many after it. */
static void
hammer_node (void)
{
  uint64_t seed = 42;
  struct node *n = open_node (false);
  struct area a = { .node = n, .rounds = 300 };

  assert_int_equal (node_size (n), 16 * MIB);
  assert_true (n->fixed_size);
  hammer_area (&a, &seed);
  a.offset = AREA;
  assert_int_equal (node_start (n), 0);
  run_threads (16, hammer_thread, &a);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);
}


static void
test_several_connections (void **state)
{
  (void) state;
  start_server ("--filter=log", "memory", "16M", log_option, NULL);
  hammer_node ();
  end_server (SIGTERM);
  assert_int_equal (nr_requests ("Connect"), 4);
}

static void
test_one_connection (void **state)
{
  (void) state;
  start_server ("--filter=log", "--filter=multi-conn", "memory", "16M",
                log_option, "multi-conn-mode=disable", NULL);
  hammer_node ();
  end_server (SIGTERM);
  assert_int_equal (nr_requests ("Connect"), 1);
}

static void
test_fewer_connections_than_promised (void **state)
{
  (void) state;
  start_server ("--filter=limit", "memory", "16M", "limit=2", NULL);
  hammer_node ();
}

static void
test_requests_must_be_aligned (void **state)
{
  const struct node_open_options options = { .read_only = false };
  struct node *n;

  (void) state;
  start_server ("--filter=blocksize-policy", "memory", "16M",
                "blocksize-minimum=4096", "blocksize-preferred=16K",
                "blocksize-maximum=64K", "blocksize-error-policy=error",
                NULL);
  n = node_open (server.uri, &options);
  assert_non_null (n);
  assert_int_equal (n->align, 4096);
  assert_int_equal (n->preferred, 16384);
  assert_int_equal (node_close (n), 0);
  hammer_node ();
}

/* Commands shorter than what is sent without copying otherwise. */
static void
test_requests_must_be_short (void **state)
{
  (void) state;
  start_server ("--filter=blocksize-policy", "memory", "16M",
                "blocksize-preferred=512", "blocksize-maximum=4K",
                "blocksize-error-policy=error", NULL);
  hammer_node ();
}

static void
fill_random (char *buf, size_t count, uint64_t seed)
{
  for (size_t i = 0; i + 8 <= count; i += 8) {
    next_random (&seed);
    memcpy (buf + i, &seed, 8);
  }
}

/* Longer than a command may be, in few and in many parts. */
static void
test_long_requests (void **state)
{
  const size_t count = 100 * MIB;
  CLEANUP_FREE char *data = malloc (count);
  CLEANUP_FREE char *buf = malloc (count);
  struct iovec iov[1000];
  struct node *n;

  (void) state;
  start_server ("memory", "200M", NULL);
  n = open_node (false);
  for (int started = 0; started < 2; ++started) {
    fill_random (data, count, 17 + started);
    assert_int_equal (node_pwrite (n, data, count, 4711), 0);
    assert_int_equal (node_pread (n, buf, count, 4711), 0);
    assert_memory_equal (data, buf, count);

    /* Short and long parts in turn, 100 KiB together. */
    fill_random (data, count, 19 + started);
    for (int i = 0; i < 1000; ++i)
      iov[i] = (struct iovec) {
        .iov_base = data + i / 2 * 200 * 1024 + (i % 2 ? 1000 : 0),
        .iov_len = i % 2 ? 200 * 1024 - 1000 : 1000,
      };
    assert_int_equal (node_pwritev (n, iov, 1000, 12345), 0);
    assert_int_equal (node_pread (n, buf, 500 * 200 * 1024, 12345), 0);
    assert_memory_equal (data, buf, 500 * 200 * 1024);

    /* Short ones only, more than a buffer can hold. */
    fill_random (data, count, 21 + started);
    for (int i = 0; i < 1000; ++i)
      iov[i] = (struct iovec) {
        .iov_base = data + i * 30000, .iov_len = 30000,
      };
    assert_int_equal (node_pwritev (n, iov, 1000, 777), 0);
    assert_int_equal (node_pread (n, buf, 1000 * 30000, 777), 0);
    assert_memory_equal (data, buf, 1000 * 30000);

    if (!started)
      assert_int_equal (node_start (n), 0);
  }
  assert_int_equal (node_close (n), 0);
}

/* More than 4 GiB, which a command cannot say. */
static void
test_long_ranges (void **state)
{
  static const uint64_t places[] = { 0, 4 * GIB - 512, 4 * GIB, 9 * GIB };
  struct node *n;
  char buf[512];
  struct extent e;

  (void) state;
  start_server ("memory", "10G", NULL);
  n = open_node (false);
  for (unsigned flags = 0; flags < 4; ++flags) {
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i) {
      memset (buf, 'x', sizeof buf);
      assert_int_equal (node_pwrite (n, buf, sizeof buf, places[i]), 0);
    }
    if (flags < 3)
      assert_int_equal (node_zero (n, 10 * GIB, 0, NODE_MAY_TRIM | flags), 0);
    else
      assert_int_equal (node_discard (n, 10 * GIB, 0), 0);
    for (size_t i = 0; i < sizeof places / sizeof places[0]; ++i) {
      assert_int_equal (node_pread (n, buf, sizeof buf, places[i]), 0);
      for (size_t j = 0; j < sizeof buf; ++j)
        assert_int_equal (buf[j], 0);
    }
    assert_int_equal (node_extents (n, 10 * GIB, 0, &e), 0);
    assert_in_range (e.length, 1, 10 * GIB);
    assert_int_equal (node_cache (n, 10 * GIB, 0), 0);
  }
  assert_int_equal (node_close (n), 0);
}

/* The server answers a read only when it has eight of them at hand. */
static void
eight_reads (struct unit_thread *t)
{
  char buf[512];

  CHECK (node_pread (t->opaque, buf, sizeof buf, t->nr * sizeof buf) == 0);
}

static void
test_many_requests_in_flight_on_one_connection (void **state)
{
  struct node *n;

  (void) state;
  start_server ("eval", "get_size=echo 1M",
                "thread_model=echo parallel",
                "pread=touch $tmpdir/at-$4; i=0; "
                "while [ $(ls $tmpdir | grep -c ^at-) -lt 8 ]; do "
                "  i=$((i + 1)); "
                "  if [ $i -gt 1500 ]; then echo EIO alone >&2; exit 1; fi; "
                "  sleep 0.02; "
                "done; "
                "dd if=/dev/zero bs=$3 count=1 2>/dev/null", NULL);
  n = open_node (true);
  assert_int_equal (node_start (n), 0);
  run_threads (8, eight_reads, n);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (nr_messages (), 0);
}

static void
test_read_only (void **state)
{
  struct node_open_options options = { .read_only = false };
  struct node *n;
  char buf[512];

  (void) state;
  start_server ("-r", "memory", "1M", NULL);
  assert_null (node_open (server.uri, &options));
  assert_int_equal (errno, EROFS);
  assert_messages (1, "the export is read-only");

  forget_messages ();
  n = open_node (true);
  assert_int_equal (node_pread (n, buf, sizeof buf, MIB - sizeof buf), 0);
  assert_int_equal (node_flush (n), 0);
  assert_int_equal (nr_messages (), 0);
  assert_int_equal (node_pwrite (n, buf, sizeof buf, 0), -1);
  assert_int_equal (errno, EROFS);
  assert_int_equal (node_close (n), 0);
}

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
    assert_in_range (e.length, 1, end - at);
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
  assert_in_range (nr_requests ("Extents") - asked, 1, 2);
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
  assert_in_range (e.length, 1, sizeof buf);
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

static void
test_errors_of_the_server (void **state)
{
  struct node *n;
  char buf[512] = "";

  (void) state;
  start_server ("--filter=error", "memory", "1M", "error-pwrite=ENOSPC",
                "error-pwrite-rate=100%", NULL);
  n = open_node (false);
  for (int started = 0; started < 2; ++started) {
    forget_messages ();
    assert_int_equal (node_pwrite (n, buf, sizeof buf, 1024), -1);
    assert_int_equal (errno, ENOSPC);
    assert_messages (1, "write of 512 bytes at offset 1024: "
                     "No space left on device");
    assert_non_null (strstr (messages.last, server.uri));
    /* The connection lives on. */
    assert_int_equal (node_pread (n, buf, sizeof buf, 1024), 0);
    if (!started)
      assert_int_equal (node_start (n), 0);
  }
  assert_int_equal (node_close (n), 0);
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

static void
start_slow_server (const char *size)
{
  start_server ("--filter=log", "--filter=delay", "memory", size, log_option,
                "delay-read=60", "delay-write=60", "delay-zero=60",
                "delay-extents=60", NULL);
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
  assert_in_range (cpu_ms () - before, 0, 250);

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
    assert_messages (12, "server closed the connection");
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

/* A server that is asked to end while we are connected.  nbdkit answers
 * ESHUTDOWN then for as long as the connection lasts.
 */
static void
test_read_only_node_leaves_server_that_shuts_down (void **state)
{
  struct node *n;
  char buf[512];

  (void) state;
  start_server_with_file (MIB);
  n = open_node (true);
  assert_int_equal (node_start (n), 0);
  assert_int_equal (node_pread (n, buf, sizeof buf, 0), 0);
  assert_int_equal (kill (server.pid, SIGTERM), 0);
  while (node_pread (n, buf, sizeof buf, 0) == 0)
    pause_a_moment ();
  assert_int_equal (errno, EIO);
  end_server (SIGTERM);

  start_server_with_file (MIB);
  run_threads (12, read_until_success, n);
  assert_int_equal (node_close (n), 0);
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
}

/* Many writes at once, some longer than a command may be. */
static void
write_many (void)
{
  CLEANUP_FREE char *data = malloc (4 * MIB);
  CLEANUP_FREE char *buf = malloc (4 * MIB);
  struct node_write writes[200];
  struct node *n = open_node (false);

  for (int started = 0; started < 2; ++started) {
    fill_random (data, 4 * MIB, 23 + started);
    for (size_t i = 0; i < 199; ++i)
      writes[i] = (struct node_write) {
        .buf = data + i * 4096, .count = i % 7 * 512, .offset = i * 8192 + 512,
      };
    writes[199] = (struct node_write) {
      .buf = data + MIB, .count = 3 * MIB, .offset = 2 * MIB,
    };
    assert_int_equal (node_pwrite_many (n, writes, 200), 0);
    for (size_t i = 0; i < 200; ++i) {
      assert_int_equal (node_pread (n, buf, writes[i].count,
                                    writes[i].offset), 0);
      assert_memory_equal (buf, writes[i].buf, writes[i].count);
    }
    assert_int_equal (node_pwrite_many (n, NULL, 0), 0);
    writes[3].offset = node_size (n);
    assert_int_equal (node_pwrite_many (n, writes, 4), -1);
    assert_messages (1, "goes beyond the end");
    forget_messages ();
    if (!started)
      assert_int_equal (node_start (n), 0);
  }
  assert_int_equal (node_close (n), 0);
}

static void
test_many_writes (void **state)
{
  (void) state;
  start_server ("memory", "16M", NULL);
  write_many ();
  end_server (SIGTERM);
  start_server ("--filter=blocksize-policy", "memory", "16M",
                "blocksize-minimum=4096", "blocksize-preferred=16K",
                "blocksize-maximum=64K", "blocksize-error-policy=error",
                NULL);
  write_many ();
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

static int
make_folder (void **state)
{
  (void) state;
  if (mkdtemp (dir) == NULL)
    return -1;
  server_init (&server, dir);
  snprintf (disk, sizeof disk, "%s/disk", dir);
  snprintf (logfile, sizeof logfile, "%s/log", dir);
  snprintf (log_option, sizeof log_option, "logfile=%s", logfile);
  msg_set_handler (collect_message);
  alarm (HANG_SECONDS);
  return 0;
}

static int
remove_folder (void **state)
{
  (void) state;
  return rmdir (dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_several_connections),
    TEST (test_one_connection),
    TEST (test_fewer_connections_than_promised),
    TEST (test_requests_must_be_aligned),
    TEST (test_requests_must_be_short),
    TEST (test_long_requests),
    TEST (test_long_ranges),
    TEST (test_many_requests_in_flight_on_one_connection),
    TEST (test_read_only),
    TEST (test_extents),
    TEST (test_extents_follow_writes),
    TEST (test_server_without_block_status),
    TEST (test_server_without_zero),
    TEST (test_fast_zero_is_refused),
    TEST (test_zero_says_whether_it_may_trim),
    TEST (test_errors_of_the_server),
    TEST (test_nobody_answers),
    TEST (test_server_dies_under_a_writable_node),
    TEST (test_server_dies_before_start),
    TEST (test_read_only_node_connects_again),
    TEST (test_read_only_node_leaves_server_that_shuts_down),
    TEST (test_read_only_node_connects_again_before_start),
    TEST (test_server_comes_and_goes),
    TEST (test_many_writes),
    TEST (test_loss_is_told),
    TEST (test_a_server_that_hangs_can_be_cut_off),
    TEST (test_close_without_an_answer),
    TEST (test_connecting_has_a_limit),
    TEST (test_key_files),
    TEST (test_absolute_uri),
  };

  return cmocka_run_group_tests_name ("nbd-node", tests, make_folder,
                                      remove_folder);
}
