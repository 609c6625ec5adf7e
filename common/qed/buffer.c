/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A buffer is an image for the lifetime of a process.  Nothing in it is
 * flushed unless somebody asks: what has been written survives the death
 * of the process in the order of the writes, data before the entry that
 * maps it, and what happens at power loss is for the user to know.
 * NEED_CHECK stays set from the first allocation until it is cleaned.
 * What a dead process leaves are leaks, and no other faults; so whatever
 * else is found was done to the file by somebody, and a repair, which
 * drops mappings that point nowhere, would pass a part of what the
 * buffer held for all of it.
 *
 * Emptying takes a new L1 table, which is somewhere in the file where it
 * reads as zeroes, and points the header to it: 64 bytes in a page that
 * is there already.  What the old layer occupied becomes garbage, which
 * a thread makes holes of, in pieces, since the file system lets nobody
 * write to the file meanwhile.
 *
 *     home                    base         end
 *     |  clean, or garbage    |  the layer |  clean
 *
 * The first layer begins at home (right behind the header), the next one
 * behind it, and one that is begun when all below is clean again at home
 * once more; the garbage is then above it, and allocations that come to
 * it wait until it is clean.  So the file does not become much longer
 * than two layers, however often it is emptied, if the garbage is gone
 * by the second time; and if it is not, nobody waits but the file grows.
 * Garbage is always one range, since each layer lies next to it.
 *
 * The thread ends in buffer_close.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "cleanup.h"
#include "image.h"
#include "message.h"
#include "rounding.h"

/* Clusters of new buffers are small, since the first write to a cluster
 * copies all of it, and tables are long.
 */
#define BUFFER_CLUSTER_SIZE 16384
#define BUFFER_TABLE_SIZE 16

/* Garbage is made a hole in pieces of this many bytes. */
#define RECLAIM_PIECE ((uint64_t) 4 * 1024 * 1024)

/* ---- Opening */

int
qed_buffer_create (const char *name, uint64_t size)
{
  struct qed_create_options options = {
    .size = size,
    .cluster_size = BUFFER_CLUSTER_SIZE,
    .table_size = BUFFER_TABLE_SIZE
  };

  while (options.cluster_size < QED_MAX_CLUSTER_SIZE &&
         qed_max_image_size (options.cluster_size,
                             options.table_size) < size)
    options.cluster_size *= 2;
  return qed_create (name, &options);
}

/* Count what an image has that was opened. */
static int
count_all (struct qed *s)
{
  const uint64_t size = node_size (&s->node);
  uint64_t offset = 0;
  struct mapping m;

  while (offset < size) {
    if (qed_map (s, size - offset, offset, &m) == -1)
      return -1;
    if (m.kind != MAP_UNALLOCATED)
      count_held (s, div_round_up (m.length, s->cluster_size));
    offset += m.length;
  }
  return 0;
}

static int
make_buffer (struct qed *s)
{
  struct buffer *b;

  if (s->file->fixed_size) {
    errno = EINVAL;
    msg_error ("%s: a buffer must be a regular file", s->node.name);
    return -1;
  }
  b = calloc (1, sizeof *b);
  if (b == NULL) {
    msg_error ("%s: open: %m", s->node.name);
    return -1;
  }
  pthread_cond_init (&b->reclaimed, NULL);
  pthread_mutex_init (&b->scratch_lock, NULL);
  b->base = qed_header_bytes (&s->header);
  s->buffer = b;
  /* Nobody can tell what a damaged one held. */
  return s->node.read_only ? 0 : count_all (s);
}

struct node *
qed_buffer_open (const char *name)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;

  options.backing = "none";
  options.repair = QED_REPAIR_NEVER;
  options.untouched = true;
  n = qed_open (name, &options);
  if (n && make_buffer (qed_of_node (n)) == -1) {
    const int err = errno;

    node_close (n);
    errno = err;
    return NULL;
  }
  return n;
}

