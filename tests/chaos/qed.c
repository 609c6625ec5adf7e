/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chaos of a QED image: with and without a backing image, in a file and in
 * storage of fixed size, with tiny caches (qed.md, invariants 1 to 5).
 */

#include <config.h>

#include <sys/wait.h>

#include "qed/image/need-check.h"
#include "qed/open.h"
#include "qed/qed.h"
#include "qed/repair/check.h"
#include "tests/chaos/load.h"
#include "utils/rounding.h"

#define CLUSTER 4096
#define NR_PARTS 3
#define FIXED_SIZE (UINT64_C (1) << 20)
#define PART_CELLS (5 * CLUSTER / CELL + 3)

/* One in so many states is shown to qemu-img, too, which is slow. */
#define ASK_QEMU 64

struct qed_run {
  struct load load;             /* first */
  struct world world;
  struct medium *medium;
  struct qed_options options;
  uint32_t table_size;          /* clusters */
  bool backed;
  unsigned change_faults, read_faults, losses;
  atomic_uint nr_judged;
};

/* ---- Judging what would be found */

struct found {
  bool is_loss;                 /* or a death */
  bool fixed;
  struct content content;
  uint64_t *allowed;
};

static void *
take_snapshot (struct world *w)
{
  struct qed_run *run = w->opaque;
  struct medium *m = run->medium;
  struct found *found = malloc (sizeof *found);
  const uint64_t chance = chaos_mix (w->seed, chaos_op, m->nr_events);

  CHECK (found);
  found->is_loss = chance % 4;
  found->fixed = m->fixed;
  found->content = found->is_loss ? medium_lose (m, chance) : medium_now (m);
  found->allowed = model_copy (&run->load.model, found->is_loss);
  return found;
}

static void
check_tables (struct medium *m, bool must_be_good)
{
  struct node *file = medium_open (m);
  struct qed *s = open_bare_file (file);
  struct qed_check_result result;

  CHECK (s);
  if (must_be_good || !(s->header.features & QED_NEED_CHECK)) {
    CHECK (repair_image (s, QED_FIX_NONE, true, NULL, NULL, &result) == 0);
    if (result.corruptions > 0)
      fprintf (stderr, "%s\n", messages.last);
    CHECK (result.corruptions == 0);
  }
  image_free (s);
}

static void
ask_qemu (const struct qed_run *run, const struct medium *m, unsigned nr)
{
  CLEANUP_FREE char *name = NULL;
  CLEANUP_FREE char *path = NULL;
  CLEANUP_FREE char *command = NULL;
  int status;

  if (run->table_size < 2)      /* QEMU cannot open these */
    return;
  CHECK (asprintf (&name, "judged-%u", nr) != -1);
  path = chaos_in_dir (name);
  chaos_write_file (path, m->now, MIN (m->size, m->capacity));
  CHECK (truncate (path, m->size) == 0);
  CHECK (asprintf (&command, "qemu-img check -q -f qed %s >/dev/null 2>&1",
                   path) != -1);
  status = system (command);
  CHECK (WIFEXITED (status) && WEXITSTATUS (status) % 3 == 0);
  unlink (path);
}

static void
judge (struct world *w, void *snapshot)
{
  struct qed_run *run = w->opaque;
  struct found *found = snapshot;
  struct qed_options options = run->options;
  struct medium *m = medium_new (NULL, run->medium->name, &found->content,
                                 found->fixed);
  const unsigned nr = atomic_fetch_add (&run->nr_judged, 1);
  struct node *n;

  check_tables (m, false);
  n = open_image (medium_open (m), &options, NULL);
  CHECK (n && !n->read_only);
  load_check (&run->load, n, found->allowed, NULL,
              found->is_loss ? "if power were lost" : "if it were killed");
  CHECK (node_close (n) == 0);
  check_tables (m, true);
  if (nr % ASK_QEMU == ASK_QEMU - 1)
    ask_qemu (run, m, nr);
  atomic_fetch_add (found->is_loss ? &chaos_figures->states
                    : &chaos_figures->deaths, 1);
  medium_free (m);
  free (found->content.data);
  free (found->allowed);
  free (found);
}

