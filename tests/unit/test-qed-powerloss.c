/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Power loss at any point of any workload leaves an image that opens,
 * holds everything flushed, and shows no byte that was never there
 * (qed.md, invariants 1 to 4).
 *
 * Notes on the design
 *
 * The image lies on a disk in memory that remembers, like a real one
 * with a volatile cache, what was flushed and each sector written since.
 * At random moments, also in the middle of requests, a power loss is
 * played: what was flushed, plus a random subset of the sectors written
 * since, and for a file a random one of the lengths that it had since.
 *
 * The model knows for each byte of the disk which values it may have
 * after a power loss: the flushed one and all written since.  Every
 * state is opened, as a server would open it, and all bytes are read;
 * then qemu-img judges the tables.
 *
 * A repair (qed-img check -r all) that loses its power is made again, and
 * must come to the same result as one that does not.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "qed/image/need-check.h"
#include "qed/open.h"
#include "qed/qed.h"
#include "utils/rounding.h"
#include "qed/repair/check.h"
#include "tests/unit/folder.h"
#include "tests/unit/medium.h"
#include "tests/unit/qemu-judge.h"
#include "tests/unit/unit.h"

#define FEATURES 16             /* their place in the header */

/* The disk: a window at the beginning of each of some L2 tables. */
#define CLUSTER 4096
#define TABLE_SIZE 2             /* clusters; QEMU 7.2 cannot open 1 */
#define TABLE_SPAN (TABLE_SIZE * UINT64_C (512) * CLUSTER)
#define WINDOW (8 * CLUSTER + 512)
#define NR_WINDOWS 4
#define DISK_SIZE (NR_WINDOWS * TABLE_SPAN)
#define MODEL_SIZE (NR_WINDOWS * WINDOW)

#define NR_THREADS 4
#define STATES (50 / ONE_IN)    /* power losses played in each test */

/* What the disk may hold after a power loss; protected by medium.lock. */
static uint8_t *model_now;      /* as acknowledged */
static uint8_t *model_base;     /* without anything in the image */
static uint32_t (*allowed)[8];  /* a bit for each value of each byte */

static void play_power_loss (struct medium *m);

/* After each change of the medium: is it time for a power loss? */
static void
event (struct medium *m)
{
  if (m->states < STATES && random_below (&m->seed, m->seldom) == 0) {
    m->states++;
    play_power_loss (m);
  }
}

static void
create_image (const char *path, const char *backing)
{
  const struct qed_create_options create = {
    .size = DISK_SIZE, .cluster_size = CLUSTER, .table_size = TABLE_SIZE,
    .backing = backing, .backing_is_raw = true,
  };

  CHECK (qed_create (path, &create) == 0);
}

/* ---- The model */

static uint64_t
disk_offset (uint64_t model_offset)
{
  return model_offset / WINDOW * TABLE_SPAN + model_offset % WINDOW;
}

static void
allow (uint64_t offset, uint64_t count, const uint8_t *values)
{
  for (uint64_t i = 0; i < count; ++i)
    allowed[offset + i][values[i] / 32] |= UINT32_C (1) << values[i] % 32;
}

static void
only_now_is_allowed (void)
{
  memset (allowed, 0, MODEL_SIZE * sizeof *allowed);
  allow (0, MODEL_SIZE, model_now);
}

static void
new_model (const uint8_t *backing)
{
  model_now = malloc (MODEL_SIZE);
  model_base = malloc (MODEL_SIZE);
  allowed = malloc (MODEL_SIZE * sizeof *allowed);
  CHECK (model_now && model_base && allowed);
  for (uint64_t i = 0; i < MODEL_SIZE; ++i)
    model_base[i] = backing ? backing[disk_offset (i)] : 0;
  memcpy (model_now, model_base, MODEL_SIZE);
  only_now_is_allowed ();
}

static void
free_model (void)
{
  free (model_now);
  free (model_base);
  free (allowed);
}

/* ---- Power loss */

