/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Media that fail and lie, and lose power while requests are under way.
 *
 * A medium is a disk or file with a volatile cache, in memory: it knows what
 * has been flushed and each change since.  All media of a world share a lock,
 * so that a power loss takes all of them at one moment.
 *
 * What goes wrong is decided by the seed, the operation that asks, and how
 * often it has asked.  So leaving out one operation of a run does not change
 * what happens to the others.
 */

#ifndef BLOCKDRIVERS_CHAOS_MEDIUM_H
#define BLOCKDRIVERS_CHAOS_MEDIUM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"

#define MEDIUM_SECTOR 512
#define MAX_MEDIA 16

struct world;

struct medium_event;

/* Outlives the processes that open it. */
struct medium {
  struct world *world;          /* NULL: nothing goes wrong */
  char *name;
  unsigned nr;                  /* in the world */
  bool fixed;
  uint64_t ino;                 /* of the file that stands for it, or 0 */

  /* Under the world's lock, or the medium's own without one. */
  pthread_mutex_t lock;
  uint8_t *now, *flushed;       /* capacity bytes, behind which all is zero, as
                                   is what is behind the ends */
  uint64_t capacity, size, flushed_size;
  struct medium_event *events;  /* since the flush, in order */
  size_t nr_events, max_events;
  bool has_forgotten;           /* what a failed flush covered */
};

enum medium_fault { FAULT_NONE, FAULT_BEFORE, FAULT_AFTER, FAULT_IN_PART };

struct world {
  pthread_mutex_t lock;         /* protects all media, and: */
  struct medium *media[MAX_MEDIA];
  unsigned nr_media;

  uint64_t seed;
  unsigned generation;          /* nodes of an earlier one belong to a
                                   process that was killed */
  /* How often a change fails, a read fails, and power is lost on the way:
   * once in so many times, 0 is never.
   */
  unsigned change_faults, read_faults, losses;
  unsigned of_media;            /* a bit for each medium that may fail */
  /* In place of these numbers, unless NULL: does this change fail, under the
   * lock?
   */
  enum medium_fault (*fault_of) (struct world *w, const struct medium *m);
  bool forgetful;               /* failed flushes drop what they covered */

  /* Power is lost now, while the others run on: copy what is needed, under
   * the lock; then judge it without.  May be NULL.
   */
  void *(*snapshot) (struct world *w);
  void (*judge) (struct world *w, void *snapshot);
  void *opaque;
};

/* What the thread does; 0 is nothing in particular. */
extern _Thread_local uint64_t chaos_op;
extern void chaos_begin_op (uint64_t op);

extern uint64_t chaos_mix (uint64_t a, uint64_t b, uint64_t c);

extern void world_init (struct world *w, uint64_t seed);
extern void world_destroy (struct world *w);

/* What is on a medium: len bytes, to be freed, and zeroes up to size. */
struct content {
  uint8_t *data;
  uint64_t len, size;
};

/* A medium that holds this, durably; fixed if it cannot get longer. */
extern struct medium *medium_new (struct world *w, const char *name,
                                  const struct content *c, bool fixed);
extern void medium_free (struct medium *m);

/* A process opens it. */
extern struct node *medium_open (struct medium *m);

/* The same as another way to a real file, whose length it keeps. */
extern struct node *medium_open_over (struct medium *m, struct node *real);

/* What a power loss leaves: some of what was not flushed, some sectors of a
 * write and not others, and one of the lengths.
 */
extern struct content medium_lose (struct medium *m, uint64_t seed);

/* What reads see. */
extern struct content medium_now (struct medium *m);

/* It contains this from now on, durably. */
extern void medium_set (struct medium *m, const struct content *c);

/* The processes die, and what they have open is of no use to anybody.  The
 * caller holds no lock and nothing is in flight.
 */
extern void world_kill (struct world *w);

/* Power is lost and all media are what is left of them. */
extern void world_lose_power (struct world *w, uint64_t seed);

#endif /* BLOCKDRIVERS_CHAOS_MEDIUM_H */
