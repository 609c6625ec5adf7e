/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See wire.h. */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/chaos/wire.h"
#include "tests/unit/unit.h"

struct wire {
  struct node node;
  struct node *end;
  void (*close_end) (struct node *end);
  unsigned nr_cuts;             /* when it was made */
  atomic_bool lost;
};

static atomic_bool is_cut = true;
static atomic_uint nr_cuts = 1;

void
wire_cut (void)
{
  atomic_fetch_add (&nr_cuts, 1);
  atomic_store (&is_cut, true);
}

void
wire_mend (void)
{
  atomic_store (&is_cut, false);
}

unsigned
wire_try (void)
{
  const unsigned cuts = atomic_load (&nr_cuts);

  return atomic_load (&is_cut) ? 0 : cuts;
}

static struct wire *
wire_of (struct node *n)
{
  return (struct wire *) n;
}

static bool
wire_is_lost (struct node *n, char *cause, size_t size)
{
  if (wire_of (n)->nr_cuts != atomic_load (&nr_cuts))
    atomic_store (&wire_of (n)->lost, true);
  if (!atomic_load (&wire_of (n)->lost))
    return false;
  if (size > 0)
    snprintf (cause, size, "the wire is cut");
  return true;
}

/* An answer of whoever has died meanwhile does not arrive. */
#define OVER_THE_WIRE(n, call)                          \
  do {                                                  \
    int r_ = wire_is_lost (n, NULL, 0) ? -1 : (call);   \
                                                        \
    if (wire_is_lost (n, NULL, 0)) {                    \
      errno = ENOTCONN;                                 \
      r_ = -1;                                          \
    }                                                   \
    return r_;                                          \
  } while (0)

static int
wire_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  OVER_THE_WIRE (n, node_pread (wire_of (n)->end, buf, count, offset));
}

static int
wire_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  (void) count;
  OVER_THE_WIRE (n, node_pwritev (wire_of (n)->end, iov, iovcnt, offset));
}

static int
wire_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  OVER_THE_WIRE (n, node_zero (wire_of (n)->end, count, offset, flags));
}

static int
wire_discard (struct node *n, uint64_t count, uint64_t offset)
{
  OVER_THE_WIRE (n, node_discard (wire_of (n)->end, count, offset));
}

static int
wire_flush (struct node *n)
{
  OVER_THE_WIRE (n, node_flush (wire_of (n)->end));
}

static int
wire_extents (struct node *n, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  OVER_THE_WIRE (n, node_extents (wire_of (n)->end, count, offset, ret));
}

static void
wire_lose (struct node *n)
{
  atomic_store (&wire_of (n)->lost, true);
}

static int
wire_close (struct node *n)
{
  wire_of (n)->close_end (wire_of (n)->end);
  free (n->description);
  free (n->name);
  free (n);
  return 0;
}

static const struct node_ops wire_ops = {
  .type = "wire", .close = wire_close, .pread = wire_pread,
  .pwritev = wire_pwritev, .zero = wire_zero, .discard = wire_discard,
  .flush = wire_flush, .extents = wire_extents, .cut = wire_lose,
  .is_lost = wire_is_lost,
};

struct node *
wire_open (const char *uri, const struct node_open_options *options,
           unsigned tried, struct node *end, const char *description,
           void (*close_end) (struct node *end))
{
  struct wire *w;

  if (end == NULL) {
    if (options->cause)
      snprintf (options->cause, options->cause_size, "the wire is cut");
    errno = ECONNREFUSED;
    return NULL;
  }
  w = calloc (1, sizeof *w);
  CHECK (w);
  w->end = end;
  w->close_end = close_end;
  w->nr_cuts = tried;
  w->node.ops = &wire_ops;
  w->node.name = strdup (uri);
  if (description)
    w->node.description = strdup (description);
  w->node.align = w->node.zero_align = 1;
  w->node.preferred = 4096;
  w->node.fixed_size = true;
  atomic_init (&w->node.size, node_size (end));
  return &w->node;
}