/* ---- Steps for which the requests stop */

static void
calm (struct qed_run *run, bool is_calm)
{
  run->world.change_faults = is_calm ? 0 : run->change_faults;
  run->world.read_faults = is_calm ? 0 : run->read_faults;
  run->world.losses = is_calm ? 0 : run->losses;
}

static void
open_disk (struct qed_run *run)
{
  struct node *n = open_image (medium_open (run->medium), &run->options,
                               NULL);

  if (n == NULL || n->read_only)
    fprintf (stderr, "opening: %s\n", messages.last);
  CHECK (n && !n->read_only);
  if (run->world.seed % 2)
    CHECK (node_start (n) == 0);
  run->load.node = n;
}

static void
lose_power (struct qed_run *run, uint64_t chance)
{
  world_lose_power (&run->world, chance);
  node_close (run->load.node);
  open_disk (run);
  load_settle (&run->load);
  atomic_fetch_add (&chaos_figures->losses, 1);
}

static void
restart (struct qed_run *run)
{
  world_kill (&run->world);
  node_close (run->load.node);
  open_disk (run);
  load_check_live (&run->load, "after a restart");
}

static void
close_and_open (struct qed_run *run)
{
  struct watch watch;
  bool lost;
  int r;

  calm (run, false);
  model_begin_flush (&run->load.model, &watch);
  r = node_close (run->load.node);
  model_end_flush (&run->load.model, &watch, r == 0);
  calm (run, true);
  /* What a flush that failed has dropped nobody can know from now on. */
  lost = run->medium->has_forgotten;
  if (lost)
    world_lose_power (&run->world, run->world.seed);
  open_disk (run);
  if (lost)
    load_settle (&run->load);
}

static void
resize (struct qed_run *run)
{
  const uint64_t size = node_size (run->load.node);

  calm (run, false);
  if (node_resize (run->load.node, size + CLUSTER) == -1)
    CHECK (node_size (run->load.node) == size);
  calm (run, true);
}

enum quiet { CHECK_LIVE, RESTART, LOSE_POWER, CLOSE, RESIZE, REST, QUIETS };

static const char *const quiet_names[QUIETS] = {
  "read all", "kill and restart", "lose power", "close and open", "resize",
  "rest",
};

static enum quiet
quiet_of (const struct plan *plan, unsigned step)
{
  return plan_chance (plan, step, 0) % QUIETS;
}

static void
quiet_step (struct qed_run *run, unsigned step)
{
  const uint64_t chance = plan_chance (run->load.plan, step, 1);
  enum quiet quiet = quiet_of (run->load.plan, step);

  /* What a failed flush has dropped nobody can know after a restart: the
   * reads still show it.
   */
  if (run->medium->has_forgotten && quiet != CHECK_LIVE)
    quiet = LOSE_POWER;
  switch (quiet) {
  case RESTART: restart (run); break;
  case LOSE_POWER: lose_power (run, chance); break;
  case CLOSE: close_and_open (run); break;
  case RESIZE: resize (run); break;
  case REST:
    calm (run, false);
    need_check_rest (qed_of_node (run->load.node));
    calm (run, true);
    break;
  default: break;
  }
  load_check_live (&run->load, "after a quiet step");
}

/* ---- Runs */

static void
shape_load (struct load *load)
{
  load->shape = (struct shape) {
    .nr_parts = NR_PARTS, .part_cells = PART_CELLS,
  };
  memcpy (load->weights, (unsigned [KINDS]) {
      [WRITE] = 40, [WRITE_ZEROES] = 8, [WRITE_FUA] = 5, [ZERO] = 8,
      [ZERO_TRIM] = 8, [ZERO_FUA] = 2, [DISCARD] = 8, [FLUSH] = 8,
      [READ] = 15, [EXTENTS] = 5, [EMPTY] = 1,
    }, sizeof load->weights);
}

