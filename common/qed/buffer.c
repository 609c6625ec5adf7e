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
 * Emptying takes a new L1 table, and points the header to it: 64 bytes in
 * a page that is there already.  Two places behind the header take turns
 * to hold the table:
 *
 *     header | L1 table | L1 table | clusters of the layer | kept | dropped
 *            home                  first                   end
 *
 * Nothing refers to the clusters of the old layer then, and the new one
 * writes over them: to allocate pages or blocks again takes more time than
 * to write to them.  So new space need not read as zeroes; that it does is
 * known only from stale_end on, where no layer has been.  As much is kept
 * as the last layer has used, or half of what was kept before; of what is
 * behind it a thread makes holes, from its end and in pieces, since the
 * file system lets nobody write to the file meanwhile.  What the layer has
 * not taken after some time is not kept any longer.
 *
 * Buffers that others have made, or that a dead process has left, may
 * have clusters where the tables are to be.  The first time they are emptied
 * the table comes behind them instead.
 *
 * The thread ends in buffer_stop.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qed/empty.h"
#include "qed/image/file.h"
#include "qed/image/map.h"
#include "qed/image/space.h"
#include "qed/io/allocate.h"
#include "qed/open.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Clusters of new buffers are small, since the first write to a cluster
 * copies all of it, and tables are long.
 */
#define BUFFER_CLUSTER_SIZE 4096
#define BUFFER_TABLE_SIZE 16

/* Holes are made in pieces of this many bytes. */
#define DROP_PIECE ((uint64_t) 4 * 1024 * 1024)

/* Bytes that are kept at most. */
#define MAX_KEPT ((uint64_t) 1024 * 1024 * 1024)

/* And for so many milliseconds, or twice as long as the last layer has
 * lasted.
 */
#define KEEP_FOR 5000

/* To find the end of data can take a file system longer than to read some
 * of it, so the node under a buffer is not asked for less than this.
 */
#define ASK_LEN ((uint64_t) 16 * 1024 * 1024)

struct buffer {
  /* Emptying: where the next L1 table will be, and where it was. */
  uint64_t next_l1, previous_l1;

  /* Under space_lock.  The layer's clusters are from first to the end. */
  uint64_t first;
  int64_t began;                /* clock_ms, of this layer */
  uint64_t kept;                /* bytes, from first on, */
  int64_t kept_until;           /* for this long; INT64_MAX if none are */
  uint64_t drop_start, drop_end; /* what is to become holes */
  bool dropping;                /* then this is just becoming one: */
  uint64_t dropping_start, dropping_end;
  bool drop_failed;             /* so it is not tried again */
  pthread_cond_t dropped;       /* dropping has changed */

  struct job *drop_job;         /* NULL before node_start */
};

/* ---- New buffers */

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
      atomic_fetch_add (&s->nr_mapped,
                        div_round_up (m.length, s->cluster_size));
    offset += m.length;
  }
  return 0;
}

/* Where the clusters of a layer begin when its table is there. */
static uint64_t
first_behind (const struct qed *s, uint64_t table)
{
  const uint64_t home = qed_header_bytes (&s->header);
  const uint64_t bytes = qed_table_bytes (&s->header);

  return table == home || table == home + bytes ? home + 2 * bytes
    : table + bytes;
}

/* If there is nothing but a table in its place, clusters can begin behind
 * both places; otherwise they may be anywhere.
 */
static void
find_first (struct qed *s)
{
  const uint64_t home = qed_header_bytes (&s->header);

  s->buffer->first = s->header.l1_table_offset == home &&
    s->end <= home + qed_table_bytes (&s->header)
    ? first_behind (s, home) : home;
}

static void
buffer_stop (struct qed *s)
{
  job_finish (s->buffer->drop_job);
  s->buffer->drop_job = NULL;
}

static void
buffer_free (struct qed *s)
{
  pthread_cond_destroy (&s->buffer->dropped);
  free (s->buffer);
}

/* ---- What it holds */

