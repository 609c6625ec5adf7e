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
  CHECK (watch->since);
  watch->next = model->watches;
  watch->link = &model->watches;
  if (watch->next)
    watch->next->link = &watch->next;
  model->watches = watch;
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
    if (cell >= w->first && cell < w->first + w->n)
      w->since[cell - w->first] |= bit;
}

void
model_begin (struct model *model, struct model_change *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  if (c->durable)
    watch_begin (model, &c->watch, c->first, c->n);
  for (unsigned i = c->first; i < c->first + c->n; ++i) {
    struct cell *cell = &model->cells[i];

    if (cell->in_flight++ == 0) {
      cell->group = 0;
      cell->succeeded = false;
    }
    if (c->durable)
      c->watch.since[i - c->first] |= cell->group;
    cell->group |= BIT (c->value);
    cell->lost |= BIT (c->value);
    tell_watches (model, i, BIT (c->value));
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
    free (c->watch.since);
  }
  for (unsigned i = c->first; i < c->first + c->n; ++i) {
    struct cell *cell = &model->cells[i];

    cell->succeeded |= success && !c->maybe;
    if (--cell->in_flight == 0)
      cell->live = cell->group | (cell->succeeded ? 0 : cell->live);
  }
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
  free (watch->since);
}

void
model_begin_read (struct model *model, struct watch *watch, unsigned first,
                  unsigned n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  watch_begin (model, watch, first, n);
  for (unsigned i = 0; i < n; ++i)
    watch->since[i] = live_values (&model->cells[first + i]);
}

void
model_end_read (struct model *model, struct watch *watch)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&model->lock);

  watch_end (watch);
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
