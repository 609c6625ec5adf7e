/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chaos of a replication's secondary: disk, active and hidden buffer (with
 * the note in it) each on a medium of its own, of which some fail; a primary
 * and a guest that write at the same time as checkpoints are made; its process
 * is killed or its power lost at any checkpoint's distance and each way to
 * recover is taken (replication.md, "Beyond QEMU").
 */

#include <config.h>

#include "filters/replication/secondary/secondary.h"
#include "tests/chaos/divert.h"
#include "tests/chaos/load.h"

#define NR_CELLS 160
#define DISK_SIZE (NR_CELLS * CELL)

struct secondary_run {
  struct load primary, guest;   /* the disk; what the guest sees */
  struct world world;
  struct medium *disk_medium;
  const struct plan *plan;
  char *active_name, *hidden_name;
  uint64_t *checkpoint;         /* what the disk may have been there */
  unsigned change_faults, read_faults;
  pthread_mutex_t one_checkpoint; /* at a time */
  bool failed_over;             /* or perhaps: it was said to have failed */

  struct node *disk;
  struct secondary *s;
  struct replication_refusal refusal;
};

/* ---- The secondary */

static void
calm (struct secondary_run *run, bool is_calm)
{
  run->world.change_faults = is_calm ? 0 : run->change_faults;
  run->world.read_faults = is_calm ? 0 : run->read_faults;
}

/* Returns whether it was taken. */
static bool
open_secondary (struct secondary_run *run, enum secondary_recover recover)
{
  const struct secondary_options options = {
    .active = run->active_name, .hidden = run->hidden_name,
    .recover = recover
  };

  run->disk = medium_open (run->disk_medium);
  run->s = secondary_open (&options);
  if (run->s == NULL || secondary_begin (run->s, run->disk) == -1) {
    secondary_close (run->s);
    node_close (run->disk);
    return false;
  }
  run->primary.node = secondary_connect (run->s, &(struct history) { "" });
  run->guest.node = secondary_guest_node (run->s);
  CHECK (run->primary.node && run->guest.node);
  return true;
}

static void
close_secondary (struct secondary_run *run)
{
  secondary_disconnect (run->s, run->primary.node);
  secondary_close (run->s);
  node_close (run->disk);
}

/* The guest sees what the disk has. */
static void
guest_sees_disk (struct secondary_run *run)
{
  free (run->checkpoint);
  run->checkpoint = model_copy (&run->primary.model, false);
  for (unsigned i = 0; i < NR_CELLS; ++i)
    run->guest.model.cells[i].live = run->checkpoint[i];
}

/* What the disk has is known from now on, if it may be that. */
static void
settle (struct secondary_run *run, const uint64_t *allowed, bool durable,
        const char *when)
{
  struct node *n = medium_open (run->disk_medium);
  uint8_t values[NR_CELLS];

  load_check (&run->primary, n, allowed, values, when);
  node_close (n);
  model_set (&run->primary.model, values, durable);
  guest_sees_disk (run);
}

static void
start (struct secondary_run *run)
{
  if (secondary_start (run->s, &run->refusal) == -1)
    fprintf (stderr, "%s\n", run->refusal.desc);
  else
    return;
  CHECK (!"it cannot be started");
}

static enum replication_stage
stage (struct secondary_run *run)
{
  struct replication_status status;

  do {
    usleep (200);
    secondary_query (run->s, &status);
  } while (status.stage == REPLICATION_FAILOVER);
  return status.stage;
}

/* ---- Steps for which the requests stop */

/* If it fails it may have been made. */
static void
checkpoint (struct secondary_run *run)
{
  CLEANUP_FREE uint64_t *live = model_copy (&run->primary.model, false);
  int r;

  calm (run, false);
  r = secondary_checkpoint (run->s, &run->refusal);
  calm (run, true);
  if (r == 0)
    guest_sees_disk (run);
  else
    for (unsigned i = 0; i < NR_CELLS; ++i) {
      run->guest.model.cells[i].live |= live[i];
      run->checkpoint[i] |= live[i];
    }
}

/* After a failover that was done, or failed and was done all the same: the
 * disk becomes what the guest saw.
 */
static void
settle_promoted (struct secondary_run *run, const uint64_t *seen)
{
  CHECK (secondary_is_promoted (run->s) && stage (run) == REPLICATION_DONE);
  settle (run, seen, true, "the disk after a failover");
  CHECK (secondary_reset (run->s, &run->refusal) == 0);
  start (run);
  run->failed_over = false;
}

