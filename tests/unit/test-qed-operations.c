/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What qed-img does to images: resize, empty, commit, rebase, measure
 * and giving leaks back, each against a model of the disk in memory, and
 * emptying and resizing a disk that is in use.
 */

#include <config.h>

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "utils/cleanup.h"
#include "utils/rounding.h"
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#include "node/node.h"
#include "qed/format.h"
#include "qed/qed.h"

#define CLUSTER 4096
#define DISK ((uint64_t) 24 * 1024 * 1024)

/* ---- Images */

static void
create (const char *name, uint64_t size, uint32_t table_size,
        const char *backing)
{
  const struct qed_create_options options = {
    .size = size, .cluster_size = CLUSTER, .table_size = table_size,
    .backing = backing,
    .backing_is_raw = backing && strstr (backing, ".raw")
  };

  unlink (name);
  assert_int_equal (qed_create (name, &options), 0);
}

static struct node *
open_image (const char *name)
{
  const struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n = qed_open (name, &options);

  assert_non_null (n);
  assert_int_equal (node_start (n), 0);
  return n;
}

static uint64_t
file_length (const char *name)
{
  struct stat st;

  assert_int_equal (stat (name, &st), 0);
  return st.st_size;
}

static void
patch (const char *name, const void *buf, size_t count, uint64_t offset)
{
  CLEANUP_CLOSE int fd = open (name, O_RDWR);

  assert_int_equal (pwrite (fd, buf, count, offset), count);
}

static uint64_t
entry_at (const char *name, uint64_t offset)
{
  CLEANUP_CLOSE int fd = open (name, O_RDONLY);
  uint8_t buf[QED_ENTRY_LEN];

  assert_int_equal (pread (fd, buf, sizeof buf, offset), sizeof buf);
  return qed_entry_get (buf, 0);
}

static void
set_entry (const char *name, uint64_t offset, uint64_t value)
{
  uint8_t buf[QED_ENTRY_LEN];

  qed_entry_put (buf, 0, value);
  patch (name, buf, sizeof buf, offset);
}

static void
check (const char *name, enum qed_fix fix, struct qed_check_result *result)
{
  assert_int_equal (qed_check (name, fix, false, NODE_CACHE_WRITEBACK,
                               NULL, NULL, result), 0);
}

static void
assert_clean (const char *name)
{
  struct qed_check_result result;

  check (name, QED_FIX_NONE, &result);
  assert_int_equal (result.corruptions, 0);
  assert_int_equal (result.check_errors, 0);
  assert_int_equal (result.leaks, 0);
}

static void
assert_reads (struct node *n, const uint8_t *model, uint64_t size)
{
  CLEANUP_FREE uint8_t *buf = malloc (size);

  assert_int_equal (node_size (n), size);
  assert_int_equal (node_pread (n, buf, size, 0), 0);
  assert_memory_equal (buf, model, size);
}

static void
assert_image (const char *name, const uint8_t *model, uint64_t size)
{
  struct node *n = open_image (name);

  assert_reads (n, model, size);
  assert_int_equal (node_close (n), 0);
  assert_clean (name);
}

/* Random writes and zeroes to a disk and to its model. */
static void
scribble (struct node *n, uint8_t *model, unsigned times, uint64_t *seed)
{
  uint8_t buf[3 * CLUSTER];

  while (times--) {
    const uint64_t count = 1 + random_below (seed, sizeof buf);
    const uint64_t offset = random_below (seed, node_size (n) - count);

    if (random_below (seed, 4) == 0) {
      assert_int_equal (node_zero (n, count, offset, NODE_MAY_TRIM), 0);
      memset (model + offset, 0, count);
    }
    else {
      memset (buf, 1 + random_below (seed, 255), count);
      assert_int_equal (node_pwrite (n, buf, count, offset), 0);
      memcpy (model + offset, buf, count);
    }
  }
}

static void
scribble_image (const char *name, uint8_t *model, unsigned times,
                uint64_t *seed)
{
  struct node *n = open_image (name);

  scribble (n, model, times, seed);
  assert_int_equal (node_close (n), 0);
}

/* A raw file with some data. */
static void
make_raw (const char *name, uint8_t *model, uint64_t size, uint64_t *seed)
{
  const struct node_open_options options = { .read_only = false };
  struct node *n;

  memset (model, 0, size);
  unlink (name);
  close (open (name, O_CREAT | O_RDWR, 0666));
  assert_int_equal (truncate (name, size), 0);
  n = node_open (name, &options);
  assert_non_null (n);
  scribble (n, model, 30, seed);
  assert_int_equal (node_close (n), 0);
}