static void
check_content (struct node *n)
{
  CLEANUP_FREE uint8_t *buf = malloc (WINDOW);

  CHECK (buf);
  for (unsigned w = 0; w < NR_WINDOWS; ++w) {
    CHECK (node_pread (n, buf, WINDOW, w * TABLE_SPAN) == 0);
    for (uint64_t i = 0; i < WINDOW; ++i) {
      const uint32_t *bits = allowed[w * WINDOW + i];

      if (!(bits[buf[i] / 32] & UINT32_C (1) << buf[i] % 32)) {
        fprintf (stderr, "byte %" PRIu64 " is 0x%02x, which it never was "
                 "since the last flush\n", w * TABLE_SPAN + i, buf[i]);
        CHECK (!"a byte that the power loss cannot explain");
      }
    }
  }
}

static bool expect_ordered;     /* the tables are good without a repair */

static bool
need_check (const char *path)
{
  CLEANUP_CLOSE int fd = open (path, O_RDONLY);
  uint8_t features;

  CHECK (fd >= 0 && pread (fd, &features, 1, FEATURES) == 1);
  return features & QED_NEED_CHECK;
}

/* A server opens it. */
static void
judge_served (const char *path)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;

  if (expect_ordered && !need_check (path)) {
    const int r = qemu_img_check (path);

    CHECK (r == 0 || r == 3);   /* clean, or leaks */
  }
  n = qed_open (path, &options);
  CHECK (n && !n->read_only);
  check_content (n);
  CHECK (node_close (n) == 0);
  CHECK (qemu_img_check (path) % 3 == 0);
}

static void
play_power_loss (struct medium *m)
{
  static const char path[] = "crashed.qed";
  CLEANUP_FREE uint8_t *state = NULL;
  uint64_t size;

  state = medium_lose_power (m, &size);
  write_file (path, state, size);
  m->judge (path);
}

static struct medium *
new_judged_medium (bool fixed, const char *path, void (*judge) (const char *),
                   uint64_t seed)
{
  struct medium *m = new_medium (fixed, path);

  m->event = event;
  m->seed = seed;
  m->seldom = 50;
  m->judge = judge;
  return m;
}

/* ---- The workload */

struct load {
  struct node *image;
  struct medium *medium;
};

static void
open_load (struct load *load)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;

  load->image = open_image (&load->medium->node, &options, NULL);
  CHECK (load->image && !load->image->read_only);
}

/* The server is killed and started again.  What it was about to write
 * to clusters that nothing refers to yet remains behind.
 */
static void
die_and_come_back (struct load *load)
{
  struct medium *m = malloc (sizeof *m), *old = load->medium;
  const uint64_t end = qed_of_node (load->image)->end;

  CHECK (m);
  *m = *old;
  m->node.name = strdup (m->node.name);
  pthread_mutex_init (&m->lock, NULL);
  old->now = old->flushed = NULL;
  old->writes = NULL;
  old->dead = true;
  CHECK (node_close (load->image) == 0);

  if (end < m->size) {
    memset (m->now + end, 0xdd, m->size - end);
    record_sectors (m, end, m->size - end);
  }
  load->medium = m;
  open_load (load);
}

static void
remember (struct medium *m, uint64_t offset, uint64_t count,
          const uint8_t *buf)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  memcpy (model_now + offset, buf, count);
}

/* One random request within this thread's part of each window, which
 * shares clusters with the others' parts.
 */
static void
random_request (struct load *load, unsigned thread, uint64_t *seed)
{
  const uint64_t part = WINDOW / NR_THREADS;
  const uint64_t start = random_below (seed, NR_WINDOWS) * WINDOW +
    thread * part;
  const uint64_t skip = random_below (seed, part);
  const uint64_t count = 1 + random_below (seed, part - skip);
  const uint64_t offset = start + skip, kind = random_below (seed, 10);
  CLEANUP_FREE uint8_t *buf = calloc (1, count);
  const uint64_t at = disk_offset (offset);

  CHECK (buf);
  if (kind < 7)
    memset (buf, 1 + random_below (seed, 255), count);

  pthread_mutex_lock (&load->medium->lock);
  allow (offset, count, buf);
  pthread_mutex_unlock (&load->medium->lock);

  if (kind < 7)
    CHECK (node_pwrite (load->image, buf, count, at) == 0);
  else if (kind < 9)
    CHECK (node_zero (load->image, count, at,
                      kind == 7 ? NODE_MAY_TRIM : 0) == 0);
  else {
    CHECK (node_discard (load->image, count, at) == 0);
    CHECK (node_pread (load->image, buf, count, at) == 0);
  }
  remember (load->medium, offset, count, buf);
}

