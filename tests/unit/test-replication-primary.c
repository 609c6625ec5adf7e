/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The replication primary: its own disk is in memory, and fails or waits
 * when told to; the remote is nbdkit with a file, which is killed, stopped
 * and started again.  What the remote has is read from the file.
 */

#include <config.h>

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

static int
disk_fails (struct disk *d, atomic_bool *fails)
{
  if (!atomic_load (fails))
    return 0;
  errno = EIO;
  msg_error ("%s: made to fail", d->node.name);
  return -1;
}

static void
disk_hangs (struct disk *d)
{
  atomic_fetch_add (&d->hanging, 1);
  while (atomic_load (&d->hang))
    usleep (1000);
  atomic_fetch_sub (&d->hanging, 1);
}

static int
disk_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct disk *d = (struct disk *) n;

  CHECK (offset % n->align == 0 && count % n->align == 0);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
  memcpy (buf, d->data + offset, count);
  return disk_fails (d, &d->fail_reads);
}

static int
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

static int
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

static int
disk_discard (struct node *n, uint64_t count, uint64_t offset)
{
  return disk_zero (n, count, offset, 0);
}

static int
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
static int
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

static struct replication_status
query (void)
{
  struct replication_status status;

  primary_query (primary, &status);
  return status;
}

static void
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

static void
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

static void
fill_random (char *buf, size_t count, uint64_t seed)
{
  for (size_t i = 0; i < count; ++i) {
    if (i % 8 == 0)
      next_random (&seed);
    buf[i] = seed >> (i % 8 * 8);
  }
}

static void
make_remote (uint64_t size)
{
  int fd = open (remote_file, O_RDWR | O_CREAT | O_TRUNC, 0600);

  assert_true (fd >= 0);
  assert_int_equal (ftruncate (fd, size), 0);
  close (fd);
}

static void
start_remote (void)
{
  server_start (&server, "file", remote_file, NULL);
}

/* A remote that has in its file only what has been flushed, so that
 * killing it is like pulling its plug.  The cache filter calls zero what
 * is zero in the file, no matter what it holds itself: nobody shall ask it.
 */
static void
start_forgetful_remote (void)
{
  server_start (&server, "--filter=noextents", "--filter=cache", "file",
                remote_file, "cache=writeback", NULL);
}

/* First byte in which the remote differs, or -1. */
static int64_t
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

static int
write_at (uint64_t offset, size_t count, uint64_t seed)
{
  CLEANUP_FREE char *buf = malloc (count);

  fill_random (buf, count, seed);
  return node_pwrite (node, buf, count, offset);
}

static int
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

static int
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
static void
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

static void
assert_disk_was_asked (unsigned changes, unsigned flushes)
{
  assert_int_equal (atomic_exchange (&disk.changes, 0), changes);
  assert_int_equal (atomic_exchange (&disk.flushes, 0), flushes);
}

static void
test_stages_of_a_forwarder (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_int_equal (query ().stage, REPLICATION_NONE);
  assert_requests (-1, -1, -1);
  assert_int_equal (errno, EIO);
  assert_disk_was_asked (0, 0);
  assert_refused (primary_stop (primary, false, &refusal),
                  "Block replication is not running");
  assert_refused (primary_stop (primary, true, &refusal),
                  "Block replication is not running");
  assert_done (primary_checkpoint (primary, &refusal));
  assert_refused (primary_start (primary, true, &refusal),
                  "a full copy needs a remote");

  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_RUNNING);
  assert_requests (-1, 0, 0);
  assert_disk_was_asked (3, 1);
  assert_refused (primary_start (primary, false, &refusal),
                  "Block replication is running or done");
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().checkpoints, 1);
  assert_disk_was_asked (0, 1);
  assert_int_equal (node_zero (node, 512, 0, NODE_FAST), -1);
  assert_int_equal (errno, ENOTSUP);
  assert_false (query ().error);

  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_requests (-1, -1, -1);
  assert_disk_was_asked (0, 0);

  /* It starts again, but not after a failover. */
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (query ().stage, REPLICATION_RUNNING);
  assert_requests (-1, 0, 0);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().checkpoints, 1);
  assert_done (primary_stop (primary, false, &refusal));
  assert_done (primary_stop (primary, true, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_refused (primary_start (primary, false, &refusal),
                  "replication was stopped for a failover");
}

/* What cannot be forwarded is no concern of the guest. */
static void
test_a_forwarder_keeps_errors_to_itself (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_writes, true);
  assert_requests (-1, 0, 0);
  assert_true (query ().error);
  assert_string_equal (query ().desc, "forwarding a write at offset 512: "
                       "Input/output error");
  atomic_store (&disk.fail_writes, false);
  atomic_store (&disk.fail_flushes, true);
  assert_requests (-1, 0, 0);
  assert_string_equal (query ().desc, "forwarding a write at offset 512: "
                       "Input/output error");
  assert_refused (primary_checkpoint (primary, &refusal),
                  "the secondary lacks writes: forwarding a write");
  assert_requests (-1, 0, 0);
  assert_done (primary_stop (primary, true, &refusal));
  assert_true (query ().error);
}