/* ---- Empty */

static void
test_empty_image_is_as_new (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  uint64_t seed = 1, length;

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  length = file_length ("a.qed");
  for (int i = 0; i < 5; ++i) {
    memset (model, 0, DISK);
    scribble_image ("a.qed", model, 40, &seed);
    assert_image ("a.qed", model, DISK);
    assert_int_equal (qed_empty_image ("a.qed", false), 0);
    assert_int_equal (file_length ("a.qed"), length);
    memset (model, 0, DISK);
    assert_image ("a.qed", model, DISK);
  }
}

static void
test_empty_shows_backing_image (void **state)
{
  CLEANUP_FREE uint8_t *below = malloc (DISK);
  CLEANUP_FREE uint8_t *model = malloc (DISK);
  uint64_t seed = 2;
  struct node *n;

  (void) state;
  make_raw ("a.raw", below, DISK, &seed);
  create ("a.qed", DISK, 2, "a.raw");
  n = open_image ("a.qed");
  for (int i = 0; i < 5; ++i) {
    memcpy (model, below, DISK);
    scribble (n, model, 40, &seed);
    assert_reads (n, model, DISK);
    assert_int_equal (qed_empty (n), 0);
    assert_reads (n, below, DISK);
  }
  scribble (n, below, 40, &seed);
  assert_int_equal (node_close (n), 0);
  assert_image ("a.qed", below, DISK);
}

static void
test_empty_damaged_image (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  uint64_t seed = 3;

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  scribble_image ("a.qed", model, 40, &seed);
  set_entry ("a.qed", CLUSTER, 12345);
  set_entry ("a.qed", CLUSTER + 8, CLUSTER);
  assert_int_equal (qed_empty_image ("a.qed", false), 0);
  memset (model, 0, DISK);
  assert_image ("a.qed", model, DISK);
}

/* What cannot be written to cannot be emptied: an image found damaged, and
 * one that was opened for reading.  Nothing of the file changes.
 */
static void
test_empty_read_only (void **state)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;

  (void) state;
  for (int i = 0; i < 2; ++i) {
    create ("a.qed", DISK, 2, NULL);
    set_entry ("a.qed", CLUSTER, 3 * CLUSTER);
    patch ("a.qed", "", 1, 5 * CLUSTER - 1);
    set_entry ("a.qed", 3 * CLUSTER, i == 0 ? 12345 : QED_ZERO);
    options.read_only = i == 1;
    n = qed_open ("a.qed", &options);
    assert_non_null (n);
    assert_true (n->read_only);
    forget_messages ();
    errno = 0;
    assert_int_equal (qed_empty (n), -1);
    assert_int_equal (errno, EROFS);
    assert_messages (1, "a.qed: empty: the image is read-only");
    assert_int_equal (node_close (n), 0);
    assert_int_equal (entry_at ("a.qed", CLUSTER), 3 * CLUSTER);
  }
}

struct in_use {
  struct node *n;
  atomic_uint empties;          /* begun and ended, so odd in between */
  atomic_bool stop;
};

/* Each thread has clusters of its own.  What it has written is there,
 * unless the disk has been emptied meanwhile.
 */
static void
use_disk (struct unit_thread *t)
{
  struct in_use *u = t->opaque;
  uint8_t buf[CLUSTER], got[CLUSTER];
  static const uint8_t zeroes[CLUSTER];

  while (!atomic_load (&u->stop)) {
    const uint64_t offset =
      (random_below (&t->seed, DISK / CLUSTER / 8) * 8 + t->nr) * CLUSTER;
    const unsigned before = atomic_load (&u->empties);

    memset (buf, 1 + random_below (&t->seed, 255), sizeof buf);
    CHECK (node_pwrite (u->n, buf, sizeof buf, offset) == 0);
    CHECK (node_pread (u->n, got, sizeof got, offset) == 0);
    if (memcmp (got, buf, sizeof buf) != 0) {
      CHECK (memcmp (got, zeroes, sizeof got) == 0);
      CHECK (before % 2 == 1 || atomic_load (&u->empties) != before);
    }
    if (random_below (&t->seed, 16) == 0)
      CHECK (node_flush (u->n) == 0);
  }
}