/* Drop everything, which is durable when it returns. */
static void
empty (struct load *load)
{
  struct medium *m = load->medium;

  pthread_mutex_lock (&m->lock);
  allow (0, MODEL_SIZE, model_base);
  pthread_mutex_unlock (&m->lock);
  CHECK (qed_empty (load->image) == 0);
  pthread_mutex_lock (&m->lock);
  memcpy (model_now, model_base, MODEL_SIZE);
  only_now_is_allowed ();
  pthread_mutex_unlock (&m->lock);
}

static void
requests (struct unit_thread *t)
{
  for (int i = 0; i < 6; ++i)
    random_request (t->opaque, t->nr, &t->seed);
}

static void
run_load (bool fixed, const char *backing, const uint8_t *backing_data,
          uint64_t seed)
{
  static const char path[] = "new.qed";
  struct load load;

  create_image (path, backing);
  load.medium = new_judged_medium (fixed, path, judge_served, seed);
  expect_ordered = fixed || backing;
  new_model (backing_data);
  open_load (&load);

  while (load.medium->states < STATES) {
    struct medium *m = load.medium;
    struct unit_thread threads[NR_THREADS];

    start_threads (threads, NR_THREADS, requests, &load);
    join_threads (threads, NR_THREADS);
    for (unsigned i = 0; i < NR_THREADS; ++i)
      random_request (&load, i, &m->seed);

    if (random_below (&m->seed, 3) == 0) {
      CHECK (node_flush (load.image) == 0);
      pthread_mutex_lock (&m->lock);
      only_now_is_allowed ();
      pthread_mutex_unlock (&m->lock);
    }
    if (random_below (&m->seed, 2) == 0)
      CHECK (need_check_rest (qed_of_node (load.image)) == 0);
    if (random_below (&m->seed, 5) == 0)
      empty (&load);
    if (random_below (&m->seed, 4) == 0)
      die_and_come_back (&load);
  }
  CHECK (node_close (load.image) == 0);
  free_model ();
}

static void
test_file (void **state)
{
  for (uint64_t seed = 1; seed <= 3; ++seed)
    run_load (false, NULL, NULL, seed);
}

static void
test_backing (void **state)
{
  static const char path[] = "base.raw";
  CLEANUP_FREE uint8_t *data = calloc (1, DISK_SIZE);

  CHECK (data);
  for (uint64_t i = 0; i < DISK_SIZE; ++i)
    data[i] = i / 1000 % 3 ? i >> 8 ^ i : 0;
  write_file (path, data, DISK_SIZE);
  for (uint64_t seed = 1; seed <= 3; ++seed)
    run_load (false, path, data, seed);
}

static void
test_fixed_size (void **state)
{
  for (uint64_t seed = 1; seed <= 3; ++seed)
    run_load (true, NULL, NULL, seed);
}

/* ---- Repairs */

#define DATA_LEN (8 * CLUSTER)  /* in each window, all of its own value */

static void
fill_image (const char *path)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n = qed_open (path, &options);
  CLEANUP_FREE uint8_t *buf = malloc (DATA_LEN);

  CHECK (n && buf);
  for (unsigned w = 0; w < NR_WINDOWS; ++w) {
    memset (buf, w + 1, DATA_LEN);
    CHECK (node_pwrite (n, buf, DATA_LEN, w * TABLE_SPAN) == 0);
  }
  CHECK (node_close (n) == 0);
}

