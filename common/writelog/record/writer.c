/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * An entry gets its place, a number and an offset, under a lock that is
 * held for a few instructions.  It is written outside of the lock, with
 * its data, in one vectored write, while other threads write theirs.
 * Entries that are being written stand in a list in the order of their
 * places.  When one is complete it is marked so, and all complete ones
 * at the head of the list are taken off and counted; an append returns
 * when its entry has been counted.  So whoever comes out of turn waits
 * for those before him, and everybody else just goes on.  If an entry
 * cannot be written, those behind it can never be counted: all of them
 * fail, and so does what comes later, while those before it succeed.
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
 * never holds a number of entries of which one is not there.  Nothing
 * else ever writes the super block.
 *
 * A local file is made longer in steps, by zeroes, ahead of what is
 * needed, and cut to length at a clean end; what the log of a server
 * that was killed has behind its last counted entry is cut off when the
 * log is continued.  So behind the last entry there are zeroes only,
 * and long zeroes need not be written.  In a node of fixed size they
 * are; there the log may be full.
 *
 * A local file may be full too, when its file system is.  What has been
 * promised room must fit nevertheless.  So with promises the file's space
 * is allocated, in steps, from its end over all that is promised, before
 * a promise is given; and an entry that is not promised gets its place
 * only after the same has been done behind it, and for itself, since an
 * entry that fails half-way would take all behind it along.  Promised
 * zeroes take space like other data, and give it back when their entry
 * has got its place: before, nobody knows where that will be, and with
 * holes in between what is allocated would not be where it is needed.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "request/flush.h"
#include "utils/message.h"
#include "writelog/reader.h"
#include "utils/rounding.h"
#include "request/serial.h"
#include "writelog/record/writer.h"

/* A local file is made longer by this many bytes. */
#define GROW_STEP (UINT64_C (64) * 1024 * 1024)

/* Its space is allocated in multiples of this; on a file system that has
 * less than this left it is full.
 */
#define ALLOCATE_STEP (UINT64_C (256) * 1024)

/* From this length on zeroes are left out (in a local file) or written
 * by a request of their own, shorter ones go with the data.
 */
#define LONG_ZEROES ((uint64_t) 32 * 1024)
static const uint8_t zeroes[LONG_ZEROES];

/* Entries with so many bytes of data are written to a local file one after
 * the other, as the file system does it in any case.
 */
#define LONG_ENTRY ((uint64_t) 256 * 1024)

/* What is written of sector 0, if that is longer; the rest never
 * changes.
 */
#define SUPER_WRITE UINT32_C (512)

#define REASON_LEN 256

/* An entry that is being written, on its writer's stack. */
struct pending {
  uint64_t number;              /* from 0 */
  uint64_t offset, end;         /* bytes in the log; end is exclusive */

  /* Guarded by writelog.lock. */
  struct pending *next;
  bool done;                    /* written, or failed */
  bool failed;
  bool left;                    /* taken off the list: failed is final */
  bool waited;                  /* its writer waits on turn */
  pthread_cond_t turn;
};

struct writelog {
  struct node *node;            /* owned */
  uint32_t sector_size;
  uint64_t interval;
  bool started;
  bool named;                   /* a file that had a name at the start */
  bool promises;                /* there may be some */

  pthread_mutex_t begin_lock;   /* protects restart; taken before all
                                   other locks */
  bool restart;                 /* the log that exists is still there, and
                                   is to be started anew */

  struct flusher flusher;
  _Atomic uint64_t counted;     /* by the super block; only the flusher's
                                   round changes it */
  atomic_bool updating;         /* for the sake of the interval */
  struct serial_queue queue;    /* of long entries */
  atomic_int error;             /* errno since nothing can be logged, or
                                   0; set under the lock */

  pthread_mutex_t lock;         /* protects what follows and the members
                                   of struct pending; a leaf lock */
  uint64_t next;                /* number of the next place */
  uint64_t end;                 /* where it is, bytes */
  uint64_t promised;            /* bytes for entries to come */
  uint64_t allocated;           /* if more than end: the space from there
                                   to here is allocated, with zeroes */
  struct pending *first, *last; /* being written, in order */
  bool stopped;                 /* no entry gets a place any more */
  bool broken;                  /* an entry is missing: no more is counted */
  uint64_t complete;            /* entries */
  uint64_t complete_end;        /* where the last of these ends */
  char *last_mark;
  char reason[REASON_LEN];      /* with error */
};

