/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Alignment, over a node in memory that refuses what is not aligned and
 * is slow between reading and writing, so that two read-modify-writes
 * of one block which did not wait for each other would show.
 */

#include <config.h>

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "node/align.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

#define BLOCK 512
#define SIZE UINT64_C (262144)

/* The inner node. */
struct strict_node {
  struct node node;
  pthread_mutex_t lock;         /* protects data; a leaf lock */
  char *data;
  atomic_uint nr_reads, nr_writes, nr_zeroes, nr_discards;
  atomic_bool fail_reads, fail_writes;
  uint64_t last_offset, last_count; /* of a discard */
  unsigned extent_length;       /* 0: block by block */
  pthread_barrier_t *meeting;   /* where writes wait for each other */
  bool *closed;
};

static bool
aligned (uint64_t count, uint64_t offset)
{
  return is_aligned (offset | count, BLOCK);
}

static int
strict_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct strict_node *s = (struct strict_node *) n;

  CHECK (aligned (count, offset));
  atomic_fetch_add (&s->nr_reads, 1);
  if (atomic_load (&s->fail_reads)) {
    errno = EIO;
    return -1;
  }
  pthread_mutex_lock (&s->lock);
  memcpy (buf, s->data + offset, count);
  pthread_mutex_unlock (&s->lock);
  sched_yield ();
  return 0;
}

static int
strict_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                size_t count, uint64_t offset)
{
  struct strict_node *s = (struct strict_node *) n;
  char *to = s->data + offset;
  size_t total = 0;

  CHECK (aligned (count, offset));
  atomic_fetch_add (&s->nr_writes, 1);
  sched_yield ();
  if (s->meeting)
    pthread_barrier_wait (s->meeting);
  if (atomic_load (&s->fail_writes)) {
    errno = ENOSPC;
    return -1;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  for (int i = 0; i < iovcnt; ++i) {
    memcpy (to + total, iov[i].iov_base, iov[i].iov_len);
    total += iov[i].iov_len;
  }
  CHECK (total == count);
  return 0;
}

static int
strict_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct strict_node *s = (struct strict_node *) n;

  (void) flags;
  CHECK (aligned (count, offset));
  atomic_fetch_add (&s->nr_zeroes, 1);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  memset (s->data + offset, 0, count);
  return 0;
}

static int
strict_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct strict_node *s = (struct strict_node *) n;

  CHECK (aligned (count, offset));
  CHECK (count > 0);
  atomic_fetch_add (&s->nr_discards, 1);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->lock);
  s->last_offset = offset;
  s->last_count = count;
  memset (s->data + offset, 0, count);
  return 0;
}

/* Odd blocks are holes; or extents of any length, all of them data. */
static int
strict_extents (struct node *n, uint64_t count, uint64_t offset,
                struct extent *ret)
{
  struct strict_node *s = (struct strict_node *) n;
  const bool odd = offset / BLOCK % 2;

  CHECK (aligned (count, offset));
  CHECK (count > 0);
  *ret = (struct extent) {
    .length = BLOCK, .where = n, .offset = offset, .flags = EXTENT_MAPPED
  };
  if (s->extent_length)
    ret->length = MIN (count, s->extent_length);
  if (odd)
    ret->flags |= EXTENT_HOLE | EXTENT_ZERO;
  return 0;
}

static int
strict_flush (struct node *n)
{
  (void) n;
  return 0;
}

static int
strict_cache (struct node *n, uint64_t count, uint64_t offset)
{
  (void) n;
  CHECK (aligned (count, offset));
  return 0;
}

static int
strict_resize (struct node *n, uint64_t size)
{
  CHECK (size <= SIZE);
  atomic_store (&n->size, size);
  return 0;
}

static int64_t
strict_allocated_size (struct node *n)
{
  (void) n;
  return 4711;
}

static int
strict_close (struct node *n)
{
  struct strict_node *s = (struct strict_node *) n;

  if (s->closed)
    *s->closed = true;
  pthread_mutex_destroy (&s->lock);
  free (s->data);
  free (n->name);
  free (s);
  errno = ENOSPC;
  return -1;
}

