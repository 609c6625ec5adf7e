/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Each call that changes a file of a secondary fails once during a failover,
 * or some do, or from one on all; before its work is done or after.  Then
 * the process is killed and started again.  Whatever the command said: what
 * the guest had flushed is there, or the start is refused.  The same while a
 * checkpoint is made and given up: a rollback gives it or the one before, and
 * a failover what the guest saw.
 *
 * A child plays the story over files; what it was told stands in shared
 * memory.
 */

#include <config.h>

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "tests/unit/replication-unit.h"
#include "tests/lib/next.h"
#include "tests/unit/unit.h"

#define SIZE (UINT64_C (256) * 1024)
#define HALF (SIZE / 2)
/* In another L2 table of the buffers. */
#define FAR (UINT64_C (40) * 1024 * 1024)
#define CLUSTER 4096
#define DISK "disk.raw"

/* Each call fails, or where sanitizers make it slow some of them. */
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define STEP 5
#else
#define STEP 1
#endif

/* ---- Failing system calls */

enum mode {
  ONCE_BEFORE, ONCE_AFTER,
  FEW_BEFORE, FEW_AFTER,        /* and what is to undo it */
  ALWAYS_BEFORE, ALWAYS_AFTER, MODES
};
#define FEW 4

static atomic_int calls_left = INT_MAX;
static _Atomic enum mode mode;
static atomic_int calls_made;

/* Does this call fail, and does it do its work? */
static bool
fails (bool *works)
{
  const int left = atomic_fetch_sub (&calls_left, 1);
  const enum mode m = atomic_load (&mode);
  const int more = m >= ALWAYS_BEFORE ? INT_MAX : m >= FEW_BEFORE ? FEW : 1;
  const bool fail = left <= 1 && left > 1 - more;

  atomic_fetch_add (&calls_made, 1);
  *works = !fail || m % 2 == ONCE_AFTER;
  return fail;
}

#define CALL(call)                              \
  do {                                          \
    bool works;                                 \
    const bool fail = fails (&works);           \
    const long r = works ? (call) : -1;         \
                                                \
    if (fail) {                                 \
      errno = EIO;                              \
      return -1;                                \
    }                                           \
    return r;                                   \
  } while (0)

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  CALL (NEXT_OFF (pwrite) (fd, buf, count, offset));
}

ssize_t
pwritev (int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
  CALL (NEXT_OFF (pwritev) (fd, iov, iovcnt, offset));
}

int
ftruncate (int fd, off_t length)
{
  CALL (NEXT_OFF (ftruncate) (fd, length));
}

int
fallocate (int fd, int how, off_t offset, off_t length)
{
  CALL (NEXT_OFF (fallocate) (fd, how, offset, length));
}

int
fdatasync (int fd)
{
  CALL (NEXT (fdatasync) (fd));
}

/* ---- The story */

struct account {
  bool accepted;                /* the failover was */
  bool ended;                   /* the child came to its end */
  bool late_flushed;            /* what the guest wrote afterwards was */
  char seen;                    /* by the guest at FAR before that, or 0 */
  int calls;                    /* made from the command on */
};

static struct account *account;

static int
open_bench (struct bench *b, struct node **disk,
            enum secondary_recover recover)
{
  const struct node_open_options options = { .read_only = false };

  *b = (struct bench) { .s = NULL };
  *disk = node_open (DISK, &options);
  CHECK (*disk != NULL);

  const struct secondary_options secondary_options = {
    .active = ACTIVE, .hidden = HIDDEN, .recover = recover
  };

  b->s = secondary_open (&secondary_options);
  if (b->s == NULL)
    return -1;
  if (secondary_begin (b->s, *disk) == -1)
    return -1;
  b->primary = secondary_connect (b->s, &(struct history) { "" });
  b->guest = secondary_guest_node (b->s);
  return 0;
}

/* In a child, which does not end cleanly.  'o' is old, 'p' the primary's, 'g'
 * and 'h' the guest's.
 */