/* ---- Opening */

static int
write_super (struct writelog *log, uint64_t nr_entries)
{
  const struct writelog_super super = {
    .nr_entries = nr_entries, .sector_size = log->sector_size,
  };
  uint8_t buf[SUPER_WRITE] = { 0 };

  writelog_super_encode (&super, buf);
  return node_pwrite (log->node, buf, MIN (log->sector_size, SUPER_WRITE), 0);
}

static bool
can_grow (const struct writelog *log)
{
  return !log->node->fixed_size;
}

/* Make the node a log of 0 entries. */
static int
begin_log (struct writelog *log)
{
  struct node *n = log->node;

  if (can_grow (log)) {
    if (node_resize (n, 0) == -1 || node_resize (n, log->sector_size) == -1)
      return -1;
  }
  else if (node_zero (n, log->sector_size, 0, 0) == -1)
    return -1;
  if (write_super (log, 0) == -1)
    return -1;
  return node_flush (n);
}

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

static int
walk (struct writelog *log, struct writelog_reader *r)
{
  struct writelog_item item;
  int more;

  while ((more = writelog_reader_next (r, &item)) == 1)
    if (item.mark && keep_mark (log, item.mark) == -1)
      return -1;
  log->next = log->complete = r->next;
  log->end = log->complete_end = r->offset;
  atomic_store (&log->counted, r->next);
  return more;
}

/* Find the end of the log by walking its entries. */
static int
find_end (struct writelog *log)
{
  struct writelog_reader *r = writelog_reader_open_node (log->node);
  int result, err;

  if (r == NULL) {
    log->node = NULL;           /* the reader has closed it */
    return -1;
  }
  result = walk (log, r);
  err = errno;
  r->node = NULL;               /* it stays ours */
  writelog_reader_close (r);
  errno = err;
  return result;
}

/* Find out what the node holds. */
static enum writelog_super_kind
look (struct writelog *log, struct writelog_super *super, const char **why)
{
  const size_t max = MAX (log->sector_size, SUPER_WRITE);
  const size_t len = MIN (node_size (log->node), max);
  CLEANUP_FREE uint8_t *buf = malloc (max);

  *why = NULL;
  if (buf == NULL) {
    msg_error ("%s: open: %m", log->node->name);
    return WRITELOG_SUPER_BAD;
  }
  if (node_pread (log->node, buf, len, 0) == -1)
    return WRITELOG_SUPER_BAD;
  return writelog_super_decode (buf, len, super, why);
}

