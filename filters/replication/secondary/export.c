/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary's two exports (replication.md, "The picture" and
 * "Stages").
 *
 * Notes on the design
 *
 * While replication is running the primary's writes first see to it that
 * the hidden buffer holds the clusters that they touch, and then go to
 * the disk.  Where it holds them already, which it can tell without a
 * lock, they go straight down.  The guest's requests go to the active
 * buffer, which reads through the hidden one and that through to the
 * disk.  No request of one export waits for one of the other except while
 * a cluster is being copied: a guest that has read the disk looks whether
 * the hidden buffer has the cluster by then, and if it does reads that
 * instead (qed_still_backing).  So what it gets was on the disk before
 * the primary's write was issued.
 *
 * During a failover the active buffer stays right for all that the
 * buffers have: the guest's writes there go to it first and then also to
 * the disk, so it does not matter how far the commit has come, and one
 * that is interrupted can begin again.  What no buffer has is on the disk
 * only.  Which clusters these are does not change any more, if they are
 * looked at in units of the larger cluster size: an allocation in the
 * active buffer stays inside such a unit.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "filters/replication/secondary/state.h"

static struct secondary *
secondary_of (struct node *n)
{
  return ((struct export *) n)->s;
}

/* Every request is between these two. */
static enum replication_stage
enter (struct secondary *s)
{
  request_begin (&s->requests);
  return atomic_load_explicit (&s->stage, memory_order_acquire);
}

static void
leave (struct secondary *s)
{
  request_end (&s->requests);
}

static int
refuse (struct node *n, const char *what, enum replication_stage stage)
{
  errno = EIO;
  msg_error ("%s: %s refused in stage \"%s\"", n->name, what,
             replication_stage_name (stage));
  errno = EIO;
  return -1;
}

/* A write, zero request or discard. */
struct change {
  enum { WRITE, ZERO, DISCARD } kind;
  const struct iovec *iov;      /* WRITE */
  int iovcnt;
  uint64_t count, offset;
  unsigned flags;               /* ZERO */
};

static const char *const change_names[] = { "write", "zero", "discard" };

static int
apply (struct node *to, const struct change *c)
{
  switch (c->kind) {
  case WRITE: return node_pwritev (to, c->iov, c->iovcnt, c->offset);
  case ZERO: return node_zero (to, c->count, c->offset, c->flags);
  case DISCARD: return node_discard (to, c->count, c->offset);
  }
  abort ();
}

/* ---- The primary's export */

/* Does the hidden buffer have all of a range? */
static bool
holds_all (struct secondary *s, const struct change *c)
{
  const uint64_t end = c->offset + c->count;
  uint64_t offset = c->offset, length;
  enum qed_held held;

  for (; offset < end; offset += length)
    if (qed_buffer_held (s->hidden, end - offset, offset, &held, &length)
        == -1 || held == QED_HELD_NOT)
      return false;
  return true;
}

/* In RUNNING. */
static int
hold_and_apply (struct secondary *s, const struct change *c)
{
  /* Copying is not fast. */
  if (c->kind == ZERO && (c->flags & NODE_FAST) && !holds_all (s, c)) {
    errno = ENOTSUP;
    return -1;
  }
  if (qed_buffer_hold (s->hidden, c->count, c->offset) == -1) {
    secondary_note_error (s, "copying old content into the hidden buffer");
    return -1;
  }
  if (apply (s->disk, c) == -1) {
    if (errno != ENOTSUP)
      secondary_note_error (s, "writing to the secondary disk");
    return -1;
  }
  return 0;
}

/* Is this the disk itself now? */
static bool
is_disk (struct secondary *s, enum replication_stage stage)
{
  return stage == REPLICATION_NONE || stage == REPLICATION_RUNNING ||
    (stage == REPLICATION_DONE && !atomic_load (&s->failed_over));
}

static int
replication_change (struct node *n, const struct change *c)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  int r;

  if (stage == REPLICATION_RUNNING)
    r = hold_and_apply (s, c);
  else
    r = is_disk (s, stage) ? apply (s->disk, c)
      : refuse (n, change_names[c->kind], stage);
  leave (s);
  return r;
}

static int
replication_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  const int r = is_disk (s, stage) ? node_pread (s->disk, buf, count, offset)
    : refuse (n, "read", stage);

  leave (s);
  return r;
}

/* The hidden buffer need not be durable: after a power loss it is of no
 * use, since the disk is as the primary has flushed it.
 */
static int
replication_flush (struct node *n)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  int r;

  r = is_disk (s, stage) ? node_flush (s->disk) : refuse (n, "flush", stage);
  if (r == -1 && stage == REPLICATION_RUNNING)
    secondary_note_error (s, "flushing the secondary disk");
  leave (s);
  return r;
}