static void
test_empty_disk_in_use (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  struct unit_thread threads[4];
  struct in_use u = { .stop = false };

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  u.n = open_image ("a.qed");
  start_threads (threads, 4, use_disk, &u);
  for (int i = 0; i < 50; ++i) {
    usleep (5000);
    atomic_fetch_add (&u.empties, 1);
    CHECK (qed_empty (u.n) == 0);
    atomic_fetch_add (&u.empties, 1);
  }
  atomic_store (&u.stop, true);
  join_threads (threads, 4);
  assert_int_equal (qed_empty (u.n), 0);
  assert_reads (u.n, model, DISK);
  assert_int_equal (node_close (u.n), 0);
  assert_image ("a.qed", model, DISK);
}

/* ---- Resize */

static void
test_resize (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  uint64_t seed = 4, size = 512;
  struct node *n;

  (void) state;
  create ("a.qed", size, 2, NULL);
  n = open_image ("a.qed");
  while (size < DISK) {
    size = MIN (DISK, size + 512 * (1 + random_below (&seed, 9000)));
    assert_int_equal (node_resize (n, size), 0);
    assert_reads (n, model, size);
    if (size > 4 * CLUSTER)
      scribble (n, model, 5, &seed);
  }
  assert_int_equal (node_close (n), 0);
  assert_image ("a.qed", model, DISK);
}

/* What the backing image has behind the end of the disk stays hidden. */
static void
test_resize_hides_backing_image (void **state)
{
  CLEANUP_FREE uint8_t *below = malloc (DISK);
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  uint64_t seed = 5;

  (void) state;
  for (int i = 0; i < 20; ++i) {
    const uint64_t size = 512 * (1 + random_below (&seed, DISK / 512 - 1));
    const uint64_t middle =
      size + 512 * random_below (&seed, (DISK - size) / 512 + 1);
    struct node *n;

    make_raw ("a.raw", below, DISK, &seed);
    memset (below + DISK - CLUSTER, 7, CLUSTER);
    patch ("a.raw", below + DISK - CLUSTER, CLUSTER, DISK - CLUSTER);
    memcpy (model, below, size);
    memset (model + size, 0, DISK - size);

    create ("a.qed", size, 2, "a.raw");
    n = open_image ("a.qed");
    assert_int_equal (node_resize (n, middle), 0);
    assert_reads (n, model, middle);
    assert_int_equal (node_resize (n, DISK), 0);
    assert_reads (n, model, DISK);
    assert_int_equal (node_close (n), 0);
    assert_image ("a.qed", model, DISK);
  }
}

/* Entries behind the end of the disk, in the same table and in others. */
static void
test_resize_clears_stale_entries (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  struct qed_check_result result;
  uint64_t seed = 6, size = DISK / 3 - 512, le = htole64 (size);
  struct node *n;

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  scribble_image ("a.qed", model, 100, &seed);
  patch ("a.qed", &le, sizeof le, 48);  /* image_size */
  memset (model + size, 0, DISK - size);

  n = open_image ("a.qed");
  assert_int_equal (node_resize (n, DISK), 0);
  assert_reads (n, model, DISK);
  scribble (n, model, 50, &seed);
  assert_int_equal (node_close (n), 0);
  check ("a.qed", QED_FIX_LEAKS, &result);
  assert_int_equal (result.corruptions, 0);
  assert_true (result.leaks > 0);
  assert_int_equal (result.leaks_fixed, result.leaks);
  assert_image ("a.qed", model, DISK);
}

static void
test_resize_refusals (void **state)
{
  struct node *n;

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  n = open_image ("a.qed");
  forget_messages ();
  assert_int_equal (node_resize (n, DISK - 512), -1);
  assert_int_equal (errno, ENOTSUP);
  assert_messages (1, "Shrinking images is currently not supported");
  assert_int_equal (node_resize (n, DISK + 1), -1);
  assert_int_equal (errno, EINVAL);
  assert_int_equal (node_resize (n, qed_max_image_size (CLUSTER, 2) + 512),
                    -1);
  assert_int_equal (errno, EINVAL);
  assert_messages (3, "more than tables of this geometry can map");
  assert_int_equal (node_size (n), DISK);
  assert_int_equal (node_resize (n, qed_max_image_size (CLUSTER, 2)), 0);
  assert_int_equal (node_close (n), 0);
  assert_clean ("a.qed");
}

/* ---- Commit */

struct seen {
  uint64_t done, total;
  unsigned calls;
};

