/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Local files in each cache mode, with the alignment layer where a mode
 * needs it: what threads write to their own bytes, which share blocks, is
 * there when it is read as the file of a process that knows nothing of it.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "node/align.h"
#include "utils/rounding.h"
#define FOLDER_IN "/var/tmp"    /* no tmpfs, mostly */
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#define NAME "file.img"
#define THREADS 3
#define SHARE 50001             /* bytes of a thread; no multiple of blocks */
#define SIZE ((uint64_t) THREADS * SHARE)
#define ROUNDS (300 / ONE_IN)

static const enum node_cache modes[] = {
  NODE_CACHE_WRITEBACK, NODE_CACHE_WRITETHROUGH, NODE_CACHE_NONE,
  NODE_CACHE_DIRECTSYNC, NODE_CACHE_UNSAFE
};
#define NR_MODES (sizeof modes / sizeof modes[0])

struct share {
  struct node *n;
  uint64_t start, seed;
  uint8_t model[SHARE];
};

static uint64_t
file_length (void)
{
  struct stat st;

  CHECK (stat (NAME, &st) == 0);
  return st.st_size;
}

static struct node *
open_new (enum node_cache cache, uint64_t size)
{
  const struct node_open_options options = { .cache = cache };
  const int fd = open (NAME, O_CREAT | O_TRUNC | O_WRONLY, 0600);
  struct node *n;

  CHECK (fd >= 0 && ftruncate (fd, size) == 0 && close (fd) == 0);
  n = align_open (NAME, &options);
  CHECK (n != NULL);
  assert_int_equal (node_size (n), size);
  return n;
}

/* In two pieces, of which the first begins anywhere in memory. */
static void
write_pieces (struct share *s, uint64_t offset, size_t count, uint64_t random)
{
  const size_t first = random % (count + 1);
  uint8_t *const from = s->model + offset;
  const struct iovec iov[] = {
    { .iov_base = from, .iov_len = first },
    { .iov_base = from + first, .iov_len = count - first }
  };

  CHECK (node_pwritev (s->n, iov, 2, s->start + offset) == 0);
}

static void
check_read (struct share *s, uint64_t offset, size_t count)
{
  CLEANUP_FREE uint8_t *buf = malloc (count + 1);

  CHECK (buf != NULL);
  CHECK (node_pread (s->n, buf, count, s->start + offset) == 0);
  CHECK (memcmp (buf, s->model + offset, count) == 0);
}

static void *
use_share (void *vp)
{
  struct share *s = vp;

  for (int i = 0; i < ROUNDS; ++i) {
    const uint64_t random = next_random (&s->seed);
    const size_t offset = random % SHARE;
    const size_t longest = MIN (SHARE - offset, (size_t) 20000);
    const size_t count = 1 + (random >> 20) % longest;

    switch ((random >> 40) % 4) {
    case 0:
      check_read (s, offset, count);
      break;
    case 1:
      memset (s->model + offset, 0, count);
      CHECK (node_zero (s->n, count, s->start + offset, NODE_MAY_TRIM) == 0);
      break;
    default:
      memset (s->model + offset, random >> 50, count);
      write_pieces (s, offset, count, random >> 44);
    }
  }
  check_read (s, 0, SHARE);
  return NULL;
}

static void
check_file (const struct share *shares)
{
  CLEANUP_FREE uint8_t *buf = malloc (SIZE);
  const int fd = open (NAME, O_RDONLY);

  CHECK (fd >= 0 && buf && file_length () == SIZE);
  CHECK (pread (fd, buf, SIZE, 0) == (ssize_t) SIZE);
  for (int i = 0; i < THREADS; ++i)
    CHECK (memcmp (buf + i * SHARE, shares[i].model, SHARE) == 0);
  close (fd);
}

static void
test_threads (void **state)
{
  CLEANUP_FREE struct share *shares = calloc (THREADS, sizeof *shares);
  pthread_t threads[THREADS];

  CHECK (shares != NULL);
  for (size_t m = 0; m < NR_MODES; ++m) {
    struct node *n = open_new (modes[m], SIZE);

    for (int i = 0; i < THREADS; ++i) {
      shares[i].n = n;
      shares[i].start = i * SHARE;
      shares[i].seed = 1 + i + THREADS * m;
      memset (shares[i].model, 0, SHARE);
      CHECK (pthread_create (&threads[i], NULL, use_share, &shares[i]) == 0);
    }
    for (int i = 0; i < THREADS; ++i)
      pthread_join (threads[i], NULL);
    CHECK (node_flush (n) == 0);
    CHECK (node_close (n) == 0);
    check_file (shares);
  }
}

