/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the tests of the replication primary share: its own disk is in
 * memory, and fails or waits when told to; the remote is nbdkit with a file,
 * which is killed, stopped and started again.  What the remote has is read
 * from the file.
 */

#ifndef BLOCKDRIVERS_PRIMARY_UNIT_H
#define BLOCKDRIVERS_PRIMARY_UNIT_H

#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "utils/clock.h"
#include "node/node.h"
#include "filters/replication/primary/primary.h"
#include "utils/rounding.h"
#include "tests/unit/server.h"
#include "tests/unit/unit.h"

#define AREA 65536
#define DISK_SIZE (64 * AREA + 12345)

static char dir[] = "/tmp/test-replication-XXXXXX";
static char remote_file[96], bitmap_file[96], gate_file[96];
static char began_file[96];
static char log_file[96], log_option[128];
static char error_file[96], error_option[128];
static struct server server;

/* The disk. */
struct disk {
  struct node node;
  pthread_mutex_t lock;         /* protects data, for overlapping writes */
  char *data;
  atomic_bool fail_reads, fail_writes, fail_flushes;
  atomic_bool hang;             /* changes and flushes do not return */
  atomic_uint hanging;          /* these */
  atomic_bool dawdle;           /* some writes take longer than others */
  atomic_uint changes, flushes;
  _Atomic uint64_t longest;     /* zero request or discard */
};

static inline int
disk_fails (struct disk *d, atomic_bool *fails)
{
  if (!atomic_load (fails))
    return 0;
  errno = EIO;
  msg_error ("%s: made to fail", d->node.name);
  return -1;
}

static inline void
disk_hangs (struct disk *d)
{
  atomic_fetch_add (&d->hanging, 1);
  while (atomic_load (&d->hang))
    usleep (1000);
  atomic_fetch_sub (&d->hanging, 1);
}

static inline int
disk_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct disk *d = (struct disk *) n;

  CHECK (offset % n->align == 0 && count % n->align == 0);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  memcpy (buf, d->data + offset, count);
  return disk_fails (d, &d->fail_reads);
}

static inline int
disk_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  struct disk *d = (struct disk *) n;

  disk_hangs (d);
  if (atomic_load (&d->dawdle) && offset % 3 == 0)
    usleep (200);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  (void) count;
  atomic_fetch_add (&d->changes, 1);
  if (disk_fails (d, &d->fail_writes) == -1)
    return -1;
  for (int i = 0; i < iovcnt; ++i) {
    memcpy (d->data + offset, iov[i].iov_base, iov[i].iov_len);
    offset += iov[i].iov_len;
  }
  return 0;
}

static inline int
disk_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct disk *d = (struct disk *) n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  if (flags & NODE_FAST) {
    errno = ENOTSUP;
    return -1;
  }
  atomic_fetch_add (&d->changes, 1);
  atomic_store (&d->longest, MAX (atomic_load (&d->longest), count));
  if (disk_fails (d, &d->fail_writes) == -1)
    return -1;
  memset (d->data + offset, 0, count);
  return 0;
}

static inline int
disk_discard (struct node *n, uint64_t count, uint64_t offset)
{
  return disk_zero (n, count, offset, 0);
}

static inline int
disk_flush (struct node *n)
{
  struct disk *d = (struct disk *) n;

  disk_hangs (d);
  atomic_fetch_add (&d->flushes, 1);
  return disk_fails (d, &d->fail_flushes);
}

/* Zeroes are holes here.  No more than an area is looked at, or to copy the
 * disk would take longer than a checkpoint waits, under the thread sanitizer
 * on a busy machine.
 */
static inline int
disk_extents (struct node *n, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  struct disk *d = (struct disk *) n;
  const uint64_t stop = offset + MIN (count, (uint64_t) AREA);
  uint64_t end = offset;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  while (end < stop && d->data[end] == 0)
    end++;
  *ret = (struct extent) {
    .length = end > offset ? end - offset : 1,
    .flags = end > offset ? EXTENT_ZERO | EXTENT_HOLE : EXTENT_MAPPED,
    .where = n, .offset = offset,
  };
  return 0;
}

static const struct node_ops disk_ops = {
  .type = "memory",
  .pread = disk_pread,
  .pwritev = disk_pwritev,
  .zero = disk_zero,
  .discard = disk_discard,
  .flush = disk_flush,
  .extents = disk_extents,
};

static struct disk disk = {
  .node = {
    .ops = &disk_ops, .name = (char *) "disk", .size = DISK_SIZE,
    .align = 1, .zero_align = 1, .preferred = 4096,
  },
  .lock = PTHREAD_MUTEX_INITIALIZER,
};