static void
kill_and_recover (struct secondary_run *run, enum secondary_recover how)
{
  CLEANUP_FREE uint64_t *seen = model_copy (&run->guest.model, false);

  world_kill (&run->world);
  close_secondary (run);
  CHECK (open_secondary (run, how));
  atomic_fetch_add (&chaos_figures->deaths, 1);
  if (run->failed_over && secondary_is_promoted (run->s)) {
    settle_promoted (run, seen);
    return;
  }
  if (how == RECOVER_ROLLBACK)
    settle (run, run->checkpoint, true, "the disk after a rollback");
  else {
    CLEANUP_FREE uint64_t *live = model_copy (&run->primary.model, false);

    settle (run, live, false, "the disk, as the primary wrote it");
  }
  start (run);
}

/* What is in the buffers belongs to another boot: it can only be dropped. */
static void
lose_power (struct secondary_run *run, uint64_t chance)
{
  CLEANUP_FREE uint64_t *lost = model_copy (&run->primary.model, true);
  CLEANUP_FREE uint64_t *seen = model_copy (&run->guest.model, false);

  divert_boot (0);
  world_lose_power (&run->world, chance);
  close_secondary (run);
  if (chance % 2 && open_secondary (run, RECOVER_FAIL))
    ;                           /* nothing had got into them */
  else
    CHECK (open_secondary (run, RECOVER_DISCARD));
  atomic_fetch_add (&chaos_figures->losses, 1);
  atomic_fetch_add (&chaos_figures->states, 1);
  if (run->failed_over && secondary_is_promoted (run->s)) {
    settle_promoted (run, seen);
    return;
  }
  settle (run, lost, true, "the disk after a power loss");
  start (run);
}

/* The disk becomes what the guest sees, also if the process is killed or
 * power is lost on the way.
 */
static void
fail_over (struct secondary_run *run, uint64_t chance)
{
  CLEANUP_FREE uint64_t *seen = model_copy (&run->guest.model, false);
  int r;

  calm (run, false);
  r = secondary_stop (run->s, true, false, &run->refusal);
  if (r == -1) {
    calm (run, true);
    run->failed_over = true;
    return;
  }
  if (chance % 3 == 0)
    stage (run);
  calm (run, true);
  if (chance % 2) {
    divert_boot (0);
    world_lose_power (&run->world, chance);
    atomic_fetch_add (&chaos_figures->losses, 1);
    atomic_fetch_add (&chaos_figures->states, 1);
  }
  else
    world_kill (&run->world);
  close_secondary (run);
  CHECK (open_secondary (run, (chance >> 4) % 2 ? RECOVER_ROLLBACK
                         : RECOVER_DISCARD));
  settle_promoted (run, seen);
}

enum quiet { CHECK_LIVE, CHECKPOINT, ROLLBACK, DISCARD_BUFFERS, LOSE_POWER,
             FAIL_OVER, QUIETS };

static const char *const quiet_names[QUIETS] = {
  "read all", "checkpoint", "kill and roll back", "kill and discard",
  "lose power", "fail over",
};

static enum quiet
quiet_of (const struct plan *plan, unsigned step)
{
  return plan_chance (plan, step, 0) % QUIETS;
}

static void
quiet_step (struct secondary_run *run, unsigned step)
{
  const uint64_t chance = plan_chance (run->plan, step, 1);

  chaos_trace ("%s", quiet_names[quiet_of (run->plan, step)]);
  switch (quiet_of (run->plan, step)) {
  case CHECKPOINT: checkpoint (run); break;
  case ROLLBACK: kill_and_recover (run, RECOVER_ROLLBACK); break;
  case DISCARD_BUFFERS: kill_and_recover (run, RECOVER_DISCARD); break;
  case LOSE_POWER: lose_power (run, chance); break;
  case FAIL_OVER: fail_over (run, chance); break;
  default: break;
  }
  load_check_live (&run->guest, "the guest");
  load_check_live (&run->primary, "the primary");
}

/* ---- Runs */

static void
shape_load (struct load *load)
{
  load->shape = (struct shape) {
    .nr_parts = 1, .part_cells = NR_CELLS, .part_distance = DISK_SIZE
  };
  memcpy (load->weights, (unsigned [KINDS]) {
      [WRITE] = 40, [WRITE_ZEROES] = 5, [WRITE_FUA] = 5, [ZERO] = 8,
      [ZERO_TRIM] = 5, [DISCARD] = 5, [FLUSH] = 8, [READ] = 25,
      [EXTENTS] = 5,
    }, sizeof load->weights);
}