/* It is what was asked for, though the last block is written as a whole. */
static void
test_length (void **state)
{
  static const uint64_t sizes[] = { 0, 1, 511, 4096, 4097, 10000, 3 };
  const uint8_t byte = 7;
  uint8_t back;

  for (size_t m = 0; m < NR_MODES; ++m) {
    struct node *n = open_new (modes[m], 12345);

    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; ++i) {
      const uint64_t size = sizes[i];

      assert_int_equal (node_resize (n, size), 0);
      assert_int_equal (node_size (n), size);
      if (size > 0) {
        assert_int_equal (node_pwrite (n, &byte, 1, size - 1), 0);
        assert_int_equal (node_pread (n, &back, 1, size - 1), 0);
        assert_int_equal (back, byte);
      }
      assert_int_equal (file_length (), size);
    }
    assert_int_equal (node_close (n), 0);
  }
}

static unsigned
flags_at (struct node *n, uint64_t offset)
{
  struct extent e;

  assert_int_equal (node_extents (n, node_size (n) - offset, offset, &e), 0);
  return e.flags & EXTENT_ZERO;
}

/* What was found out about data is forgotten when a hole is made. */
static void
test_extents (void **state)
{
  static const uint8_t data[65536] = { 1 };
  const uint64_t size = 8 * sizeof data;

  for (size_t m = 0; m < NR_MODES; ++m) {
    struct node *n = open_new (modes[m], size);

    for (uint64_t offset = 0; offset < size; offset += sizeof data)
      assert_int_equal (node_pwrite (n, data, sizeof data, offset), 0);
    assert_int_equal (flags_at (n, 0), 0);
    assert_int_equal (flags_at (n, size / 2), 0);

    assert_int_equal (node_discard (n, size / 4, size / 2), 0);
    assert_int_equal (flags_at (n, size / 2), EXTENT_ZERO);
    assert_int_equal (flags_at (n, 0), 0);
    assert_int_equal (node_zero (n, size / 4, 0, NODE_MAY_TRIM), 0);
    assert_int_equal (flags_at (n, 0), EXTENT_ZERO);

    assert_int_equal (flags_at (n, size / 4), 0);
    assert_int_equal (node_resize (n, size / 4), 0);
    assert_int_equal (node_resize (n, size), 0);
    assert_int_equal (flags_at (n, size / 4), EXTENT_ZERO);
    assert_int_equal (node_close (n), 0);
  }
}

/* Locks and identity are those of the file, whatever is in between. */
static void
test_identity (void **state)
{
  for (size_t m = 0; m < NR_MODES; ++m) {
    struct node *n = open_new (modes[m], 5000);
    struct stat st;
    dev_t dev = 0;
    ino_t ino = 0;

    CHECK (stat (NAME, &st) == 0);
    assert_true (node_identity (n, &dev, &ino));
    assert_true (dev == st.st_dev && ino == st.st_ino);
    assert_int_equal (node_add_lock (n, NODE_LOCK_IMAGE), 0);
    assert_null (node_create_file (NAME, false));
    assert_false (node_is_removed (n));
    unlink (NAME);
    assert_true (node_is_removed (n));
    assert_int_equal (node_close (n), 0);
  }
}

/* Writes beyond the limit of the length of files fail, whatever the process
 * does with the signal, and up to the limit they do not.
 */
static void
test_limit (void **state)
{
  const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
  const struct rlimit limit = { 8192, RLIM_INFINITY };
  sigset_t before, after;
  struct sigaction action;
  uint8_t block[4096] = { 0 };

  (void) state;
  signal (SIGXFSZ, SIG_DFL);
  pthread_sigmask (SIG_SETMASK, NULL, &before);
  for (size_t i = 0; i < NR_MODES; ++i) {
    struct node *n = open_new (modes[i], 12288);

    CHECK (setrlimit (RLIMIT_FSIZE, &limit) == 0);
    assert_int_equal (node_pwrite (n, block, sizeof block, 4096), 0);
    assert_int_equal (node_pwrite (n, block, sizeof block, 8192), -1);
    assert_int_equal (errno, EFBIG);
    assert_int_equal (node_resize (n, 1 << 20), -1);
    CHECK (setrlimit (RLIMIT_FSIZE, &none) == 0);
    assert_int_equal (node_pwrite (n, block, sizeof block, 8192), 0);
    assert_int_equal (node_close (n), 0);
    unlink (NAME);
  }
  sigaction (SIGXFSZ, NULL, &action);
  assert_true (action.sa_handler == SIG_DFL);
  pthread_sigmask (SIG_SETMASK, NULL, &after);
  for (int signal = 1; signal < NSIG; ++signal)
    assert_int_equal (sigismember (&after, signal),
                      sigismember (&before, signal));
}