void
qed_buffer_set_backing (struct node *n, struct node *backing, bool written)
{
  struct qed *s = qed_of_node (n);

  s->backing = backing;
  s->buffer->backing_written = written;
}

void
buffer_close (struct qed *s)
{
  job_finish (s->buffer->reclaim_job);
  s->buffer->reclaim_job = NULL;
}

void
buffer_free (struct qed *s)
{
  scratch_free_all (s->buffer);
  pthread_cond_destroy (&s->buffer->reclaimed);
  pthread_mutex_destroy (&s->buffer->scratch_lock);
  free (s->buffer);
}

/* ---- What it holds */

int
qed_buffer_held (struct node *n, uint64_t count, uint64_t offset,
                 enum qed_held *held, uint64_t *length)
{
  struct mapping m;

  if (qed_map (qed_of_node (n), count, offset, &m) == -1)
    return -1;
  *held = m.kind == MAP_UNALLOCATED ? QED_HELD_NOT
    : m.kind == MAP_ZERO ? QED_HELD_ZEROES : QED_HELD_DATA;
  *length = m.length;
  return 0;
}

uint64_t
qed_buffer_nr_held (struct node *n)
{
  return atomic_load (&qed_of_node (n)->buffer->nr_held);
}

uint64_t
qed_buffer_cluster_size (struct node *n)
{
  return qed_of_node (n)->cluster_size;
}

/* ---- Giving space back */

static bool
has_garbage (const struct buffer *b)
{
  return b->garbage_start < b->garbage_end;
}

static void
reclaim_end (struct buffer *b, int r, uint64_t start, uint64_t length)
{
  if (r == -1)
    b->reclaim_failed = true;
  else if (b->garbage_start == start) /* else there is more below it now */
    b->garbage_start += length;
  pthread_cond_broadcast (&b->reclaimed);
}

static int
reclaim_thread (struct job *job, void *opaque)
{
  struct qed *s = opaque;
  struct buffer *b = s->buffer;

  while (!job_cancelled (job)) {
    uint64_t start, length;
    int r;

    pthread_mutex_lock (&s->space_lock);
    start = b->garbage_start;
    length = b->reclaim_failed ? 0
      : MIN (b->garbage_end - start, RECLAIM_PIECE);
    pthread_mutex_unlock (&s->space_lock);
    if (length == 0) {
      job_sleep (job, -1);
      continue;
    }
    r = node_zero (s->file, length, start, NODE_MAY_TRIM);
    if (r == -1)
      msg_warning ("%s: the space of what the buffer held cannot be given "
                   "back: %m", s->node.name);
    pthread_mutex_lock (&s->space_lock);
    reclaim_end (b, r, start, length);
    pthread_mutex_unlock (&s->space_lock);
  }
  return 0;
}

int
buffer_start (struct qed *s)
{
  s->buffer->reclaim_job = job_start ("qed-reclaim", reclaim_thread, s);
  return s->buffer->reclaim_job ? 0 : -1;
}

void
buffer_await_space (struct qed *s, uint64_t n)
{
  struct buffer *b = s->buffer;
  const uint64_t bytes = n << s->cluster_bits;

  while (has_garbage (b) && s->end < b->garbage_end &&
         s->end + bytes > b->garbage_start) {
    if (b->reclaim_failed || b->reclaim_job == NULL)
      s->end = b->garbage_end;
    else
      pthread_cond_wait (&b->reclaimed, &s->space_lock);
  }
}

void
buffer_await_reclaim (struct qed *s)
{
  struct buffer *b = s->buffer;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  while (has_garbage (b) && !b->reclaim_failed && b->reclaim_job)
    pthread_cond_wait (&b->reclaimed, &s->space_lock);
  /* Whatever is left lies before the end, and goes with the layer. */
  if (has_garbage (b))
    s->end = MAX (s->end, b->garbage_end);
}