/* A checkpoint among the requests: the guest's disk becomes the primary's at
 * one moment of it.  If it fails it may have been made.
 */
static void
checkpoint_meanwhile (struct secondary_run *run)
{
  struct replication_refusal refusal;
  struct watch watch;
  bool good;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&run->one_checkpoint);
  model_begin_read (&run->primary.model, &watch, 0, NR_CELLS);
  model_begin_follow (&run->guest.model, &run->primary.model);
  good = secondary_checkpoint (run->s, &refusal) == 0;
  model_end_follow (&run->guest.model, &run->primary.model, good);
  model_end_read (&run->primary.model, &watch);
  CHECK (good || run->primary.can_fail);
  for (unsigned i = 0; i < NR_CELLS; ++i)
    run->checkpoint[i] = watch.since[i] | (good ? 0 : run->checkpoint[i]);
  watch_free (&watch);
}

static bool
is_checkpoint (const struct plan *plan, unsigned step)
{
  return plan_chance (plan, step, 10) % 12 == 0;
}

/* One in two requests is the primary's. */
static void
run_step (void *opaque, unsigned step)
{
  struct secondary_run *run = opaque;

  if (is_checkpoint (run->plan, step)) {
    chaos_trace ("checkpoint, begins");
    checkpoint_meanwhile (run);
    chaos_trace ("checkpoint, ends");
    return;
  }
  load_run (plan_chance (run->plan, step, 9) % 2 ? &run->primary
            : &run->guest, step);
}

static void
configure (struct secondary_run *run, const struct plan *plan)
{
  static const unsigned rates[] = { 0, 500, 100, 30 };
  const uint64_t chance = plan_chance (plan, THE_RUN, 2);

  shape_load (&run->primary);
  shape_load (&run->guest);
  run->plan = plan;
  run->change_faults = rates[chance % 4];
  run->read_faults = (chance >> 2) % 4 ? 0 : 200;
  run->world.of_media = 1 + (chance >> 4) % 7;
  run->primary.can_fail = run->guest.can_fail =
    run->change_faults || run->read_faults;
  run->primary.repeatable = run->guest.repeatable = true;
  pthread_mutex_init (&run->one_checkpoint, NULL);
  load_init (&run->primary, plan, BIT (0));
  load_init (&run->guest, plan, BIT (0));
  run->active_name = chaos_in_dir ("active.qed");
  run->hidden_name = chaos_in_dir ("hidden.qed");
  unlink (run->active_name);
  unlink (run->hidden_name);
  run->disk_medium = medium_new (
    &run->world, "disk", &(struct content) { .size = DISK_SIZE }, true);
}

static void
run_secondary (const struct plan *plan)
{
  struct secondary_run run = { .s = NULL };

  world_init (&run.world, plan->seed);
  divert_to (&run.world);
  configure (&run, plan);
  CHECK (open_secondary (&run, RECOVER_FAIL));
  guest_sees_disk (&run);
  start (&run);

  for (unsigned phase = 0; phase < plan->nr_phases; ++phase) {
    unsigned step;

    calm (&run, false);
    plan_run_phase (plan, phase, run_step, &run);
    calm (&run, true);
    load_check_live (&run.guest, "the guest, at once");
    load_check_live (&run.primary, "the primary, at once");
    if (plan_quiet_step (plan, phase, &step))
      quiet_step (&run, step);
  }
  lose_power (&run, plan->seed);
  close_secondary (&run);
  free (run.checkpoint);
  free (run.active_name);
  free (run.hidden_name);
  pthread_mutex_destroy (&run.one_checkpoint);
  model_destroy (&run.primary.model);
  model_destroy (&run.guest.model);
  world_destroy (&run.world);
  divert_to (NULL);
}

static void
describe_secondary (const struct plan *plan, unsigned step, char *buf,
                    size_t size)
{
  char what[100];

  if (step % PHASE_STEPS == PHASE_OPS) {
    snprintf (buf, size, "%s", quiet_names[quiet_of (plan, step)]);
    return;
  }
  if (is_checkpoint (plan, step)) {
    snprintf (buf, size, "checkpoint");
    return;
  }
  load_describe_step (plan, step, shape_load, what, sizeof what);
  snprintf (buf, size, "%s: %s", plan_chance (plan, step, 9) % 2 ? "primary"
            : "guest", what);
}

const struct subject chaos_secondary = {
  .name = "secondary", .run = run_secondary, .describe = describe_secondary,
};
