/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Replaying a log onto zeroes gives the disk that was recorded, whatever
 * requests met each other, in both orders (write-log.md, promise 1), also
 * when the log gets full (promise 6); and what is held back in memory and
 * in a file comes back as it was.
 */

#include <config.h>

#include <inttypes.h>
#include <sys/stat.h>

#include "request/claim.h"
#include "writelog/record/held.h"
#include "tests/unit/memory-node.h"
#include "writelog/reader.h"
#include "writelog/record/recorder.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

#define DISK_SIZE (200 * 1024 + 77) /* no multiple of a sector */
#define NR_THREADS 4
#define REQUESTS (400 / ONE_IN) /* of each thread */

static char dir[] = "/tmp/test-writelog-record-XXXXXX";

static char *
in_dir (const char *name)
{
  char *path;

  CHECK (asprintf (&path, "%s/%s", dir, name) != -1);
  return path;
}

/* ---- A disk in memory.  Its bytes are atomic, since clients may write
 * the same ones at the same time.
 */

struct disk {
  struct node node;
  bool trims;                   /* or does a trim leave data behind? */
  bool can_extents;
  bool fails;                   /* writes may fail half-way */
  atomic_bool unreadable;
  atomic_uint asked;            /* for its extents */
  atomic_uint read;             /* bytes */
  _Atomic uint8_t bytes[DISK_SIZE];
};

static int
disk_close (struct node *n)
{
  return 0;
}

static int
disk_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct disk *disk = (struct disk *) n;

  if (disk->unreadable) {
    errno = EIO;
    return -1;
  }
  disk->read += count;
  for (size_t i = 0; i < count; ++i)
    ((uint8_t *) buf)[i] = disk->bytes[offset + i];
  return 0;
}

/* Write, or zero if buf is NULL. */
static int
change (struct disk *disk, const uint8_t *buf, uint64_t count,
        uint64_t offset)
{
  const bool fail = disk->fails && count % 7 == 0;

  for (uint64_t i = 0; i < (fail ? count / 2 : count); ++i)
    disk->bytes[offset + i] = buf ? buf[i] : 0;
  if (fail)
    errno = EIO;
  return fail ? -1 : 0;
}

static int
disk_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  CHECK (iovcnt == 1);
  return change ((struct disk *) n, iov->iov_base, count, offset);
}

static int
disk_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  return change ((struct disk *) n, NULL, count, offset);
}

static int
disk_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct disk *disk = (struct disk *) n;

  /* The first half at most. */
  return disk->trims ? change (disk, NULL, count / 2, offset) : 0;
}

static int
disk_flush (struct node *n)
{
  return 0;
}

static int
disk_extents (struct node *n, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  struct disk *disk = (struct disk *) n;
  const bool zero = disk->bytes[offset] == 0;

  CHECK (count > 0);
  disk->asked++;
  *ret = (struct extent) {
    .length = count, .where = n, .offset = offset, .flags = EXTENT_MAPPED,
  };
  if (!disk->can_extents)
    return 0;
  if (zero)
    ret->flags |= EXTENT_ZERO;
  for (ret->length = 1; ret->length < count; ++ret->length)
    if ((disk->bytes[offset + ret->length] == 0) != zero)
      break;
  return 0;
}

static const struct node_ops disk_ops = {
  .type = "disk",
  .close = disk_close,
  .pread = disk_pread,
  .pwritev = disk_pwritev,
  .zero = disk_zero,
  .discard = disk_discard,
  .flush = disk_flush,
  .extents = disk_extents,
};

static struct disk *
new_disk (bool trims, bool can_extents, bool fails)
{
  struct disk *disk = calloc (1, sizeof *disk);

  CHECK (disk);
  disk->trims = trims;
  disk->can_extents = can_extents;
  disk->fails = fails;
  disk->node = (struct node) {
    .ops = &disk_ops, .name = (char *) "disk", .size = DISK_SIZE,
    .align = 1, .zero_align = 1, .preferred = 4096,
  };
  return disk;
}

/* ---- The log */

static struct writelog *
new_log (const char *path, uint32_t sector_size)
{
  const struct writelog_options options = {
    .sector_size = sector_size, .interval = 50,
  };
  struct writelog *log;

  unlink (path);
  log = writelog_open (path, &options);
  CHECK (log && writelog_start (log) == 0);
  return log;
}

