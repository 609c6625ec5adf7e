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
 * what they cannot have.
 */

#include <config.h>

#define MEDIUM_FIXED_SIZE SIZE
#define SIZE (UINT64_C (64) * 1024)

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

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_a_failover_has_what_nobody_flushed),
    cmocka_unit_test (test_no_failover_of_a_disk_that_cannot_be_flushed),
  };

  msg_set_handler (collect_message);
  alarm (HANG_SECONDS);
  return cmocka_run_group_tests (tests, make_folder, remove_folder);
}
