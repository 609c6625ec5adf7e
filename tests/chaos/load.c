/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See load.h. */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "qed/empty.h"
#include "qed/qed.h"
#include "tests/chaos/load.h"
#include "utils/rounding.h"

#define MAX_CELLS 60            /* in one request */

static const char *const kind_names[KINDS] = {
  "write", "write zeroes", "write FUA", "zero", "zero, may trim", "zero FUA",
  "discard", "flush", "read", "extents", "empty",
};

uint64_t
load_offset (const struct load *load, unsigned cell)
{
  return cell / load->shape.part_cells * load->shape.part_distance +
    cell % load->shape.part_cells * (uint64_t) CELL;
}

unsigned
load_nr_cells (const struct load *load)
{
  return load->shape.nr_parts * load->shape.part_cells;
}

void
load_init (struct load *load, const struct plan *plan, uint64_t base)
{
  load->plan = plan;
  model_init (&load->model, load_nr_cells (load), base);
}

static enum kind
choose_kind (const struct load *load, uint64_t chance)
{
  unsigned sum = 0;

  for (enum kind k = 0; k < KINDS; ++k)
    sum += load->weights[k];
  chance %= sum;
  for (enum kind k = 0; ; ++k) {
    if (chance < load->weights[k])
      return k;
    chance -= load->weights[k];
  }
}

void
load_request (const struct load *load, unsigned step, struct request *r)
{
  const struct plan *plan = load->plan;
  const unsigned cells = load->shape.part_cells;
  const unsigned in_part = plan_chance (plan, step, 1) % cells;

  r->kind = choose_kind (load, plan_chance (plan, step, 0));
  r->first = plan_chance (plan, step, 2) % load->shape.nr_parts * cells +
    in_part;
  r->n = 1 + plan_chance (plan, step, 3) %
    MIN (cells - in_part, (unsigned) MAX_CELLS);
  r->value = 0;
  if (r->kind == WRITE || r->kind == WRITE_FUA)
    r->value = 1 + plan_chance (plan, step, 4) % (BASE - 1);
  if (r->kind == EMPTY || r->kind == FLUSH) {
    r->first = 0;
    r->n = load_nr_cells (load);
    r->value = load->base;
  }
}

static void
describe (const struct request *r, char *buf, size_t size)
{
  snprintf (buf, size, "%s cells %u..%u value %u", kind_names[r->kind],
            r->first, r->first + r->n - 1, r->value);
}

void
load_describe_step (const struct plan *plan, unsigned step,
                    void (*shape) (struct load *load), char *buf, size_t size)
{
  struct load load = { .plan = plan };
  struct request r;

  shape (&load);
  load_request (&load, step, &r);
  describe (&r, buf, size);
}

static void
check_cell (const struct load *load, unsigned cell, const uint8_t *bytes,
            uint64_t allowed, const char *when)
{
  const uint8_t value = bytes[0];

  if (value > BASE || !(allowed & BIT (value))) {
    fprintf (stderr, "%s: cell %u at offset %" PRIu64 " of the disk is %u, "
             "none of 0x%" PRIx64 "\n", when, cell, load_offset (load, cell),
             value, allowed);
    CHECK (!"a cell has a value that it must not have");
  }
  for (unsigned i = 1; i < CELL; ++i)
    if (bytes[i] != value) {
      fprintf (stderr, "%s: cell %u at offset %" PRIu64 " of the disk is %u, "
               "but %u from byte %u on\n", when, cell,
               load_offset (load, cell), value, bytes[i], i);
      CHECK (!"a cell that is torn");
    }
}

void
load_check (const struct load *load, struct node *n, const uint64_t *allowed,
            uint8_t *values, const char *when)
{
  const unsigned cells = load->shape.part_cells;
  const size_t len = cells * CELL;
  CLEANUP_FREE uint8_t *buf = malloc (len);

  CHECK (buf);
  for (unsigned part = 0; part < load->shape.nr_parts; ++part) {
    const unsigned first = part * cells;

    CHECK (node_pread (n, buf, len, load_offset (load, first)) == 0);
    for (unsigned i = 0; i < cells; ++i) {
      check_cell (load, first + i, buf + i * CELL, allowed[first + i], when);
      if (values)
        values[first + i] = buf[i * CELL];
    }
  }
}

void
load_check_live (struct load *load, const char *when)
{
  CLEANUP_FREE uint64_t *allowed = model_copy (&load->model, false);

  load_check (load, load->node, allowed, NULL, when);
}

