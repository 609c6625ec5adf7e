/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chaos of a write log: disk and log on media of their own, both orders, in a
 * file and in storage of fixed size that gets full, continued after clean
 * ends and after power losses (write-log.md, promises 1 to 6 and 8).
 */

#include <config.h>

#include "tests/chaos/load.h"
#include "writelog/reader.h"
#include "writelog/record/recorder.h"
#include "writelog/record/writer.h"
#include "utils/rounding.h"

#define NR_CELLS 240
#define DISK_SIZE (NR_CELLS * CELL)
#define FIXED_LOG (UINT64_C (250) * 1024)

struct log_run {
  struct load load;             /* first */
  struct world world;
  struct medium *disk_medium, *log_medium;
  enum record_order order;
  uint32_t sector_size;
  unsigned change_faults, read_faults, losses;

  struct writelog *log;         /* NULL if it could not be opened */
  struct recorder *recorder;
  uint8_t base[DISK_SIZE];      /* what the log is replayed onto */
};

/* ---- Replaying */

static void
replay_item (struct writelog_reader *r, const struct writelog_item *item,
             uint8_t *disk)
{
  const uint64_t unit = r->super.sector_size;
  const uint64_t offset = item->entry.sector * unit;
  const uint64_t count = MIN (item->entry.nr_sectors * unit,
                              DISK_SIZE - MIN (offset, (uint64_t) DISK_SIZE));

  if (count == 0)
    return;
  if (item->entry.flags & WRITELOG_DISCARD)
    memset (disk + offset, 0, count);
  else
    CHECK (node_pread (r->node, disk + offset, count, item->data_offset)
           == 0);
}

static void
replay (struct medium *m, uint8_t *disk)
{
  struct writelog_reader *r = writelog_reader_open_node (medium_open (m));
  struct writelog_item item;
  int more;

  if (r == NULL)
    fprintf (stderr, "%s\n", messages.last);
  CHECK (r);
  while ((more = writelog_reader_next (r, &item)) == 1)
    replay_item (r, &item, disk);
  if (more == -1)
    fprintf (stderr, "%s\n", messages.last);
  CHECK (more == 0);
  writelog_reader_close (r);
}

/* Each cell of these bytes holds what it may. */
static void
check_bytes (const struct log_run *run, const uint8_t *disk,
             const uint64_t *allowed, const char *when)
{
  const struct content c = {
    .data = (uint8_t *) disk, .len = DISK_SIZE, .size = DISK_SIZE
  };
  struct medium *m = medium_new (NULL, "replayed", &c, true);
  struct node *n = medium_open (m);

  load_check (&run->load, n, allowed, NULL, when);
  node_close (n);
  medium_free (m);
}

/* What the log holds is what it may after a power loss. */
static void
check_log (const struct log_run *run, struct medium *m,
           const uint64_t *allowed, uint8_t *disk)
{
  memcpy (disk, run->base, DISK_SIZE);
  replay (m, disk);
  check_bytes (run, disk, allowed, "the log, replayed");
}

/* ---- Judging what would be found */

struct found {
  struct content disk, log;
  bool fixed_log;
  uint64_t *allowed;
};

static void *
take_snapshot (struct world *w)
{
  struct log_run *run = w->opaque;
  struct found *found = calloc (1, sizeof *found);
  const uint64_t chance = chaos_mix (w->seed, chaos_op,
                                     run->log_medium->nr_events);

  CHECK (found);
  found->fixed_log = run->log_medium->fixed;
  found->disk = medium_lose (run->disk_medium, chance);
  found->log = medium_lose (run->log_medium, chance);
  found->allowed = model_copy (&run->load.model, true);
  return found;
}

static void
judge (struct world *w, void *snapshot)
{
  struct log_run *run = w->opaque;
  struct found *found = snapshot;
  struct medium *m = medium_new (NULL, "log", &found->log,
                                 found->fixed_log);
  uint8_t disk[DISK_SIZE];

  check_bytes (run, found->disk.data, found->allowed, "if power were lost");
  check_log (run, m, found->allowed, disk);
  atomic_fetch_add (&chaos_figures->states, 1);
  medium_free (m);
  free (found->disk.data);
  free (found->log.data);
  free (found->allowed);
  free (found);
}

/* ---- Requests */