/* Milliseconds without an answer after which a secondary or a remote that
 * hangs is given up here.  One that does not hang must not be, whatever else
 * the machine does, so this is longer than a thread has to wait for a busy
 * processor.
 */
#define GIVE_UP 2000

/* It keeps what it has, takes no more than the queue holds, and in the end
 * gives up.  What the guest does succeeds.
 */
static void
test_a_forwarder_gives_up_a_secondary_that_hangs (void **state)
{
  enum { PIECE = 1024 * 1024, MAX_PIECES = 17 + 16 };
  unsigned pieces = 0, changes;

  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_done (primary_checkpoint (primary, &refusal));

  atomic_store (&disk.hang, true);
  do
    assert_int_equal (write_at (0, PIECE, 2), 0);
  while (!query ().error && ++pieces < 1000);
  assert_true (pieces <= MAX_PIECES);
  assert_string_equal (query ().desc, "forwarding: no answer for 2.0 "
                       "seconds");
  assert_int_equal (messages.nr, 1);
  assert_requests (-1, 0, 0);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "the secondary lacks writes: forwarding: no answer");

  /* Also when it is back. */
  atomic_store (&disk.hang, false);
  wait_for (atomic_load (&disk.changes) > 1);
  changes = atomic_load (&disk.changes);
  assert_true (changes <= 1 + 16);
  assert_requests (-1, 0, 0);
  assert_refused (primary_checkpoint (primary, &refusal), "no answer");
  assert_done (primary_stop (primary, false, &refusal));
  assert_true (primary_close (primary));
  primary = NULL;
  assert_true (atomic_load (&disk.changes) <= 1 + 16);
}

/* Nobody needs to write to find that out. */
static void
test_a_forwarder_tells_of_a_secondary_that_hangs (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_false (query ().error);
  assert_true (query ().remote_connected);
  wait_for (query ().error);
  assert_false (query ().remote_connected);
  assert_refused (primary_checkpoint (primary, &refusal), "no answer");
  atomic_store (&disk.hang, false);
}

/* A slow one is not given up as long as something arrives: here it takes
 * longer than the limit in all, but not from one time to the next.
 */
static void
hang_sometimes (struct unit_thread *t)
{
  atomic_bool *const end = t->opaque;

  for (unsigned i = 0; i < 10; ++i) {
    const unsigned before = atomic_load (&disk.changes);

    atomic_store (&disk.hang, true);
    usleep (300000);
    atomic_store (&disk.hang, false);
    while (atomic_load (&disk.changes) < before + 20)
      usleep (1000);
  }
  atomic_store (end, true);
}

static void
test_a_forwarder_bears_a_slow_secondary (void **state)
{
  atomic_bool end = false;
  struct unit_thread thread;

  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  start_threads (&thread, 1, hang_sometimes, &end);
  while (!atomic_load (&end))
    assert_int_equal (write_at (0, 300000, 1), 0);
  join_threads (&thread, 1);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_false (query ().error);
}

/* A secondary copies what zeroes replace, so a long request takes long; in
 * one piece it would look as if it hung.
 */
static void
test_a_forwarder_cuts_long_requests (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.longest, 0);
  assert_int_equal (node_zero (node, DISK_SIZE, 0, 0), 0);
  assert_int_equal (node_discard (node, DISK_SIZE, 0), 0);
  assert_int_equal (node_flush (node), 0);
  assert_within (atomic_load (&disk.longest), 1, 1024 * 1024);
}

/* Milliseconds for which the guest waits that writes when nothing else is
 * under way, while this does not return.
 */
