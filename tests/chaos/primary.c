/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chaos of a replication's primary: its disk, its bitmap and the remote's disk
 * each on a medium of its own, of which some fail; a guest's requests from
 * many threads while checkpoints are made and the wire to the remote is cut
 * and mended; the primary is killed or its power lost, and so is the remote,
 * with what it had not flushed.  In the end, and whenever a checkpoint
 * succeeds with nobody writing, the remote has durably what the disk has
 * (replication.md, "Whose data is right").
 */

#include <config.h>

#include "filters/replication/primary/primary.h"
#include "tests/chaos/clock.h"
#include "tests/chaos/divert.h"
#include "tests/chaos/load.h"
#include "tests/chaos/wire.h"

#define NR_CELLS 1024           /* several areas of the bitmap */
#define DISK_SIZE (NR_CELLS * CELL)
#define REMOTE "nbd+unix:///?socket=chaos"
#define SPEED 50
#define TIMEOUT (SPEED * 20000) /* a remote that hangs there is none */

struct primary_run {
  struct load load;             /* the disk, as the guest sees it */
  struct world here, there;     /* the primary's machine, and the remote's */
  struct medium *disk_medium, *remote_medium;
  const struct plan *plan;
  char *bitmap_name;
  unsigned change_faults, read_faults;
  bool is_stopped;

  struct node *disk;
  struct primary *p;
};

static struct primary_run *the_run;

/* A server that comes to its end takes all connections with it: none is made
 * meanwhile.
 */
static pthread_mutex_t remote_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- The remote */

static void
close_remote (struct node *n)
{
  node_close (n);
}

extern __typeof__ (node_open) __real_node_open, __wrap_node_open;

struct node *
__wrap_node_open (const char *name, const struct node_open_options *options)
{
  unsigned tried;

  if (!node_is_uri (name))
    return __real_node_open (name, options);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&remote_lock);
  tried = wire_try ();
  return wire_open (name, options, tried, tried == 0 ? NULL
                    : medium_open (the_run->remote_medium), NULL,
                    close_remote);
}

/* The server of the remote is killed, or its machine. */
static void
lose_remote (struct primary_run *run, uint64_t chance)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&remote_lock);
  wire_cut ();
  if (chance % 2)
    world_lose_power (&run->there, chance);
  else
    world_kill (&run->there);
}

/* ---- The primary */

static void
calm (struct primary_run *run, bool is_calm)
{
  run->here.change_faults = run->there.change_faults =
    is_calm ? 0 : run->change_faults;
  run->here.read_faults = run->there.read_faults =
    is_calm ? 0 : run->read_faults;
}

static void
open_primary (struct primary_run *run)
{
  const struct primary_options options = {
    .remote = REMOTE, .bitmap = run->bitmap_name, .timeout = TIMEOUT
  };
  struct replication_refusal refusal;

  run->disk = medium_open (run->disk_medium);
  run->p = primary_open (&options);
  CHECK (run->p && primary_begin (run->p, run->disk) == 0);
  run->load.node = primary_node (run->p);
  primary_launch (run->p, &refusal);
  run->is_stopped = false;
}

static void
close_primary (struct primary_run *run)
{
  primary_close (run->p);
  node_close (run->disk);
}

/* Nothing of what it does when it comes to its end gets anywhere. */
static void
kill_primary (struct primary_run *run)
{
  wire_cut ();
  world_kill (&run->here);
  close_primary (run);
  wire_mend ();
  open_primary (run);
  atomic_fetch_add (&chaos_figures->deaths, 1);
}

static void
lose_power (struct primary_run *run, uint64_t chance)
{
  wire_cut ();
  divert_boot (0);
  world_lose_power (&run->here, chance);
  close_primary (run);
  wire_mend ();
  open_primary (run);
  load_settle (&run->load);
  atomic_fetch_add (&chaos_figures->losses, 1);
}

/* ---- Steps for which the requests stop */

static void
stop_replication (struct primary_run *run)
{
  struct replication_refusal refusal;

  if (!run->is_stopped)
    CHECK (primary_stop (run->p, false, &refusal) == 0);
  run->is_stopped = true;
}

/* What it cannot vouch for it copies as a whole. */
static void
start (struct primary_run *run)
{
  struct replication_refusal refusal;

  wire_mend ();
  if (run->is_stopped && primary_start (run->p, false, &refusal) == -1)
    while (primary_start (run->p, true, &refusal) == -1)
      usleep (200);
  run->is_stopped = false;
}

static uint8_t
byte_of (const struct content *c, uint64_t i)
{
  return i < c->len ? c->data[i] : 0;
}

static void
compare (struct primary_run *run)
{
  struct content disk, remote;

  disk = medium_now (run->disk_medium);
  /* All of it is durable, so nothing can be lost. */
  remote = medium_lose (run->remote_medium, run->plan->seed);
  for (uint64_t i = 0; i < DISK_SIZE; ++i)
    if (byte_of (&disk, i) != byte_of (&remote, i)) {
      fprintf (stderr, "after a checkpoint, byte %" PRIu64 " is %u on the "
               "disk, and %u on the remote after a power loss\n", i,
               byte_of (&disk, i), byte_of (&remote, i));
      CHECK (!"the remote is another disk");
    }
  free (disk.data);
  free (remote.data);
  atomic_fetch_add (&chaos_figures->states, 1);
}

/* A disk that has failed a flush fails all of them. */
static void
checkpoint_and_compare (struct primary_run *run)
{
  struct replication_refusal refusal;

  start (run);
  while (primary_checkpoint (run->p, &refusal) == -1) {
    struct replication_status status;

    chaos_trace ("no checkpoint: %s", refusal.desc);
    primary_query (run->p, &status);
    CHECK (strcmp (status.link, "refused") != 0);
    if (atomic_load (&run->disk->flush_errno))
      kill_primary (run);
    usleep (1000);
  }
  compare (run);
}

