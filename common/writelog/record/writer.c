/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * An entry gets its place, a number and an offset, under the room's lock.
 * It is written outside of the lock, while other threads write theirs.
 * When it and all before it are complete it has been counted, and the append
 * returns (pending.c).  If an entry cannot be written, those behind it can
 * never be counted: all of them fail, and so does what comes later.
 *
 * Long entries go to a local file through a serial queue (../request/
 * serial.h).  They are counted by whoever writes them, so that a writer is
 * woken once, when all is done.  Short ones are not worth that, and block
 * devices and NBD servers take writes side by side.
 *
 * The super block is written when somebody wants to be durable (flush
 * coalescing, ../request/flush.h: one thread does it for all that
 * wait), and before more than "interval" entries are not counted by it.
 * Each time
 *
 *   1. the number of complete entries is noted,
 *   2. the log is flushed: these entries are on the medium,
 *   3. the super block is written with this number,
 *   4. the log is flushed: it is on the medium.
 *
 * The order of 2 and 3 keeps promise 3 when the power fails: the medium
 * never holds a number of entries of which one is not there.  The
 * first one is start.c's, before any entry; nothing else ever writes it.
 *
 * Where entries go, and the room that is promised, is room.c's; how one
 * is written store.c's.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "request/flush.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "request/serial.h"
#include "writelog/record/disknote.h"
#include "writelog/record/pending.h"
#include "writelog/record/room.h"
#include "writelog/record/start.h"
#include "writelog/record/store.h"
#include "writelog/record/writer.h"

/* Entries with so many bytes of data are written to a local file one after
 * the other, as the file system does it in any case.
 */
#define LONG_ENTRY ((uint64_t) 256 * 1024)

#define REASON_LEN 256

struct writelog {
  struct node *node;            /* owned */
  uint32_t sector_size;
  uint64_t interval;
  bool started, finished;
  bool named;                   /* a file that had a name at the start */
  struct disknote note;             /* of the disk */

  pthread_mutex_t begin_lock;   /* protects restart; held while the log is
                                   started anew; taken before all others */
  bool restart;                 /* the log that exists is still there, and
                                   is to be started anew */

  struct flusher flusher;
  _Atomic uint64_t counted;     /* by the super block; only the flusher's
                                   round changes it */
  int medium_error;             /* errno since what was flushed may have been
                                   lost, or 0; as counted */
  atomic_bool updating;         /* for the sake of the interval */
  struct serial_queue queue;    /* of long entries */
  atomic_int error;             /* errno since nothing can be logged, or
                                   0; set under the lock */

  struct room room;             /* its lock is taken before this one: */

  pthread_mutex_t lock;         /* protects what follows and the members
                                   of written.  Nothing is written under it,
                                   so a query never waits for the medium;
                                   taken before those of events */
  uint64_t next;                /* number of the next place; changes under
                                   the room's lock as well */
  atomic_bool stopped;          /* no entry gets a place any more; looked at
                                   without it, too */
  struct pending_list written;  /* and what is being written */
  char *last_mark;
  char reason[REASON_LEN];      /* with error */

  struct events *events;        /* or NULL; constant */
};

/* ---- Opening */

static struct writelog_super
super_of (struct writelog *log, uint64_t nr_entries)
{
  return disknote_super (&log->note, nr_entries, log->sector_size);
}

static bool
can_grow (const struct writelog *log)
{
  return !log->node->fixed_size;
}

static int
begin_log (struct writelog *log)
{
  const struct writelog_super super = super_of (log, 0);

  return start_log (log->node, &super);
}

static int
find_end (struct writelog *log, const struct writelog_super *super)
{
  struct log_end end;

  if (start_find_end (log->node, &end) == -1)
    return -1;
  log->next = log->written.complete = end.entries;
  log->room.end = log->written.complete_end = end.offset;
  log->last_mark = end.last_mark;
  disknote_continue (&log->note, super, &end);
  atomic_store (&log->counted, end.entries);
  return 0;
}

static int
open_log (struct writelog *log, bool append)
{
  struct writelog_super super;

  log->room.end = log->written.complete_end = log->sector_size;
  if (!can_grow (log) && node_size (log->node) < log->sector_size) {
    errno = ENOSPC;
    msg_error ("%s: the log's first sector of %" PRIu32 " bytes does not fit "
               "in %" PRIu64 " bytes", log->node->name, log->sector_size,
               node_size (log->node));
    return -1;
  }

  switch (start_look (log->node, log->sector_size, &super)) {
  case WRITELOG_SUPER_EMPTY:
    return begin_log (log);
  case WRITELOG_SUPER_OK:
    if (!append) {
      log->restart = true;
      return 0;
    }
    log->sector_size = log->room.sector_size = super.sector_size;
    return find_end (log, &super);
  default:
    return -1;
  }
}