static int64_t
time_of_a_lonely_write (void)
{
  const int64_t begin = clock_ms ();
  int64_t end;

  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (300, 512, 1), 0);
  end = clock_ms ();
  atomic_store (&disk.hang, false);
  assert_int_equal (node_flush (node), 0);
  return end - begin;
}

/* Who does one thing after the other mostly finds it done, unless the
 * machine has other things to do.  A wait that was in vain is not the last
 * one: there are others when the secondary is fast again, which it need not
 * be at once on a busy machine.
 */
static void
test_a_forwarder_waits_for_a_moment (void **state)
{
  unsigned found = 0;

  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_true (time_of_a_lonely_write () >= 20);
  while (time_of_a_lonely_write () < 20)
    ;

  atomic_store (&disk.dawdle, true);
  while (found < 50) {
    const unsigned before = atomic_load (&disk.changes);

    assert_int_equal (write_at (300, 512, before), 0);
    found += atomic_load (&disk.changes) > before;
    assert_int_equal (node_flush (node), 0);
  }
}

static void
answer_later (struct unit_thread *t)
{
  (void) t;
  wait_for (atomic_load (&disk.hanging) > 0);
  usleep ((GIVE_UP + 500) * 1000);
  atomic_store (&disk.hang, false);
}

/* A flush may take longer than other requests. */
static void
test_a_forwarder_bears_a_slow_flush (void **state)
{
  struct unit_thread thread;

  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_int_equal (node_flush (node), 0);
  atomic_store (&disk.hang, true);
  start_threads (&thread, 1, answer_later, NULL);
  assert_done (primary_checkpoint (primary, &refusal));
  join_threads (&thread, 1);
  assert_false (query ().error);
}

/* The last of several writes to a place is what remains there. */
static void
test_a_forwarder_keeps_the_order (void **state)
{
  enum { SIZE = 4 * AREA };
  CLEANUP_FREE char *model = calloc (1, SIZE);
  uint64_t seed = 5;

  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.dawdle, true);
  for (unsigned i = 0; i < 3000; ++i) {
    const uint64_t offset = random_below (&seed, SIZE);
    const uint64_t count =
      1 + random_below (&seed, MIN (SIZE - offset, UINT64_C (20000)));

    if (random_below (&seed, 4) == 0) {
      memset (model + offset, 0, count);
      assert_int_equal (node_zero (node, count, offset, 0), 0);
    }
    else {
      memset (model + offset, i, count);
      assert_int_equal (node_pwrite (node, model + offset, count, offset), 0);
    }
  }
  assert_int_equal (node_flush (node), 0);
  assert_memory_equal (disk.data, model, SIZE);
  assert_false (query ().error);
}

static void
checkpoint_is_interrupted (struct unit_thread *t)
{
  struct replication_refusal r;

  (void) t;
  CHECK (primary_checkpoint (primary, &r) == -1);
  CHECK (strstr (r.desc, "interrupted"));
}

static void
answer_soon (struct unit_thread *t)
{
  (void) t;
  wait_for (query ().stage == REPLICATION_DONE);
  pause_a_moment ();
  atomic_store (&disk.hang, false);
}

