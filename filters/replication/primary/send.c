/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The threads of a mirror that copy what is dirty; the design is told in
 * mirror.c.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "filters/replication/primary/link.h"
#include "filters/replication/primary/send.h"
#include "filters/replication/primary/sync.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Block status of the disk is asked for this far ahead. */
#define EXTENTS_AHEAD (UINT64_C (1024) * 1024 * 1024)

/* Clean blocks between two dirty ones that are sent along, since that
 * costs less than another request.
 */
#define GAP 2

/* Milliseconds between two passes over what is dirty: five times what
 * the pass took, within limits, so that where both share a processor the
 * guest has most of it, and what it writes again meanwhile is sent once.
 */
#define REST_FACTOR 5
#define MIN_REST 100
#define MAX_REST 2000

/* Where in the batch's buffer is the area? */
static char *
area_buf (const struct batch *b, size_t i)
{
  return b->buf + i * DIRTY_AREA;
}

static uint64_t
area_length (const struct mirror *m, uint64_t area)
{
  return MIN (node_size (m->disk) - area * DIRTY_AREA,
              (uint64_t) DIRTY_AREA);
}

/* What can be read at once: blocks, or more if the disk wants that. */
static uint64_t
read_align (const struct mirror *m)
{
  return MAX (m->disk->align, (uint32_t) DIRTY_BLOCK);
}

/* Can we know that all of an area is zero without reading it?  To ask
 * where data ends may take the time to walk over all of it (tmpfs does),
 * so we look at the beginning first, and do not ask twice.  That there
 * is data is a hint only, which may be out of date.
 */
static bool
is_hole (struct mirror *m, struct batch *b, size_t i)
{
  const uint64_t offset = b->areas[i] * DIRTY_AREA;
  const uint64_t length = area_length (m, b->areas[i]);
  const uint64_t look = MIN (read_align (m), length);
  const uint64_t ahead = MIN (node_size (m->disk) - offset, EXTENTS_AHEAD);
  struct extent e;

  if ((offset >= b->data && offset < b->data_end) ||
      node_pread (m->disk, area_buf (b, i), look, offset) == -1 ||
      !is_zero (area_buf (b, i), look) ||
      node_extents (m->disk, ahead, offset, &e) == -1)
    return false;
  if (e.flags & EXTENT_ZERO)
    return e.length >= length;
  b->data = offset;
  b->data_end = offset + e.length;
  return false;
}

/* Read blocks first..end of the area and add a write of them. */
static int
read_run (struct mirror *m, struct batch *b, size_t i, unsigned first,
          unsigned end)
{
  const uint64_t length = area_length (m, b->areas[i]);
  const uint64_t align = read_align (m);
  const uint64_t start = round_down (first * DIRTY_BLOCK, align);
  const uint64_t stop = MIN (round_up (end * DIRTY_BLOCK, align), length);
  const uint64_t offset = b->areas[i] * DIRTY_AREA + start;
  char *buf = area_buf (b, i) + start;

  if (node_pread (m->disk, buf, stop - start, offset) == -1)
    return -1;
  b->writes[b->nr_writes++] = (struct node_write) {
    .buf = buf, .count = stop - start, .offset = offset,
  };
  return 0;
}

/* Read these blocks of an area, in runs. */
static int
read_blocks (struct mirror *m, struct batch *b, size_t i, unsigned blocks)
{
  while (blocks) {
    const unsigned first = __builtin_ctz (blocks);
    unsigned end = first, gap;

    do {
      end += __builtin_ctz (~(blocks >> end));
      gap = blocks >> end ? __builtin_ctz (blocks >> end) : GAP + 1;
      if (gap <= GAP)
        end += gap;
    } while (gap <= GAP);
    if (read_run (m, b, i, first, end) == -1)
      return -1;
    blocks &= ~0u << end;
  }
  return 0;
}

/* Take an area's blocks from the disk into the batch.  The guest may
 * change them again when this returns.
 */
static int
read_area (struct mirror *m, struct batch *b, size_t i)
{
  const uint64_t area = b->areas[i], length = area_length (m, area);
  const size_t nr_writes = b->nr_writes;
  struct claim claim;
  bool whole;

  claim_acquire (m->claims, &claim, area * DIRTY_AREA, length,
                 CLAIM_EXCLUSIVE);
  CLEANUP_CLAIM struct claim_holder holder = { m->claims, &claim };

  b->blocks[i] = dirty_begin_copy (m->dirty, area);
  whole = b->blocks[i] == DIRTY_ALL;
  b->zero[i] = whole && is_hole (m, b, i);
  if (b->zero[i])
    return 0;
  if (read_blocks (m, b, i, b->blocks[i]) == -1) {
    b->nr_writes = nr_writes;
    return -1;
  }
  if (whole && is_zero (area_buf (b, i), length)) {
    b->zero[i] = true;
    b->nr_writes = nr_writes;
  }
  return 0;
}