static void
see (void *opaque, uint64_t done, uint64_t total)
{
  struct seen *seen = opaque;

  CHECK (done >= seen->done && done <= total);
  seen->done = done;
  seen->total = total;
  seen->calls++;
}

static void
commit (const char *name, const char *base, bool keep)
{
  struct seen seen = { 0 };
  const struct qed_progress progress = { see, &seen };
  const struct qed_commit_options options = {
    .base = base, .keep = keep, .progress = &progress
  };

  assert_int_equal (qed_commit (name, &options), 0);
  assert_true (seen.calls > 0);
  assert_int_equal (seen.done, seen.total);
}

static void
assert_raw (const char *name, const uint8_t *model, uint64_t size)
{
  const struct node_open_options options = { .read_only = true };
  struct node *n = node_open (name, &options);

  assert_non_null (n);
  assert_reads (n, model, size);
  node_close (n);
}

static void
test_commit (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  uint64_t seed = 7, length;

  (void) state;
  for (int i = 0; i < 6; ++i) {
    const bool to_raw = i % 2 == 0, keep = i >= 4;
    const uint64_t size = i < 2 ? DISK : DISK / 2;
    const char *base = to_raw ? "a.raw" : "b.qed";

    memset (model, 0, DISK);
    if (to_raw)
      make_raw ("a.raw", model, size, &seed);
    else {
      create ("b.qed", size, 4, NULL);
      scribble_image ("b.qed", model, 30, &seed);
    }
    create ("a.qed", DISK, 2, base);
    length = file_length ("a.qed");
    scribble_image ("a.qed", model, 60, &seed);
    commit ("a.qed", NULL, keep);
    if (to_raw)
      assert_raw ("a.raw", model, DISK);
    else
      assert_image ("b.qed", model, DISK);
    assert_image ("a.qed", model, DISK);
    assert_int_equal (file_length ("a.qed") == length, !keep);
  }
}

static void
test_commit_several_layers (void **state)
{
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  uint64_t seed = 8;

  (void) state;
  make_raw ("a.raw", model, DISK, &seed);
  create ("b.qed", DISK / 2, 2, "a.raw");
  memset (model + DISK / 2, 0, DISK / 2);
  scribble_image ("b.qed", model, 30, &seed);
  create ("a.qed", DISK, 4, "b.qed");
  scribble_image ("a.qed", model, 30, &seed);
  commit ("a.qed", "a.raw", false);
  assert_raw ("a.raw", model, DISK);
  assert_image ("a.qed", model, DISK);
  forget_messages ();
  assert_int_equal (qed_commit ("a.qed", &(struct qed_commit_options) {
                      .base = "c.raw" }), -1);
  assert_messages (1, "did not find \"c.raw\"");
}

/* ---- Rebase */

static void
rebase (const char *name, const char *backing, enum qed_format format)
{
  struct seen seen = { 0 };
  const struct qed_progress progress = { see, &seen };
  const struct qed_rebase_options options = {
    .backing = backing, .backing_format = format, .progress = &progress
  };

  assert_int_equal (qed_rebase (name, &options), 0);
  assert_int_equal (seen.done, seen.total);
}

static void
assert_backing (const char *name, const char *backing)
{
  struct qed_info info;

  assert_int_equal (qed_get_info (name, false, &info), 0);
  if (backing)
    assert_string_equal (info.backing, backing);
  else
    assert_null (info.backing);
  qed_info_free (&info);
}

static void
test_rebase (void **state)
{
  CLEANUP_FREE uint8_t *model = malloc (DISK);
  CLEANUP_FREE uint8_t *other = malloc (DISK);
  uint64_t seed = 9;

  (void) state;
  for (int i = 0; i < 5; ++i) {
    memset (model, 0, DISK);
    make_raw ("a.raw", model, DISK / 2, &seed);
    make_raw ("b.raw", other, DISK - 1000, &seed);
    create ("b.qed", DISK - 512 * i, 4, "a.raw");
    scribble_image ("b.qed", model, 20, &seed);
    memset (model + DISK - 512 * i, 0, 512 * i);
    create ("a.qed", DISK, 2, "b.qed");
    scribble_image ("a.qed", model, 20, &seed);

    rebase ("a.qed", "b.raw", QED_FORMAT_RAW);
    assert_backing ("a.qed", "b.raw");
    assert_image ("a.qed", model, DISK);
    rebase ("a.qed", "a.raw", QED_FORMAT_RAW);
    assert_backing ("a.qed", "a.raw");
    assert_image ("a.qed", model, DISK);
    rebase ("a.qed", "b.qed", QED_FORMAT_PROBE);
    assert_image ("a.qed", model, DISK);
    rebase ("a.qed", "", QED_FORMAT_PROBE);
    assert_backing ("a.qed", NULL);
    assert_image ("a.qed", model, DISK);
    rebase ("a.qed", "b.raw", QED_FORMAT_RAW);
    assert_backing ("a.qed", "b.raw");
    assert_image ("a.qed", model, DISK);
  }
}