/* What has been sent arrives before a failover is done, or not at all. */
static void
test_nothing_arrives_after_a_failover (void **state)
{
  struct unit_thread thread;
  unsigned sent;

  (void) state;
  begin_primary (NULL, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  for (unsigned i = 0; i < 100; ++i)
    assert_int_equal (write_at (i * 512, 512, i), 0);
  wait_for (atomic_load (&disk.hanging) > 0);
  start_threads (&thread, 1, answer_soon, NULL);
  assert_done (primary_stop (primary, true, &refusal));
  sent = atomic_load (&disk.changes);
  assert_true (sent > 0);
  pause_a_moment ();
  assert_int_equal (atomic_load (&disk.changes), sent);
  join_threads (&thread, 1);
  assert_int_equal (nr_messages (), 0);
}

/* A failover waits neither for a checkpoint nor for the guest, and not for
 * long for what has been sent.
 */
static void
test_failover_of_a_forwarder_that_hangs (void **state)
{
  struct unit_thread thread;

  (void) state;
  begin_primary (NULL, NULL, HANG_SECONDS * 1000);
  primary_expect_failover (primary); /* does no harm before the start */
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  start_threads (&thread, 1, checkpoint_is_interrupted, NULL);
  pause_a_moment ();
  primary_expect_failover (primary);
  join_threads (&thread, 1);
  assert_done (primary_stop (primary, true, &refusal));
  assert_int_equal (query ().stage, REPLICATION_DONE);
  assert_false (query ().error);
  assert_messages (1, "may arrive there later");
  atomic_store (&disk.hang, false);
}

static void
stop_in_vain (struct unit_thread *t)
{
  struct replication_refusal r;

  (void) t;
  CHECK (primary_stop (primary, false, &r) == 0);
}

/* A failover ends a stop that waits, and what has been sent arrives before
 * it is done all the same.
 */
static void
test_failover_while_a_forwarder_stops (void **state)
{
  struct unit_thread threads[2];
  unsigned arrived;

  (void) state;
  begin_primary (NULL, NULL, HANG_SECONDS * 1000);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  wait_for (atomic_load (&disk.hanging) == 1);
  start_threads (&threads[0], 1, stop_in_vain, NULL);
  start_threads (&threads[1], 1, answer_soon, NULL);
  pause_a_moment ();
  primary_expect_failover (primary);
  assert_done (primary_stop (primary, true, &refusal));
  arrived = atomic_load (&disk.changes);
  join_threads (threads, 2);
  assert_int_equal (arrived, 1);
  assert_int_equal (nr_messages (), 0);
}

/* What the guest was told is done is done. */
static void
test_a_clean_end_of_a_forwarder (void **state)
{
  for (unsigned with_stop = 0; with_stop < 2; ++with_stop) {
    (void) state;
    begin_primary (NULL, NULL, 0);
    assert_done (primary_start (primary, false, &refusal));
    atomic_store (&disk.changes, 0);
    atomic_store (&disk.dawdle, true);
    for (unsigned i = 0; i < 500; ++i)
      assert_int_equal (write_at (i % 4 * 3 * 512, 512, i), 0);
    if (with_stop) {
      assert_done (primary_stop (primary, false, &refusal));
      assert_int_equal (atomic_load (&disk.changes), 500);
    }
    primary_interrupt (primary, true); /* as the filter does */
    end_primary ();
    assert_int_equal (atomic_load (&disk.changes), 500);
  }
}

/* It stays behind, until it returns. */
static void
test_the_end_of_a_forwarder_that_hangs (void **state)
{
  (void) state;
  begin_primary (NULL, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_writes, true);
  atomic_store (&disk.hang, true);
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_int_equal (write_at (0, 512, 1), 0);
  assert_false (primary_close (primary));
  assert_non_null (strstr (messages.last, "not closed"));
  /* Nobody waits a second time. */
  assert_false (primary_close (primary));
  atomic_store (&disk.hang, false);
  wait_for (primary_close (primary));
  primary = NULL;
  assert_int_equal (atomic_load (&disk.changes), 1);
}

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
write_file (const char *name, const void *data, size_t count)
{
  FILE *fp = fopen (name, "w");

  assert_non_null (fp);
  assert_int_equal (fwrite (data, 1, count, fp), count);
  assert_int_equal (fclose (fp), 0);
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

/* Random changes of the disk, by many threads, on ranges that overlap,
 * while checkpoints are made.
 */
static atomic_bool finished;
static atomic_uint nr_changes;

static void
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

static void
change_until_finished (struct unit_thread *t)
{
  while (!atomic_load (&finished)) {
    change_at_random (&t->seed);
    if (random_below (&t->seed, 100) == 0)
      pause_a_moment ();
  }
}

static void
start_changing (struct unit_thread *threads, unsigned n)
{
  atomic_store (&finished, false);
  start_threads (threads, n, change_until_finished, NULL);
}

static void
stop_changing (struct unit_thread *threads, unsigned n)
{
  atomic_store (&finished, true);
  join_threads (threads, n);
}

/* While a checkpoint is prepared, writes wait and the remote is equal. */
static void
checkpoint_and_compare (void)
{
  unsigned before;

  assert_done (primary_checkpoint_prepare (primary, &refusal));
  before = atomic_load (&disk.changes);
  assert_int_equal (first_difference (), -1);
  assert_int_equal (atomic_load (&disk.changes), before);
  assert_done (primary_checkpoint_commit (primary, &refusal));
}

static void
test_the_remote_is_equal_at_checkpoints (void **state)
{
  struct unit_thread threads[6];

  (void) state;
  start_remote ();
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  start_changing (threads, 6);
  for (int i = 0; i < 25; ++i) {
    checkpoint_and_compare ();
    for (int j = i % 4; j > 0; --j)
      pause_a_moment ();
  }
  stop_changing (threads, 6);
  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (first_difference (), -1);
  assert_int_equal (query ().checkpoints, 25);
  assert_false (query ().error);
  assert_int_equal (nr_messages (), 0);
}

static void
come_and_go (void (*start_it) (void))
{
  struct unit_thread threads[4];
  unsigned before;

  start_it ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  start_changing (threads, 4);
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < 5 + i; ++j)
      pause_a_moment ();
    server_end (&server, SIGKILL);
    wait_for (!query ().remote_connected && query ().error);
    assert_non_null (strstr (query ().desc, "connection to the remote lost"));
    assert_non_null (strstr (query ().desc, "server closed"));
    if (i % 2)
      assert_refused (primary_checkpoint (primary, &refusal), server.uri);
    /* The guest goes on. */
    before = atomic_load (&nr_changes);
    wait_for (atomic_load (&nr_changes) > before + 200);
    start_it ();
    if (i % 3 == 0)
      wait_for (query ().remote_connected);
    checkpoint_and_compare ();
  }
  stop_changing (threads, 4);
  assert_done (primary_stop (primary, false, &refusal));
  assert_int_equal (first_difference (), -1);
}

