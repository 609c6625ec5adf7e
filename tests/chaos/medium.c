/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See medium.h. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/chaos/medium.h"
#include "tests/chaos/chaos.h"
#include "utils/iszero.h"
#include "utils/rounding.h"

/* A sector that was written, or a new length. */
struct medium_event {
  bool is_size;
  uint64_t where;               /* sector, or the length in bytes */
  uint8_t data[MEDIUM_SECTOR];
};

struct medium_node {
  struct node node;
  struct medium *medium;
  unsigned generation;          /* of the world when it was opened */
};

_Thread_local uint64_t chaos_op;
static _Thread_local unsigned op_calls;

void
chaos_begin_op (uint64_t op)
{
  chaos_op = op;
  op_calls = 0;
}

uint64_t
chaos_mix (uint64_t a, uint64_t b, uint64_t c)
{
  uint64_t x = a * UINT64_C (0x9e3779b97f4a7c15) ^
    (b + 1) * UINT64_C (0xbf58476d1ce4e5b9) ^
    (c + 1) * UINT64_C (0x94d049bb133111eb);

  x ^= x >> 31;
  x *= UINT64_C (0xbf58476d1ce4e5b9);
  x ^= x >> 29;
  return x ? x : 1;
}

/* ---- Events */

static struct medium_event *
new_event (struct medium *m)
{
  if (m->nr_events == m->max_events) {
    m->max_events = m->max_events * 2 + 64;
    m->events = realloc (m->events, m->max_events * sizeof *m->events);
    CHECK (m->events);
  }
  return &m->events[m->nr_events++];
}

static void
reserve (struct medium *m, uint64_t size)
{
  const uint64_t want = round_up (size + MEDIUM_SECTOR, UINT64_C (1) << 18);

  if (want <= m->capacity)
    return;
  m->now = realloc (m->now, want);
  m->flushed = realloc (m->flushed, want);
  CHECK (m->now && m->flushed);
  memset (m->now + m->capacity, 0, want - m->capacity);
  memset (m->flushed + m->capacity, 0, want - m->capacity);
  m->capacity = want;
}

static void
cut (const struct medium *m, uint8_t *data, uint64_t *size, uint64_t new_size)
{
  if (new_size < *size && new_size < m->capacity)
    memset (data + new_size, 0, MIN (*size, m->capacity) - new_size);
  *size = new_size;
}

/* Sectors reach the medium in any order, each as it was then. */
static void
note_sectors (struct medium *m, uint64_t offset, uint64_t count)
{
  for (uint64_t s = offset / MEDIUM_SECTOR;
       s * MEDIUM_SECTOR < offset + count; ++s) {
    struct medium_event *e = new_event (m);

    e->is_size = false;
    e->where = s;
    memcpy (e->data, m->now + s * MEDIUM_SECTOR, MEDIUM_SECTOR);
  }
}

static void
note_size (struct medium *m)
{
  struct medium_event *e = new_event (m);

  e->is_size = true;
  e->where = m->size;
}

/* Apply an event to data. */
static void
apply (const struct medium *m, const struct medium_event *e, uint8_t *data,
       uint64_t *size)
{
  if (e->is_size)
    cut (m, data, size, e->where);
  else
    memcpy (data + e->where * MEDIUM_SECTOR, e->data, MEDIUM_SECTOR);
}

/* The first n events are durable, or forgotten but for the lengths. */
static void
settle_events (struct medium *m, size_t n, bool forget)
{
  for (size_t i = 0; i < n; ++i)
    if (!forget || m->events[i].is_size)
      apply (m, &m->events[i], m->flushed, &m->flushed_size);
  m->nr_events -= n;
  memmove (m->events, m->events + n, m->nr_events * sizeof *m->events);
}