static int
replication_extents (struct node *n, uint64_t count, uint64_t offset,
                     struct extent *ret)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  const int r = is_disk (s, stage)
    ? node_extents (s->disk, count, offset, ret)
    : refuse (n, "block status", stage);

  leave (s);
  return r;
}

static int
replication_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  const int r = is_disk (s, stage) ? node_cache (s->disk, count, offset)
    : refuse (n, "cache", stage);

  leave (s);
  return r;
}

static int
replication_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                     size_t count, uint64_t offset)
{
  const struct change c = {
    .kind = WRITE, .iov = iov, .iovcnt = iovcnt,
    .count = count, .offset = offset
  };

  return count > 0 ? replication_change (n, &c) : 0;
}

static int
replication_zero (struct node *n, uint64_t count, uint64_t offset,
                  unsigned flags)
{
  const struct change c = {
    .kind = ZERO, .count = count, .offset = offset, .flags = flags
  };

  return count > 0 ? replication_change (n, &c) : 0;
}

static int
replication_discard (struct node *n, uint64_t count, uint64_t offset)
{
  const struct change c = {
    .kind = DISCARD, .count = count, .offset = offset
  };

  return count > 0 ? replication_change (n, &c) : 0;
}

/* ---- The guest's export */

/* What the guest reads; NULL for nothing. */
static struct node *
guest_disk (struct secondary *s, enum replication_stage stage)
{
  switch (stage) {
  case REPLICATION_NONE: return NULL;
  case REPLICATION_RUNNING:
  case REPLICATION_FAILOVER:
  case REPLICATION_FAILOVER_FAILED: return s->active;
  case REPLICATION_DONE: return s->disk;
  }
  abort ();
}

int
secondary_unit_held (struct secondary *s, uint64_t offset)
{
  struct node *const buffers[] = { s->active, s->hidden };
  const uint64_t count = MIN (s->unit, node_size (s->disk) - offset);

  for (size_t i = 0; i < 2; ++i) {
    enum qed_held held;
    uint64_t length;

    if (qed_buffer_held (buffers[i], count, offset, &held, &length) == -1)
      return -1;
    if (held != QED_HELD_NOT || length < count)
      return 1;
  }
  return 0;
}

/* For how many bytes of a range (at least one) do the buffers have all
 * units, or none?
 */
static int
held_run (struct secondary *s, uint64_t count, uint64_t offset, bool *held,
          uint64_t *length)
{
  const uint64_t end = offset + count;
  uint64_t unit = round_down (offset, s->unit);
  int r = secondary_unit_held (s, unit);

  if (r == -1)
    return -1;
  *held = r;
  do
    unit += s->unit;
  while (unit < end && (r = secondary_unit_held (s, unit)) == *held);
  *length = MIN (unit, end) - offset;
  return r == -1 ? -1 : 0;
}

/* The disk does not take what the active buffer has taken: the commit
 * cannot succeed any more, but the guest need not know.
 */
static void
give_up_commit (struct secondary *s)
{
  secondary_note_error (s, "writing to the secondary disk during failover");
  atomic_store (&s->commit_failed, true);
}

/* Change units that the buffers have. */
static int
change_held (struct secondary *s, enum replication_stage stage,
             const struct change *change)
{
  const uint64_t start = round_down (change->offset, s->unit);
  const uint64_t end = round_up (change->offset + change->count, s->unit);
  struct change c = *change;
  struct claim claim;

  /* What reads as zeroes in the buffer must be zeroes on the disk. */
  if (c.kind == DISCARD) {
    c.kind = ZERO;
    c.flags = NODE_MAY_TRIM;
  }
  claim_acquire (&s->claims, &claim, start, end - start, CLAIM_EXCLUSIVE);
  CLEANUP_CLAIM struct claim_holder holder = { &s->claims, &claim };

  if (apply (s->active, &c) == -1)
    return -1;
  if (stage == REPLICATION_FAILOVER && apply (s->disk, &c) == -1)
    give_up_commit (s);
  return 0;
}

/* In FAILOVER and FAILOVER_FAILED. */
static int
change_by_parts (struct secondary *s, enum replication_stage stage,
                 const struct change *whole)
{
  const uint64_t end = whole->offset + whole->count;
  struct change c = *whole;
  struct iovec iov;

  if (c.kind == WRITE) {
    iov = whole->iov[0];
    c.iov = &iov;
  }
  while (c.offset < end) {
    bool held;

    if (held_run (s, end - c.offset, c.offset, &held, &c.count) == -1)
      return -1;
    iov.iov_len = c.count;
    if ((held ? change_held (s, stage, &c) : apply (s->disk, &c)) == -1)
      return -1;
    c.offset += c.count;
    if (c.kind == WRITE)
      iov.iov_base = (char *) iov.iov_base + c.count;
  }
  return 0;
}

/* The same for a vector of several buffers, which come from tests and
 * tools only.
 */
