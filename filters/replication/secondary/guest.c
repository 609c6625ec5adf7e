/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary's export for its guest (replication.md, "The picture" and
 * "Stages").
 *
 * Notes on the design
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

#include "filters/replication/secondary/guest.h"
#include "filters/replication/secondary/map.h"
#include "filters/replication/secondary/request.h"
#include "utils/cleanup.h"
#include "utils/rounding.h"

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

  if (change_apply (s->active, &c) == -1)
    return -1;
  if (stage == REPLICATION_FAILOVER && change_apply (s->disk, &c) == -1)
    give_up_commit (s);
  /* The note may say that the buffers are obsolete. */
  else if (stage == REPLICATION_FAILOVER_FAILED &&
           atomic_load (&s->commit_complete))
    return change_apply (s->disk, &c);
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
    if ((held ? change_held (s, stage, &c) : change_apply (s->disk, &c)) == -1)
      return -1;
    c.offset += c.count;
    if (c.kind == WRITE)
      iov.iov_base = (char *) iov.iov_base + c.count;
  }
  return 0;
}

/* The same for a vector of several buffers, which nbdkit never sends: for
 * unit tests.
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

/* From now on the disk after a stop is the guest's, which whoever knows it
 * must not overwrite: the history is a new one before the first write.  If
 * that cannot be noted the write goes on, but no flush succeeds before it is:
 * after a restart a primary would trust the old one.  The same holds for the
 * map of what the disk lacked as a primary's.
 */
static void
take_disk (struct secondary *s)
{
  static const struct moment none;
  struct note_change change = { .new_history = true, .made = &none };

  if (atomic_load (&s->failed_over) || atomic_load (&s->own_history))
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->meet_lock);
  if (atomic_load (&s->own_history))
    return;
  secondary_outdate_primaries (s);
  change.clear_flags = secondary_forget_proof (s);
  if (note_put (&s->note, s->hidden, &change) == -1)
    secondary_note_error (s, "writing to the hidden buffer");
  if (map_forget (s) == -1)
    secondary_note_error (s, "writing the bitmap");
  atomic_store (&s->has_moment, false);
  atomic_store (&s->own_history, true);
}

static int
guest_change (struct node *n, const struct change *c)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  int r = -1;

  switch (stage) {
  case REPLICATION_NONE:
    request_refuse (n, change_name (c), stage);
    break;
  case REPLICATION_RUNNING:
    r = change_apply (s->active, c);
    break;
  case REPLICATION_FAILOVER:
  case REPLICATION_FAILOVER_FAILED:
    if (c->kind == ZERO && (c->flags & NODE_FAST))
      errno = ENOTSUP;          /* two places are not fast */
    else if (map_mark (s, c) == 0)
      r = change_vector (s, stage, c);
    break;
  case REPLICATION_DONE:
    take_disk (s);
    if (map_mark (s, c) == 0)
      r = change_apply (s->disk, c);
    break;
  }
  request_leave (s);
  return r;
}

static int
guest_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const from = guest_disk (s, stage);
  const int r = from ? node_pread (from, buf, count, offset)
    : request_refuse (n, "read", stage);

  request_leave (s);
  return r;
}

static int
guest_flush (struct node *n)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  int r = 0;

  if (stage != REPLICATION_NONE && stage != REPLICATION_DONE)
    r = node_flush (s->active);
  if (r == 0 && stage != REPLICATION_NONE && stage != REPLICATION_RUNNING)
    r = node_flush (s->disk);
  if (r == 0 && stage == REPLICATION_DONE)
    r = note_settle (&s->note, s->hidden);
  if (r == 0 && stage != REPLICATION_NONE && stage != REPLICATION_RUNNING)
    r = map_settle (s);
  request_leave (s);
  return r;
}

static int
guest_extents (struct node *n, uint64_t count, uint64_t offset,
               struct extent *ret)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const from = guest_disk (s, stage);
  const int r = from ? node_extents (from, count, offset, ret)
    : request_refuse (n, "block status", stage);

  request_leave (s);
  return r;
}

static int
guest_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const from = guest_disk (s, stage);
  const int r = from ? node_cache (from, count, offset)
    : request_refuse (n, "cache", stage);

  request_leave (s);
  return r;
}

static const struct node_ops guest_ops = {
  .type = "replication-guest",
  .close = export_close,
  .pread = guest_pread,
  .pwritev = change_pwritev,
  .flush = guest_flush,
  .extents = guest_extents,
  .zero = change_zero,
  .discard = change_discard,
  .cache = guest_cache,
};

void
guest_init (struct secondary *s)
{
  export_init (&s->guest, s, &guest_ops, "replication: the guest's export",
               guest_change);
}

struct node *
secondary_guest_node (struct secondary *s)
{
  return &s->guest.node;
}