/* There is room for the data, but not for the L2 table that has to refer to
 * them: nothing is lost.
 */
static void
test_no_room_for_a_table (void **state)
{
  const struct rlimit limit = { .rlim_cur = 5 * CLUSTER,
                                .rlim_max = RLIM_INFINITY };
  const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  struct node *n;

  (void) state;
  /* The header, and an L1 table of two clusters. */
  create ("a.qed", DISK, 2, NULL);
  n = open_image ("a.qed");
  signal (SIGXFSZ, SIG_IGN);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &limit), 0);
  for (int i = 0; i < 3; ++i) {
    assert_int_equal (node_pwrite (n, "data", 4, i * CLUSTER), -1);
    assert_int_equal (errno, EFBIG);
  }
  assert_int_equal (node_close (n), 0);
  assert_int_equal (file_length ("a.qed"), 3 * CLUSTER);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &none), 0);
  assert_image ("a.qed", model, DISK);
}

/* What failed first says why, although what is closed then fails too. */
static void
test_rebase_says_why_it_failed (void **state)
{
  const struct qed_rebase_options options = { .backing = "" };
  const struct rlimit limit = { .rlim_cur = 16 * CLUSTER,
                                .rlim_max = RLIM_INFINITY };
  const struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };
  CLEANUP_FREE uint8_t *model = malloc (DISK);
  uint64_t seed = 12;

  (void) state;
  make_raw ("a.raw", model, DISK, &seed);
  create ("a.qed", DISK, 2, "a.raw");
  signal (SIGXFSZ, SIG_IGN);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &limit), 0);
  errno = 0;
  assert_int_equal (qed_rebase ("a.qed", &options), -1);
  assert_int_equal (errno, EFBIG);
  assert_int_equal (setrlimit (RLIMIT_FSIZE, &none), 0);
  assert_image ("a.qed", model, DISK);

  /* An image found damaged is not rebased. */
  create ("a.qed", DISK, 2, NULL);
  set_entry ("a.qed", CLUSTER, 12345);
  errno = 0;
  assert_int_equal (qed_rebase ("a.qed", &options), -1);
  assert_int_equal (errno, EROFS);
}

/* Nothing is copied for what two chains have in common. */
static void
test_rebase_skips_what_is_the_same (void **state)
{
  CLEANUP_FREE uint8_t *model = malloc (DISK);
  uint64_t seed = 10, length;

  (void) state;
  make_raw ("a.raw", model, DISK, &seed);
  create ("b.qed", DISK, 2, "a.raw");
  create ("a.qed", DISK, 2, "b.qed");
  length = file_length ("a.qed");
  rebase ("a.qed", "a.raw", QED_FORMAT_RAW);
  assert_int_equal (file_length ("a.qed"), length);
  assert_image ("a.qed", model, DISK);
}

static void
test_rebase_unsafe (void **state)
{
  struct qed_rebase_options options = { .unsafe = true };
  char name[QED_MAX_BACKING_LEN + 2];
  const uint64_t compat = htole64 (1);

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  for (size_t len = 1; len <= CLUSTER - QED_HEADER_LEN; len += 211) {
    memset (name, 'a' + len % 26, len);
    name[len] = '\0';
    options.backing = name;
    options.backing_format = len % 2 ? QED_FORMAT_RAW : QED_FORMAT_PROBE;
    assert_int_equal (qed_rebase ("a.qed", &options), 0);
    assert_backing ("a.qed", name);
  }
  memset (name, 'n', CLUSTER - QED_HEADER_LEN + 1);
  name[CLUSTER - QED_HEADER_LEN + 1] = '\0';
  forget_messages ();
  assert_int_equal (qed_rebase ("a.qed", &options), -1);
  assert_int_equal (errno, ENOSPC);
  assert_messages (1, "too long");

  /* A name would be laid into a header that we do not know all of. */
  patch ("a.qed", &compat, sizeof compat, 24); /* compat_features */
  options.backing = "other";
  assert_int_equal (qed_rebase ("a.qed", &options), -1);
  assert_int_equal (errno, ENOTSUP);
  options.backing = "";
  assert_int_equal (qed_rebase ("a.qed", &options), 0);
}