static int
change_vector (struct secondary *s, enum replication_stage stage,
               const struct change *whole)
{
  uint64_t offset = whole->offset;

  if (whole->kind != WRITE)
    return change_by_parts (s, stage, whole);
  for (int i = 0; i < whole->iovcnt; ++i) {
    const struct change c = {
      .kind = WRITE, .iov = &whole->iov[i], .iovcnt = 1,
      .count = whole->iov[i].iov_len, .offset = offset
    };

    if (change_by_parts (s, stage, &c) == -1)
      return -1;
    offset += c.count;
  }
  return 0;
}

/* From now on the disk after a stop is the guest's.  It is not to fail for
 * what only matters to a primary that comes back.
 */
static void
take_disk (struct secondary *s)
{
  if (atomic_load (&s->failed_over) || atomic_load (&s->own_history))
    return;
  if (secondary_new_history (s) == -1)
    secondary_note_error (s, "writing to the hidden buffer");
  atomic_store (&s->own_history, true);
}

static int
guest_change (struct node *n, const struct change *c)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  int r = -1;

  switch (stage) {
  case REPLICATION_NONE:
    refuse (n, change_names[c->kind], stage);
    break;
  case REPLICATION_RUNNING:
    r = apply (s->active, c);
    break;
  case REPLICATION_FAILOVER:
  case REPLICATION_FAILOVER_FAILED:
    if (c->kind == ZERO && (c->flags & NODE_FAST))
      errno = ENOTSUP;          /* two places are not fast */
    else
      r = change_vector (s, stage, c);
    break;
  case REPLICATION_DONE:
    take_disk (s);
    r = apply (s->disk, c);
    break;
  }
  leave (s);
  return r;
}

static int
guest_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  struct node *const from = guest_disk (s, stage);
  const int r = from ? node_pread (from, buf, count, offset)
    : refuse (n, "read", stage);

  leave (s);
  return r;
}

static int
guest_flush (struct node *n)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  int r = 0;

  if (stage != REPLICATION_NONE && stage != REPLICATION_DONE)
    r = node_flush (s->active);
  if (r == 0 && stage != REPLICATION_NONE && stage != REPLICATION_RUNNING)
    r = node_flush (s->disk);
  leave (s);
  return r;
}

static int
guest_extents (struct node *n, uint64_t count, uint64_t offset,
               struct extent *ret)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  struct node *const from = guest_disk (s, stage);
  const int r = from ? node_extents (from, count, offset, ret)
    : refuse (n, "block status", stage);

  leave (s);
  return r;
}

static int
guest_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct secondary *s = secondary_of (n);
  const enum replication_stage stage = enter (s);
  struct node *const from = guest_disk (s, stage);
  const int r = from ? node_cache (from, count, offset)
    : refuse (n, "cache", stage);

  leave (s);
  return r;
}

static int
guest_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
               size_t count, uint64_t offset)
{
  const struct change c = {
    .kind = WRITE, .iov = iov, .iovcnt = iovcnt,
    .count = count, .offset = offset
  };

  return count > 0 ? guest_change (n, &c) : 0;
}

static int
guest_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  const struct change c = {
    .kind = ZERO, .count = count, .offset = offset, .flags = flags
  };

  return count > 0 ? guest_change (n, &c) : 0;
}

static int
guest_discard (struct node *n, uint64_t count, uint64_t offset)
{
  const struct change c = {
    .kind = DISCARD, .count = count, .offset = offset
  };

  return count > 0 ? guest_change (n, &c) : 0;
}

/* ---- The nodes */

static int
close_nothing (struct node *n)
{
  (void) n;
  return 0;
}

static const struct node_ops replication_ops = {
  .type = "replication",
  .close = close_nothing,
  .pread = replication_pread,
  .pwritev = replication_pwritev,
  .flush = replication_flush,
  .extents = replication_extents,
  .zero = replication_zero,
  .discard = replication_discard,
  .cache = replication_cache,
};

static const struct node_ops guest_ops = {
  .type = "replication-guest",
  .close = close_nothing,
  .pread = guest_pread,
  .pwritev = guest_pwritev,
  .flush = guest_flush,
  .extents = guest_extents,
  .zero = guest_zero,
  .discard = guest_discard,
  .cache = guest_cache,
};

static void
init_export (struct secondary *s, struct export *e,
             const struct node_ops *ops, const char *name)
{
  e->s = s;
  e->node = (struct node) {
    .ops = ops, .name = (char *) name, .read_only = s->disk->read_only,
    .fixed_size = true, .can_fast_zero = s->disk->can_fast_zero,
    .zero_align = s->disk->zero_align, .align = s->disk->align,
    .preferred = MAX (s->disk->preferred, 4096u)
  };
  atomic_init (&e->node.size, node_size (s->disk));
}

void
secondary_init_exports (struct secondary *s)
{
  init_export (s, &s->replication, &replication_ops,
               "replication: the primary's export");
  init_export (s, &s->guest, &guest_ops, "replication: the guest's export");
}