static const struct node_ops strict_ops = {
  .type = "strict",
  .close = strict_close,
  .pread = strict_pread,
  .pwritev = strict_pwritev,
  .flush = strict_flush,
  .extents = strict_extents,
  .zero = strict_zero,
  .discard = strict_discard,
  .cache = strict_cache,
  .resize = strict_resize,
  .allocated_size = strict_allocated_size,
};

/* Full of 'i'. */
static struct strict_node *
strict_new (uint64_t size)
{
  struct strict_node *s = calloc (1, sizeof *s);

  assert_non_null (s);
  s->node.ops = &strict_ops;
  s->node.name = strdup ("strict");
  s->node.align = BLOCK;
  s->node.preferred = 4096;
  s->node.can_fast_zero = true;
  s->node.fixed_size = true;
  atomic_init (&s->node.size, size);
  pthread_mutex_init (&s->lock, NULL);
  s->data = malloc (size);
  assert_non_null (s->data);
  memset (s->data, 'i', size);
  return s;
}

static struct strict_node *inner;
static struct node *outer;

static int
setup_size (uint64_t size)
{
  forget_messages ();
  inner = strict_new (size);
  outer = align_node (&inner->node);
  assert_non_null (outer);
  return 0;
}

static int
setup (void **state)
{
  (void) state;
  return setup_size (SIZE);
}

static int
teardown (void **state)
{
  (void) state;
  node_close (outer);
  return 0;
}

static void
test_properties (void **state)
{
  bool closed = false;
  struct strict_node *s;
  struct node *n;

  (void) state;
  assert_int_equal (outer->align, 1);
  assert_int_equal (outer->preferred, 4096);
  assert_true (outer->can_fast_zero);
  assert_false (outer->read_only);
  assert_string_equal (outer->name, "strict");
  assert_int_equal (node_size (outer), SIZE);
  assert_int_equal (node_start (outer), 0);
  assert_int_equal (node_flush (outer), 0);
  assert_int_equal (node_cache (outer, 100, 1000), 0);
  assert_int_equal (node_allocated_size (outer), 4711);

  /* It owns what is below, whose result it returns. */
  s = strict_new (10 * BLOCK + 100);
  s->closed = &closed;
  n = align_node (&s->node);
  assert_non_null (n);
  assert_int_equal (node_size (n), 10 * BLOCK);
  errno = 0;
  assert_int_equal (node_close (n), -1);
  assert_int_equal (errno, ENOSPC);
  assert_true (closed);
}

static void
test_resize (void **state)
{
  (void) state;
  assert_int_equal (node_resize (outer, 3 * BLOCK), 0);
  assert_int_equal (node_size (outer), 3 * BLOCK);
  assert_int_equal (node_resize (outer, 5 * BLOCK + 100), 0);
  assert_int_equal (node_size (outer), 5 * BLOCK);
}

/* Random requests of many threads against a model.  Areas are no whole
 * blocks, so neighbours share a block, and in each there is a byte
 * between them that nobody writes.
 */
#define NR_THREADS 10
#define AREA 5000

static int
write_parts (const char *data, size_t count, uint64_t offset, uint64_t *seed)
{
  const size_t a = random_below (seed, count + 1);
  const size_t b = random_below (seed, count - a + 1);
  const struct iovec iov[3] = {
    { .iov_base = (char *) data, .iov_len = a },
    { .iov_base = (char *) data + a, .iov_len = b },
    { .iov_base = (char *) data + a + b, .iov_len = count - a - b },
  };

  return node_pwritev (outer, iov, 3, offset);
}

static void
check_discarded (char *model, uint64_t base, size_t start, size_t count)
{
  char buf[AREA];

  CHECK (node_pread (outer, buf, AREA - 1, base) == 0);
  for (size_t i = 0; i < AREA - 1; ++i) {
    CHECK (buf[i] == model[i] ||
           (buf[i] == 0 && i >= start && i < start + count));
    model[i] = buf[i];
  }
}

