/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What each part of a disk may hold, live and after a power loss, while many
 * requests change it at the same time.
 *
 * The disk is cells of bytes that all have one value.  A set of values is a
 * bit for each.
 */

#ifndef BLOCKDRIVERS_CHAOS_MODEL_H
#define BLOCKDRIVERS_CHAOS_MODEL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define BIT(value) (UINT64_C (1) << (value))
#define BASE 63                 /* what is unallocated reads as this or 0 */

struct cell {
  uint64_t live;                /* when nobody changes it */
  uint64_t lost;                /* after a power loss */
  uint64_t group;               /* by those who have been changing it since
                                   nobody did */
  unsigned in_flight;
  bool succeeded;               /* one of the group */
};

/* Collects the values that cells get from a moment on. */
struct watch {
  struct watch *next, **link;
  unsigned first, n;
  uint64_t *since;              /* of each cell */
  bool *touched;                /* somebody was changing it meanwhile */
};

struct model {
  pthread_mutex_t lock;         /* protects the rest; taken inside a world's,
                                   and inside that of the model it follows */
  unsigned nr;
  struct cell *cells;
  struct watch *watches;
  struct model *follower;       /* or NULL */
};

extern void model_init (struct model *model, unsigned nr, uint64_t base);
extern void model_destroy (struct model *model);

/* A request that is going to give cells a value.  With durable, when it has
 * succeeded that is so.
 */
struct model_change {
  unsigned first, n;
  uint8_t value;
  bool maybe;                   /* or not, even if it succeeds */
  bool durable;
  struct watch watch;
};
extern void model_begin (struct model *model, struct model_change *c);
extern void model_end (struct model *model, struct model_change *c,
                       bool success);

/* A flush: when it has succeeded, what was there before is durable. */
extern void model_begin_flush (struct model *model, struct watch *watch);
extern void model_end_flush (struct model *model, struct watch *watch,
                             bool success);

/* A read, after which since is what it may have seen.  What one has seen
 * (value of each cell, or NULL) is there for all, until it is changed.
 */
extern void model_begin_read (struct model *model, struct watch *watch,
                              unsigned first, unsigned n);
extern void model_end_read (struct model *model, struct watch *watch);
extern void model_saw (struct model *model, struct watch *watch,
                       const uint8_t *values);
extern void watch_free (struct watch *watch);

/* All cells of follower become what those of model are at some moment from
 * begin to end, or not, if that fails.
 */
extern void model_begin_follow (struct model *follower, struct model *model);
extern void model_end_follow (struct model *follower, struct model *model,
                              bool success);

/* What cells may hold now, or after a power loss now; to be freed. */
extern uint64_t *model_copy (struct model *model, bool lost);

/* Nobody changes anything, and these values are there; durably, or besides
 * what may come back after a power loss.
 */
extern void model_set (struct model *model, const uint8_t *values,
                       bool durable);

#endif /* BLOCKDRIVERS_CHAOS_MODEL_H */
