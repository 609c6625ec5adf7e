/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary is killed before, or in the middle of, any of its system
 * calls that change a file, and started again: rollback must give the
 * disk of the last checkpoint, discard what the primary has written, and
 * a failover must be finished with what the guest has written.  The
 * recovery is killed as well.
 *
 * A child process plays a story that the seed decides, over a disk and
 * buffers in files, and keeps account of what it does in shared memory.
 * ROUNDS multiplies the number of places where it is killed; SEED says
 * which.
 */

#include <config.h>

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "utils/rounding.h"
#include "tests/unit/replication-unit.h"
#include "tests/lib/next.h"
#include "tests/unit/unit.h"

#define SIZE (UINT64_C (128) * 1024 + 512)
#define CLUSTER 4096
#define DISK "disk.raw"
#define KILLED 42

/* Where the story is interrupted: everywhere, as it is shorter than that,
 * unless sanitizers make it slow.
 */
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define PLACES 10
#else
#define PLACES 200
#endif

/* ---- Dying in system calls */

/* How many more calls that change files are made; the last one is made
 * by half.
 */
static atomic_int calls_left = INT_MAX;

/* Without what sanitizers do at the end. */
static void
die (void)
{
  syscall (SYS_exit_group, KILLED);
}

/* How much of count bytes is written by the last call: whole pages, as
 * the kernel does when a process is killed.
 */
static void
die_after (int fd, const void *buf, size_t count, off_t offset)
{
  const size_t half = round_down (count / 2, 4096);

  if (half > 0)
    (void) !NEXT_OFF (pwrite) (fd, buf, half, offset);
  die ();
}

static bool
is_last_call (void)
{
  return atomic_fetch_sub (&calls_left, 1) <= 1;
}

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  if (is_last_call ())
    die_after (fd, buf, count, offset);
  return NEXT_OFF (pwrite) (fd, buf, count, offset);
}

ssize_t
pwritev (int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
  if (is_last_call ())
    die_after (fd, iov[0].iov_base, iov[0].iov_len, offset);
  return NEXT_OFF (pwritev) (fd, iov, iovcnt, offset);
}

int
ftruncate (int fd, off_t length)
{
  if (is_last_call ())
    die ();
  return NEXT_OFF (ftruncate) (fd, length);
}

int
fallocate (int fd, int mode, off_t offset, off_t length)
{
  if (is_last_call ())
    die ();
  return NEXT_OFF (fallocate) (fd, mode, offset, length);
}

/* ---- The account */

enum where { BEFORE, RUNNING, IN_CHECKPOINT, IN_FAILOVER_COMMAND,
             IN_FAILOVER, IN_STOP, AFTER };

struct account {
  _Atomic enum where where;
  uint8_t checkpoint[SIZE];     /* the disk at the last checkpoint */
  uint8_t disk[SIZE];           /* what the primary has written */
  uint8_t seen[SIZE];           /* what the guest sees */

  /* The request that has not ended yet, and on which side; its bytes may
   * be as before or as in data.
   */
  enum { NOBODY, PRIMARY, GUEST } pending;
  uint64_t offset, count;
  uint8_t data[SIZE];
};

static struct account *account;

static void
request (struct bench *b, bool primary, uint64_t *seed)
{
  struct node *n = primary ? b->primary : b->guest;
  uint8_t *model = primary ? account->disk : account->seen;
  const uint64_t offset = random_below (seed, SIZE);
  const uint64_t count =
    1 + random_below (seed, MIN (SIZE - offset, (uint64_t) 12000));
  const unsigned kind = random_below (seed, 6);

  memset (account->data, kind < 4 ? random_below (seed, 256) : 0, count);
  account->offset = offset;
  account->count = count;
  atomic_signal_fence (memory_order_seq_cst);
  account->pending = primary ? PRIMARY : GUEST;
  if (kind < 4)
    CHECK (node_pwrite (n, account->data, count, offset) == 0);
  else
    CHECK (node_zero (n, count, offset, NODE_MAY_TRIM) == 0);
  memcpy (model + offset, account->data, count);
  atomic_signal_fence (memory_order_seq_cst);
  account->pending = NOBODY;
}

static void
go_to (enum where where)
{
  atomic_store (&account->where, where);
}

/* ---- The story */

static void
open_bench (struct bench *b, struct node **disk,
            enum secondary_recover recover, bool *refused)
{
  const struct node_open_options options = { .read_only = false };
  const struct secondary_options secondary_options = {
    .active = ACTIVE, .hidden = HIDDEN, .recover = recover
  };

  *b = (struct bench) { .s = NULL };
  *disk = node_open (DISK, &options);
  CHECK (*disk != NULL);
  b->s = secondary_open (&secondary_options);
  *refused = b->s == NULL || secondary_begin (b->s, *disk) == -1;
  if (!*refused) {
    b->primary = secondary_connect (b->s, &(struct history) { "" });
    CHECK (b->primary);
    b->guest = secondary_guest_node (b->s);
  }
}

