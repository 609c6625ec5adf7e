/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See model.h.
 *
 * Requests that overlap in time make a group: when the last of them ends, the
 * cell has the value of one of them, or its earlier one if all have failed.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "tests/chaos/model.h"
#include "tests/unit/unit.h"

void
model_init (struct model *model, unsigned nr, uint64_t base)
{
  *model = (struct model) { .nr = nr };
  pthread_mutex_init (&model->lock, NULL);
  model->cells = calloc (nr, sizeof *model->cells);
  CHECK (model->cells);
  for (unsigned i = 0; i < nr; ++i)
    model->cells[i].live = model->cells[i].lost = base;
}

void
model_destroy (struct model *model)
{
  free (model->cells);
  pthread_mutex_destroy (&model->lock);
}

/* Called with the lock. */
static uint64_t
live_values (const struct cell *cell)
{
  return cell->live | (cell->in_flight ? cell->group : 0);
}

static void
watch_begin (struct model *model, struct watch *watch, unsigned first,
             unsigned n)
{
  watch->first = first;
  watch->n = n;
  watch->since = calloc (n, sizeof *watch->since);
  watch->touched = calloc (n, sizeof *watch->touched);
  CHECK (watch->since && watch->touched);
  watch->next = model->watches;
  watch->link = &model->watches;
  if (watch->next)
    watch->next->link = &watch->next;
  model->watches = watch;
}

void
watch_free (struct watch *watch)
{
  free (watch->since);
  free (watch->touched);
}

static void
watch_end (struct watch *watch)
{
  *watch->link = watch->next;
  if (watch->next)
    watch->next->link = watch->link;
}

/* What was collected is all that can be there after a power loss. */
static void
only_since (struct model *model, const struct watch *watch)
{
  for (unsigned i = 0; i < watch->n; ++i)
    model->cells[watch->first + i].lost &= watch->since[i];
}

static void
tell_watches (struct model *model, unsigned cell, uint64_t bit)
{
  for (struct watch *w = model->watches; w; w = w->next)
    if (cell >= w->first && cell < w->first + w->n) {
      w->since[cell - w->first] |= bit;
      w->touched[cell - w->first] = true;
    }
}

/* Another one that changes a cell, perhaps to one of these values. */
static void
join_group (struct model *model, unsigned i, uint64_t values)
{
  struct cell *cell = &model->cells[i];

  if (cell->in_flight++ == 0) {
    cell->group = 0;
    cell->succeeded = false;
  }
  cell->group |= values;
  cell->lost |= values;
  tell_watches (model, i, values);
}

static void
leave_group (struct cell *cell, bool success)
{
  cell->succeeded |= success;
  if (--cell->in_flight == 0)
    cell->live = cell->group | (cell->succeeded ? 0 : cell->live);
}

/* A value that a cell of the model which this one follows may get. */
static void
follow (struct model *model, unsigned i, uint64_t bit)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  model->cells[i].group |= bit;
  model->cells[i].lost |= bit;
  tell_watches (model, i, bit);
}

void
model_begin (struct model *model, struct model_change *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  if (c->durable)
    watch_begin (model, &c->watch, c->first, c->n);
  for (unsigned i = c->first; i < c->first + c->n; ++i) {
    struct cell *cell = &model->cells[i];

    if (c->durable && cell->in_flight > 0)
      c->watch.since[i - c->first] |= cell->group;
    join_group (model, i, BIT (c->value));
    if (model->follower)
      follow (model->follower, i, BIT (c->value));
  }
}

void
model_end (struct model *model, struct model_change *c, bool success)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  if (c->durable) {
    watch_end (&c->watch);
    if (success)
      only_since (model, &c->watch);
    watch_free (&c->watch);
  }
  for (unsigned i = c->first; i < c->first + c->n; ++i)
    leave_group (&model->cells[i], success && !c->maybe);
}

void
model_begin_flush (struct model *model, struct watch *watch)
{
  model_begin_read (model, watch, 0, model->nr);
}

void
model_end_flush (struct model *model, struct watch *watch, bool success)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  watch_end (watch);
  if (success)
    only_since (model, watch);
  watch_free (watch);
}

void
model_begin_read (struct model *model, struct watch *watch, unsigned first,
                  unsigned n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  watch_begin (model, watch, first, n);
  for (unsigned i = 0; i < n; ++i) {
    watch->since[i] = live_values (&model->cells[first + i]);
    watch->touched[i] = model->cells[first + i].in_flight > 0;
  }
}

void
model_end_read (struct model *model, struct watch *watch)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  watch_end (watch);
}

void
model_saw (struct model *model, struct watch *watch, const uint8_t *values)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  watch_end (watch);
  for (unsigned i = 0; i < watch->n; ++i)
    if (!watch->touched[i] && values[i] <= BASE)
      model->cells[watch->first + i].live &= BIT (values[i]);
}

void
model_begin_follow (struct model *follower, struct model *model)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&follower->lock);

  for (unsigned i = 0; i < model->nr; ++i)
    join_group (follower, i, live_values (&model->cells[i]));
  model->follower = follower;
}

void
model_end_follow (struct model *follower, struct model *model, bool success)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&follower->lock);

  model->follower = NULL;
  for (unsigned i = 0; i < model->nr; ++i)
    leave_group (&follower->cells[i], success);
}

uint64_t *
model_copy (struct model *model, bool lost)
{
  uint64_t *copy = malloc (model->nr * sizeof *copy);

  CHECK (copy);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);
  for (unsigned i = 0; i < model->nr; ++i)
    copy[i] = lost ? model->cells[i].lost : live_values (&model->cells[i]);
  return copy;
}

void
model_set (struct model *model, const uint8_t *values, bool durable)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  for (unsigned i = 0; i < model->nr; ++i) {
    struct cell *cell = &model->cells[i];

    cell->live = BIT (values[i]);
    cell->lost = BIT (values[i]) | (durable ? 0 : cell->lost);
  }
}