/* Replay a log onto zeroes, and close it. */
static void
replay_reader (struct writelog_reader *r, uint8_t *disk, uint64_t size)
{
  struct writelog_item item;
  int more;

  CHECK (r);
  while ((more = writelog_reader_next (r, &item)) == 1) {
    const uint64_t start = item.entry.sector * r->super.sector_size;
    const uint64_t len = item.entry.nr_sectors * r->super.sector_size;

    if (len == 0)
      continue;
    CHECK (start < size);
    if (item.entry.flags & WRITELOG_DISCARD)
      memset (disk + start, 0, MIN (len, size - start));
    else
      CHECK (node_pread (r->node, disk + start, MIN (len, size - start),
                         item.data_offset) == 0);
  }
  CHECK (more == 0);
  writelog_reader_close (r);
}

static void
replay (const char *path, uint8_t *disk, uint64_t size)
{
  replay_reader (writelog_reader_open (path), disk, size);
}

static void
check_replay (const char *path, const struct disk *disk)
{
  CLEANUP_FREE uint8_t *replayed = calloc (1, DISK_SIZE);

  CHECK (replayed);
  replay (path, replayed, DISK_SIZE);
  for (uint64_t i = 0; i < DISK_SIZE; ++i)
    CHECK (replayed[i] == disk->bytes[i]);
}

/* ---- Random requests from many threads */

struct load {
  struct recorder *rec;
  struct disk *disk;
};

static int
random_request (struct load *load, uint64_t *seed)
{
  struct node *d = &load->disk->node;
  const uint64_t spot = random_below (seed, 4) * (DISK_SIZE / 4);
  const uint64_t offset = spot + random_below (seed, 3000);
  const uint64_t max = random_below (seed, 20) == 0 ? 60000 : 3000;
  const uint64_t count = MIN (1 + random_below (seed, max),
                              DISK_SIZE - offset);
  const uint64_t kind = random_below (seed, 20);
  const unsigned flags = random_below (seed, 8) == 0 ? NODE_FUA : 0;
  CLEANUP_FREE uint8_t *buf = malloc (count);

  CHECK (buf);
  memset (buf, 1 + random_below (seed, 255), count);
  if (kind < 12)
    return record_write (load->rec, d, buf, count, offset, flags);
  if (kind < 15)
    return record_zero (load->rec, d, count, offset, flags);
  if (kind < 18)
    return record_trim (load->rec, d, count, offset, flags);
  return record_flush (load->rec, d);
}

static void
requests (struct unit_thread *t)
{
  struct load *load = t->opaque;

  for (int i = 0; i < REQUESTS; ++i)
    if (random_request (load, &t->seed) == -1)
      CHECK (load->disk->fails && errno == EIO);
}

static void
record_random (uint32_t sector_size, enum record_order order, bool trims,
               bool can_extents, bool fails)
{
  CLEANUP_FREE char *path = in_dir ("log");
  struct writelog *log = new_log (path, sector_size);
  struct load load = {
    .rec = recorder_new (log, order),
    .disk = new_disk (trims, can_extents, fails),
  };

  CHECK (load.rec);
  run_threads (NR_THREADS, requests, &load);
  CHECK (recorder_close (load.rec) == 0);
  CHECK (writelog_close (log) == 0);
  check_replay (path, load.disk);
  free (load.disk);
}

static void
test_completion (void **state)
{
  record_random (512, RECORD_COMPLETION, true, true, false);
  record_random (32, RECORD_COMPLETION, false, true, false);
  record_random (4096, RECORD_COMPLETION, true, false, false);
}

static void
test_durability (void **state)
{
  record_random (512, RECORD_DURABILITY, true, true, false);
  record_random (4096, RECORD_DURABILITY, false, false, false);
}

static void
test_failing_disk (void **state)
{
  record_random (512, RECORD_COMPLETION, true, true, true);
  record_random (512, RECORD_DURABILITY, true, false, true);
}

/* Then the disk cannot be read either, for a while: whatever requests left
 * there is logged when it can, and until then the log says that it is missing.
 */