static void
some_requests (struct bench *b, uint64_t *seed)
{
  for (unsigned i = 3 + random_below (seed, 9); i > 0; --i)
    request (b, random_below (seed, 2), seed);
}

static void
one_epoch (struct bench *b, uint64_t *seed)
{
  some_requests (b, seed);
  go_to (IN_CHECKPOINT);
  CHECK (secondary_checkpoint (b->s, &b->refusal) == 0);
  memcpy (account->checkpoint, account->disk, SIZE);
  memcpy (account->seen, account->disk, SIZE);
  go_to (RUNNING);
}

static void
failover (struct bench *b, uint64_t *seed)
{
  go_to (IN_FAILOVER_COMMAND);
  CHECK (secondary_stop (b->s, true, false, &b->refusal) == 0);
  go_to (IN_FAILOVER);
  for (unsigned i = 0; i < 6; ++i)
    request (b, false, seed);
  await_failover (b);
  CHECK (b->status.stage == REPLICATION_DONE);
  for (unsigned i = 0; i < 3; ++i)
    request (b, false, seed);
}

static void
end_replication (struct bench *b)
{
  go_to (IN_STOP);
  CHECK (secondary_stop (b->s, false, false, &b->refusal) == 0);
  memcpy (account->seen, account->disk, SIZE);
}

/* In a child. */
static void
play_story (uint64_t seed, bool fail_over)
{
  struct node *disk;
  struct bench b;
  bool refused;

  open_bench (&b, &disk, RECOVER_FAIL, &refused);
  CHECK (!refused);
  CHECK (secondary_start (b.s, &b.refusal) == 0);
  go_to (RUNNING);
  for (unsigned i = 0; i < 3; ++i)
    one_epoch (&b, &seed);
  some_requests (&b, &seed);
  if (fail_over)
    failover (&b, &seed);
  else
    end_replication (&b);
  go_to (AFTER);
  bench_end (&b);
  CHECK (node_close (disk) == 0);
}

/* In a child: exits with 0 if it was accepted, 1 if refused. */
static void
recover (enum secondary_recover how)
{
  struct node *disk;
  struct bench b;
  bool refused;

  open_bench (&b, &disk, how, &refused);
  bench_end (&b);
  CHECK (node_close (disk) == 0);
  _exit (refused);
}

/* ---- What must be there */

static void
read_disk (uint8_t *buf)
{
  CLEANUP_CLOSE int fd = open (DISK, O_RDONLY);

  CHECK (pread (fd, buf, SIZE, 0) == SIZE);
}

/* Is the disk what the model says, except perhaps for a request that did
 * not end?
 */
static bool
disk_is (const uint8_t *model, int side)
{
  static uint8_t disk[SIZE];

  read_disk (disk);
  for (uint64_t i = 0; i < SIZE; ++i)
    if (disk[i] != model[i] &&
        !(account->pending != NOBODY && (int) account->pending == side &&
          i >= account->offset && i < account->offset + account->count &&
          disk[i] == account->data[i - account->offset]))
      return false;
  return true;
}

static bool
is_allowed (enum secondary_recover how)
{
  const bool back = disk_is (account->checkpoint, NOBODY);
  const bool kept = disk_is (account->disk, PRIMARY);
  const bool finished = disk_is (account->seen, GUEST);

  switch (atomic_load (&account->where)) {
  case BEFORE: return back;
  case RUNNING: return how == RECOVER_DISCARD ? kept : back;
  case IN_CHECKPOINT:
  case IN_STOP: return how == RECOVER_DISCARD ? kept : back || kept;
  case IN_FAILOVER_COMMAND:
    return finished || (how == RECOVER_DISCARD ? kept : back);
  case IN_FAILOVER:
    return finished;
  case AFTER:
    return disk_is (account->seen, NOBODY);
  }
  return false;
}

/* ---- Running it */

/* Returns the exit status of a child that makes so many calls. */
static int
in_child (int calls, void (*run) (void *opaque), void *opaque)
{
  int status;
  const pid_t pid = fork ();

  CHECK (pid != -1);
  if (pid == 0) {
    alarm (HANG_SECONDS);
    atomic_store (&calls_left, calls);
    run (opaque);
    _exit (0);
  }
  CHECK (waitpid (pid, &status, 0) == pid);
  CHECK (WIFEXITED (status));
  return WEXITSTATUS (status);
}

struct story {
  uint64_t seed;
  bool fail_over;
  int calls;
  enum secondary_recover how;
};

static void
run_story (void *opaque)
{
  struct story *story = opaque;

  play_story (story->seed, story->fail_over);
}

static void
run_recover (void *opaque)
{
  struct story *story = opaque;

  recover (story->how);
}

static void
run_recover_fail (void *opaque)
{
  (void) opaque;
  recover (RECOVER_FAIL);
}

