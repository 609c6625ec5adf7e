/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Requests to an NBD node: what is read is what was written, however they
 * are cut, collected and spread over connections.
 */

#include <config.h>

#include "tests/unit/nbd-unit.h"

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
  struct area a = { .node = n, .rounds = 300 / ONE_IN };

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
    assert_within (e.length, 1, 10 * GIB);
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

/* After a flush that failed nobody knows what is on the medium, unless the
 * caller writes all of it again.
 */
static void
test_a_failed_flush (void **state)
{
  char flush[256];

  (void) state;
  snprintf (flush, sizeof flush,
            "flush=if [ -e %s ]; then rm %s; echo EIO >&2; exit 1; fi",
            disk, disk);
  start_server ("eval", "get_size=echo 1M", "can_write=exit 0",
                "can_flush=exit 0", "pread=exit 1", "pwrite=cat >/dev/null",
                flush, NULL);
  for (int rewrites = 0; rewrites < 2; ++rewrites) {
    const struct node_open_options options = { .rewrites = rewrites };
    struct node *n = node_open (server.uri, &options);
    char buf[512] = "";

    assert_non_null (n);
    assert_int_equal (node_flush (n), 0);
    close (open (disk, O_CREAT | O_WRONLY, 0600));
    assert_int_equal (node_flush (n), -1);
    assert_int_equal (errno, EIO);
    forget_messages ();
    assert_int_equal (node_pwrite (n, buf, sizeof buf, 0), 0);
    if (rewrites)
      assert_int_equal (node_flush (n), 0);
    else {
      assert_int_equal (node_flush (n), -1);
      assert_int_equal (errno, EIO);
      assert_messages (1, "an earlier flush failed");
    }
    assert_int_equal (node_close (n), 0);
  }
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
    TEST (test_errors_of_the_server),
    TEST (test_a_failed_flush),
    TEST (test_many_writes),
  };

  return cmocka_run_group_tests_name ("nbd-requests", tests, make_folder,
                                      remove_folder);
}