static void *
write_beyond (void *opaque)
{
  struct node *n = opaque;
  const uint8_t block[4096] = { 0 };

  for (int i = 0; i < 2; ++i) {
    CHECK (node_pwrite (n, block, sizeof block, 8192) == -1);
    CHECK (errno == EFBIG);
    CHECK (node_pwrite (n, block, sizeof block, 4096) == 0);
  }
  return NULL;
}

/* A limit that comes when a thread has written before. */
static void *
write_and_limit (void *opaque)
{
  const struct rlimit limit = { 8192, RLIM_INFINITY };
  struct node *n = opaque;
  const uint8_t block[4096] = { 0 };

  CHECK (node_pwrite (n, block, sizeof block, 8192) == 0);
  CHECK (setrlimit (RLIMIT_FSIZE, &limit) == 0);
  return write_beyond (n);
}

/* The same in threads, of which those of a server write; another one's
 * signal does not come here.
 */
static void
test_limit_in_threads (void **state)
{
  const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
  struct node *n = open_new (modes[0], 12288);
  sigset_t pending;
  pthread_t thread;

  (void) state;
  signal (SIGXFSZ, SIG_DFL);
  assert_int_equal (pthread_create (&thread, NULL, write_and_limit, n), 0);
  assert_int_equal (pthread_join (thread, NULL), 0);
  assert_int_equal (pthread_create (&thread, NULL, write_beyond, n), 0);
  assert_int_equal (pthread_join (thread, NULL), 0);
  assert_int_equal (sigpending (&pending), 0);
  assert_false (sigismember (&pending, SIGXFSZ));
  CHECK (setrlimit (RLIMIT_FSIZE, &none) == 0);
  assert_int_equal (node_close (n), 0);
  unlink (NAME);
}

/* A medium that loses what it could not write: the flush that finds that out
 * fails, and one more would have nothing left to do.
 */
static atomic_uint nr_flushes;

static int
lossy_flush (struct node *n)
{
  const unsigned nr = atomic_fetch_add (&nr_flushes, 1);

  (void) n;
  if (nr > 0)
    return 0;
  usleep (50000);
  errno = ENOSPC;
  return -1;
}

static int
lossy_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
               size_t count, uint64_t offset)
{
  (void) n, (void) iov, (void) iovcnt, (void) count, (void) offset;
  return 0;
}

static const struct node_ops lossy_ops = {
  .type = "lossy", .pwritev = lossy_pwritev, .flush = lossy_flush,
};

static void
flush_lossy (struct unit_thread *t)
{
  CHECK (node_flush (t->opaque) == -1 && errno == ENOSPC);
}

static void
test_flushes_that_fail (void **state)
{
  struct node n = {
    .ops = &lossy_ops, .name = (char *) "lossy", .size = 4096,
    .keeps_flush_error = true
  };

  (void) state;
  run_threads (4, flush_lossy, &n);
  assert_int_equal (nr_flushes, 1);
  assert_int_equal (node_pwrite (&n, "x", 1, 0), 0);

  /* The same where each write is flushed. */
  n.flush_errno = 0;
  n.sync = true;
  nr_flushes = 0;
  assert_int_equal (node_pwrite (&n, "x", 1, 0), -1);
  assert_int_equal (node_pwrite (&n, "x", 1, 0), -1);
  assert_int_equal (node_flush (&n), -1);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_threads),
    cmocka_unit_test (test_length),
    cmocka_unit_test (test_extents),
    cmocka_unit_test (test_identity),
    cmocka_unit_test (test_limit),
    cmocka_unit_test (test_limit_in_threads),
    cmocka_unit_test (test_flushes_that_fail),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