static void
record_unreadable (enum record_order order)
{
  CLEANUP_FREE char *path = in_dir ("log");
  struct writelog *log = new_log (path, 512);
  struct recorder *rec = recorder_new (log, order);
  struct disk *disk = new_disk (true, false, true);
  struct node *d = &disk->node;
  uint8_t buf[7 * 512];

  CHECK (rec);
  memset (buf, 5, sizeof buf);
  assert_int_equal (record_write (rec, d, buf, 4096 - 512, 8192, 0), -1);
  for (uint64_t i = 0; i < 40; ++i)
    assert_int_equal (record_write (rec, d, buf, 512, 1024 * i, 0), 0);
  assert_true (record_settle (rec, d));

  /* A trim that is done, a write and zeroes that fail half-way; more of them
   * than are remembered one by one.
   */
  disk->unreadable = true;
  forget_messages ();
  for (uint64_t i = 0; i < 20; ++i) {
    assert_int_equal (record_trim (rec, d, 1024, 2048 * i, 0), -1);
    assert_int_equal (errno, EIO);
  }
  assert_non_null (strstr (messages.last, "the log lacks"));
  assert_int_equal (record_write (rec, d, buf, sizeof buf, 0, NODE_FUA), -1);
  assert_int_equal (record_zero (rec, d, sizeof buf, 20480, 0), -1);
  assert_int_equal (record_flush (rec, d), 0);
  assert_false (record_settle (rec, d));

  disk->unreadable = false;
  assert_int_equal (record_write (rec, d, buf, 512, 1024, 0), 0);
  assert_int_equal (record_flush (rec, d), 0);
  disk->unreadable = true;
  assert_true (record_settle (rec, d));
  CHECK (recorder_close (rec) == 0);
  CHECK (writelog_close (log) == 0);
  check_replay (path, disk);
  free (disk);
}

static void
test_unreadable_disk (void **state)
{
  record_unreadable (RECORD_COMPLETION);
  record_unreadable (RECORD_DURABILITY);
}

/* ---- Trims */

/* What is short, or has data at its beginning, is read; where data end, and
 * that takes some file systems as long as to read all of them, is asked
 * once at most.
 */
static void
test_trims_ask_little (void **state)
{
  CLEANUP_FREE char *path = in_dir ("log");
  struct writelog *log = new_log (path, 512);
  struct recorder *rec = recorder_new (log, RECORD_COMPLETION);
  struct disk *disk = new_disk (false, true, false);
  struct node *d = &disk->node;

  CHECK (rec);
  assert_int_equal (record_trim (rec, d, DISK_SIZE, 0, 0), 0);
  assert_int_equal (disk->asked, 1);
  assert_true (disk->read <= DISK_SIZE / 2);
  disk->asked = disk->read = 0;
  assert_int_equal (record_trim (rec, d, 4096, 8192, 0), 0);
  assert_int_equal (disk->asked, 0);
  assert_int_equal (disk->read, 4096);

  CHECK (change (disk, NULL, DISK_SIZE, 0) == 0);
  for (uint64_t i = 0; i < DISK_SIZE; ++i)
    disk->bytes[i] = 1;
  disk->asked = disk->read = 0;
  assert_int_equal (record_trim (rec, d, DISK_SIZE, 0, 0), 0);
  assert_int_equal (record_trim (rec, d, 4096, 8192, 0), 0);
  assert_int_equal (disk->asked, 0);

  CHECK (recorder_close (rec) == 0);
  CHECK (writelog_close (log) == 0);
  check_replay (path, disk);
  free (disk);
}

/* ---- A log that gets full */

struct full {
  struct load load;
  _Atomic bool doubtful[DISK_SIZE]; /* a request that failed was there */
};

/* Short requests, until one fails. */
static void
fill (struct unit_thread *t)
{
  struct full *full = t->opaque;
  struct node *d = &full->load.disk->node;
  int r = 0;

  while (r == 0) {
    const uint64_t offset = random_below (&t->seed, DISK_SIZE - 5000);
    const uint32_t count = 1 + random_below (&t->seed, 5000);
    const uint64_t kind = random_below (&t->seed, 8);
    const unsigned flags = random_below (&t->seed, 3) == 0 ? NODE_FUA : 0;
    uint8_t buf[5000];

    memset (buf, 1 + kind + random_below (&t->seed, 200), count);
    if (kind < 3)
      r = record_write (full->load.rec, d, buf, count, offset, flags);
    else
      r = record_trim (full->load.rec, d, count, offset, flags);
    for (uint32_t i = 0; r == -1 && i < count; ++i)
      full->doubtful[offset + i] = true;
  }
  CHECK (errno == ENOSPC);
}

/* What is in the medium of a log, replayed, is the disk. */
static void
check_medium (const struct memory_node *medium, const struct full *full)
{
  struct memory_node *copy = memory_node_new (node_size (&medium->node));
  CLEANUP_FREE uint8_t *replayed = calloc (1, DISK_SIZE);

  CHECK (replayed);
  memcpy (copy->data, medium->data, node_size (&medium->node));
  replay_reader (writelog_reader_open_node (&copy->node), replayed, DISK_SIZE);
  for (uint64_t i = 0; i < DISK_SIZE; ++i)
    CHECK (full->doubtful[i] || replayed[i] == full->load.disk->bytes[i]);
}