static void
hammer (struct unit_thread *t)
{
  const uint64_t base = t->nr * AREA;
  char model[AREA], buf[AREA];

  memset (model, 'i', sizeof model);
  for (unsigned round = 0; round < 3000; ++round) {
    const size_t start = random_below (&t->seed, AREA - 1);
    const size_t limit = round % 3 ? 700 : AREA;
    const size_t count =
      1 + random_below (&t->seed, MIN (limit, AREA - 1 - start));

    switch (random_below (&t->seed, 8)) {
    case 0 ... 1:
      CHECK (node_pread (outer, buf, count, base + start) == 0);
      CHECK (memcmp (buf, model + start, count) == 0);
      break;
    case 2 ... 4:
      for (size_t i = 0; i < count; ++i)
        model[start + i] = next_random (&t->seed);
      CHECK (write_parts (model + start, count, base + start,
                          &t->seed) == 0);
      break;
    case 5 ... 6:
      memset (model + start, 0, count);
      CHECK (node_zero (outer, count, base + start, NODE_MAY_TRIM) == 0);
      break;
    default:
      CHECK (node_discard (outer, count, base + start) == 0);
      check_discarded (model, base, start, count);
    }
  }
  CHECK (node_pread (outer, buf, AREA, base) == 0);
  CHECK (memcmp (buf, model, AREA - 1) == 0);
  CHECK (buf[AREA - 1] == 'i');
}

static void
test_random_requests_against_model (void **state)
{
  (void) state;
  run_threads (NR_THREADS, hammer, NULL);
  assert_int_equal (nr_messages (), 0);
  for (uint64_t i = NR_THREADS * AREA; i < SIZE; ++i)
    assert_int_equal (inner->data[i], 'i');
}

/* Whole blocks by some, single bytes of the same blocks by others: each
 * byte is what its last writer wrote.
 */
static void
count_in_shared_blocks (struct unit_thread *t)
{
  char buf[2 * BLOCK];

  for (unsigned i = 1; i <= 2000; ++i) {
    memset (buf, i, sizeof buf);
    if (t->nr < 8)              /* one byte, in the middle of a block */
      CHECK (node_pwrite (outer, buf, 1, 10 * BLOCK + 100 + t->nr) == 0);
    else                        /* the blocks on either side of it */
      CHECK (node_pwrite (outer, buf, 2 * BLOCK - 200,
                          t->nr == 8 ? 8 * BLOCK + 200 :
                          11 * BLOCK) == 0);
    if (i % 8 == 0 && t->nr < 8) {
      CHECK (node_pread (outer, buf, 1, 10 * BLOCK + 100 + t->nr) == 0);
      CHECK (buf[0] == (char) i);
    }
  }
}

static void
test_writers_of_one_block (void **state)
{
  (void) state;
  run_threads (10, count_in_shared_blocks, NULL);
  for (unsigned i = 0; i < 8; ++i)
    assert_int_equal (inner->data[10 * BLOCK + 100 + i], (char) 2000);
  assert_int_equal (inner->data[10 * BLOCK + 99], 'i');
  assert_int_equal (inner->data[10 * BLOCK + 108], 'i');
}

/* An aligned write must not be undone by the read-modify-write of its
 * neighbour, which has read the block before and writes it after.
 */
static void
write_whole_or_part (struct unit_thread *t)
{
  char buf[BLOCK], got[BLOCK];

  for (unsigned i = 1; i <= 2000; ++i) {
    memset (buf, i, sizeof buf);
    if (t->nr > 0) {            /* its own bytes at the end of a block */
      CHECK (node_pwrite (outer, buf, 10, 21 * BLOCK - 10 * t->nr) == 0);
      continue;
    }
    CHECK (node_pwrite (outer, buf, BLOCK, 20 * BLOCK) == 0);
    CHECK (node_pread (outer, got, BLOCK - 40, 20 * BLOCK) == 0);
    CHECK (memcmp (got, buf, BLOCK - 40) == 0);
  }
}

static void
test_whole_blocks_and_parts (void **state)
{
  (void) state;
  run_threads (5, write_whole_or_part, NULL);
}

/* Aligned writes wait for nobody, even on the same blocks; if they did
 * the barrier below them would never open.
 */
static void
write_aligned (struct unit_thread *t)
{
  char buf[4 * BLOCK] = "";

  CHECK (node_pwrite (outer, buf, sizeof buf, t->nr * BLOCK) == 0);
}

static void
write_unaligned_apart (struct unit_thread *t)
{
  CHECK (node_pwrite (outer, "x", 1, t->nr * BLOCK + 5) == 0);
}