static void
create_buffer (const char *name)
{
  const struct qed_create_options options = {
    .size = SIZE, .cluster_size = CLUSTER, .table_size = 1
  };

  unlink (name);
  assert_int_equal (qed_create (name, &options), 0);
}

static void
set_up (uint64_t seed)
{
  CLEANUP_CLOSE int fd = open (DISK, O_RDWR | O_CREAT | O_TRUNC, 0600);

  create_buffer (ACTIVE);
  create_buffer (HIDDEN);
  memset (account, 0, sizeof *account);
  for (uint64_t i = 0; i < SIZE; ++i)
    account->disk[i] = i / 10000 % 3 ? next_random (&seed) : 0;
  memcpy (account->checkpoint, account->disk, SIZE);
  memcpy (account->seen, account->disk, SIZE);
  assert_int_equal (pwrite (fd, account->disk, SIZE, 0), SIZE);
}

/* Whatever the moment, the file is an image without damage. */
static void
assert_valid (const char *name)
{
  struct qed_check_result result;

  assert_int_equal (qed_check (name, QED_FIX_NONE, false, NODE_CACHE_WRITEBACK,
                               NULL, NULL,
                               &result), 0);
  assert_int_equal (result.corruptions, 0);
  assert_int_equal (result.check_errors, 0);
}

/* Kill it once; false if the story came to its end before. */
static bool
one_death (struct story *story, uint64_t *seed)
{
  int status;

  set_up (story->seed);
  status = in_child (story->calls, run_story, story);
  if (status == 0) {
    assert_true (disk_is (account->seen, NOBODY));
    assert_clean_buffers ();
    return false;
  }
  assert_int_equal (status, KILLED);

  assert_valid (ACTIVE);
  assert_valid (HIDDEN);

  /* Without being told what to do it does no harm. */
  if (random_below (seed, 2))
    assert_int_not_equal (in_child (INT_MAX, run_recover_fail, NULL),
                          KILLED);
  /* A recovery that is killed can be repeated. */
  for (unsigned i = random_below (seed, 3); i > 0; --i)
    in_child (1 + random_below (seed, 60), run_recover, story);
  assert_int_equal (in_child (INT_MAX, run_recover, story), 0);
  if (!is_allowed (story->how))
    print_error ("seed %lu, %s, killed in call %d, where %d, recover %d\n",
                 (unsigned long) story->seed,
                 story->fail_over ? "failover" : "stop", story->calls,
                 atomic_load (&account->where), story->how);
  assert_true (is_allowed (story->how));
  assert_clean_buffers ();
  /* And then nothing is left to do. */
  assert_int_equal (in_child (INT_MAX, run_recover_fail, NULL), 0);
  return true;
}

static uint64_t base_seed = 2;
static unsigned rounds = 1;

/* How many calls does the whole story take? */
static int
count_calls (struct story *story)
{
  int lower = 1, upper = 1 << 20;

  while (lower + 16 < upper) {
    const int middle = (lower + upper) / 2;

    set_up (story->seed);
    if (in_child (middle, run_story, story) == 0)
      upper = middle;
    else
      lower = middle;
  }
  return upper;
}

static void
kill_everywhere (bool fail_over, enum secondary_recover how)
{
  for (unsigned round = 0; round < rounds; ++round) {
    uint64_t seed = (base_seed + round) * UINT64_C (0x9e3779b97f4a7c15);
    struct story story = {
      .seed = seed, .fail_over = fail_over, .how = how
    };
    const int calls = count_calls (&story);
    const unsigned step = 1 + calls / PLACES;

    for (story.calls = 1 + random_below (&seed, step);
         one_death (&story, &seed);
         story.calls += 1 + random_below (&seed, step))
      ;
  }
}

static void
test_rollback (void **state)
{
  (void) state;
  kill_everywhere (false, RECOVER_ROLLBACK);
}

static void
test_discard (void **state)
{
  (void) state;
  kill_everywhere (false, RECOVER_DISCARD);
}

static void
test_failover_rollback (void **state)
{
  (void) state;
  kill_everywhere (true, RECOVER_ROLLBACK);
}

static void
test_failover_discard (void **state)
{
  (void) state;
  kill_everywhere (true, RECOVER_DISCARD);
}

static int
remove_disk (void **state)
{
  unlink (DISK);
  return remove_folder (state);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_rollback),
    cmocka_unit_test (test_discard),
    cmocka_unit_test (test_failover_rollback),
    cmocka_unit_test (test_failover_discard),
  };

  if (getenv ("ROUNDS"))
    rounds = atoi (getenv ("ROUNDS"));
  if (getenv ("SEED"))
    base_seed = strtoull (getenv ("SEED"), NULL, 0);
  alarm (HANG_SECONDS * rounds);
  msg_set_handler (collect_message);
  account = mmap (NULL, sizeof *account, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK (account != MAP_FAILED);
  return cmocka_run_group_tests (tests, make_folder, remove_disk);
}