static int make_durable (void *opaque);

struct writelog *
writelog_open_node (struct node *node, const struct writelog_options *options)
{
  struct writelog *log = calloc (1, sizeof *log);

  if (log == NULL) {
    msg_error ("%s: open: %m", node->name);
    node_close (node);
    return NULL;
  }
  log->node = node;
  log->sector_size =
    options->sector_size ? : WRITELOG_DEFAULT_SECTOR_SIZE;
  log->interval = options->interval;
  log->events = options->events;
  disknote_init (&log->note);
  room_init (&log->room, node);
  log->room.sector_size = log->sector_size;
  pthread_mutex_init (&log->begin_lock, NULL);
  pthread_mutex_init (&log->lock, NULL);
  serial_queue_init (&log->queue);
  flusher_init (&log->flusher, make_durable, log);

  if (open_log (log, options->append) == -1) {
    const int err = errno;

    writelog_close (log);
    errno = err;
    return NULL;
  }
  return log;
}

int
writelog_start (struct writelog *log)
{
  if (node_start (log->node) == -1 || serial_queue_start (&log->queue) == -1)
    return -1;
  if (!log->restart && can_grow (log) &&
      node_resize (log->node, log->room.end) == -1)
    return -1;
  log->named = !node_is_removed (log->node);
  node_keep (log->node);
  log->started = true;
  return 0;
}

int
writelog_begin (struct writelog *log)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->begin_lock);

  if (log->restart && begin_log (log) == -1)
    return -1;
  log->restart = false;
  return 0;
}

/* ---- Failure */

/* Called with the lock.  The first failure counts, and is reported. */
static void
fail_locked (struct writelog *log, int err, const char *reason)
{
  if (atomic_load (&log->error))
    return;
  snprintf (log->reason, sizeof log->reason, "%s: %s", reason,
            strerror (err));
  atomic_store (&log->error, err);
  msg_error ("%s: nothing more can be logged, every further write, zero and "
             "trim fails: %s", log->node->name, log->reason);
  events_raise (log->events, "BLOCK_LOG_ERROR",
                json_pack ("{s:o}", "error", json_text (log->reason)));
}

/* The same without the lock, and not even what is held back can be logged. */
static int
stop (struct writelog *log, int err, const char *reason)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
  fail_locked (log, err, reason);
  atomic_store (&log->stopped, true);
  errno = err;
  return -1;
}

/* Fail because of an entry. */
static void
fail_at_locked (struct writelog *log, int err, const struct pending *p,
                const char *what)
{
  char reason[REASON_LEN / 2];  /* the error must fit behind it */

  snprintf (reason, sizeof reason, "entry %" PRIu64 " at offset %" PRIu64
            " %s", p->number, p->offset, what);
  fail_locked (log, err, reason);
}

void
writelog_fail (struct writelog *log, const char *reason)
{
  const int err = errno ? : EIO;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
  fail_locked (log, err, reason);
  errno = err;
}

int
writelog_check (struct writelog *log)
{
  const int err = atomic_load_explicit (&log->error, memory_order_relaxed);

  if (err == 0)
    return 0;
  errno = err;
  return -1;
}

/* ---- The super block */

/* An entry that failed half-way has left what it got of a full file system.
 * One that never writes in place, such as btrfs, needs some for the super
 * block.
 */
static void
give_space_back (struct writelog *log)
{
  uint64_t end = UINT64_MAX;

  pthread_mutex_lock (&log->lock);
  /* Nobody writes behind the end, nor ever will. */
  if (atomic_load (&log->stopped) && log->written.first == NULL)
    end = log->written.complete_end;
  pthread_mutex_unlock (&log->lock);
  if (can_grow (log) && end < node_size (log->node))
    (void) !node_resize (log->node, end);
}