static void
create_image (struct qed_run *run, bool fixed)
{
  CLEANUP_FREE char *path = chaos_in_dir ("new.qed");
  CLEANUP_FREE char *base = chaos_in_dir ("base.raw");
  struct content c = { .size = 0 };
  const struct qed_create_options create = {
    .size = NR_PARTS * run->load.shape.part_distance,
    .cluster_size = CLUSTER, .table_size = run->table_size,
    .backing = run->backed ? base : NULL, .backing_is_raw = true,
  };

  if (run->backed) {
    CLEANUP_FREE uint8_t *full = malloc (create.size);

    CHECK (full);
    memset (full, BASE, create.size);
    chaos_write_file (base, full, create.size);
  }
  CHECK (qed_create (path, &create) == 0);
  c.data = chaos_read_file (path, &c.len);
  c.size = c.len;
  if (fixed) {
    /* Full of remains of others. */
    c.size = FIXED_SIZE;
    c.data = realloc (c.data, c.size);
    CHECK (c.data);
    memset (c.data + c.len, 0xee, c.size - c.len);
    c.len = c.size;
  }
  run->medium = medium_new (&run->world, path, &c, fixed);
  free (c.data);
}

static void
configure (struct qed_run *run, const struct plan *plan)
{
  static const unsigned rates[] = { 0, 400, 60, 12 };
  const uint64_t chance = plan_chance (plan, THE_RUN, 2);

  shape_load (&run->load);
  run->backed = chance % 2;
  run->table_size = 1 << (chance >> 1) % 2;
  run->load.shape.part_distance = run->table_size * 512 * CLUSTER;
  run->load.base = run->backed ? BASE : 0;
  run->options = (struct qed_options) {
    .l2_cache_size = (chance >> 2) % 2 ? QED_MIN_CACHE_SIZE : 65536,
    .detect_zeroes = (chance >> 3) % 3,
    .copy_on_read = run->backed && (chance >> 6) % 4 == 0,
  };
  run->change_faults = rates[(chance >> 9) % 4];
  run->read_faults = (chance >> 11) % 4 ? 0 : 200;
  run->losses = (chance >> 13) % 2 ? 80 : 400;
  run->load.can_fail = run->change_faults || run->read_faults;
  run->load.repeatable = true;
  run->world.forgetful = (chance >> 14) % 2;
}

static void
run_qed (const struct plan *plan)
{
  struct qed_run run = { .losses = 0 };

  world_init (&run.world, plan->seed);
  run.world.snapshot = take_snapshot;
  run.world.judge = judge;
  run.world.opaque = &run;
  configure (&run, plan);
  load_init (&run.load, plan, BIT (run.load.base));
  create_image (&run, plan_chance (plan, THE_RUN, 3) % 3 == 0);
  open_disk (&run);

  for (unsigned phase = 0; phase < plan->nr_phases; ++phase) {
    unsigned step;

    calm (&run, false);
    plan_run_phase (plan, phase, load_run, &run.load);
    calm (&run, true);
    load_check_live (&run.load, "at once");
    if (plan_quiet_step (plan, phase, &step))
      quiet_step (&run, step);
  }
  lose_power (&run, plan->seed);
  CHECK (node_close (run.load.node) == 0);
  model_destroy (&run.load.model);
  world_destroy (&run.world);
}

static void
describe_qed (const struct plan *plan, unsigned step, char *buf, size_t size)
{
  if (step % PHASE_STEPS == PHASE_OPS)
    snprintf (buf, size, "%s", quiet_names[quiet_of (plan, step)]);
  else
    load_describe_step (plan, step, shape_load, buf, size);
}

const struct subject chaos_qed = {
  .name = "qed", .run = run_qed, .describe = describe_qed,
};