static void
test_who_need_not_wait_does_not (void **state)
{
  pthread_barrier_t meeting;

  (void) state;
  pthread_barrier_init (&meeting, NULL, 4);
  inner->meeting = &meeting;
  run_threads (4, write_aligned, NULL);
  run_threads (4, write_unaligned_apart, NULL);
  pthread_barrier_destroy (&meeting);
}

/* Longer than any buffer. */
static void
test_long_requests (void **state)
{
  const size_t count = 5 * 1024 * 1024 + 333;
  CLEANUP_FREE char *data = malloc (count);
  CLEANUP_FREE char *buf = malloc (count);
  uint64_t seed = 7;

  (void) state;
  node_close (outer);
  setup_size (6 * 1024 * 1024);
  for (size_t i = 0; i < count; ++i)
    data[i] = next_random (&seed);
  for (uint64_t offset = 0; offset <= 1024; offset += 256) {
    assert_int_equal (node_zero (outer, node_size (outer), 0, 0), 0);
    atomic_store (&inner->nr_writes, 0);
    assert_int_equal (write_parts (data, count, offset, &seed), 0);
    assert_int_equal (atomic_load (&inner->nr_writes), 1);
    assert_int_equal (node_pread (outer, buf, count, offset), 0);
    assert_memory_equal (buf, data, count);
    for (uint64_t i = 0; i < offset; ++i)
      assert_int_equal (inner->data[i], 0);
    for (uint64_t i = offset + count; i < node_size (outer); ++i)
      assert_int_equal (inner->data[i], 0);
  }
}

static void
test_fast_zero (void **state)
{
  static const struct { uint64_t count, offset; } bad[] = {
    { 1, 0 }, { BLOCK, 1 }, { 3 * BLOCK, BLOCK / 2 }, { 2 * BLOCK + 1, BLOCK },
  };

  (void) state;
  for (unsigned i = 0; i < 4; ++i) {
    assert_int_equal (node_zero (outer, bad[i].count, bad[i].offset,
                                 NODE_FAST), -1);
    assert_int_equal (errno, ENOTSUP);
  }
  for (uint64_t i = 0; i < SIZE; ++i)
    assert_int_equal (inner->data[i], 'i');
  assert_int_equal (node_zero (outer, 2 * BLOCK, BLOCK, NODE_FAST), 0);
  for (uint64_t i = 0; i < SIZE; ++i)
    assert_int_equal (inner->data[i],
                      i >= BLOCK && i < 3 * BLOCK ? 0 : 'i');
  assert_int_equal (nr_messages (), 0);
}

static void
test_discard_of_whole_blocks (void **state)
{
  (void) state;
  assert_int_equal (node_discard (outer, BLOCK, 1), 0);
  assert_int_equal (node_discard (outer, 2 * BLOCK - 2, BLOCK + 1), 0);
  assert_int_equal (node_discard (outer, 0, BLOCK), 0);
  assert_int_equal (atomic_load (&inner->nr_discards), 0);
  assert_int_equal (node_discard (outer, 3 * BLOCK, BLOCK - 1), 0);
  assert_int_equal (atomic_load (&inner->nr_discards), 1);
  assert_int_equal (inner->last_offset, BLOCK);
  assert_int_equal (inner->last_count, 2 * BLOCK);
}

static void
test_extents (void **state)
{
  struct extent e;
  uint64_t seed = 11;

  (void) state;
  for (unsigned i = 0; i < 1000; ++i) {
    const uint64_t offset = random_below (&seed, SIZE);
    const uint64_t count = 1 + random_below (&seed, SIZE - offset);
    const bool hole = offset / BLOCK % 2;

    assert_int_equal (node_extents (outer, count, offset, &e), 0);
    assert_int_equal (e.length, MIN (count, BLOCK - offset % BLOCK));
    assert_int_equal (e.flags, EXTENT_MAPPED |
                      (hole ? EXTENT_HOLE | EXTENT_ZERO : 0));
    assert_int_equal (e.offset, offset);
  }
}

/* A server may answer with less than a block; what cannot be asked for
 * is then data, and never empty.
 */