static void
play (int nr, enum mode m)
{
  struct node *disk;
  struct bench b;

  CHECK (open_bench (&b, &disk, RECOVER_FAIL) == 0);
  write_byte (b.primary, 'o', SIZE, 0);
  CHECK (secondary_start (b.s, &b.refusal) == 0);
  write_byte (b.primary, 'p', SIZE, 0);
  write_byte (b.guest, 'g', HALF, 0);
  CHECK (node_flush (b.guest) == 0);

  atomic_store (&mode, m);
  atomic_store (&calls_made, 0);
  atomic_store (&calls_left, nr);
  account->accepted = secondary_stop (b.s, true, false, &b.refusal) == 0;
  await_failover (&b);
  {
    CLEANUP_FREE uint8_t *h = malloc (4096);

    memset (h, 'h', 4096);
    account->late_flushed = account->accepted &&
      node_pwrite (b.guest, h, 4096, 0) == 0 && node_flush (b.guest) == 0;
  }
  account->calls = atomic_load (&calls_made);
  account->ended = true;
  syscall (SYS_exit_group, 0);
}

static void
in_child (void (*what) (int nr, enum mode m), int nr, enum mode m)
{
  const pid_t pid = fork ();
  int status;

  assert_int_not_equal (pid, -1);
  if (pid == 0) {
    what (nr, m);
    _exit (1);
  }
  assert_int_equal (waitpid (pid, &status, 0), pid);
  assert_true (WIFEXITED (status) && WEXITSTATUS (status) == 0);
}

/* All of a range is one of these bytes; which? */
static char
byte_of (struct node *n, const char *allowed, uint64_t count, uint64_t offset)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  CHECK (node_pread (n, buf, count, offset) == 0);
  CHECK (strchr (allowed, buf[0]));
  for (uint64_t i = 0; i < count; ++i)
    CHECK (buf[i] == buf[0]);
  return buf[0];
}

/* Start again, as the operator would. */
static void
open_again (struct bench *b, struct node **disk)
{
  if (open_bench (b, disk, RECOVER_FAIL) == -1) {
    secondary_close (b->s);
    node_close (*disk);
    CHECK (open_bench (b, disk, RECOVER_DISCARD) == 0);
  }
}

/* In a child. */
static void
look (int nr, enum mode m)
{
  struct node *disk;
  struct bench b;
  bool promoted;

  open_again (&b, &disk);
  promoted = secondary_is_promoted (b.s);
  if (account->accepted) {
    CHECK (promoted);
    byte_of (disk, account->late_flushed ? "h" : "gh", 4096, 0);
    CHECK (byte_of (disk, "g", HALF - 4096, 4096) == 'g');
    CHECK (byte_of (disk, "o", HALF, HALF) == 'o');
  }
  else if (promoted)            /* nothing could be taken back */
    CHECK (m >= FEW_BEFORE && byte_of (disk, "g", HALF, 0) == 'g');
  else
    CHECK (byte_of (disk, "p", SIZE, 0) == 'p');
  syscall (SYS_exit_group, 0);
}

/* In a child: a checkpoint is made and given up.  Then the primary goes on in
 * a part of what it has written in between; or, where some calls have failed
 * and others do not, there is a failover.
 */