static void
test_the_remote_comes_and_goes (void **state)
{
  (void) state;
  come_and_go (start_remote);
}

static void
test_the_remote_loses_what_it_has_not_flushed (void **state)
{
  (void) state;
  come_and_go (start_forgetful_remote);
}

/* The remote is killed, and comes back with an empty disk when the primary
 * has noticed.
 */
static void
exchange_remote (void)
{
  server_end (&server, SIGKILL);
  wait_for (!query ().remote_connected);
  make_remote (DISK_SIZE);
  start_remote ();
}

/* A server that goes down loses what it has not flushed, all of it or
 * not.
 */
static void
test_what_was_not_flushed_is_sent_again (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  for (int i = 0; i < 20; ++i)
    assert_int_equal (write_at (i * 2 * AREA + 100, 5000, i + 1), 0);
  wait_for (query ().dirty_bytes == 0);
  assert_int_equal (first_difference (), -1);

  exchange_remote ();
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);

  /* But what was flushed is not. */
  exchange_remote ();
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), 100);
}

/* A remote that holds the connection and does not answer. */
static void
test_the_remote_hangs (void **state)
{
  struct unit_thread threads[4];
  unsigned before;

  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, GIVE_UP);
  assert_done (primary_start (primary, false, &refusal));
  server_hold (&server);

  /* With nothing to send the checkpoint asks whether somebody is there. */
  assert_refused (primary_checkpoint (primary, &refusal),
                  "server does not answer");
  start_changing (threads, 4);
  before = atomic_load (&nr_changes);
  wait_for (atomic_load (&nr_changes) > before + 500);
  assert_refused (primary_checkpoint (primary, &refusal), server.uri);
  before = atomic_load (&nr_changes);
  wait_for (atomic_load (&nr_changes) > before + 500);

  server_go_on (&server);
  wait_for (query ().remote_connected);
  checkpoint_and_compare ();
  assert_non_null (strstr (query ().desc, "server does not answer"));

  /* Neither failover nor the end waits for it. */
  server_hold (&server);
  before = atomic_load (&nr_changes);
  wait_for (atomic_load (&nr_changes) > before + 100);
  assert_done (primary_stop (primary, true, &refusal));
  stop_changing (threads, 4);
  end_primary ();
}

/* A remote that runs these commands of the shell before each write and for
 * each flush.
 */
static void
start_scripted_remote (const char *before_write, const char *flush)
{
  char size[64], pread[192], pwrite[384], flush_option[64];

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

/* A remote that flushes more slowly than writes may be held: what has been
 * flushed before they are held is not flushed again.
 */
static void
test_a_remote_that_flushes_slowly (void **state)
{
  (void) state;
  start_scripted_remote ("", "sleep 6");
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 5000, 7), 0);
  wait_for (query ().dirty_bytes == 0);
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