static int
request (struct load *load, const struct request *r, void *buf,
         uint64_t count, uint64_t offset)
{
  struct log_run *run = (struct log_run *) load;
  struct node *disk = load->node;

  switch (r->kind) {
  case WRITE:
  case WRITE_ZEROES:
    return record_write (run->recorder, disk, buf, count, offset, 0);
  case WRITE_FUA:
    return record_write (run->recorder, disk, buf, count, offset, NODE_FUA);
  case ZERO:
    return record_zero (run->recorder, disk, count, offset, 0);
  case ZERO_TRIM:
    return record_zero (run->recorder, disk, count, offset, NODE_MAY_TRIM);
  case ZERO_FUA:
    return record_zero (run->recorder, disk, count, offset, NODE_FUA);
  case DISCARD:
    return record_trim (run->recorder, disk, count, offset, 0);
  case FLUSH:
    return record_flush (run->recorder, disk);
  default:
    return node_pread (disk, buf, count, offset);
  }
}

/* ---- Opening and closing */

static void
calm (struct log_run *run, bool is_calm)
{
  run->world.change_faults = is_calm ? 0 : run->change_faults;
  run->world.read_faults = is_calm ? 0 : run->read_faults;
  run->world.losses = is_calm ? 0 : run->losses;
}

static void
open_log (struct log_run *run, bool append)
{
  const struct writelog_options options = {
    .append = append, .sector_size = append ? 0 : run->sector_size,
    .interval = 16,
  };

  run->load.node = medium_open (run->disk_medium);
  run->log = writelog_open_node (medium_open (run->log_medium), &options);
  if (run->log == NULL)
    fprintf (stderr, "%s\n", messages.last);
  CHECK (run->log && writelog_start (run->log) == 0);
  run->recorder = recorder_new (run->log, run->order);
  CHECK (run->recorder && writelog_begin (run->log) == 0);
  if (!append)
    memcpy (run->base, run->disk_medium->now, DISK_SIZE);
}

/* Returns whether all of it succeeded. */
static bool
close_log (struct log_run *run)
{
  bool good = recorder_close (run->recorder) == 0;

  good &= writelog_close (run->log) == 0;
  node_close (run->load.node);
  return good;
}

/* The log is what the disk is, if it can log at all. */
static void
check_equal (struct log_run *run)
{
  uint8_t disk[DISK_SIZE];

  memcpy (disk, run->base, DISK_SIZE);
  replay (run->log_medium, disk);
  for (unsigned i = 0; i < DISK_SIZE; ++i)
    if (disk[i] != run->disk_medium->now[i]) {
      fprintf (stderr, "byte %u is %u on the disk, and %u in the log\n", i,
               run->disk_medium->now[i], disk[i]);
      CHECK (!"the log gives another disk");
    }
}

/* The disk is this, durably. */
static void
set_disk (struct log_run *run, const uint8_t *bytes)
{
  struct content c = { .len = DISK_SIZE, .size = DISK_SIZE };

  c.data = malloc (DISK_SIZE);
  CHECK (c.data);
  memcpy (c.data, bytes, DISK_SIZE);
  medium_set (run->disk_medium, &c);
  free (c.data);
}

static void
clear_log (struct log_run *run)
{
  const struct content c = { .size = run->log_medium->fixed ? FIXED_LOG : 0 };

  medium_set (run->log_medium, &c);
}

/* ---- Steps for which the requests stop */

static void
flush_and_compare (struct log_run *run)
{
  struct watch watch;
  int r;

  model_begin_flush (&run->load.model, &watch);
  r = record_flush (run->recorder, run->load.node);
  model_end_flush (&run->load.model, &watch, r == 0);
  if (r == 0 && writelog_check (run->log) == 0 &&
      record_settle (run->recorder, run->load.node))
    check_equal (run);
}

static void
lose_power (struct log_run *run, uint64_t chance, bool append)
{
  CLEANUP_FREE uint64_t *allowed = model_copy (&run->load.model, true);
  uint8_t disk[DISK_SIZE];

  world_lose_power (&run->world, chance);
  close_log (run);
  check_bytes (run, run->disk_medium->now, allowed, "after a power loss");
  check_log (run, run->log_medium, allowed, disk);
  /* To go on with this log the disk must be what it says. */
  if (append)
    set_disk (run, disk);
  open_log (run, append);
  load_settle (&run->load);
  atomic_fetch_add (&chaos_figures->losses, 1);
}