/* Make a range of the remote zero where it is not. */
static int
zero_range (struct mirror *m, struct call *call, struct node *remote,
            uint64_t offset, uint64_t end)
{
  struct extent e;

  for (; offset < end; offset += e.length) {
    if (node_extents (remote, end - offset, offset, &e) == -1)
      return -1;
    link_prolong_call (m, call);
    if (e.flags & EXTENT_ZERO)
      continue;
    if (node_zero (remote, e.length, offset, NODE_MAY_TRIM) == -1)
      return -1;
    link_prolong_call (m, call);
  }
  return 0;
}

static int
send_zeroes (struct mirror *m, struct call *call, struct node *remote,
             const struct batch *b)
{
  for (size_t i = 0, next; i < b->nr; i = next) {
    next = i + 1;
    if (!b->zero[i])
      continue;
    while (next < b->nr && b->zero[next] &&
           b->areas[next] == b->areas[next - 1] + 1)
      next++;
    if (zero_range (m, call, remote, b->areas[i] * DIRTY_AREA,
                    b->areas[next - 1] * DIRTY_AREA +
                    area_length (m, b->areas[next - 1])) == -1)
      return -1;
  }
  return 0;
}

static void __attribute__ ((format (printf, 3, 4)))
batch_failed (struct mirror *m, struct batch *b, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vsnprintf (b->cause, sizeof b->cause, fs, args);
  va_end (args);
  replication_error_set (m->error, "%s", b->cause);
}

static void
read_batch (struct mirror *m, struct batch *b)
{
  b->nr_writes = 0;
  for (size_t i = 0; i < b->nr; ++i) {
    b->failed[i] = read_area (m, b, i) == -1;
    if (b->failed[i])
      batch_failed (m, b, "reading the disk at offset %" PRIu64 ": %s",
                    b->areas[i] * DIRTY_AREA, strerror (errno));
  }
}

/* Send what has been read.  b->cause says what failed, unless it is the
 * connection, of which the link tells.
 */
static bool
write_batch (struct mirror *m, struct call *call, struct node *remote,
             struct batch *b)
{
  int err;

  if (node_pwrite_many (remote, b->writes, b->nr_writes) == 0 &&
      send_zeroes (m, call, remote, b) == 0)
    return true;
  err = errno;
  if (!node_is_lost (remote, NULL, 0))
    batch_failed (m, b, "writing to the remote: %s", strerror (err));
  return false;
}

/* A secondary of ours has answered with an error.  Perhaps it was promoted, or
 * its guest has taken the disk: the connection is made anew, with a meeting.
 * Called with the lock.
 */
static void
doubt_remote (struct mirror *m)
{
  if (m->identified)
    m->broken = m->look_again = true;
}

/* Copy the areas of a batch to the remote, if it is still there when
 * they have been read.  Returns false if they could not be sent.  Called
 * and returns with the lock.
 */
static bool
copy_batch (struct mirror *m, struct batch *b)
{
  struct node *remote;
  struct call call;
  bool ok = false;

  b->cause[0] = '\0';
  pthread_mutex_unlock (&m->lock);
  read_batch (m, b);
  pthread_mutex_lock (&m->lock);
  remote = link_begin_call (m, &call);
  if (remote) {
    const int64_t since = clock_ms ();

    pthread_mutex_unlock (&m->lock);
    ok = write_batch (m, &call, remote, b);
    /* All of a batch fails if a part of it does, so that the other areas
     * are not sent in vain again and again they go one by one.
     */
    if (!ok)
      b->limit = 1;
    else if (clock_ms () > since + SLOW_BATCH)
      b->limit = MAX (b->limit / 2, 1U);
    else if (b->limit < BATCH)
      b->limit++;
  }
  else
    pthread_mutex_unlock (&m->lock);
  for (size_t i = 0; i < b->nr; ++i)
    dirty_end_copy (m->dirty, b->areas[i], b->blocks[i],
                    ok && !b->failed[i]);
  pthread_mutex_lock (&m->lock);
  if (remote && !ok && b->cause[0])
    doubt_remote (m);
  if (remote)
    link_end_call (m, &call);
  return ok;
}

/* Something other than the connection failed: wait before it is tried
 * again.  Called with the lock.
 */
static void
note_send_failure (struct mirror *m, const char *cause)
{
  m->send_at = clock_ms () + m->send_delay;
  m->send_delay = link_next_delay (m->send_delay);
  link_note_failure (m, "%s", cause);
}

static uint64_t
batch_bytes (const struct batch *b)
{
  uint64_t bytes = 0;

  for (size_t i = 0; i < b->nr; ++i)
    bytes += __builtin_popcount (b->blocks[i]) * DIRTY_BLOCK;
  return bytes;
}