static void
set_entry (int fd, uint64_t table, unsigned index, uint64_t value)
{
  uint8_t buf[QED_ENTRY_LEN];

  qed_entry_put (buf, 0, value);
  CHECK (pwrite (fd, buf, sizeof buf, table + index * QED_ENTRY_LEN) ==
         sizeof buf);
}

/* Clusters of two users, data in tables, and what lies behind the end,
 * where repairs put their copies.
 */
static void
damage_image (const char *path)
{
  const struct node_open_options options = { .read_only = true };
  struct qed *s = open_bare (path, &options);
  CLEANUP_CLOSE int fd = open (path, O_RDWR);
  uint64_t l2[NR_WINDOWS], end;

  CHECK (s && fd >= 0 && s->nr_l1 == NR_WINDOWS);
  for (unsigned i = 0; i < NR_WINDOWS; ++i)
    l2[i] = s->l1[i];
  end = node_size (s->file);
  image_free (s);
  for (unsigned i = 0; i < 3; ++i) {
    set_entry (fd, l2[0], i, l2[0] + 6 * CLUSTER);
    set_entry (fd, l2[1], i, l2[i % 2]);
    set_entry (fd, l2[1], 4 + i, end + i * CLUSTER);
    set_entry (fd, l2[2], i, l2[1]);
  }
}

static uint8_t repaired[NR_WINDOWS * DATA_LEN]; /* what is in the windows */

static void
repair_and_read (const char *path, uint8_t *buf)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct qed_check_result result;
  struct node *n;

  CHECK (qed_check (path, QED_FIX_ALL, false, NODE_CACHE_WRITEBACK,
                    NULL, NULL, &result) == 0);
  CHECK (result.corruptions == 0 && qemu_img_check (path) == 0);
  options.read_only = true;
  n = qed_open (path, &options);
  CHECK (n);
  for (unsigned w = 0; w < NR_WINDOWS; ++w)
    CHECK (node_pread (n, buf + w * DATA_LEN, DATA_LEN, w * TABLE_SPAN)
           == 0);
  CHECK (node_close (n) == 0);
}

static unsigned nr_completed, nr_taken_back;

static void
judge_repaired (const char *path)
{
  static uint8_t buf[sizeof repaired];

  forget_messages ();
  repair_and_read (path, buf);
  CHECK (memcmp (buf, repaired, sizeof buf) == 0);
  nr_completed += strstr (messages.first, "is completed") != NULL;
  nr_taken_back += strstr (messages.first, "is taken back") != NULL;
}

static void
repair_without_power (bool fixed)
{
  static const char path[] = "damaged.qed";
  unsigned states = 0;

  nr_completed = nr_taken_back = 0;
  msg_set_handler (collect_message);
  for (uint64_t seed = 1; states < STATES; ++seed) {
    struct medium *m;
    struct qed_check_result result;
    struct qed *s;

    create_image (path, NULL);
    fill_image (path);
    damage_image (path);
    m = new_judged_medium (fixed, path, judge_repaired, seed);
    m->seldom = 10;
    if (seed == 1) {
      write_file (path, m->now, m->size);
      repair_and_read (path, repaired);
    }
    s = open_bare_file (&m->node);
    CHECK (s && repair_image (s, QED_FIX_ALL, true, NULL, NULL, &result)
           == 0);
    CHECK (result.corruptions == 0);
    states += m->states;
    image_free (s);
  }
  assert_int_not_equal (nr_completed, 0);
  assert_int_not_equal (nr_taken_back, 0);
}

static void
test_repair (void **state)
{
  repair_without_power (false);
}

static void
test_repair_of_fixed_size (void **state)
{
  repair_without_power (true);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_file),
    cmocka_unit_test (test_backing),
    cmocka_unit_test (test_fixed_size),
    cmocka_unit_test (test_repair),
    cmocka_unit_test (test_repair_of_fixed_size),
  };

  return cmocka_run_group_tests_name ("qed power loss", tests,
                                      make_folder, remove_folder);
}
