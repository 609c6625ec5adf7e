/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A random model of the secondary: threads that write, zero, trim and
 * read on both exports at the same time, in ranges that share clusters,
 * with checkpoints at random and a failover or a stop at the end, in
 * which the guest goes on.
 *
 * Each byte of the disk belongs to one thread of each side, in stripes
 * that fit no cluster; so each thread knows what its bytes must read as,
 * and reads of others' bytes must at least not show what the primary has
 * written since the last checkpoint.  ROUNDS and SEED are taken from the
 * environment.
 */

#include <config.h>

#include <fcntl.h>
#include <stdbool.h>

#include "tests/unit/replication-unit.h"
#include "tests/unit/unit.h"

#define SIZE (UINT64_C (2) * 1024 * 1024 + 1536)
#define PER_SIDE 3
#define PRIMARY_STRIPE 10240
#define GUEST_STRIPE 6144
#define MAX_LENGTH (UINT64_C (48) * 1024)
#define CHECKPOINTS 40
#define OPERATIONS (60 / ONE_IN) /* of a thread between two checkpoints */

/* A byte that the primary has written carries the epoch in its bits 1
 * to 6.
 */
#define PRIMARY_MARK 0x80
_Static_assert (CHECKPOINTS + 1 < 64, "too many epochs");

static uint64_t base_seed = 1;

struct model {
  struct bench b;
  pthread_barrier_t barrier;
  bool checkpoints_meet_requests; /* else they come between them */
  bool fail_over;
  atomic_uint epoch;
  atomic_bool primary_ends;
  uint8_t *disk, *seen;         /* what each side reads; each byte is for
                                   its owner, and at a barrier for all */
};

static uint8_t
primary_byte (struct model *m, struct unit_thread *t)
{
  return PRIMARY_MARK | atomic_load (&m->epoch) << 1 |
    random_below (&t->seed, 2);
}

/* A range in a stripe of this thread, or (not own) anywhere. */
static uint64_t
random_range (struct unit_thread *t, uint64_t stripe, unsigned nr, bool own,
              uint64_t *count)
{
  uint64_t offset, end = SIZE;

  offset = random_below (&t->seed, SIZE);
  if (own) {
    do
      offset = random_below (&t->seed, SIZE);
    while (offset / stripe % PER_SIDE != nr);
    end = MIN (round_down (offset, 1) / stripe * stripe + stripe, SIZE);
  }
  if (random_below (&t->seed, 2)) /* sectors, as file systems write them */
    offset = MAX (round_down (offset, 512),
                  own ? offset / stripe * stripe : 0);
  *count = 1 + random_below (&t->seed, MIN (end - offset, MAX_LENGTH));
  return offset;
}

static void
check_bytes (const char *who, const uint8_t *got, const uint8_t *wanted,
             uint64_t count, uint64_t offset)
{
  for (uint64_t i = 0; i < count; ++i)
    if (got[i] != wanted[i]) {
      fprintf (stderr, "seed %lu: %s: offset %lu reads 0x%02x instead of "
               "0x%02x\n", (unsigned long) base_seed, who,
               (unsigned long) (offset + i), got[i], wanted[i]);
      _exit (1);
    }
}

/* After a discard each sector reads as before or as zeroes. */
static void
settle_discard (struct node *n, const char *who, uint8_t *model,
                uint64_t count, uint64_t offset)
{
  uint8_t buf[MAX_LENGTH];

  CHECK (node_pread (n, buf, count, offset) == 0);
  for (uint64_t i = 0; i < count; ++i)
    if (buf[i] == 0)
      model[i] = 0;
  check_bytes (who, buf, model, count, offset);
}

static void
one_operation (struct model *m, struct unit_thread *t, struct node *n,
               const char *who, uint8_t *model, uint8_t byte,
               uint64_t count, uint64_t offset)
{
  uint8_t buf[MAX_LENGTH];

  switch (random_below (&t->seed, 8)) {
  case 0: case 1: case 2:
    memset (buf, byte, count);
    CHECK (node_pwrite (n, buf, count, offset) == 0);
    memset (model, byte, count);
    break;
  case 3:
    if (node_zero (n, count, offset,
                   random_below (&t->seed, 2) * NODE_MAY_TRIM |
                   random_below (&t->seed, 2) * NODE_FAST) == 0)
      memset (model, 0, count);
    else
      CHECK (errno == ENOTSUP);
    break;
  case 4:
    CHECK (node_discard (n, count, offset) == 0);
    if (!m->checkpoints_meet_requests)
      settle_discard (n, who, model, count, offset);
    else
      CHECK (node_zero (n, count, offset, 0) == 0);
    memcpy (buf, model, count);
    if (m->checkpoints_meet_requests)
      memset (model, 0, count);
    break;
  case 5:
    if (random_below (&t->seed, 20) == 0)
      CHECK (node_flush (n) == 0);
    break;
  default:
    CHECK (node_pread (n, buf, count, offset) == 0);
    check_bytes (who, buf, model, count, offset);
  }
}

