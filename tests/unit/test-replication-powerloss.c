/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Power is lost at each change of a secondary's disk during a failover, when
 * nobody has flushed what it is made of: a primary that never flushes, and
 * checkpoints of the secondary alone, or none after a first copy.  From the
 * moment on when the buffers say that the disk was promoted it has what the
 * guest saw (replication.md, "Whose data is right").
 *
 * The buffers are real files, of which nothing is lost: what is looked for is
 * what they cannot have.  Of their own changes it is seen that no header may
 * be on the medium before the length of the file that it points into.
 */

#include <config.h>

#define MEDIUM_FIXED_SIZE SIZE
#define SIZE (UINT64_C (64) * 1024)

#include <sys/uio.h>

#include "filters/replication/dirtyfile.h"
#include "tests/lib/next.h"
#include "utils/byteorder.h"
#include "tests/unit/medium.h"
#include "tests/unit/replication-unit.h"
#include "tests/unit/unit.h"

#define MAX_LOSSES 100

/* What a power loss would leave at one moment. */
struct loss {
  uint8_t disk[SIZE];           /* nothing that was not flushed */
  void *files[2];
  size_t lens[2];
};

static const char *const names[] = { ACTIVE, HIDDEN };
static struct loss losses[MAX_LOSSES];
static size_t nr_losses;

static void
keep_file (struct loss *l, unsigned i)
{
  struct stat st;
  CLEANUP_CLOSE int fd = open (names[i], O_RDONLY);

  CHECK (fd >= 0 && fstat (fd, &st) == 0);
  l->lens[i] = st.st_size;
  l->files[i] = malloc (st.st_size);
  CHECK (l->files[i] && pread (fd, l->files[i], st.st_size, 0) == st.st_size);
}

/* Called with the medium's lock; before a flush has done its work. */
static void
lose_power (struct medium *m)
{
  struct loss *l = &losses[nr_losses++];

  CHECK (nr_losses <= MAX_LOSSES);
  memcpy (l->disk, m->flushed, SIZE);
  for (unsigned i = 0; i < 2; ++i)
    keep_file (l, i);
}

/* ---- The story */

enum story { FIRST_COPY, CHECKPOINT, STORIES };

static struct secondary *
begin (struct node *disk, struct node **primary)
{
  const struct secondary_options options = {
    .active = ACTIVE, .hidden = HIDDEN, .recover = RECOVER_DISCARD
  };
  struct secondary *s = secondary_open (&options);

  CHECK (s && secondary_begin (s, disk) == 0);
  *primary = secondary_connect (s, &(struct history) { "" });
  CHECK (*primary);
  return s;
}

static void
end (struct secondary *s, struct node *primary)
{
  secondary_disconnect (s, primary);
  secondary_close (s);
}

static struct node *
new_disk (const uint8_t *data)
{
  struct medium *m = medium_new (true, "disk", data, SIZE);

  m->fault_at = UINT64_MAX;
  return &m->node;
}

/* The guest sees 'p' and what it has written, 'g'; the primary goes on and
 * writes 'q'.
 */
static void
tell (enum story story, struct secondary *s, struct node *primary)
{
  struct replication_refusal refusal;
  struct node *const guest = secondary_guest_node (s);

  if (story == FIRST_COPY)
    write_byte (primary, 'p', SIZE, 0);
  CHECK (secondary_start (s, &refusal) == 0);
  if (story == CHECKPOINT) {
    write_byte (primary, 'p', SIZE, 0);
    CHECK (secondary_checkpoint (s, &refusal) == 0);
  }
  write_byte (guest, 'g', 8192, 0);
  CHECK (node_flush (guest) == 0);
  write_byte (primary, 'q', 8192, 4096);
}

/* Returns whether the disk was promoted. */
static bool
come_back (const struct loss *l)
{
  struct node *const disk = new_disk (l->disk), *primary;
  struct secondary *s;
  bool promoted;

  for (unsigned i = 0; i < 2; ++i)
    write_file (names[i], l->files[i], l->lens[i]);
  s = begin (disk, &primary);
  promoted = secondary_is_promoted (s);
  if (promoted) {
    assert_byte (disk, 'g', 8192, 0);
    assert_byte (disk, 'p', SIZE - 8192, 8192);
  }
  end (s, primary);
  CHECK (node_close (disk) == 0);
  return promoted;
}

static void
test_a_failover_has_what_nobody_flushed (void **state)
{
  static const uint8_t nothing[SIZE];

  (void) state;
  for (enum story story = 0; story < STORIES; ++story) {
    struct node *const disk = new_disk (nothing), *primary;
    struct replication_refusal refusal;
    struct secondary *s;
    unsigned promoted = 0;

    unlink (ACTIVE);
    unlink (HIDDEN);
    s = begin (disk, &primary);
    tell (story, s, primary);
    nr_losses = 0;
    medium_of (disk)->event = lose_power;
    CHECK (secondary_stop (s, true, false, &refusal) == 0);
    end (s, primary);
    CHECK (node_close (disk) == 0);

    for (size_t i = 0; i < nr_losses; ++i) {
      promoted += come_back (&losses[i]);
      free (losses[i].files[0]);
      free (losses[i].files[1]);
    }
    /* Before the note, and after it. */
    assert_within (promoted, 1, nr_losses - 1);
  }
}