int
qed_buffer_hold (struct node *n, uint64_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  const uint64_t start = round_down (offset, s->cluster_size);
  const uint64_t end =
    MIN (round_up (offset + count, s->cluster_size), node_size (n));
  int r;

  if (n->read_only) {
    errno = EROFS;
    msg_error ("%s: the buffer can no longer be written", n->name);
    return -1;
  }
  request_begin (&s->requests);
  r = header_known (s);
  if (r == 0)
    r = allocate_hold (s, end - start, start);
  request_end (&s->requests);
  return r;
}

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
  return atomic_load (&qed_of_node (n)->nr_mapped);
}

uint64_t
qed_buffer_cluster_size (struct node *n)
{
  return qed_of_node (n)->cluster_size;
}

/* ---- Giving space back */

/* What is kept has had its time.  Under space_lock. */
static void
keep_no_longer (struct qed *s)
{
  struct buffer *b = s->buffer;

  b->kept = 0;
  b->kept_until = INT64_MAX;
  b->drop_end = atomic_load (&s->stale_end);
  b->drop_start = MIN (MAX (s->end, b->first), b->drop_end);
}

/* The next piece.  Under space_lock. */
static uint64_t
begin_drop (struct buffer *b)
{
  const uint64_t length =
    b->drop_failed ? 0 : MIN (b->drop_end - b->drop_start, DROP_PIECE);

  b->dropping = length > 0;
  b->dropping_end = b->drop_end;
  b->drop_end -= length;
  b->dropping_start = b->drop_end;
  return length;
}

static int
drop_thread (struct job *job, void *opaque)
{
  struct qed *s = opaque;
  struct buffer *b = s->buffer;

  pthread_mutex_lock (&s->space_lock);
  while (!job_cancelled (job)) {
    const int64_t time = clock_ms ();
    int64_t wait;
    uint64_t start, length;

    if (b->kept_until <= time)
      keep_no_longer (s);
    length = begin_drop (b);
    start = b->dropping_start;
    wait = b->kept_until < INT64_MAX ? b->kept_until - time : -1;
    pthread_mutex_unlock (&s->space_lock);
    if (length == 0)
      job_sleep (job, wait);
    else if (node_discard (s->file, length, start) == -1) {
      msg_warning ("%s: the space of what the buffer held cannot be given "
                   "back: %m", s->node.name);
      b->drop_failed = true;
    }
    pthread_mutex_lock (&s->space_lock);
    b->dropping = false;
    pthread_cond_broadcast (&b->dropped);
  }
  pthread_mutex_unlock (&s->space_lock);
  return 0;
}

static int
buffer_start (struct qed *s)
{
  s->buffer->drop_job = job_start ("qed-drop", drop_thread, s);
  return s->buffer->drop_job ? 0 : -1;
}

/* While this waits others reserve, so the end is looked at anew after that. */
static uint64_t
buffer_reserve (struct qed *s, uint64_t n)
{
  struct buffer *b = s->buffer;
  uint64_t start, end;

  for (;;) {
    start = MAX (s->end, b->first);
    end = start + (n << s->cluster_bits);
    if (!b->dropping || start >= b->dropping_end || end <= b->dropping_start)
      break;
    pthread_cond_wait (&b->dropped, &s->space_lock);
  }
  b->drop_start = MIN (MAX (b->drop_start, end), b->drop_end);
  return start;
}

/* Before qed_empty: nothing is dropped behind its back. */
static void
buffer_empty (struct qed *s)
{
  struct buffer *b = s->buffer;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  b->kept = 0;
  b->kept_until = INT64_MAX;    /* or the thread would find work again */
  b->drop_start = b->drop_end = 0;
  while (b->dropping)
    pthread_cond_wait (&b->dropped, &s->space_lock);
}

static void
buffer_emptied (struct qed *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  find_first (s);
  space_set_stale (s, 0);
  s->buffer->began = clock_ms ();
}

static const struct qed_hooks buffer_hooks = {
  .start = buffer_start,
  .stop = buffer_stop,
  .free = buffer_free,
  .reserve = buffer_reserve,
  .empty = buffer_empty,
  .emptied = buffer_emptied,
};

/* ---- Opening */

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
  pthread_cond_init (&b->dropped, NULL);
  b->began = clock_ms ();
  b->kept_until = INT64_MAX;
  s->buffer = b;
  s->hooks = &buffer_hooks;
  s->is_volatile = true;
  s->ask_len = ASK_LEN;
  find_first (s);
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
  s->backing_written = written;
}

/* ---- Emptying */