static void
primary_operation (struct model *m, struct unit_thread *t)
{
  uint64_t count;
  const uint64_t offset =
    random_range (t, PRIMARY_STRIPE, t->nr, true, &count);

  one_operation (m, t, m->b.primary, "primary", m->disk + offset,
                 primary_byte (m, t), count, offset);
}

/* The guest must not see anything of the running epoch. */
static void
look_for_leaks (struct model *m, struct unit_thread *t)
{
  const unsigned epoch = atomic_load (&m->epoch);
  uint8_t buf[MAX_LENGTH];
  struct extent e;
  uint64_t count;
  const uint64_t offset = random_range (t, 1, 0, false, &count);

  CHECK (node_pread (m->b.guest, buf, count, offset) == 0);
  for (uint64_t i = 0; i < count; ++i)
    CHECK (!(buf[i] & PRIMARY_MARK) || (buf[i] >> 1 & 63) != epoch);
  CHECK (node_extents (m->b.guest, count, offset, &e) == 0);
  CHECK (e.length > 0 && e.length <= count);
}

/* What is said to be zero is. */
static void
check_extents (struct model *m, uint64_t count, uint64_t offset)
{
  struct extent e;

  CHECK (node_extents (m->b.guest, count, offset, &e) == 0);
  CHECK (e.length > 0 && e.length <= count);
  if (e.flags & EXTENT_ZERO)
    CHECK (is_zero (m->seen + offset, e.length));
}

static void
guest_operation (struct model *m, struct unit_thread *t)
{
  uint64_t count;
  const uint64_t offset =
    random_range (t, GUEST_STRIPE, t->nr - PER_SIDE, true, &count);

  if (!m->checkpoints_meet_requests && random_below (&t->seed, 4) == 0)
    look_for_leaks (m, t);
  else if (m->checkpoints_meet_requests)
    CHECK (node_pwrite (m->b.guest, "guest", MIN (count, UINT64_C (5)),
                        offset) == 0);
  else if (random_below (&t->seed, 10) == 0)
    check_extents (m, count, offset);
  else
    one_operation (m, t, m->b.guest, "guest", m->seen + offset,
                   random_below (&t->seed, PRIMARY_MARK), count, offset);
}

/* Each round of operations is between two barriers, at which the main
 * thread makes a checkpoint.
 */
static void
side_thread (struct unit_thread *t)
{
  struct model *m = t->opaque;
  const bool primary = t->nr < PER_SIDE;

  t->seed ^= base_seed << 20;
  for (unsigned round = 0; round <= CHECKPOINTS + 1; ++round) {
    for (unsigned i = 0; i < OPERATIONS; ++i)
      if (!primary)
        guest_operation (m, t);
      else if (!atomic_load (&m->primary_ends))
        primary_operation (m, t);
    pthread_barrier_wait (&m->barrier);
    pthread_barrier_wait (&m->barrier);
  }
}

static void
assert_all (struct node *n, const char *who, const uint8_t *model)
{
  CLEANUP_FREE uint8_t *buf = malloc (SIZE);

  assert_int_equal (node_pread (n, buf, SIZE, 0), 0);
  check_bytes (who, buf, model, SIZE, 0);
}

static void
end_replication (struct model *m)
{
  struct bench *b = &m->b;

  atomic_store (&m->primary_ends, true);
  assert_all (b->primary, "primary", m->disk);
  assert_int_equal (secondary_stop (b->s, m->fail_over, false, &b->refusal),
                    0);
  if (!m->fail_over) {
    memcpy (m->seen, m->disk, SIZE);
    atomic_fetch_add (&m->epoch, 1);
  }
}

/* Wait for the other threads to come to the barrier, meanwhile making
 * checkpoints if that is wanted.
 */