static void
close_and_open (struct log_run *run, uint64_t chance, bool append)
{
  bool could = writelog_check (run->log) == 0, good;
  struct watch watch;

  calm (run, chance % 2);
  could = record_settle (run->recorder, run->load.node) && could;
  model_begin_flush (&run->load.model, &watch);
  good = close_log (run);
  /* Of the disk it promises nothing. */
  model_end_flush (&run->load.model, &watch, false);
  calm (run, true);
  if (good && could)
    check_equal (run);
  else
    append = false;
  if (run->log_medium->has_forgotten || run->disk_medium->has_forgotten)
    append = false;
  set_disk (run, run->disk_medium->now);
  if (!append)
    clear_log (run);
  open_log (run, append);
  load_settle (&run->load);
}

enum quiet { CHECK_LIVE, FLUSH_AND_COMPARE, LOSE_POWER, CLOSE, QUIETS };

static const char *const quiet_names[QUIETS] = {
  "read all", "flush and compare", "lose power", "close and open",
};

static enum quiet
quiet_of (const struct plan *plan, unsigned step)
{
  return plan_chance (plan, step, 0) % QUIETS;
}

static void
quiet_step (struct log_run *run, unsigned step)
{
  const uint64_t chance = plan_chance (run->load.plan, step, 1);

  switch (quiet_of (run->load.plan, step)) {
  case FLUSH_AND_COMPARE: flush_and_compare (run); break;
  case LOSE_POWER: lose_power (run, chance, chance % 2); break;
  case CLOSE: close_and_open (run, chance, (chance >> 8) % 2); break;
  default: break;
  }
  load_check_live (&run->load, "after a quiet step");
}

/* ---- Runs */

static void
shape_load (struct load *load)
{
  load->shape = (struct shape) {
    .nr_parts = 1, .part_cells = NR_CELLS, .part_distance = DISK_SIZE
  };
  memcpy (load->weights, (unsigned [KINDS]) {
      [WRITE] = 40, [WRITE_ZEROES] = 5, [WRITE_FUA] = 10, [ZERO] = 8,
      [ZERO_TRIM] = 8, [ZERO_FUA] = 3, [DISCARD] = 8, [FLUSH] = 10,
      [READ] = 10,
    }, sizeof load->weights);
}

static void
configure (struct log_run *run, const struct plan *plan)
{
  static const unsigned rates[] = { 0, 800, 150, 40 };
  const uint64_t chance = plan_chance (plan, THE_RUN, 2);
  const bool fixed = chance % 2;

  shape_load (&run->load);
  run->load.request = request;
  run->order = (chance >> 1) % 2 ? RECORD_DURABILITY : RECORD_COMPLETION;
  run->sector_size = (chance >> 2) % 2 ? 512 : 1024;
  run->change_faults = rates[(chance >> 3) % 4];
  run->read_faults = (chance >> 5) % 4 ? 0 : 300;
  run->losses = (chance >> 7) % 2 ? 40 : 200;
  run->load.can_fail = run->change_faults || run->read_faults || fixed;
  run->world.forgetful = (chance >> 8) % 2;
  run->disk_medium = medium_new (
    &run->world, "disk", &(struct content) { .size = DISK_SIZE }, true);
  run->log_medium = medium_new (&run->world, "log",
                                &(struct content) { .size = 0 }, fixed);
  clear_log (run);
}

static void
run_log (const struct plan *plan)
{
  struct log_run run = { .losses = 0 };

  world_init (&run.world, plan->seed);
  run.world.snapshot = take_snapshot;
  run.world.judge = judge;
  run.world.opaque = &run;
  configure (&run, plan);
  load_init (&run.load, plan, BIT (0));
  open_log (&run, false);

  for (unsigned phase = 0; phase < plan->nr_phases; ++phase) {
    unsigned step;

    calm (&run, false);
    plan_run_phase (plan, phase, load_run, &run.load);
    calm (&run, true);
    load_check_live (&run.load, "at once");
    if (plan_quiet_step (plan, phase, &step))
      quiet_step (&run, step);
  }
  lose_power (&run, plan->seed, false);
  CHECK (close_log (&run));
  check_equal (&run);
  model_destroy (&run.load.model);
  world_destroy (&run.world);
}

static void
describe_log (const struct plan *plan, unsigned step, char *buf, size_t size)
{
  if (step % PHASE_STEPS == PHASE_OPS)
    snprintf (buf, size, "%s", quiet_names[quiet_of (plan, step)]);
  else
    load_describe_step (plan, step, shape_load, buf, size);
}

const struct subject chaos_log = {
  .name = "log", .run = run_log, .describe = describe_log,
};