struct content
medium_lose (struct medium *m, uint64_t seed)
{
  struct content c = {
    .data = malloc (m->capacity), .len = m->capacity, .size = m->flushed_size
  };
  const uint64_t keep = chaos_mix (seed, m->nr, 0) % 101;
  const size_t until = chaos_mix (seed, m->nr, 1) % (m->nr_events + 1);

  CHECK (c.data);
  memcpy (c.data, m->flushed, c.len);
  for (size_t i = 0; i < m->nr_events; ++i) {
    /* Lengths change in order, up to a moment. */
    if (m->events[i].is_size ? i < until
        : chaos_mix (seed, m->nr, i + 2) % 100 < keep)
      apply (m, &m->events[i], c.data, &c.size);
  }
  c.len = MIN (c.len, c.size);
  return c;
}

struct content
medium_now (struct medium *m)
{
  struct content c = {
    .data = malloc (m->capacity), .len = MIN (m->capacity, m->size),
    .size = m->size
  };

  CHECK (c.data);
  memcpy (c.data, m->now, c.len);
  return c;
}

void
medium_set (struct medium *m, const struct content *c)
{
  reserve (m, c->len);
  memset (m->now, 0, m->capacity);
  if (c->len > 0)
    memcpy (m->now, c->data, c->len);
  memcpy (m->flushed, m->now, m->capacity);
  m->size = m->flushed_size = c->size;
  m->nr_events = 0;
  m->has_forgotten = false;
}

/* ---- What goes wrong */

static const char *const fault_names[] = {
  "", ", failed", ", done and failed", ", done in part and failed"
};

/* A number for this call, that the seed decides. */
static uint64_t
next_chance (struct medium *m)
{
  return chaos_mix (m->world->seed ^ m->nr << 20, chaos_op, op_calls++);
}

static enum medium_fault
choose_fault (struct medium *m, unsigned one_in, uint64_t *chance)
{
  struct world *w = m->world;

  *chance = 0;
  if (w == NULL)
    return FAULT_NONE;
  *chance = next_chance (m);
  if (one_in == 0 || !(w->of_media >> m->nr & 1) || *chance % one_in != 0)
    return FAULT_NONE;
  atomic_fetch_add (&chaos_figures->faults, 1);
  return FAULT_BEFORE + (*chance >> 32) % 3;
}

static enum medium_fault
choose_change_fault (struct medium *m, uint64_t *chance)
{
  struct world *w = m->world;

  if (w == NULL || w->fault_of == NULL)
    return choose_fault (m, w ? w->change_faults : 0, chance);
  *chance = 0;
  return w->fault_of (w, m);
}

static pthread_mutex_t *
lock_of (struct medium *m)
{
  return m->world ? &m->world->lock : &m->lock;
}

static bool
is_dead (const struct medium_node *n)
{
  return n->medium->world && n->generation != n->medium->world->generation;
}

static int
fail_call (const struct node *n, const char *what)
{
  errno = EIO;
  msg_error ("%s: %s: failed on purpose", n->name, what);
  errno = EIO;
  return -1;
}

/* ---- Changes, all of which have this around them */

struct change {
  const char *what;
  /* Do a part of it, of 256; called with the lock. */
  void (*run) (struct medium *m, const struct change *c, unsigned part);
  const struct iovec *iov;
  int iovcnt;
  uint64_t count, offset;       /* or the length */
};

static void *
maybe_snapshot (struct world *w, uint64_t chance)
{
  if (w == NULL || w->losses == 0 || w->snapshot == NULL ||
      (chance >> 20) % w->losses != 0)
    return NULL;
  return w->snapshot (w);
}

static int
medium_change (struct node *n, const struct change *c)
{
  struct medium_node *node = (struct medium_node *) n;
  struct medium *m = node->medium;
  void *snapshot = NULL;
  uint64_t chance;
  enum medium_fault fault;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (lock_of (m));
    if (is_dead (node))
      return 0;
    fault = choose_change_fault (m, &chance);
    if (fault == FAULT_IN_PART)
      c->run (m, c, (chance >> 40) % 256);
    else if (fault != FAULT_BEFORE)
      c->run (m, c, 256);
    chaos_trace ("%s: %s %" PRIu64 "+%" PRIu64 "%s", m->name, c->what,
                 c->offset, c->count, fault_names[fault]);
    atomic_store (&n->size, m->size);
    snapshot = maybe_snapshot (m->world, chance);
  }
  if (snapshot)
    m->world->judge (m->world, snapshot);
  return fault == FAULT_NONE ? 0 : fail_call (n, c->what);
}