static int
open_log (struct writelog *log, bool append)
{
  const char *name = log->node->name;
  struct writelog_super super;
  const char *why;

  log->end = log->complete_end = log->sector_size;
  if (!can_grow (log) && node_size (log->node) < log->sector_size) {
    errno = ENOSPC;
    msg_error ("%s: the log's first sector of %" PRIu32 " bytes does not fit "
               "in %" PRIu64 " bytes", name, log->sector_size,
               node_size (log->node));
    return -1;
  }

  switch (look (log, &super, &why)) {
  case WRITELOG_SUPER_EMPTY:
    return begin_log (log);
  case WRITELOG_SUPER_OK:
    if (!append) {
      log->restart = true;
      return 0;
    }
    log->sector_size = super.sector_size;
    return find_end (log);
  default:
    if (why) {
      errno = EINVAL;
      msg_error ("%s: neither empty nor a write log, so it is not "
                 "overwritten: super block at offset 0: %s", name, why);
    }
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

struct writelog *
writelog_open (const char *name, const struct writelog_options *options)
{
  const struct node_open_options node_options = { .lock = NODE_LOCK_IMAGE };
  struct node *node;

  if (node_is_uri (name))
    node = align_open (name, &node_options);
  else
    node = node_create_file (name, false);
  if (node == NULL)
    return NULL;
  return writelog_open_node (node, options);
}

int
writelog_start (struct writelog *log)
{
  if (node_start (log->node) == -1 || serial_queue_start (&log->queue) == -1)
    return -1;
  if (!log->restart && can_grow (log) &&
      node_resize (log->node, log->end) == -1)
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
}

/* The same, and not even what is held back can be logged. */
static void
stop_locked (struct writelog *log, int err, const char *reason)
{
  fail_locked (log, err, reason);
  log->stopped = true;
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
  if (log->stopped && log->first == NULL)
    end = log->complete_end;
  pthread_mutex_unlock (&log->lock);
  if (can_grow (log) && end < node_size (log->node))
    (void) !node_resize (log->node, end);
}

/* The flusher's round, see the notes above. */
static int
make_durable (void *opaque)
{
  struct writelog *log = opaque;
  uint64_t entries;

  give_space_back (log);
  pthread_mutex_lock (&log->lock);
  entries = log->complete;
  pthread_mutex_unlock (&log->lock);

  /* What is in it now nobody will ever read. */
  if (log->named && node_is_removed (log->node)) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
    errno = EIO;
    stop_locked (log, errno, "the log's file has been removed");
    return -1;
  }
  if (node_flush (log->node) == -1 ||
      write_super (log, entries) == -1 ||
      node_flush (log->node) == -1) {
    const int err = errno ? : EIO;

    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
    stop_locked (log, err, "the super block could not be written");
    errno = err;
    return -1;
  }
  atomic_store (&log->counted, entries);
  return 0;
}

int
writelog_flush (struct writelog *log)
{
  return flusher_flush (&log->flusher, FLUSH_FOR_CLIENT);
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
    flusher_flush (&log->flusher, FLUSH_FOR_METADATA);
    atomic_store (&log->updating, false);
  }
  else
    flusher_flush (&log->flusher, FLUSH_FOR_METADATA);
}

/* ---- Appending */

/* Allocate the space from "start", or from where that ends which has been
 * allocated, up to "end".  Called with the lock: nobody gets a place in
 * what is zeroed here meanwhile.
 */
static int
allocate (struct writelog *log, uint64_t start, uint64_t end)
{
  const uint64_t from = MAX (log->allocated, start);
  const uint64_t to = MIN (round_up (end, ALLOCATE_STEP),
                           node_size (log->node));

  if (end <= from)
    return 0;
  if (node_zero (log->node, to - from, from, 0) == -1)
    return -1;
  log->allocated = to;
  return 0;
}

/* Allocate the space for what goes behind the end, up to "end", and for
 * what is promised behind that.  Of a hole only the first sector takes
 * space.  Called with the lock.
 */
static int
allocate_room (struct writelog *log, uint64_t end, bool hole)
{
  if (!hole)
    return allocate (log, log->end, end + log->promised);
  if (allocate (log, log->end, log->end + log->sector_size) == -1)
    return -1;
  return allocate (log, end, end + log->promised);
}

/* Make room for so many sectors behind the end, and keep it for what is
 * promised.  Called with the lock.
 */
static int
make_room (struct writelog *log, uint64_t nr_sectors, bool hole)
{
  const uint64_t used = log->end + log->promised;
  const uint64_t len = nr_sectors * log->sector_size;

  if (nr_sectors > (INT64_MAX - GROW_STEP - used) / log->sector_size) {
    errno = EFBIG;
    return -1;
  }
  if (used + len > node_size (log->node)) {
    if (!can_grow (log)) {
      errno = ENOSPC;
      return -1;
    }
    if (node_resize (log->node, used + len + GROW_STEP) == -1)
      return -1;
  }
  return log->promises && can_grow (log)
    ? allocate_room (log, log->end + len, hole) : 0;
}

/* An entry on its way, on its writer's stack. */
struct append {
  struct writelog *log;
  const struct writelog_entry *entry;
  const char *mark;
  const struct writelog_piece *pieces;
  unsigned n;
  bool promised;
  struct pending p;
};

/* Are all of its data zeroes that are not written to a local file? */
static bool
is_hole (const struct append *a)
{
  uint64_t longest = 0;

  for (unsigned i = 0; i < a->n; ++i) {
    if (a->pieces[i].data && a->pieces[i].len > 0)
      return false;
    longest = MAX (longest, a->pieces[i].len);
  }
  return longest >= LONG_ZEROES;
}