static void
test_full_log (void **state)
{
  const struct writelog_options options = { .interval = 50 };

  for (unsigned i = 0; i < 12; ++i) {
    struct memory_node *medium = memory_node_new (300000 + i * 512);
    struct writelog *log = writelog_open_node (&medium->node, &options);
    struct full *full = calloc (1, sizeof *full);

    CHECK (log && full);
    full->load = (struct load) {
      .rec = recorder_new (log, RECORD_DURABILITY),
      .disk = new_disk (i % 3, true, false),
    };
    CHECK (full->load.rec && writelog_start (log) == 0);
    forget_messages ();
    run_threads (NR_THREADS, fill, full);
    assert_messages (1, "No space left on device");
    CHECK (record_flush (full->load.rec, &full->load.disk->node) == 0);
    check_medium (medium, full);
    CHECK (recorder_close (full->load.rec) == 0);
    CHECK (writelog_close (log) == 0);
    free (full->load.disk);
    free (full);
  }
}

/* ---- Holding, with little memory */

#define SECTORS 400

struct holder {
  struct hold *hold;
  struct claims claims;
  _Atomic uint8_t model[SECTORS]; /* the byte that each is full of */
};

/* One random request; its sectors are claimed. */
static void
hold_claimed (struct holder *h, struct writelog_entry *entry, uint64_t *seed)
{
  const uint64_t kind = random_below (seed, 10);
  const size_t len = entry->nr_sectors * 512;
  const uint8_t value = kind < 8 ? 1 + random_below (seed, 255) : 0;
  CLEANUP_FREE uint8_t *buf = malloc (len);
  const struct writelog_piece pieces[] = {
    { .data = kind == 8 ? NULL : buf, .len = 512 },
    { .data = kind == 8 ? NULL : buf, .len = len - 512 },
  };

  CHECK (buf);
  memset (buf, value, len);
  for (uint64_t i = 0; i < entry->nr_sectors; ++i)
    h->model[entry->sector + i] = value;
  if (kind == 9)
    entry->flags |= WRITELOG_DISCARD;
  if (random_below (seed, 5) == 0) {
    entry->flags |= WRITELOG_FUA;
    CHECK (hold_overtake (h->hold, entry, pieces, kind == 9 ? 0 : 2) == 0);
  }
  else
    CHECK (hold_add (h->hold, entry, pieces, kind == 9 ? 0 : 2) == 0);
}

static void
hold_requests (struct unit_thread *t)
{
  struct holder *h = t->opaque;

  for (int i = 0; i < REQUESTS; ++i) {
    struct writelog_entry entry = { .sector = random_below (&t->seed, 350) };
    struct claim claim;

    entry.nr_sectors = 1 + random_below (&t->seed, 50);
    claim_acquire (&h->claims, &claim, entry.sector, entry.nr_sectors,
                   CLAIM_EXCLUSIVE);
    hold_claimed (h, &entry, &t->seed);
    claim_release (&h->claims, &claim);
    if (random_below (&t->seed, 50) == 0) {
      const struct hold_mark mark = hold_mark (h->hold);

      CHECK (hold_release (h->hold, &mark) == 0);
    }
  }
}

static void
test_little_memory (void **state)
{
  CLEANUP_FREE char *path = in_dir ("log");
  CLEANUP_FREE uint8_t *disk = calloc (SECTORS, 512);
  struct writelog *log = new_log (path, 512);
  struct holder h = { .hold = hold_new (log, 64 * 1024, dir) };

  CHECK (disk && h.hold);
  claims_init (&h.claims);
  run_threads (NR_THREADS, hold_requests, &h);
  assert_int_equal (hold_close (h.hold), 0);
  assert_int_equal (writelog_close (log), 0);
  claims_destroy (&h.claims);

  replay (path, disk, SECTORS * 512);
  for (uint64_t i = 0; i < SECTORS * 512; ++i)
    assert_int_equal (disk[i], h.model[i / 512]);
}

static int
teardown (void **state)
{
  CLEANUP_FREE char *path = in_dir ("log");

  unlink (path);
  return rmdir (dir);           /* the temporary files had no names */
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_completion),
    cmocka_unit_test (test_durability),
    cmocka_unit_test (test_failing_disk),
    cmocka_unit_test (test_unreadable_disk),
    cmocka_unit_test (test_trims_ask_little),
    cmocka_unit_test (test_full_log),
    cmocka_unit_test (test_little_memory),
  };

  alarm (HANG_SECONDS);
  CHECK (mkdtemp (dir));
  msg_set_handler (collect_message);
  return cmocka_run_group_tests (tests, NULL, teardown);
}