static uint64_t
part_of (uint64_t count, unsigned part)
{
  return part == 256 ? count
    : round_down (count * part / 256, (uint64_t) MEDIUM_SECTOR);
}

/* A write that is torn has some of its sectors, not only the first ones. */
static void
run_write (struct medium *m, const struct change *c, unsigned part)
{
  const uint64_t done = part_of (c->count, part);
  const bool from_end = part % 2 && part != 256;
  uint64_t at = 0;

  reserve (m, c->offset + c->count);

  for (int i = 0; i < c->iovcnt; ++i)
    for (uint64_t j = 0; j < c->iov[i].iov_len; ++j, ++at)
      if (from_end ? at >= c->count - done : at < done)
        m->now[c->offset + at] = ((const uint8_t *) c->iov[i].iov_base)[j];
  if (done > 0)
    note_sectors (m, c->offset, c->count);
}

static void
run_write_whole (struct medium *m, const struct change *c, unsigned part)
{
  uint64_t at = c->offset;

  if (part != 256) {
    run_write (m, c, part);
    return;
  }
  reserve (m, c->offset + c->count);
  for (int i = 0; i < c->iovcnt; ++i) {
    memcpy (m->now + at, c->iov[i].iov_base, c->iov[i].iov_len);
    at += c->iov[i].iov_len;
  }
  note_sectors (m, c->offset, c->count);
}

static void
run_zero (struct medium *m, const struct change *c, unsigned part)
{
  const uint64_t end = MIN (c->offset + part_of (c->count, part),
                            m->capacity);

  /* There are zeroes behind the capacity. */
  if (end <= c->offset)
    return;
  memset (m->now + c->offset, 0, end - c->offset);
  note_sectors (m, c->offset, end - c->offset);
}

static void
run_size (struct medium *m, const struct change *c, unsigned part)
{
  if (part < 128)
    return;
  cut (m, m->now, &m->size, c->count);
  note_size (m);
}

static void
run_flush (struct medium *m, const struct change *c, unsigned part)
{
  if (part == 256)
    settle_events (m, m->nr_events, false);
  else if (m->world->forgetful) {
    settle_events (m, m->nr_events, true);
    m->has_forgotten = true;
  }
  else
    settle_events (m, m->nr_events * part / 256, false);
}

static int
medium_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                size_t count, uint64_t offset)
{
  const struct change c = {
    .what = "write", .run = run_write_whole, .iov = iov, .iovcnt = iovcnt,
    .count = count, .offset = offset
  };

  return medium_change (n, &c);
}

static int
medium_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  const struct change c = {
    .what = "zero", .run = run_zero, .count = count, .offset = offset
  };

  return medium_change (n, &c);
}

static int
medium_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct medium *m = ((struct medium_node *) n)->medium;

  /* As it likes. */
  if (m->world && chaos_mix (m->world->seed, chaos_op, 77) % 3 == 0)
    return 0;
  return medium_zero (n, count, offset, 0);
}

static int
medium_resize (struct node *n, uint64_t size)
{
  const struct change c = {
    .what = "resize", .run = run_size, .count = size
  };

  if (medium_change (n, &c) == -1)
    return -1;
  return n->adapted && !is_dead ((struct medium_node *) n)
    ? node_resize (n->adapted, size) : 0;
}

static int
medium_flush (struct node *n)
{
  const struct change c = { .what = "flush", .run = run_flush };

  return medium_change (n, &c);
}

/* ---- Reads */

static void
copy_now (const struct medium *m, void *buf, size_t count, uint64_t offset)
{
  const size_t here = offset < m->capacity
    ? MIN (count, m->capacity - offset) : 0;

  if (here > 0)
    memcpy (buf, m->now + offset, here);
  memset ((uint8_t *) buf + here, 0, count - here);
}