/* The primary under test. */
static struct primary *primary;
static struct node *node;
static struct replication_refusal refusal;

static inline struct replication_status
query (void)
{
  struct replication_status status;

  primary_query (primary, &status);
  return status;
}

static inline void
begin_primary (const char *remote, const char *bitmap, unsigned timeout)
{
  const struct primary_options options = {
    .remote = remote, .bitmap = bitmap, .timeout = timeout,
  };

  primary = primary_open (&options);
  assert_non_null (primary);
  assert_int_equal (primary_begin (primary, &disk.node), 0);
  node = primary_node (primary);
}

static inline void
end_primary (void)
{
  primary_close (primary);
  primary = NULL;
}

/* What the command refused to do and why. */
#define assert_refused(call, text)                                      \
  do {                                                                  \
    refusal.desc[0] = '\0';                                             \
    assert_int_equal ((call), -1);                                      \
    if (!strstr (refusal.desc, (text)))                                 \
      print_error ("refused: %s\n", refusal.desc);                      \
    assert_non_null (strstr (refusal.desc, (text)));                    \
  } while (0)

#define assert_done(call)                                               \
  do {                                                                  \
    refusal.desc[0] = '\0';                                             \
    if ((call) == -1)                                                   \
      fail_msg ("refused: %s", refusal.desc);                           \
  } while (0)

/* Wait for a condition; the test as a whole has a time limit. */
#define wait_for(condition)                     \
  do                                            \
    pause_a_moment ();                          \
  while (!(condition))

static inline void
fill_random (char *buf, size_t count, uint64_t seed)
{
  for (size_t i = 0; i < count; ++i) {
    if (i % 8 == 0)
      next_random (&seed);
    buf[i] = seed >> (i % 8 * 8);
  }
}

static inline void
make_remote (uint64_t size)
{
  int fd = open (remote_file, O_RDWR | O_CREAT | O_TRUNC, 0600);

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, size), 0);
  close (fd);
}

static inline void
start_remote (void)
{
  server_start (&server, "file", remote_file, NULL);
}

/* A remote that has in its file only what has been flushed, so that
 * killing it is like pulling its plug.  The cache filter calls zero what
 * is zero in the file, no matter what it holds itself: nobody shall ask it.
 */
static inline void
start_forgetful_remote (void)
{
  server_start (&server, "--filter=noextents", "--filter=cache", "file",
                remote_file, "cache=writeback", NULL);
}

/* First byte in which the remote differs, or -1. */
static inline int64_t
first_difference (void)
{
  CLEANUP_CLOSE int fd = open (remote_file, O_RDONLY);
  CLEANUP_FREE char *buf = malloc (DISK_SIZE);
  const int64_t size = node_size (&disk.node);

  CHECK (fd >= 0 && buf);
  CHECK (pread (fd, buf, size, 0) == size);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&disk.lock);
  for (int64_t i = 0; i < size; ++i)
    if (buf[i] != disk.data[i])
      return i;
  return -1;
}

static inline int
write_at (uint64_t offset, size_t count, uint64_t seed)
{
  CLEANUP_FREE char *buf = malloc (count);

  fill_random (buf, count, seed);
  return node_pwrite (node, buf, count, offset);
}

static inline int
setup (void **state)
{
  (void) state;
  alarm (HANG_SECONDS);         /* each of them */
  forget_messages ();
  disk.data = calloc (1, DISK_SIZE);
  atomic_store (&disk.fail_reads, false);
  atomic_store (&disk.fail_writes, false);
  atomic_store (&disk.fail_flushes, false);
  atomic_store (&disk.hang, false);
  atomic_store (&disk.dawdle, false);
  atomic_store (&disk.changes, 0);
  atomic_store (&disk.flushes, 0);
  disk.node.read_only = false;
  disk.node.align = 1;
  atomic_store (&disk.node.size, DISK_SIZE);
  make_remote (DISK_SIZE);
  return disk.data ? 0 : -1;
}

static inline int
teardown (void **state)
{
  (void) state;
  atomic_store (&disk.hang, false);
  primary_close (primary);
  primary = NULL;
  server_end (&server, SIGKILL);
  free (disk.data);
  unlink (remote_file);
  unlink (bitmap_file);
  unlink (log_file);
  unlink (gate_file);
  unlink (began_file);
  unlink (error_file);
  return 0;
}

/* Each request once: with which results? */
static inline void
assert_requests (int read, int change, int flush)
{
  struct extent e;
  char buf[512] = "x";

  assert_int_equal (node_pread (node, buf, sizeof buf, 512), read);
  assert_int_equal (node_extents (node, 512, 512, &e), read & change);
  assert_int_equal (node_cache (node, 512, 512), read);
  assert_int_equal (node_pwrite (node, buf, sizeof buf, 512), change);
  assert_int_equal (node_zero (node, sizeof buf, 512, 0), change);
  assert_int_equal (node_discard (node, sizeof buf, 512), change);
  assert_int_equal (node_flush (node), flush);
}