/* May the next L1 table be here?  Under space_lock. */
static bool
is_free (const struct qed *s, uint64_t place)
{
  const uint64_t table = s->header.l1_table_offset;
  const uint64_t bytes = qed_table_bytes (&s->header);

  return place + bytes <= s->buffer->first &&
    (place + bytes <= table || table + bytes <= place);
}

/* The header, which is not flushed before the next checkpoint is over, may be
 * on the medium before the length of the file is: then it would point behind
 * the end, and nothing could be done with the file.  Soon the file is as long
 * as it ever gets for its tables.  Under space_lock.
 */
static int
make_length_durable (struct qed *s, uint64_t length)
{
  const uint64_t size = node_size (s->file);

  if (s->file->fixed_size || length <= s->durable_length)
    return 0;
  if (node_flush (s->file) == -1)
    return -1;
  s->durable_length = size;
  return 0;
}

/* Make a table of zeroes, for the next layer.  Under space_lock. */
static int
make_next_table (struct qed *s, uint64_t *place)
{
  const uint64_t bytes = qed_table_bytes (&s->header);

  *place = qed_header_bytes (&s->header);
  if (!is_free (s, *place))
    *place += bytes;
  if (!is_free (s, *place))
    *place = s->end;
  return space_reach (s, *place + bytes) == -1 ||
    make_length_durable (s, *place + bytes) == -1 ? -1
    : node_zero (s->file, bytes, *place, NODE_MAY_TRIM);
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
  return make_next_table (s, &s->buffer->next_l1);
}

int
qed_buffer_empty_switch (struct node *n)
{
  struct qed *s = qed_of_node (n);

  s->buffer->previous_l1 = s->header.l1_table_offset;
  return empty_switch_table (s, s->buffer->next_l1, false);
}

int
qed_buffer_empty_back (struct node *n)
{
  struct qed *s = qed_of_node (n);

  return empty_switch_table (s, s->buffer->previous_l1, false);
}

void
qed_buffer_empty_undo (struct node *n)
{
  struct qed *s = qed_of_node (n);
  const struct buffer *b = s->buffer;
  const bool switched = s->header.l1_table_offset == b->next_l1;
  const struct header_edit edit = {
    .set = QED_NEED_CHECK,
    .l1_table_offset = switched ? b->previous_l1 : b->next_l1
  };

  /* If it fails, nothing is written until the file has this header. */
  header_undo (s, &edit);
}

/* All but the new table is free now.  Under space_lock. */
static void
begin_layer (struct qed *s, uint64_t table)
{
  struct buffer *b = s->buffer;
  const uint64_t used = s->end > b->first ? s->end - b->first : 0;
  const uint64_t table_end = table + qed_table_bytes (&s->header);
  const int64_t time = clock_ms ();
  const uint64_t stale_end = MAX (atomic_load (&s->stale_end),
                                  MAX (s->end, table_end));

  space_set_stale (s, stale_end);
  b->kept = MIN (MAX (used, b->kept / 2), MAX_KEPT);
  b->kept_until = b->kept > 0 ? time + MAX (KEEP_FOR, 2 * (time - b->began))
    : INT64_MAX;
  b->began = time;
  b->first = first_behind (s, table);
  space_begin (s, b->first, true);
  b->drop_start = MIN (b->first + b->kept, stale_end);
  b->drop_end = stale_end;
}

void
qed_buffer_empty_finish (struct node *n)
{
  struct qed *s = qed_of_node (n);
  struct buffer *b = s->buffer;

  /* What is in memory follows the header, which was not changed, or changed
   * back; or this has been done.
   */
  if (s->header.l1_table_offset != b->next_l1)
    return;
  empty_forget (s);
  s->ordered = false;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
    begin_layer (s, b->next_l1);
  }
  b->next_l1 = 0;
  if (b->drop_job)
    job_wake (b->drop_job);
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
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->header_lock);

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
qed_buffer_put_note (struct node *n, const uint8_t note[QED_NOTE_LEN],
                     bool durable)
{
  struct qed *s = qed_of_node (n);
  uint64_t offset;

  if (find_note (s, &offset) == -1 ||
      file_pwrite (s, note, QED_NOTE_LEN, offset) == -1)
    return -1;
  return durable ? flusher_flush (&s->flusher) : 0;
}