enum quiet { CHECK_LIVE, COMPARE, CUT, KILL, LOSE_POWER, LOSE_REMOTE,
             STOP, START, QUIETS };

static const char *const quiet_names[QUIETS] = {
  "read all", "checkpoint and compare", "cut the wire", "kill the primary",
  "lose the primary's power", "lose the remote", "stop", "start",
};

static enum quiet
quiet_of (const struct plan *plan, unsigned step)
{
  return plan_chance (plan, step, 0) % QUIETS;
}

static void
quiet_step (struct primary_run *run, unsigned step)
{
  const uint64_t chance = plan_chance (run->plan, step, 1);

  chaos_trace ("%s", quiet_names[quiet_of (run->plan, step)]);
  switch (quiet_of (run->plan, step)) {
  case COMPARE: checkpoint_and_compare (run); break;
  case CUT: wire_cut (); break;
  case KILL: kill_primary (run); break;
  case LOSE_POWER: lose_power (run, chance); break;
  case LOSE_REMOTE: lose_remote (run, chance); break;
  case STOP: stop_replication (run); break;
  case START: start (run); break;
  default: break;
  }
}

/* ---- Steps among the requests */

enum event { NOTHING, CHECKPOINT, CUT_NOW, MEND, REMOTE_GOES, EVENTS };

static const char *const event_names[EVENTS] = {
  "nothing", "checkpoint", "cut the wire", "mend the wire",
  "lose the remote, and mend the wire",
};

static enum event
event_of (const struct plan *plan, unsigned step)
{
  const uint64_t chance = plan_chance (plan, step, 10);

  return chance % 10 ? NOTHING : 1 + (chance >> 8) % (EVENTS - 1);
}

static void
run_step (void *opaque, unsigned step)
{
  struct primary_run *run = opaque;
  struct replication_refusal refusal;
  const enum event event = event_of (run->plan, step);

  if (event != NOTHING)
    chaos_trace ("%s", event_names[event]);
  switch (event) {
  case NOTHING: load_run (&run->load, step); break;
  case CHECKPOINT: primary_checkpoint (run->p, &refusal); break;
  case CUT_NOW: wire_cut (); break;
  case REMOTE_GOES:
    lose_remote (run, plan_chance (run->plan, step, 11));
    /* fall through */
  default: wire_mend (); break;
  }
}

/* ---- Runs */

static void
shape_load (struct load *load)
{
  load->shape = (struct shape) {
    .nr_parts = 1, .part_cells = NR_CELLS, .part_distance = DISK_SIZE
  };
  memcpy (load->weights, (unsigned [KINDS]) {
      [WRITE] = 45, [WRITE_ZEROES] = 5, [WRITE_FUA] = 5, [ZERO] = 8,
      [ZERO_TRIM] = 5, [ZERO_FUA] = 2, [DISCARD] = 5, [FLUSH] = 8,
      [READ] = 15, [EXTENTS] = 5,
    }, sizeof load->weights);
}

static void
configure (struct primary_run *run, const struct plan *plan)
{
  static const unsigned rates[] = { 0, 0, 300, 60 };
  const struct content c = { .size = DISK_SIZE };
  const uint64_t chance = plan_chance (plan, THE_RUN, 2);

  shape_load (&run->load);
  run->plan = plan;
  run->change_faults = rates[chance % 4];
  run->read_faults = (chance >> 2) % 4 ? 0 : 200;
  run->here.of_media = 1 + (chance >> 4) % 3;
  run->there.of_media = (chance >> 6) % 2;
  run->load.can_fail = run->change_faults || run->read_faults;
  run->load.repeatable = true;
  load_init (&run->load, plan, BIT (0));
  run->bitmap_name = chaos_in_dir ("bitmap");
  unlink (run->bitmap_name);
  run->disk_medium = medium_new (&run->here, "disk", &c, true);
  run->remote_medium = medium_new (&run->there, "remote", &c, true);
}

static void
run_primary (const struct plan *plan)
{
  struct primary_run run = { .p = NULL };

  the_run = &run;
  clock_hurry (SPEED);
  world_init (&run.here, plan->seed);
  world_init (&run.there, plan->seed + 1);
  divert_to (&run.here);
  configure (&run, plan);
  wire_mend ();
  open_primary (&run);

  for (unsigned phase = 0; phase < plan->nr_phases; ++phase) {
    unsigned step;

    calm (&run, false);
    plan_run_phase (plan, phase, run_step, &run);
    calm (&run, true);
    load_check_live (&run.load, "the guest, at once");
    if (plan_quiet_step (plan, phase, &step))
      quiet_step (&run, step);
    load_check_live (&run.load, "the guest");
  }
  checkpoint_and_compare (&run);
  close_primary (&run);
  free (run.bitmap_name);
  model_destroy (&run.load.model);
  world_destroy (&run.here);
  world_destroy (&run.there);
  divert_to (NULL);
}

static void
describe_primary (const struct plan *plan, unsigned step, char *buf,
                  size_t size)
{
  if (step % PHASE_STEPS == PHASE_OPS)
    snprintf (buf, size, "%s", quiet_names[quiet_of (plan, step)]);
  else if (event_of (plan, step) != NOTHING)
    snprintf (buf, size, "%s", event_names[event_of (plan, step)]);
  else
    load_describe_step (plan, step, shape_load, buf, size);
}

const struct subject chaos_primary = {
  .name = "primary", .run = run_primary, .describe = describe_primary,
};