void
buffer_is_new (struct qed *s)
{
  struct buffer *b = s->buffer;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  b->base = qed_header_bytes (&s->header);
  b->garbage_start = b->garbage_end = 0;
  b->reclaim_failed = false;
}

/* ---- Emptying */

/* A place for the next L1 table, and so for the layer behind it, that
 * reads as zeroes.  Under space_lock.
 */
static int
find_place (struct qed *s, uint64_t *place)
{
  const uint64_t home = qed_header_bytes (&s->header);
  const uint64_t bytes = qed_table_bytes (&s->header);
  struct buffer *b = s->buffer;

  if (!has_garbage (b) && b->base >= home + bytes) {
    *place = home;
    return 0;
  }
  *place = has_garbage (b) ? MAX (s->end, b->garbage_end) : s->end;
  return space_reach (s, *place + bytes);
}

int
qed_buffer_empty_prepare (struct node *n)
{
  struct qed *s = qed_of_node (n);

  if (n->read_only) {
    errno = EROFS;
    msg_error ("%s: empty: the buffer can no longer be written", n->name);
    return -1;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  return find_place (s, &s->buffer->next_l1);
}

int
qed_buffer_empty_switch (struct node *n)
{
  struct qed *s = qed_of_node (n);

  s->buffer->previous_l1 = s->header.l1_table_offset;
  return empty_switch_table (s, s->buffer->next_l1, true);
}

int
qed_buffer_empty_back (struct node *n)
{
  struct qed *s = qed_of_node (n);

  return empty_switch_table (s, s->buffer->previous_l1, true);
}

void
qed_buffer_empty_finish (struct node *n)
{
  struct qed *s = qed_of_node (n);
  struct buffer *b = s->buffer;
  const uint64_t place = b->next_l1;

  empty_forget (s);
  s->ordered = false;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
    b->garbage_start = has_garbage (b) ? MIN (b->garbage_start, b->base)
      : b->base;
    b->garbage_end = place > b->base ? place : s->end;
    b->base = place;
    s->end = place + qed_table_bytes (&s->header);
  }
  if (b->reclaim_job)
    job_wake (b->reclaim_job);
}

int
qed_buffer_clean (struct node *n)
{
  if (qed_buffer_empty_prepare (n) == -1 ||
      qed_buffer_empty_switch (n) == -1)
    return -1;
  qed_buffer_empty_finish (n);
  /* There is next to nothing left now that it would have to flush. */
  return qed_empty (n) == -1 ? -1 : node_flush (n);
}

int
qed_buffer_keep (struct node *n)
{
  struct qed *s = qed_of_node (n);

  s->ordered = true;
  return node_flush (n);
}

/* ---- The note */

static int
find_note (struct qed *s, uint64_t *offset)
{
  *offset = s->cluster_size - QED_NOTE_LEN;
  if ((s->header.features & QED_BACKING_FILE) &&
      s->header.backing_offset + (uint64_t) s->header.backing_len > *offset) {
    errno = EINVAL;
    msg_error ("%s: the header's clusters have no room left for a note",
               s->node.name);
    return -1;
  }
  return 0;
}

int
qed_buffer_get_note (struct node *n, uint8_t note[QED_NOTE_LEN])
{
  struct qed *s = qed_of_node (n);
  uint64_t offset;

  if (find_note (s, &offset) == -1)
    return -1;
  return node_pread (s->file, note, QED_NOTE_LEN, offset);
}

int
qed_buffer_put_note (struct node *n, const uint8_t note[QED_NOTE_LEN])
{
  struct qed *s = qed_of_node (n);
  uint64_t offset;

  if (find_note (s, &offset) == -1 ||
      node_pwrite (s->file, note, QED_NOTE_LEN, offset) == -1)
    return -1;
  flusher_written (&s->flusher);
  return flusher_flush (&s->flusher, FLUSH_FOR_METADATA);
}