/* The flusher's round, see the notes above. */
static int
make_durable (void *opaque)
{
  struct writelog *log = opaque;
  struct writelog_super super;
  uint64_t entries;

  /* Not every node keeps this itself, and another flush may succeed. */
  if (log->medium_error) {
    errno = log->medium_error;
    return -1;
  }
  give_space_back (log);
  pthread_mutex_lock (&log->lock);
  entries = log->written.complete;
  pthread_mutex_unlock (&log->lock);
  super = super_of (log, entries);

  /* What is in it now nobody will ever read. */
  if (log->named && node_is_removed (log->node))
    return stop (log, EIO, "the log's file has been removed");
  if (node_flush (log->node) == -1 ||
      start_write_super (log->node, &super) == -1 ||
      node_flush (log->node) == -1) {
    log->medium_error = errno ? : EIO;
    return stop (log, log->medium_error,
                 "the super block could not be written");
  }
  atomic_store (&log->counted, entries);
  return 0;
}

int
writelog_flush (struct writelog *log)
{
  return flusher_flush (&log->flusher);
}

/* See that no more than "interval" entries are not counted by the super
 * block.  One thread writes it when that comes close, while the others
 * go on; those that are too far ahead wait.  An error is kept for later.
 */
static void
update_after_interval (struct writelog *log, uint64_t number)
{
  const uint64_t uncounted = number + 1 - atomic_load (&log->counted);

  /* It may have been counted meanwhile. */
  if ((int64_t) uncounted <= 0 ||
      uncounted < log->interval - log->interval / 4)
    return;
  if (uncounted < log->interval) {
    if (atomic_exchange (&log->updating, true))
      return;
    flusher_flush (&log->flusher);
    atomic_store (&log->updating, false);
  }
  else
    flusher_flush (&log->flusher);
}

/* ---- Appending */

/* An entry on its way, on its writer's stack. */
struct append {
  struct writelog *log;
  struct store_entry what;
  bool promised;
  struct pending p;
};

/* There is no room for an entry, errno says why. */
static int
no_room (struct writelog *log, const struct pending *p)
{
  const int err = errno ? : EIO;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
  fail_at_locked (log, err, p, can_grow (log)
                  ? "does not fit: the log cannot be made longer"
                  : "does not fit: the log is full");
  /* What is promised does fit. */
  if (!log->room.promises)
    atomic_store (&log->stopped, true);
  return writelog_check (log);
}

/* May an entry have a place?  A mark behind a write that is missing would
 * name a state of the disk that there never was.
 */
static int
may_append (struct writelog *log, const struct append *a)
{
  return atomic_load (&log->stopped) || a->what.mark ? writelog_check (log)
                                                     : 0;
}

static void
add_pending (struct writelog *log, struct pending *p)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  log->next++;
  pending_add (&log->written, p);
}

/* Give an entry its place.  Under the room's lock, so that the numbers are
 * in the order of the places.
 */
static int
reserve (struct append *a, uint64_t nr_sectors)
{
  struct writelog *log = a->log;
  struct room *room = &log->room;
  struct pending *p = &a->p;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&room->lock);

  if (may_append (log, a) == -1)
    return -1;
  *p = (struct pending) { .number = log->next, .offset = room->end };
  if (!a->promised &&
      room_make (room, nr_sectors, store_is_hole (&a->what)) == -1)
    return no_room (log, p);
  room_take (room, nr_sectors, a->promised);
  p->end = room->end;
  add_pending (log, p);
  return 0;
}

/* It has been written, or err says why not. */
static struct pending *
count (struct writelog *log, struct pending *p, int err)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  if (err) {
    fail_at_locked (log, err, p, "could not be written");
    atomic_store (&log->stopped, true);
  }
  return pending_done (&log->written, p, err != 0);
}

/* Write it at its place.  How that went stands in its struct pending. */
static int
write_and_count (void *opaque)
{
  struct append *a = opaque;
  struct writelog *log = a->log;
  const int err = store_write (log->node, log->sector_size,
                               log->room.promises, a->p.offset, &a->what)
    == 0 ? 0 : errno ? : EIO;

  pending_wake (count (log, &a->p, err));
  return 0;
}

static int
append (struct append *a)
{
  struct writelog *log = a->log;
  const uint64_t nr_sectors = 1 + writelog_data_sectors (a->what.entry);

  if (reserve (a, nr_sectors) == -1)
    return -1;
  if (can_grow (log) && nr_sectors * log->sector_size >= LONG_ENTRY)
    serial_queue_run (&log->queue, write_and_count, a);
  else
    write_and_count (a);
  if (!pending_wait (&a->p))
    return writelog_check (log);
  flusher_written (&log->flusher);
  update_after_interval (log, a->p.number);
  return 0;
}

int
writelog_append (struct writelog *log, const struct writelog_entry *entry,
                 const struct writelog_piece *pieces, unsigned n)
{
  struct append a = {
    .log = log, .what = { .entry = entry, .pieces = pieces, .n = n },
  };

  return append (&a);
}