/* One area that the remote does not take keeps no other one back. */
static void
test_the_remote_refuses_one_area (void **state)
{
  char fail[192];

  (void) state;
  snprintf (fail, sizeof fail, "[ $4 -ne %d ] || "
            "{ cat >/dev/null; echo EIO >&2; exit 1; }", 20 * AREA);
  start_scripted_remote (fail, "exit 0");
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  for (int i = 0; i < 40; ++i)
    assert_int_equal (write_at (i * AREA, AREA, i + 1), 0);
  wait_for (query ().dirty_bytes == AREA);
  assert_int_equal (first_difference (), 20 * AREA);
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

/* How many requests of this kind has the server's log? */
static unsigned
nr_requests (const char *kind)
{
  char line[1024], begin[64];
  unsigned nr = 0;
  FILE *fp = fopen (log_file, "r");

  assert_non_null (fp);
  snprintf (begin, sizeof begin, " %s ", kind);
  while (fgets (line, sizeof line, fp))
    nr += strstr (line, begin) != NULL;
  fclose (fp);
  return nr;
}

static void
test_a_full_copy (void **state)
{
  (void) state;
  write_file (remote_file, "old", 3);
  assert_int_equal (truncate (remote_file, DISK_SIZE), 0);
  fill_random (disk.data + 10 * AREA, 3 * AREA, 11);
  fill_random (disk.data + DISK_SIZE - 100, 100, 12);
  server_start (&server, "--filter=log", "file", remote_file, log_option,
                NULL);
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, true, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
  assert_int_equal (nr_messages (), 0);
  end_primary ();
  server_end (&server, SIGTERM);
  /* Once each area that is not zero on both sides, in one request where it is
   * not zero.
   */
  assert_int_equal (nr_requests ("Write"), 4);
  assert_int_equal (nr_requests ("Zero"), 1);
}

/* Dirty areas only, in runs. */
static void
test_only_dirty_blocks_are_copied (void **state)
{
  (void) state;
  server_start (&server, "--filter=log", "file", remote_file, log_option,
                NULL);
  begin_primary (server.uri, bitmap_file, 0);
  for (int i = 0; i < 16; i += 8)
    assert_int_equal (write_at (AREA + i * 4096 + 10, 20, 11), 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
  end_primary ();
  server_end (&server, SIGTERM);
  assert_int_equal (nr_requests ("Write"), 2);
}

static void
test_a_disk_that_wants_aligned_requests (void **state)
{
  (void) state;
  disk.node.align = 16384;
  atomic_store (&disk.node.size, 63 * AREA + 16384);
  make_remote (63 * AREA + 16384);
  fill_random (disk.data + 5 * AREA + 30000, 100000, 4);
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, true, &refusal));
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (write_at (20 * AREA + 16384, 32768, 5), 0);
  assert_int_equal (node_zero (node, 16384, 6 * AREA, 0), 0);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

/* The remote refuses, and then thinks better of it. */
static void
remote_errors (const char *what, const char *text)
{
  char option[64];

  snprintf (option, sizeof option, "error-%s=ENOSPC", what);
  write_file (error_file, "", 0);
  server_start (&server, "--filter=error", "file", remote_file, option,
                "error-rate=100%", error_option, NULL);
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 1000000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal), text);
  assert_int_equal (write_at (2000000, 1000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal), text);
  assert_true (query ().error);
  assert_non_null (strstr (query ().desc, text));
  assert_true (query ().remote_connected);
  assert_true (query ().dirty_bytes > 0);
  unlink (error_file);
  /* The first one may meet what was refused before. */
  wait_for (primary_checkpoint (primary, &refusal) == 0);
  assert_true (query ().error);
  assert_int_equal (first_difference (), -1);
}

static void
test_the_remote_is_full (void **state)
{
  (void) state;
  remote_errors ("pwrite", "writing to the remote: No space left");
}