static void
play_back (int nr, enum mode m)
{
  struct node *disk;
  struct bench b;
  uint8_t q[CLUSTER];

  memset (q, 'q', sizeof q);
  CHECK (open_bench (&b, &disk, RECOVER_FAIL) == 0);
  write_byte (b.primary, 'o', CLUSTER, 0);
  write_byte (b.primary, 'o', CLUSTER, FAR);
  CHECK (secondary_start (b.s, &b.refusal) == 0);
  write_byte (b.primary, 'p', CLUSTER, 0);
  write_byte (b.primary, 'p', CLUSTER, FAR);
  write_byte (b.guest, 'g', CLUSTER, FAR);
  CHECK (secondary_checkpoint_prepare (b.s, NULL, &b.refusal) == 0);

  atomic_store (&mode, m);
  atomic_store (&calls_made, 0);
  atomic_store (&calls_left, nr);
  secondary_checkpoint_commit (b.s, &b.refusal);
  secondary_checkpoint_abort (b.s);
  account->calls = atomic_load (&calls_made);
  atomic_store (&calls_left, INT_MAX);

  /* It was made, or the guest goes on as if nothing had been.  What it has
   * written is lost where nothing can be written any more.
   */
  CHECK ((byte_of (b.guest, "op", CLUSTER, 0) == 'p') ==
         (byte_of (b.guest, m >= ALWAYS_BEFORE ? "gpo" : "gp", CLUSTER, FAR)
          == 'p'));
  if (m != FEW_BEFORE && m != FEW_AFTER)
    (void) !node_pwrite (b.primary, q, sizeof q, 0);
  else {
    account->seen = byte_of (b.guest, "gp", CLUSTER, FAR);
    account->accepted = secondary_stop (b.s, true, false, &b.refusal) == 0;
  }
  account->ended = true;
  syscall (SYS_exit_group, 0);
}

/* In a child. */
static void
look_back (int nr, enum mode m)
{
  struct node *disk;
  struct bench b;

  if (account->accepted) {
    open_again (&b, &disk);
    await_failover (&b);
    CHECK (byte_of (disk, "gp", CLUSTER, FAR) == account->seen);
    syscall (SYS_exit_group, 0);
  }
  CHECK (open_bench (&b, &disk, RECOVER_ROLLBACK) == 0);
  CHECK (byte_of (disk, "op", CLUSTER, 0) ==
         byte_of (disk, "op", CLUSTER, FAR));
  syscall (SYS_exit_group, 0);
}

static void
make_disk (uint64_t size)
{
  const int fd = open (DISK, O_CREAT | O_TRUNC | O_RDWR, 0600);

  unlink (ACTIVE);
  unlink (HIDDEN);
  assert_int_not_equal (fd, -1);
  assert_int_equal (NEXT_OFF (ftruncate) (fd, size), 0);
  close (fd);
}

/* Let each call of the story fail that is made in it without a fault, too. */
static void
play_all (void (*play_it) (int nr, enum mode m),
          void (*look_at_it) (int nr, enum mode m), uint64_t size)
{
  const int calls = account->calls;

  for (enum mode m = 0; m < MODES; ++m)
    for (int nr = 1; nr <= calls; nr += STEP) {
      *account = (struct account) { .accepted = false };
      make_disk (size);
      in_child (play_it, nr, m);
      assert_true (account->ended);
      in_child (look_at_it, nr, m);
    }
}

static void
test_each_call_of_a_failover_fails (void **state)
{
  (void) state;
  make_disk (SIZE);
  in_child (play, INT_MAX, ONCE_BEFORE);
  assert_true (account->accepted && account->late_flushed);
  play_all (play, look, SIZE);
}

static void
test_each_call_of_a_checkpoint_that_is_given_up_fails (void **state)
{
  (void) state;
  *account = (struct account) { .accepted = false };
  make_disk (FAR + SIZE);
  in_child (play_back, INT_MAX, ONCE_BEFORE);
  in_child (look_back, INT_MAX, ONCE_BEFORE);
  assert_true (account->calls > 5);
  play_all (play_back, look_back, FAR + SIZE);
}

static int
set_up (void **state)
{
  account = mmap (NULL, sizeof *account, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return account == MAP_FAILED ? -1 : make_folder (state);
}

static int
tear_down (void **state)
{
  unlink (DISK);
  return remove_folder (state);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_each_call_of_a_failover_fails),
    cmocka_unit_test (test_each_call_of_a_checkpoint_that_is_given_up_fails),
  };

  return cmocka_run_group_tests (tests, set_up, tear_down);
}