/* There is no room for an entry, errno says why.  Called with the lock. */
static int
no_room (struct writelog *log, const struct pending *p)
{
  fail_at_locked (log, errno ? : EIO, p, can_grow (log)
                  ? "does not fit: the log cannot be made longer"
                  : "does not fit: the log is full");
  /* What is promised does fit. */
  if (!log->promises)
    log->stopped = true;
  return writelog_check (log);
}

/* Give an entry its place. */
static int
reserve (struct append *a, uint64_t nr_sectors)
{
  struct writelog *log = a->log;
  struct pending *p = &a->p;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  if (log->stopped)
    return writelog_check (log);
  *p = (struct pending) { .number = log->next, .offset = log->end };
  if (a->promised)
    log->promised -= nr_sectors * log->sector_size;
  else if (make_room (log, nr_sectors, is_hole (a)) == -1)
    return no_room (log, p);

  p->end = log->end + nr_sectors * log->sector_size;
  log->next++;
  log->end = p->end;
  if (log->first == NULL)
    log->first = p;
  else
    log->last->next = p;
  log->last = p;
  return 0;
}

/* Take what is done off the head of the list.  Called with the lock. */
static void
count_complete (struct writelog *log)
{
  struct pending *p;

  while ((p = log->first) != NULL && p->done) {
    log->first = p->next;
    log->broken |= p->failed;
    p->failed = log->broken;
    if (!p->failed) {
      log->complete = p->number + 1;
      log->complete_end = p->end;
    }
    p->left = true;
    if (p->waited)
      pthread_cond_signal (&p->turn);
  }
}

/* A run of pieces, to be written together. */
struct run {
  struct iovec iov[WRITELOG_MAX_PIECES + 3];
  int n;
  uint64_t offset, len;
};

static int
write_run (struct writelog *log, struct run *run)
{
  int r = 0;

  if (run->n > 0)
    r = node_pwritev (log->node, run->iov, run->n, run->offset);
  run->offset += run->len;
  run->n = run->len = 0;
  return r;
}

/* Have long zeroes at an offset without writing them out. */
static int
leave_zeroes (struct writelog *log, uint64_t len, uint64_t offset)
{
  if (!can_grow (log))
    return node_zero (log->node, len, offset, NODE_MAY_TRIM);
  /* They are there.  If their space cannot be given back, so be it. */
  if (log->promises)
    (void) !node_discard (log->node, len, offset);
  return 0;
}

static int
add_piece (struct writelog *log, struct run *run, const void *data,
           uint64_t len)
{
  if (len == 0)
    return 0;
  if (data == NULL && len >= LONG_ZEROES) {
    if (write_run (log, run) == -1)
      return -1;
    if (leave_zeroes (log, len, run->offset) == -1)
      return -1;
    run->offset += len;
    return 0;
  }
  run->iov[run->n++] = (struct iovec) {
    .iov_base = (void *) (data ? : zeroes), .iov_len = len,
  };
  run->len += len;
  return 0;
}

/* Write an entry's own sector and its data. */
static int
write_entry (struct writelog *log, const struct pending *p,
             const struct writelog_entry *entry, const char *mark,
             const struct writelog_piece *pieces, unsigned n)
{
  const uint64_t mark_len = mark ? entry->data_len : 0;
  struct run run = { .offset = p->offset };
  uint8_t header[WRITELOG_ENTRY_LEN];

  writelog_entry_encode (entry, header);
  if (add_piece (log, &run, header, sizeof header) == -1 ||
      add_piece (log, &run, mark, mark_len) == -1 ||
      add_piece (log, &run, NULL,
                 log->sector_size - sizeof header - mark_len) == -1)
    return -1;
  for (unsigned i = 0; i < n; ++i)
    if (add_piece (log, &run, pieces[i].data, pieces[i].len) == -1)
      return -1;
  return write_run (log, &run);
}