static void
await_round (struct model *m, uint64_t *seed)
{
  if (m->checkpoints_meet_requests && !atomic_load (&m->primary_ends))
    for (unsigned i = 0; i < 10; ++i) {
      usleep (random_below (seed, 2000));
      assert_int_equal (secondary_checkpoint (m->b.s, &m->b.refusal), 0);
    }
  pthread_barrier_wait (&m->barrier);
}

static void
between_rounds (struct model *m, unsigned round)
{
  if (round < CHECKPOINTS) {
    assert_int_equal (secondary_checkpoint (m->b.s, &m->b.refusal), 0);
    memcpy (m->seen, m->disk, SIZE);
    atomic_fetch_add (&m->epoch, 1);
    assert_all (m->b.guest, "guest after a checkpoint", m->seen);
  }
  else if (round == CHECKPOINTS)
    end_replication (m);
}

static void
create_buffer (const char *name, uint32_t cluster_size)
{
  const struct qed_create_options options = {
    .size = round_up (SIZE, 512), .cluster_size = cluster_size,
    .table_size = 1
  };

  unlink (name);
  assert_int_equal (qed_create (name, &options), 0);
}

static void
run_model (bool fail_over, bool meet, uint32_t active_cluster,
           uint32_t hidden_cluster)
{
  struct model m = {
    .checkpoints_meet_requests = meet, .fail_over = fail_over,
    .disk = malloc (SIZE), .seen = malloc (SIZE)
  };
  struct unit_thread threads[2 * PER_SIDE];
  uint64_t seed = base_seed;

  create_buffer (ACTIVE, active_cluster);
  create_buffer (HIDDEN, hidden_cluster);
  m.b.disk = memory_node_new (SIZE);
  for (uint64_t i = 0; i < SIZE; ++i)
    m.b.disk->data[i] = i / 40960 % 2 ? i % 127 : 0;
  memcpy (m.disk, m.b.disk->data, SIZE);
  memcpy (m.seen, m.b.disk->data, SIZE);
  atomic_store (&m.b.disk->delay, 1);
  assert_int_equal (bench_begin (&m.b, RECOVER_FAIL), 0);
  assert_int_equal (secondary_start (m.b.s, &m.b.refusal), 0);
  pthread_barrier_init (&m.barrier, NULL, 2 * PER_SIDE + 1);

  start_threads (threads, 2 * PER_SIDE, side_thread, &m);
  for (unsigned round = 0; round <= CHECKPOINTS + 1; ++round) {
    await_round (&m, &seed);
    between_rounds (&m, round);
    pthread_barrier_wait (&m.barrier);
  }
  join_threads (threads, 2 * PER_SIDE);

  await_failover (&m.b);
  assert_status (&m.b, REPLICATION_DONE, false);
  if (!meet) {
    assert_all (m.b.guest, "guest at the end", m.seen);
    assert_all (&m.b.disk->node, "disk at the end", m.seen);
  }
  pthread_barrier_destroy (&m.barrier);
  bench_close (&m.b);
  assert_clean_buffers ();
  free (m.disk);
  free (m.seen);
}

static void
test_model_stop (void **state)
{
  (void) state;
  run_model (false, false, 16384, 16384);
}

static void
test_model_failover (void **state)
{
  (void) state;
  run_model (true, false, 16384, 16384);
}

static void
test_model_failover_small_hidden (void **state)
{
  (void) state;
  run_model (true, false, 32768, 4096);
}

static void
test_model_failover_small_active (void **state)
{
  (void) state;
  run_model (true, false, 4096, 65536);
}

static void
test_checkpoints_meet_requests (void **state)
{
  (void) state;
  run_model (false, true, 8192, 16384);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_model_stop),
    cmocka_unit_test (test_model_failover),
    cmocka_unit_test (test_model_failover_small_hidden),
    cmocka_unit_test (test_model_failover_small_active),
    cmocka_unit_test (test_checkpoints_meet_requests),
  };
  const char *rounds = getenv ("ROUNDS"), *seed = getenv ("SEED");
  int r = 0;

  if (seed)
    base_seed = strtoull (seed, NULL, 0);
  msg_set_handler (collect_message);
  for (unsigned i = rounds ? atoi (rounds) : 1; r == 0 && i > 0; --i) {
    alarm (HANG_SECONDS);
    r = cmocka_run_group_tests (tests, make_folder, remove_folder);
    base_seed++;
  }
  return r;
}