void
load_settle (struct load *load)
{
  CLEANUP_FREE uint64_t *allowed = model_copy (&load->model, true);
  CLEANUP_FREE uint8_t *values = malloc (load_nr_cells (load));

  CHECK (values);
  load_check (load, load->node, allowed, values, "after a power loss");
  model_set (&load->model, values, true);
}

/* ---- Requests */

static int
node_request (struct load *load, const struct request *r, void *buf,
              uint64_t count, uint64_t offset)
{
  struct node *n = load->node;

  if (load->request)
    return load->request (load, r, buf, count, offset);
  switch (r->kind) {
  case WRITE:
  case WRITE_ZEROES: return node_pwrite (n, buf, count, offset);
  case WRITE_FUA: return node_pwrite_flags (n, buf, count, offset, NODE_FUA);
  case ZERO: return node_zero (n, count, offset, 0);
  case ZERO_TRIM: return node_zero (n, count, offset, NODE_MAY_TRIM);
  case ZERO_FUA: return node_zero (n, count, offset, NODE_FUA);
  case DISCARD: return node_discard (n, count, offset);
  case FLUSH: return node_flush (n);
  case READ: return node_pread (n, buf, count, offset);
  case EMPTY: return qed_empty (n);
  default: abort ();
  }
}

/* Did it end as it may? */
static bool
succeeded (const struct load *load, int r)
{
  if (r == -1) {
    chaos_trace ("failed");
    atomic_fetch_add (&chaos_figures->failed_ops, 1);
    if (!load->can_fail)
      fprintf (stderr, "failed without a fault: %s\n", messages.last);
    CHECK (load->can_fail);
  }
  return r == 0;
}

static void
change (struct load *load, const struct request *r, void *buf,
        uint64_t count, uint64_t offset)
{
  struct model_change c = {
    .first = r->first, .n = r->n, .value = r->value,
    .maybe = r->kind == DISCARD,
    .durable = r->kind == WRITE_FUA || r->kind == ZERO_FUA ||
               r->kind == EMPTY,
  };

  model_begin (&load->model, &c);
  model_end (&load->model, &c,
             succeeded (load, node_request (load, r, buf, count, offset)));
}

static void
read_cells (struct load *load, const struct request *r, uint8_t *buf,
            uint64_t count, uint64_t offset)
{
  struct watch watch;
  uint8_t values[MAX_CELLS];
  bool good;

  model_begin_read (&load->model, &watch, r->first, r->n);
  good = succeeded (load, node_request (load, r, buf, count, offset));
  for (unsigned i = 0; i < r->n; ++i)
    values[i] = buf[i * CELL];
  if (good && load->repeatable)
    model_saw (&load->model, &watch, values);
  else
    model_end_read (&load->model, &watch);
  for (unsigned i = 0; good && i < r->n; ++i)
    check_cell (load, r->first + i, buf + i * CELL, watch.since[i], "a read");
  watch_free (&watch);
}

static void
ask_extents (struct load *load, const struct request *r, uint64_t count,
             uint64_t offset)
{
  struct watch watch;
  struct extent e = { .length = 0 };
  int result;

  model_begin_read (&load->model, &watch, r->first, r->n);
  result = node_extents (load->node, count, offset, &e);
  model_end_read (&load->model, &watch);
  if (succeeded (load, result)) {
    CHECK (e.length > 0 && e.length <= count);
    for (unsigned i = 0; (e.flags & EXTENT_ZERO) && i < e.length / CELL; ++i)
      CHECK (watch.since[i] & 1);
  }
  watch_free (&watch);
}

static void
load_trace (const struct request *r, const char *what)
{
  char text[100];

  describe (r, text, sizeof text);
  chaos_trace ("%s: %s", what, text);
}

void
load_run (void *opaque, unsigned step)
{
  struct load *load = opaque;
  struct request r;

  load_request (load, step, &r);

  const uint64_t count = (uint64_t) r.n * CELL;
  const uint64_t offset = load_offset (load, r.first);
  struct watch watch;
  CLEANUP_FREE uint8_t *buf = malloc (count);

  CHECK (buf);
  memset (buf, r.value, count);
  load_trace (&r, "begins");
  switch (r.kind) {
  case FLUSH:
    model_begin_flush (&load->model, &watch);
    model_end_flush (&load->model, &watch,
                     succeeded (load, node_request (load, &r, NULL, 0, 0)));
    break;
  case READ:
    read_cells (load, &r, buf, count, offset);
    break;
  case EXTENTS:
    ask_extents (load, &r, count, offset);
    break;
  default:
    change (load, &r, buf, count, offset);
  }
  chaos_trace ("ends");
}