/* Write it at its place.  How that went stands in its struct pending. */
static int
write_and_count (void *opaque)
{
  struct append *a = opaque;
  struct writelog *log = a->log;
  const int err = write_entry (log, &a->p, a->entry, a->mark, a->pieces,
                               a->n) == 0 ? 0 : errno ? : EIO;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);
  a->p.done = true;
  if (err) {
    a->p.failed = true;
    fail_at_locked (log, err, &a->p, "could not be written");
    log->stopped = true;
  }
  count_complete (log);
  return 0;
}

/* Wait until all entries before this one have ended. */
static int
wait_until_counted (struct writelog *log, struct pending *p)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  if (!p->left) {
    pthread_cond_init (&p->turn, NULL);
    p->waited = true;
    while (!p->left)
      pthread_cond_wait (&p->turn, &log->lock);
    pthread_cond_destroy (&p->turn);
  }
  return p->failed ? writelog_check (log) : 0;
}

static int
append (struct append *a)
{
  struct writelog *log = a->log;
  const uint64_t nr_sectors = 1 + writelog_data_sectors (a->entry);

  if (reserve (a, nr_sectors) == -1)
    return -1;
  if (can_grow (log) && nr_sectors * log->sector_size >= LONG_ENTRY)
    serial_queue_run (&log->queue, write_and_count, a);
  else
    write_and_count (a);
  if (wait_until_counted (log, &a->p) == -1)
    return -1;
  flusher_written (&log->flusher);
  update_after_interval (log, a->p.number);
  return 0;
}

int
writelog_append (struct writelog *log, const struct writelog_entry *entry,
                 const struct writelog_piece *pieces, unsigned n)
{
  struct append a = {
    .log = log, .entry = entry, .pieces = pieces, .n = n,
  };

  return append (&a);
}

/* ---- Promises */

void
writelog_use_promises (struct writelog *log)
{
  log->promises = true;
}

int
writelog_promise (struct writelog *log, uint64_t sectors)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  if (writelog_check (log) == -1 || make_room (log, sectors, false) == -1)
    return -1;
  log->promised += sectors * log->sector_size;
  return 0;
}

void
writelog_withdraw (struct writelog *log, uint64_t sectors)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  log->promised -= sectors * log->sector_size;
}

int
writelog_append_promised (struct writelog *log,
                          const struct writelog_entry *entry,
                          const struct writelog_piece *pieces, unsigned n)
{
  struct append a = {
    .log = log, .entry = entry, .pieces = pieces, .n = n, .promised = true,
  };

  return append (&a);
}

/* ---- Marks and status */

int
writelog_mark (struct writelog *log, const char *name)
{
  const struct writelog_entry entry = {
    .flags = WRITELOG_MARK, .data_len = strlen (name),
  };
  struct append a = { .log = log, .entry = &entry, .mark = name };

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

bool
writelog_can_grow (const struct writelog *log)
{
  return can_grow (log);
}

bool
writelog_has_plenty (const struct writelog *log, uint64_t len)
{
  struct statvfs fs;

  return statvfs (log->node->name, &fs) == 0 &&
    len / fs.f_frsize < fs.f_bavail / 2;
}

void
writelog_query (struct writelog *log, struct writelog_status *status)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&log->lock);

  *status = (struct writelog_status) {
    .entries = log->complete,
    .sectors = log->complete_end / log->sector_size,
    .sector_size = log->sector_size,
    .last_mark = log->last_mark ? strdup (log->last_mark) : NULL,
    .error = atomic_load (&log->error) ? strdup (log->reason) : NULL,
  };
}

/* The clean end of a log.  After a flush has failed nothing is known of
 * the medium, so what it holds is left alone.
 */
static int
finish (struct writelog *log)
{
  if (flusher_has_failed (&log->flusher)) {
    errno = atomic_load (&log->error);
    return -1;
  }
  if (can_grow (log) && node_resize (log->node, log->complete_end) == -1)
    return -1;
  return make_durable (log);
}

int
writelog_close (struct writelog *log)
{
  int r = 0, err = 0;

  if (log == NULL)
    return 0;
  if (log->started && !log->restart && finish (log) == -1) {
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
  free (log->last_mark);
  free (log);
  errno = err;
  return r;
}