/* ---- Measure */

/* The table that storage of fixed size keeps free. */
#define KEPT (2 * CLUSTER)

static void
test_measure (void **state)
{
  const struct qed_create_options options = {
    .size = DISK, .cluster_size = CLUSTER, .table_size = 2
  };
  CLEANUP_FREE uint8_t *buf = malloc (DISK);
  struct qed_measurement m;
  struct node *n;

  (void) state;
  create ("a.qed", DISK, 2, NULL);
  assert_int_equal (qed_measure (&options, NULL, &m), 0);
  assert_int_equal (m.required, file_length ("a.qed") + KEPT);

  memset (buf, 1, DISK);
  n = open_image ("a.qed");
  for (int i = 0; i < 20; ++i) {
    const uint64_t offset = DISK / 20 * i + 100 * i;

    assert_int_equal (node_pwrite (n, buf, 7000, offset), 0);
  }
  assert_int_equal (qed_measure (&options, n, &m), 0);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (m.required, file_length ("a.qed") + KEPT);

  n = open_image ("a.qed");
  assert_int_equal (node_pwrite (n, buf, DISK, 0), 0);
  assert_int_equal (node_close (n), 0);
  assert_int_equal (m.fully_allocated, file_length ("a.qed") + KEPT);
}

/* ---- Leaks */

/* Drop random entries, then give the leaks back: the file is as long as
 * what is left, and that reads as before.
 */
static void
leak_and_repair (uint32_t table_size, uint64_t *seed)
{
  const uint64_t entries = (uint64_t) table_size * CLUSTER / QED_ENTRY_LEN;
  const uint64_t nr_tables = div_round_up (DISK / CLUSTER, entries);
  CLEANUP_FREE uint8_t *model = calloc (1, DISK);
  struct qed_check_result result;

  create ("a.qed", DISK, table_size, NULL);
  scribble_image ("a.qed", model, 5 + random_below (seed, 60), seed);
  for (uint64_t i = 0; i < nr_tables; ++i) {
    const uint64_t place = CLUSTER + i * QED_ENTRY_LEN;
    const uint64_t table = entry_at ("a.qed", place);
    const bool drop_table = random_below (seed, 3) == 0;

    if (table == 0)
      continue;
    if (drop_table)
      set_entry ("a.qed", place, 0);
    for (uint64_t j = 0; j < entries; ++j) {
      const uint64_t cluster = i * entries + j;

      if (!drop_table && random_below (seed, 4) != 0)
        continue;
      set_entry ("a.qed", table + j * QED_ENTRY_LEN, 0);
      if (cluster < DISK / CLUSTER)
        memset (model + cluster * CLUSTER, 0, CLUSTER);
    }
  }
  check ("a.qed", QED_FIX_LEAKS, &result);
  assert_int_equal (result.leaks_fixed, result.leaks);
  assert_int_equal (file_length ("a.qed"), result.image_end);
  assert_image ("a.qed", model, DISK);
}

static void
test_leaks_are_given_back (void **state)
{
  uint64_t seed = 11;

  (void) state;
  for (int i = 0; i < 40; ++i)
    leak_and_repair (1 << i % 5, &seed);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_empty_image_is_as_new),
    cmocka_unit_test (test_empty_shows_backing_image),
    cmocka_unit_test (test_empty_damaged_image),
    cmocka_unit_test (test_empty_read_only),
    cmocka_unit_test (test_empty_disk_in_use),
    cmocka_unit_test (test_resize),
    cmocka_unit_test (test_resize_hides_backing_image),
    cmocka_unit_test (test_resize_clears_stale_entries),
    cmocka_unit_test (test_resize_refusals),
    cmocka_unit_test (test_commit),
    cmocka_unit_test (test_commit_several_layers),
    cmocka_unit_test (test_rebase),
    cmocka_unit_test (test_no_room_for_a_table),
    cmocka_unit_test (test_rebase_says_why_it_failed),
    cmocka_unit_test (test_rebase_skips_what_is_the_same),
    cmocka_unit_test (test_rebase_unsafe),
    cmocka_unit_test (test_measure),
    cmocka_unit_test (test_leaks_are_given_back),
  };

  alarm (HANG_SECONDS);
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