/* Milliseconds without an answer after which a secondary or a remote that
 * hangs is given up here.  One that does not hang must not be, whatever else
 * the machine does, so this is longer than a thread has to wait for a busy
 * processor.
 */
#define GIVE_UP 2000

static inline void
write_file (const char *name, const void *data, size_t count)
{
  FILE *fp = fopen (name, "w");

  assert_non_null (fp);
  assert_int_equal (fwrite (data, 1, count, fp), count);
  assert_int_equal (fclose (fp), 0);
}

/* Random changes of the disk, by many threads, on ranges that overlap,
 * while checkpoints are made.
 */
static atomic_bool finished;
static atomic_uint nr_changes;

static inline void
change_at_random (uint64_t *seed)
{
  const uint64_t offset = random_below (seed, DISK_SIZE);
  const uint64_t limit = random_below (seed, 20) ? 10000 : 500000;
  const uint64_t count = 1 + random_below (seed,
                                           MIN (DISK_SIZE - offset, limit));
  int r;

  switch (random_below (seed, 8)) {
  case 0:
    r = node_zero (node, count, offset, 0);
    break;
  case 1:
    r = node_discard (node, count, offset);
    break;
  case 2:
    r = node_flush (node);
    break;
  default:
    r = write_at (offset, count, next_random (seed));
  }
  CHECK (r == 0);
  atomic_fetch_add (&nr_changes, 1);
}

static inline void
change_until_finished (struct unit_thread *t)
{
  while (!atomic_load (&finished)) {
    change_at_random (&t->seed);
    if (random_below (&t->seed, 100) == 0)
      pause_a_moment ();
  }
}

static inline void
start_changing (struct unit_thread *threads, unsigned n)
{
  atomic_store (&finished, false);
  start_threads (threads, n, change_until_finished, NULL);
}

static inline void
stop_changing (struct unit_thread *threads, unsigned n)
{
  atomic_store (&finished, true);
  join_threads (threads, n);
}

/* While a checkpoint is prepared, writes wait and the remote is equal. */
static inline void
checkpoint_and_compare (void)
{
  unsigned before;

  assert_done (primary_checkpoint_prepare (primary, NULL, &refusal));
  before = atomic_load (&disk.changes);
  assert_int_equal (first_difference (), -1);
  assert_int_equal (atomic_load (&disk.changes), before);
  assert_done (primary_checkpoint_commit (primary, &refusal));
  primary_checkpoint_release (primary);
}

/* A remote that runs these commands of the shell before each write and for
 * each flush.
 */
static inline void
start_scripted_remote (const char *before_write, const char *flush)
{
  char size[64], pread[192], pwrite[512], flush_option[64];

  snprintf (size, sizeof size, "get_size=echo %d", DISK_SIZE);
  snprintf (pread, sizeof pread, "pread=dd if=%s skip=$4 count=$3 "
            "iflag=skip_bytes,count_bytes status=none", remote_file);
  snprintf (pwrite, sizeof pwrite, "pwrite=%s\n"
            "dd of=%s seek=$4 conv=notrunc oflag=seek_bytes status=none",
            before_write, remote_file);
  snprintf (flush_option, sizeof flush_option, "flush=%s", flush);
  server_start (&server, "eval", size, pread, pwrite, flush_option,
                "can_write=exit 0", "can_flush=exit 0",
                "thread_model=echo parallel", NULL);
}

static inline int
make_folder (void **state)
{
  (void) state;
  if (mkdtemp (dir) == NULL)
    return -1;
  server_init (&server, dir);
  snprintf (remote_file, sizeof remote_file, "%s/remote", dir);
  snprintf (bitmap_file, sizeof bitmap_file, "%s/bitmap", dir);
  snprintf (log_file, sizeof log_file, "%s/log", dir);
  snprintf (gate_file, sizeof gate_file, "%s/gate", dir);
  snprintf (began_file, sizeof began_file, "%s/began", dir);
  snprintf (log_option, sizeof log_option, "logfile=%s", log_file);
  snprintf (error_file, sizeof error_file, "%s/error", dir);
  snprintf (error_option, sizeof error_option, "error-file=%s", error_file);
  msg_set_handler (collect_message);
  return 0;
}

static inline int
remove_folder (void **state)
{
  (void) state;
  return rmdir (dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

#endif /* BLOCKDRIVERS_PRIMARY_UNIT_H */
