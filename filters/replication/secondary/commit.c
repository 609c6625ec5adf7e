/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Writing buffers back into the secondary's disk: at failover what the
 * guest sees, at a rollback what the disk was.  The time is in
 * proportion to what the buffers hold.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "filters/replication/secondary/buffers.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "filters/replication/secondary/commit.h"

/* At most this much is copied under one claim. */
#define COPY_PIECE ((uint64_t) 1024 * 1024)
#define ZERO_PIECE ((uint64_t) 64 * 1024 * 1024)

/* ---- Finding what the buffers have */

struct copy {
  struct secondary *s;
  struct node *top, *below;     /* below may be NULL */
  uint8_t *buf;                 /* COPY_PIECE bytes */
};

static int
held_at (struct copy *c, uint64_t count, uint64_t offset,
         enum qed_held *held, uint64_t *length)
{
  if (qed_buffer_held (c->top, count, offset, held, length) == -1)
    return -1;
  if (*held != QED_HELD_NOT || c->below == NULL)
    return 0;
  return qed_buffer_held (c->below, *length, offset, held, length);
}

/* The next run at or after *offset; *length is 0 at the end. */
static int
next_run (struct copy *c, uint64_t *offset, enum qed_held *held,
          uint64_t *length)
{
  const uint64_t size = node_size (c->s->disk);

  while (*offset < size) {
    if (held_at (c, size - *offset, *offset, held, length) == -1)
      return -1;
    if (*held != QED_HELD_NOT)
      return 0;
    *offset += *length;
  }
  *length = 0;
  return 0;
}

static int
count_bytes (struct copy *c, uint64_t *total)
{
  uint64_t offset = 0, length = 0;
  enum qed_held held;

  *total = 0;
  do {
    offset += length;
    if (next_run (c, &offset, &held, &length) == -1)
      return -1;
    *total += length;
  } while (length > 0);
  return 0;
}

/* ---- Copying */

/* Copy from a range that is claimed; *length is how much of it.  What
 * was found before may have changed from zeroes to data meanwhile.
 */
static int
copy_claimed (struct copy *c, uint64_t offset, uint64_t *length)
{
  struct node *const disk = c->s->disk;
  enum qed_held held;

  if (held_at (c, *length, offset, &held, length) == -1)
    return -1;
  if (held == QED_HELD_NOT)
    return 0;
  if (held == QED_HELD_ZEROES)
    return node_zero (disk, *length, offset, NODE_MAY_TRIM);

  *length = MIN (*length, COPY_PIECE);
  if (node_pread (c->top, c->buf, *length, offset) == -1)
    return -1;
  return is_zero (c->buf, *length)
    ? node_zero (disk, *length, offset, NODE_MAY_TRIM)
    : node_pwrite (disk, c->buf, *length, offset);
}

/* Copy some of the run at offset; *length is how much. */
static int
copy_piece (struct copy *c, enum qed_held held, uint64_t offset,
            uint64_t *length)
{
  struct secondary *s = c->s;
  const uint64_t start = round_down (offset, s->unit);
  struct claim claim;

  *length = MIN (*length, held == QED_HELD_ZEROES ? ZERO_PIECE : COPY_PIECE);
  claim_acquire (&s->claims, &claim, start,
                 round_up (offset + *length, s->unit) - start,
                 CLAIM_EXCLUSIVE);
  CLEANUP_CLAIM struct claim_holder holder = { &s->claims, &claim };

  return copy_claimed (c, offset, length);
}

static int
copy_all (struct copy *c)
{
  struct secondary *s = c->s;
  uint64_t offset = 0, length, total;
  enum qed_held held;

  if (count_bytes (c, &total) == -1)
    return -1;
  atomic_store (&s->commit_done, 0);
  atomic_store (&s->commit_total, total);
  for (;;) {
    if (next_run (c, &offset, &held, &length) == -1)
      return -1;
    if (length == 0)
      return 0;
    if (copy_piece (c, held, offset, &length) == -1)
      return -1;
    offset += length;
    atomic_fetch_add (&s->commit_done, length);
    if (atomic_load (&s->commit_failed)) {
      errno = EIO;
      return -1;
    }
  }
}

int
secondary_copy_back (struct secondary *s, struct node *top,
                     struct node *below)
{
  CLEANUP_FREE uint8_t *buf = malloc (COPY_PIECE);
  struct copy c = { .s = s, .top = top, .below = below, .buf = buf };

  if (buf == NULL) {
    msg_error ("copying the buffers into the disk: %m");
    return -1;
  }
  return copy_all (&c) == -1 ? -1 : node_flush (s->disk);
}

/* ---- Failover */

/* The disk has everything.  From the moment when the note says so, the disk
 * is what the guest sees, whatever becomes of the buffers.  While nobody
 * knows whether the note says so, both have to be right: commit_complete
 * sees to it that the guest's writes go to both.
 */
static int
end_commit (struct secondary *s)
{
  if (atomic_load (&s->commit_failed)) {
    errno = EIO;
    return -1;
  }
  atomic_store (&s->commit_complete, true);
  if (secondary_put_state (s, BUFFERS_OBSOLETE) == -1)
    return -1;
  atomic_store (&s->failed_over, true);
  return 0;
}

/* The buffers are obsolete.  What is left in them is dropped at the next
 * start.
 */
static void
drop_buffers (struct secondary *s)
{
  buffers_drop_kept (s);
  if (secondary_clean_buffers (s) == -1)
    msg_warning ("the failover is complete, but the buffers %s and %s could "
                 "not be emptied: %m; they are obsolete, and will be emptied "
                 "at the next start", s->active_name, s->hidden_name);
}

int
secondary_commit (struct job *job, void *opaque)
{
  struct secondary *s = opaque;
  int r = secondary_copy_back (s, s->active, s->hidden);

  (void) job;
  drain_begin (&s->requests);
  if (r == 0)
    r = end_commit (s);
  if (r == -1)
    secondary_note_error (s, "failover: committing the buffers into the "
                          "secondary disk");
  secondary_set_stage (s, r == 0 ? REPLICATION_DONE
                       : REPLICATION_FAILOVER_FAILED);
  drain_end (&s->requests);
  if (r == 0)
    drop_buffers (s);
  return r;
}

void
secondary_end_commit (struct secondary *s)
{
  if (!atomic_load (&s->commit_complete) || end_commit (s) == -1)
    return;
  secondary_set_stage (s, REPLICATION_DONE);
  drop_buffers (s);
}