/* ---- Promises */

void
writelog_use_promises (struct writelog *log)
{
  log->room.promises = true;
}

int
writelog_promise (struct writelog *log, uint64_t sectors)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->room.lock);

  if (writelog_check (log) == -1 ||
      room_make (&log->room, sectors, false) == -1)
    return -1;
  log->room.promised += sectors * log->sector_size;
  return 0;
}

void
writelog_withdraw (struct writelog *log, uint64_t sectors)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->room.lock);

  log->room.promised -= sectors * log->sector_size;
}

int
writelog_append_promised (struct writelog *log,
                          const struct writelog_entry *entry,
                          const struct writelog_piece *pieces, unsigned n)
{
  struct append a = {
    .log = log, .what = { .entry = entry, .pieces = pieces, .n = n },
    .promised = true,
  };

  return append (&a);
}

/* ---- Marks and status */

static int
keep_mark (struct writelog *log, const char *name)
{
  char *copy = strdup (name);

  if (copy == NULL) {
    msg_error ("%s: mark: %m", log->node->name);
    return -1;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
  free (log->last_mark);
  log->last_mark = copy;
  return 0;
}

int
writelog_mark (struct writelog *log, const char *name)
{
  const struct writelog_entry entry = {
    .flags = WRITELOG_MARK, .data_len = strlen (name),
  };
  struct append a = {
    .log = log, .what = { .entry = &entry, .mark = name },
  };

  if (writelog_begin (log) == -1 || append (&a) == -1 ||
      keep_mark (log, name) == -1)
    return -1;
  return writelog_flush (log);
}

/* ---- State and end */

uint32_t
writelog_sector_size (const struct writelog *log)
{
  return log->sector_size;
}

int
writelog_check_disk (struct writelog *log, struct node *disk)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->begin_lock);

  if (log->restart || log->next == 0)
    return 0;
  return disknote_check_disk (&log->note, log->node, log->sector_size, disk);
}

int
writelog_note_disk (struct writelog *log, uint64_t size)
{
  if (!disknote_begin (&log->note, size))
    return 0;
  flusher_written (&log->flusher);
  return writelog_flush (log);
}

struct disknote *
writelog_note (struct writelog *log)
{
  return &log->note;
}

bool
writelog_can_grow (const struct writelog *log)
{
  return can_grow (log);
}

bool
writelog_has_plenty (const struct writelog *log, uint64_t len)
{
  return room_has_plenty (&log->room, len);
}

void
writelog_query (struct writelog *log, struct writelog_status *status)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  *status = (struct writelog_status) {
    .entries = log->written.complete,
    .sectors = log->written.complete_end / log->sector_size,
    .sector_size = log->sector_size,
    .last_mark = log->last_mark ? strdup (log->last_mark) : NULL,
    .error = atomic_load (&log->error) ? strdup (log->reason) : NULL,
  };
}

/* What is in it is counted first, since it is whole whether or not the file
 * can be cut behind it.  After a flush has failed nothing is known of the
 * medium, so what it holds is left alone.
 */
static int
finish_started (struct writelog *log)
{
  if (flusher_has_failed (&log->flusher)) {
    errno = atomic_load (&log->error);
    return -1;
  }
  if (!atomic_load (&log->error))
    disknote_end (&log->note);
  if (make_durable (log) == -1)
    return -1;
  if (!can_grow (log) || node_size (log->node) == log->written.complete_end)
    return 0;
  if (node_resize (log->node, log->written.complete_end) == -1)
    return -1;
  return node_flush (log->node);
}

int
writelog_finish (struct writelog *log)
{
  if (log == NULL || log->finished)
    return 0;
  log->finished = true;
  return log->started && !log->restart ? finish_started (log) : 0;
}

void
writelog_cut (struct writelog *log)
{
  node_cut (log->node);
}

int
writelog_close (struct writelog *log)
{
  int r = 0, err = 0;

  if (log == NULL)
    return 0;
  if (writelog_finish (log) == -1) {
    r = -1;
    err = errno;
  }
  if (node_close (log->node) == -1) {
    r = -1;
    err = err ? : errno;
  }
  flusher_destroy (&log->flusher);
  serial_queue_destroy (&log->queue);
  pthread_mutex_destroy (&log->begin_lock);
  pthread_mutex_destroy (&log->lock);
  room_destroy (&log->room);
  disknote_destroy (&log->note);
  free (log->last_mark);
  free (log);
  errno = err;
  return r;
}