/* What did not get onto the medium is gone, as far as anybody knows. */
static void
test_no_failover_of_a_disk_that_cannot_be_flushed (void **state)
{
  struct bench b;

  (void) state;
  bench_open (&b, SIZE, RECOVER_FAIL);
  tell (CHECKPOINT, b.s, b.primary);
  atomic_store (&b.disk->fail_after[MEMORY_FLUSH], 0);
  assert_int_equal (secondary_stop (b.s, true, false, &b.refusal), -1);
  assert_status (&b, REPLICATION_RUNNING, true);
  assert_byte (b.guest, 'g', 8192, 0);
  assert_byte (b.guest, 'p', SIZE - 8192, 8192);
  bench_close (&b);
}

/* ---- Headers and lengths */

#define MAX_FILES 64

/* What a power loss certainly leaves of a file's length. */
static struct durable {
  ino_t ino;
  uint64_t length;
} durable[MAX_FILES];
static unsigned nr_files, nr_headers, nr_bad_headers;
static pthread_mutex_t durable_lock = PTHREAD_MUTEX_INITIALIZER;

/* Of an open file; called with the lock. */
static struct durable *
durable_of (int fd, uint64_t *length)
{
  struct stat st;

  CHECK (fstat (fd, &st) == 0);
  *length = st.st_size;
  for (unsigned i = 0; i < nr_files; ++i)
    if (durable[i].ino == st.st_ino)
      return &durable[i];
  CHECK (nr_files < MAX_FILES);
  durable[nr_files] = (struct durable) { .ino = st.st_ino };
  return &durable[nr_files++];
}

/* Of an image to the end of its L1 table, of a bitmap the header and a bit for
 * each 64 KiB; 0 if this is neither.
 */
static uint64_t
needed_by (const uint8_t *header)
{
  if (memcmp (header, "QED", 4) == 0)
    return get_le64 (header + 40) +
      (uint64_t) get_le32 (header + 4) * get_le32 (header + 8);
  return memcmp (header, "BDDIRTY", 8) == 0
    ? 4096 + get_le64 (header + 16) / 65536 / 8 : 0;
}

static void
look_at_write (int fd, const uint8_t *buf, size_t count, off_t offset)
{
  const uint64_t end = offset == 0 && count >= 64 ? needed_by (buf) : 0;
  uint64_t length;

  if (end == 0)
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&durable_lock);
  nr_headers++;
  nr_bad_headers += end > durable_of (fd, &length)->length;
}

ssize_t
pwrite (int fd, const void *buf, size_t count, off_t offset)
{
  look_at_write (fd, buf, count, offset);
  return NEXT_OFF (pwrite) (fd, buf, count, offset);
}

ssize_t
pwritev (int fd, const struct iovec *iov, int iovcnt, off_t offset)
{
  look_at_write (fd, iov[0].iov_base, iov[0].iov_len, offset);
  return NEXT_OFF (pwritev) (fd, iov, iovcnt, offset);
}

int
ftruncate (int fd, off_t length)
{
  uint64_t old;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&durable_lock);
  struct durable *d = durable_of (fd, &old);

  d->length = MIN (d->length, (uint64_t) length);
  return NEXT_OFF (ftruncate) (fd, length);
}

int
fdatasync (int fd)
{
  const int r = NEXT (fdatasync) (fd);
  uint64_t length;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&durable_lock);
  struct durable *d = durable_of (fd, &length);

  if (r == 0)
    d->length = length;
  return r;
}

/* From the first use of the files on, through checkpoints of which each had
 * more in its buffers than the one before.
 */
static void
test_headers_are_behind_the_length_of_their_file (void **state)
{
  struct bench b;

  (void) state;
  nr_files = nr_headers = nr_bad_headers = 0;
  bench_open (&b, SIZE, RECOVER_FAIL);
  assert_int_equal (secondary_start (b.s, &b.refusal), 0);
  for (uint64_t i = 1; i <= 8; ++i) {
    write_byte (b.primary, 'p', i * SIZE / 8, 0);
    write_byte (b.guest, 'g', i * SIZE / 8, 0);
    assert_int_equal (secondary_checkpoint (b.s, &b.refusal), 0);
  }
  bench_close (&b);
  assert_true (nr_headers > 16);
  assert_int_equal (nr_bad_headers, 0);
}

static void
test_a_bitmaps_header_is_behind_its_length (void **state)
{
  const uint64_t size = UINT64_C (1) << 30;
  static uint64_t map[256];
  struct dirty_file *f;

  (void) state;
  nr_files = nr_headers = nr_bad_headers = 0;
  f = dirty_file_open ("map");
  assert_non_null (f);
  assert_int_equal (dirty_file_begin (f, size, map), 0);
  assert_int_equal (dirty_file_end (f), 0);
  assert_true (nr_headers > 1);
  assert_int_equal (nr_bad_headers, 0);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_failover_has_what_nobody_flushed),
    cmocka_unit_test (test_no_failover_of_a_disk_that_cannot_be_flushed),
    cmocka_unit_test (test_headers_are_behind_the_length_of_their_file),
    cmocka_unit_test (test_a_bitmaps_header_is_behind_its_length),
  };

  msg_set_handler (collect_message);
  alarm (HANG_SECONDS);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