/* Called with the lock. */
static void
note_batch (struct mirror *m, const struct batch *b, bool ok)
{
  if (b->cause[0])
    note_send_failure (m, b->cause);
  else if (ok) {
    m->batches++;
    m->sent += batch_bytes (b);
    sync_sent (m, batch_bytes (b));
    m->send_delay = m->connect_delay = FIRST_DELAY;
  }
  if (m->flush_at == INT64_MAX)
    m->flush_at = clock_ms () + FLUSH_AFTER;
  if (m->sent - m->flushed >= FLUSH_BYTES)
    m->flush_at = 0;
  pthread_cond_broadcast (&m->changed);
}

/* Note where in a pass the areas just taken stand. */
static void
note_pass (struct mirror *m, bool end)
{
  if (!m->in_pass)
    m->pass_began = clock_ms ();
  m->in_pass = !end;
  if (end)
    m->rest_until = clock_ms () +
      MIN (MAX ((clock_ms () - m->pass_began) * REST_FACTOR, MIN_REST),
           MAX_REST);
}

/* Take dirty areas.  As long as this finds none, whoever makes something
 * dirty wakes us: idle is counted before looking, so that one of us sees
 * the other.
 */
static bool
take_batch (struct mirror *m, struct batch *b)
{
  bool end;

  atomic_fetch_add (&m->idle, 1);
  b->nr = dirty_take (m->dirty, b->areas, sync_areas (m, b->limit), &end);
  if (b->nr == 0) {
    m->in_pass = false;
    return false;
  }
  atomic_fetch_sub (&m->idle, 1);
  note_pass (m, end);
  return true;
}

/* When is a remote to be asked that has not been asked anything?  So one that
 * stands still, or has become another one, is noticed without a write.
 */
static int64_t
ask_at (const struct mirror *m)
{
  return m->asking || m->calls ? INT64_MAX : m->heard_at + m->timeout / 3;
}

/* Called and returns with the lock. */
static void
ask_remote (struct mirror *m)
{
  struct call call;
  struct node *remote = link_begin_call (m, &call);
  char c;
  int r;

  if (remote == NULL)
    return;
  m->asking = true;
  pthread_mutex_unlock (&m->lock);
  r = node_size (remote) > 0 ? node_pread (remote, &c, 1, 0) : 0;
  pthread_mutex_lock (&m->lock);
  m->asking = false;
  if (r == -1)
    doubt_remote (m);
  link_end_call (m, &call);
  link_announce (m);
}

/* Copy what is dirty, or wait.  Called and returns with the lock. */
static void
send_or_wait (struct mirror *m, struct batch *b)
{
  const int64_t flush_at = m->flushing ? INT64_MAX : m->flush_at;
  const int64_t may = MAX (m->send_at, sync_send_at (m));
  const int64_t when = m->waiters ? may : MAX (may, m->rest_until);

  if (!link_is_usable (m))
    clock_wait (&m->work, &m->lock, INT64_MAX);
  else if (clock_ms () < when)
    clock_wait (&m->work, &m->lock, MIN (when, MIN (flush_at, ask_at (m))));
  else if (take_batch (m, b))
    note_batch (m, b, copy_batch (m, b));
  else {
    clock_wait (&m->work, &m->lock, MIN (flush_at, ask_at (m)));
    atomic_fetch_sub (&m->idle, 1);
  }
}

/* Flush the remote.  Nobody else does; called and returns with the
 * lock.
 */
static int
flush_remote (struct mirror *m)
{
  struct call call;
  struct node *remote = link_begin_call (m, &call);
  int r, err;

  if (remote == NULL)
    return -1;
  m->flushing = true;
  m->flush_at = INT64_MAX;
  m->flushed = m->sent;
  dirty_begin_flush (m->dirty);
  pthread_mutex_unlock (&m->lock);
  r = node_flush (remote);
  err = errno;
  if (dirty_end_flush (m->dirty, r == 0) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
  pthread_mutex_lock (&m->lock);
  m->flushing = false;
  m->flushes += r == 0;
  link_end_call (m, &call);
  if (r == -1 && !m->broken) {
    char cause[CAUSE_LEN];

    snprintf (cause, sizeof cause, "flushing the remote: %s",
              strerror (err));
    replication_error_set (m->error, "%s", cause);
    note_send_failure (m, cause);
  }
  if (dirty_is_unsure (m->dirty))
    m->flush_at = MIN (m->flush_at, clock_ms () + FLUSH_AFTER);
  link_announce (m);
  return r;
}

int
sender_thread (struct job *job, void *opaque)
{
  struct sender *sender = opaque;
  struct mirror *m = sender->mirror;

  (void) job;
  pthread_mutex_lock (&m->lock);
  while (!m->ending) {
    if (link_is_usable (m) && !m->flushing && m->flush_at <= clock_ms ())
      flush_remote (m);
    else if (link_is_usable (m) && ask_at (m) <= clock_ms ())
      ask_remote (m);
    else
      send_or_wait (m, &sender->batch);
  }
  pthread_mutex_unlock (&m->lock);
  return 0;
}