static void
test_extents_of_less_than_a_block (void **state)
{
  struct extent e;

  (void) state;
  for (inner->extent_length = 1; inner->extent_length < 3 * BLOCK;
       inner->extent_length += 7)
    for (uint64_t offset = BLOCK; offset < 3 * BLOCK; offset += 3) {
      const uint64_t skip = offset % BLOCK;

      assert_int_equal (node_extents (outer, 10, offset, &e), 0);
      assert_within (e.length, 1, 10);
      assert_int_equal (e.offset, offset);
      if (inner->extent_length <= skip)
        assert_int_equal (e.flags, EXTENT_MAPPED);
      else
        assert_within (e.length, 1, inner->extent_length - skip);
    }
}

/* A request that fails changes nothing and leaves no claim behind. */
static void
test_failures (void **state)
{
  char buf[BLOCK];

  (void) state;
  atomic_store (&inner->fail_reads, true);
  assert_int_equal (node_pread (outer, buf, 10, 10), -1);
  assert_int_equal (errno, EIO);
  assert_int_equal (node_pwrite (outer, "xyz", 3, 10), -1);
  assert_int_equal (errno, EIO);
  assert_int_equal (node_zero (outer, 3, 10, 0), -1);
  assert_int_equal (errno, EIO);
  assert_int_equal (atomic_load (&inner->nr_writes), 0);

  atomic_store (&inner->fail_reads, false);
  atomic_store (&inner->fail_writes, true);
  assert_int_equal (node_pwrite (outer, "xyz", 3, 10), -1);
  assert_int_equal (errno, ENOSPC);

  atomic_store (&inner->fail_writes, false);
  for (uint64_t i = 0; i < SIZE; ++i)
    assert_int_equal (inner->data[i], 'i');
  assert_int_equal (node_pwrite (outer, "xyz", 3, 10), 0);
  assert_int_equal (node_pread (outer, buf, 5, 9), 0);
  assert_memory_equal (buf, "ixyzi", 5);
  /* The inner node would have said something. */
  assert_int_equal (nr_messages (), 0);
}

static void
test_aligned_requests_pass (void **state)
{
  char buf[4 * BLOCK];

  (void) state;
  memset (buf, 'p', sizeof buf);
  assert_int_equal (node_pwrite (outer, buf, sizeof buf, BLOCK), 0);
  assert_int_equal (node_zero (outer, BLOCK, 2 * BLOCK, 0), 0);
  assert_int_equal (atomic_load (&inner->nr_reads), 0);
  assert_int_equal (atomic_load (&inner->nr_writes), 1);
  assert_int_equal (atomic_load (&inner->nr_zeroes), 1);
  /* The blocks between two edges are zeroed, not written. */
  assert_int_equal (node_zero (outer, 4 * BLOCK, 10, 0), 0);
  assert_int_equal (atomic_load (&inner->nr_reads), 2);
  assert_int_equal (atomic_load (&inner->nr_writes), 3);
  assert_int_equal (atomic_load (&inner->nr_zeroes), 2);
}

/* A file wants nothing special. */
static void
test_open (void **state)
{
  const struct node_open_options options = { .read_only = true };
  char file[] = "/tmp/test-align-XXXXXX";
  int fd = mkstemp (file);
  struct node *n;

  (void) state;
  assert_true (fd >= 0);
  assert_int_equal (write (fd, "0123456789", 10), 10);
  close (fd);
  n = align_open (file, &options);
  assert_non_null (n);
  assert_string_equal (n->ops->type, "file");
  assert_int_equal (node_size (n), 10);
  assert_int_equal (node_close (n), 0);
  unlink (file);

  forget_messages ();
  assert_null (align_open (file, &options));
  assert_int_equal (errno, ENOENT);
  assert_int_equal (nr_messages (), 1);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

int
main (void)
{
  const struct CMUnitTest tests[] = {
    TEST (test_properties),
    TEST (test_resize),
    TEST (test_random_requests_against_model),
    TEST (test_writers_of_one_block),
    TEST (test_whole_blocks_and_parts),
    TEST (test_who_need_not_wait_does_not),
    TEST (test_long_requests),
    TEST (test_fast_zero),
    TEST (test_discard_of_whole_blocks),
    TEST (test_extents),
    TEST (test_extents_of_less_than_a_block),
    TEST (test_failures),
    TEST (test_aligned_requests_pass),
    TEST (test_open),
  };

  msg_set_handler (collect_message);
  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("align", tests, NULL, NULL);
}