static void
test_the_remote_cannot_flush (void **state)
{
  char flush[200];

  (void) state;
  /* The error filter knows no flush. */
  snprintf (flush, sizeof flush, "flush=if [ -e %s ]; then echo EIO >&2; "
            "exit 1; fi", error_file);
  write_file (error_file, "", 0);
  server_start (&server, "eval", "get_size=echo 4206649",
                "can_write=exit 0", "can_flush=exit 0",
                "pread=dd if=/dev/zero bs=$3 count=1 2>/dev/null",
                "pwrite=cat >/dev/null",
                flush, NULL);
  begin_primary (server.uri, bitmap_file, 0);
  assert_done (primary_start (primary, false, &refusal));
  assert_int_equal (write_at (0, 1000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "flushing the remote: Input/output error");
  /* What it may have lost is dirty again, at the latest when a flush
   * after it has failed.
   */
  wait_for (query ().dirty_bytes > 0);
  unlink (error_file);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (query ().dirty_bytes, 0);
}

static void
test_the_disk_cannot_be_read (void **state)
{
  (void) state;
  start_remote ();
  begin_primary (server.uri, NULL, 0);
  assert_done (primary_start (primary, false, &refusal));
  atomic_store (&disk.fail_reads, true);
  assert_int_equal (write_at (2 * AREA, 1000, 3), 0);
  assert_refused (primary_checkpoint (primary, &refusal),
                  "reading the disk at offset 131072: Input/output error");
  assert_true (query ().error);
  atomic_store (&disk.fail_reads, false);
  assert_done (primary_checkpoint (primary, &refusal));
  assert_int_equal (first_difference (), -1);
}

/* Prepared by one thread, ended by another. */
static void
commit_it (struct unit_thread *t)
{
  struct replication_refusal r;

  if (t->opaque)
    CHECK (primary_checkpoint_commit (primary, &r) == 0);
  else
    primary_checkpoint_abort (primary);
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
  primary_checkpoint_abort (primary);
  assert_done (primary_start (primary, false, &refusal));
  start_changing (threads, 2);
  for (unsigned i = 0; i < 4; ++i) {
    char buf[100];

    assert_done (primary_checkpoint_prepare (primary, &refusal));
    before = atomic_load (&disk.changes);
    assert_refused (primary_checkpoint_prepare (primary, &refusal),
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
  assert_done (primary_checkpoint_prepare (primary, &refusal));
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

static int
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
    TEST (test_stages_of_a_forwarder),
    TEST (test_a_forwarder_keeps_errors_to_itself),
    TEST (test_a_forwarder_gives_up_a_secondary_that_hangs),
    TEST (test_a_forwarder_tells_of_a_secondary_that_hangs),
    TEST (test_a_forwarder_bears_a_slow_secondary),
    TEST (test_a_forwarder_cuts_long_requests),
    TEST (test_a_forwarder_waits_for_a_moment),
    TEST (test_a_forwarder_bears_a_slow_flush),
    TEST (test_a_forwarder_keeps_the_order),
    TEST (test_nothing_arrives_after_a_failover),
    TEST (test_failover_of_a_forwarder_that_hangs),
    TEST (test_failover_while_a_forwarder_stops),
    TEST (test_a_clean_end_of_a_forwarder),
    TEST (test_the_end_of_a_forwarder_that_hangs),
    TEST (test_stages_with_a_remote),
    TEST (test_the_guest_sees_errors_of_its_own_disk),
    TEST (test_bad_options),
    TEST (test_a_remote_that_does_not_fit_is_refused),
    TEST (test_the_remote_is_equal_at_checkpoints),
    TEST (test_the_remote_comes_and_goes),
    TEST (test_the_remote_loses_what_it_has_not_flushed),
    TEST (test_what_was_not_flushed_is_sent_again),
    TEST (test_the_remote_hangs),
    TEST (test_the_remote_hangs_while_writes_are_held),
    TEST (test_a_remote_that_flushes_slowly),
    TEST (test_a_failover_waits_for_what_was_sent),
    TEST (test_a_failover_says_what_was_not_answered),
    TEST (test_the_remote_refuses_one_area),
    TEST (test_the_end_does_not_wait_for_a_remote_that_hangs),
    TEST (test_a_clean_end_leaves_a_clean_bitmap),
    TEST (test_the_bitmap_survives),
    TEST (test_the_bitmap_survives_a_crash),
    TEST (test_after_a_power_failure_all_is_dirty),
    TEST (test_a_full_copy),
    TEST (test_only_dirty_blocks_are_copied),
    TEST (test_a_disk_that_wants_aligned_requests),
    TEST (test_the_remote_is_full),
    TEST (test_the_remote_cannot_flush),
    TEST (test_the_disk_cannot_be_read),
    TEST (test_a_prepared_checkpoint_holds_writes),
    TEST (test_commands_can_be_cancelled),
  };

  return cmocka_run_group_tests_name ("replication-primary", tests,
                                      make_folder, remove_folder);
}
