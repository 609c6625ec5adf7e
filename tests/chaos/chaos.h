/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Runs of random steps against a subject, whose seeds repeat them. */

#ifndef BLOCKDRIVERS_CHAOS_H
#define BLOCKDRIVERS_CHAOS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "tests/chaos/medium.h"
#include "tests/unit/unit.h"

/* A run is phases of requests that threads make at the same time, each
 * followed by a step for which all have stopped.
 */
#define PHASE_OPS 40
#define MAX_PHASES 8
#define PHASE_STEPS (PHASE_OPS + 1)
#define MAX_STEPS (MAX_PHASES * PHASE_STEPS)

struct plan {
  const struct subject *subject;
  uint64_t seed;
  unsigned nr_phases, nr_threads;
  bool left_out[MAX_STEPS];
};

struct subject {
  const char *name;
  void (*run) (const struct plan *plan);

  /* What a step is, for whoever reads a run that failed. */
  void (*describe) (const struct plan *plan, unsigned step, char *buf,
                    size_t size);
};

extern const struct subject chaos_qed, chaos_log, chaos_primary,
  chaos_secondary;

/* A number that the seed decides for a step, or for the run as a whole. */
#define THE_RUN MAX_STEPS
extern uint64_t plan_chance (const struct plan *plan, unsigned step,
                             unsigned nr);

/* Run the requests of a phase in the plan's threads. */
extern void plan_run_phase (const struct plan *plan, unsigned phase,
                            void (*run) (void *opaque, unsigned step),
                            void *opaque);

/* The step behind a phase; false if it is left out. */
extern bool plan_quiet_step (const struct plan *plan, unsigned phase,
                             unsigned *step);

/* With --trace: what the operation of this thread does, and what media see. */
extern void chaos_trace (const char *fs, ...)
  __attribute__ ((format (printf, 1, 2)));

/* The folder for files of a run. */
extern char *chaos_in_dir (const char *name);
extern void chaos_write_file (const char *path, const void *buf, size_t size);
extern uint8_t *chaos_read_file (const char *path, uint64_t *size);

/* Shared by all processes of a campaign. */
struct chaos_figures {
  _Atomic uint64_t runs, ops, faults, failed_ops, states, deaths, losses;
};
extern struct chaos_figures *chaos_figures;

#endif /* BLOCKDRIVERS_CHAOS_H */
