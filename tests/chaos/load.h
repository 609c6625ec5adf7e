/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Requests of many kinds to a disk of cells, and what they may read. */

#ifndef BLOCKDRIVERS_CHAOS_LOAD_H
#define BLOCKDRIVERS_CHAOS_LOAD_H

#include "tests/chaos/chaos.h"
#include "tests/chaos/model.h"

#define CELL 256                /* bytes, less than a sector */

/* Cells are at the beginning of each of some parts of the disk. */
struct shape {
  unsigned nr_parts, part_cells;
  uint64_t part_distance;       /* bytes */
};

enum kind { WRITE, WRITE_ZEROES, WRITE_FUA, ZERO, ZERO_TRIM, ZERO_FUA,
            DISCARD, FLUSH, READ, EXTENTS, EMPTY, KINDS };

struct request {
  enum kind kind;
  unsigned first, n;            /* cells, in one part */
  uint8_t value;
};

struct load {
  const struct plan *plan;
  struct shape shape;
  unsigned weights[KINDS];      /* how often, compared to the others */
  struct model model;
  struct node *node;

  /* What a request does where it is no call of the node: NULL, or one that
   * returns as the node's functions.
   */
  int (*request) (struct load *load, const struct request *r, void *buf,
                  uint64_t count, uint64_t offset);
  uint8_t base;                 /* the value that emptying leaves */
  bool can_fail;                /* some do, else all succeed */
  bool repeatable;              /* what one read sees, all later ones see */
  void *opaque;
};

extern uint64_t load_offset (const struct load *load, unsigned cell);
extern unsigned load_nr_cells (const struct load *load);
extern void load_init (struct load *load, const struct plan *plan,
                       uint64_t base);

/* The request that a step is. */
extern void load_request (const struct load *load, unsigned step,
                          struct request *r);

/* Say what it is, in a load that is shaped by this. */
extern void load_describe_step (const struct plan *plan, unsigned step,
                                void (*shape) (struct load *load), char *buf,
                                size_t size);

/* Make it and see that it read what it may. */
extern void load_run (void *load, unsigned step);

/* Read all of a disk, which must hold one of the allowed values in each
 * cell, and may be given them.
 */
extern void load_check (const struct load *load, struct node *n,
                        const uint64_t *allowed, uint8_t *values,
                        const char *when);

/* The same for what may be there now. */
extern void load_check_live (struct load *load, const char *when);

/* After a power loss: what is there is known from now on. */
extern void load_settle (struct load *load);

#endif /* BLOCKDRIVERS_CHAOS_LOAD_H */