static int
medium_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct medium *m = ((struct medium_node *) n)->medium;
  uint64_t chance;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (lock_of (m));
    copy_now (m, buf, count, offset);
    if (choose_fault (m, m->world ? m->world->read_faults : 0, &chance) ==
        FAULT_NONE)
      return 0;
  }
  memset (buf, 0xa5, count);
  return fail_call (n, "read");
}

/* Blocks of 4 KiB, zero or not. */
static int
medium_extents (struct node *n, uint64_t count, uint64_t offset,
                struct extent *ret)
{
  struct medium *m = ((struct medium_node *) n)->medium;
  const uint64_t end = offset + count;
  uint64_t next = offset;
  bool zero = false;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (lock_of (m));
  while (next < end) {
    const uint64_t stop = MIN (round_up (next + 1, UINT64_C (4096)), end);
    const bool z = next >= m->capacity ||
      is_zero (m->now + next, MIN (stop, m->capacity) - next);

    if (next == offset)
      zero = z;
    if (z != zero)
      break;
    next = stop;
  }
  *ret = (struct extent) {
    .length = next - offset, .where = n, .offset = offset,
    .flags = EXTENT_MAPPED | (zero ? EXTENT_ZERO | EXTENT_HOLE : 0)
  };
  return 0;
}

static int
medium_close (struct node *n)
{
  int r = 0;

  if (n->adapted)
    r = node_close (n->adapted);
  free (n->name);
  free (n);
  return r;
}

static const struct node_ops chaos_medium_ops = {
  .type = "medium",
  .close = medium_close,
  .pread = medium_pread,
  .pwritev = medium_pwritev,
  .flush = medium_flush,
  .extents = medium_extents,
  .zero = medium_zero,
  .discard = medium_discard,
  .resize = medium_resize,
};

struct node *
medium_open (struct medium *m)
{
  struct medium_node *n = calloc (1, sizeof *n);

  CHECK (n);
  n->medium = m;
  n->node.ops = &chaos_medium_ops;
  n->node.name = strdup (m->name);
  n->node.align = n->node.zero_align = 1;
  n->node.preferred = 4096;
  n->node.fixed_size = m->fixed;
  n->node.can_fast_zero = true;
  n->node.keeps_flush_error = m->world && m->world->forgetful;
  n->generation = m->world ? m->world->generation : 0;
  atomic_init (&n->node.size, m->size);
  return &n->node;
}

struct node *
medium_open_over (struct medium *m, struct node *real)
{
  struct node *n = medium_open (m);

  n->adapted = real;
  n->read_only = real->read_only;
  return n;
}

/* ---- Media and worlds */

struct medium *
medium_new (struct world *w, const char *name, const struct content *c,
            bool fixed)
{
  struct medium *m = calloc (1, sizeof *m);

  CHECK (m);
  pthread_mutex_init (&m->lock, NULL);
  m->name = strdup (name);
  m->world = w;
  m->fixed = fixed;
  reserve (m, 1);
  medium_set (m, c);
  if (w) {
    CHECK (w->nr_media < MAX_MEDIA);
    m->nr = w->nr_media;
    w->media[w->nr_media++] = m;
  }
  return m;
}

void
medium_free (struct medium *m)
{
  pthread_mutex_destroy (&m->lock);
  free (m->now);
  free (m->flushed);
  free (m->events);
  free (m->name);
  free (m);
}

void
world_init (struct world *w, uint64_t seed)
{
  *w = (struct world) { .seed = seed, .of_media = ~0u };
  pthread_mutex_init (&w->lock, NULL);
}

void
world_destroy (struct world *w)
{
  for (unsigned i = 0; i < w->nr_media; ++i)
    medium_free (w->media[i]);
  pthread_mutex_destroy (&w->lock);
}

void
world_kill (struct world *w)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  w->generation++;
}

void
world_lose_power (struct world *w, uint64_t seed)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&w->lock);
  w->generation++;
  for (unsigned i = 0; i < w->nr_media; ++i) {
    struct content c = medium_lose (w->media[i], seed);

    medium_set (w->media[i], &c);
    free (c.data);
  }
}
