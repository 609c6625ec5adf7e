/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Held entries stand in a list in the order in which their requests
 * completed.  Those of overlapping requests are in the order in which
 * they reached the disk, since they are added under a claim.  A flush
 * logs the entries that were there when it was received, and then
 * itself; nothing comes between, because the lock is held meanwhile.
 *
 * A FUA entry is logged ahead of what is held.  Replayed, an older entry
 * on the same sectors would undo it.  So the older one loses these
 * sectors, as it does in the cache of a disk: it is cut, or split in
 * two.  All other sectors stay held, so the order of what remains does
 * not matter to the result.
 *
 * Data up to a bound stay in memory, allocated together with their
 * entry.  What comes then goes into a temporary file, which has no name,
 * one behind the other, and is given back to the file system by punching
 * a hole when it has been logged.  Of each held entry about 100 bytes
 * are always in memory.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cleanup.h"
#include "hold.h"
#include "message.h"
#include "rounding.h"

enum place {
  NO_DATA,                      /* discards, and zeroes */
  IN_MEMORY,
  IN_FILE,
};

struct held {
  struct held *prev, *next;
  struct writelog_entry entry;
  uint64_t number;              /* in order of arrival */
  enum place place;
  size_t len;                   /* of the data, bytes */
  uint64_t offset;              /* in the file */
  uint8_t data[];               /* in memory */
};

struct hold {
  struct writelog *log;         /* borrowed */
  uint32_t sector_size;
  size_t bound;
  const char *tmpdir;           /* borrowed */

  pthread_mutex_t lock;         /* protects what follows, and the order of
                                   entries in the log; taken before the
                                   log's own lock */
  struct held *first, *last;
  uint64_t next;                /* number */
  size_t in_memory;             /* bytes of data */
  int fd;                       /* the temporary file */
  uint64_t file_end;            /* where the next data go */
};

static int
open_file (struct hold *h)
{
  CLEANUP_FREE char *name = NULL;

  if (asprintf (&name, "%s/blklogwritesXXXXXX", h->tmpdir) == -1)
    name = NULL;
  else
    h->fd = mkostemp (name, O_CLOEXEC);
  if (h->fd == -1) {
    msg_error ("%s: a temporary file for held writes: %m", h->tmpdir);
    return -1;
  }
  unlink (name);
  return 0;
}

struct hold *
hold_new (struct writelog *log, size_t bound, const char *tmpdir)
{
  struct hold *h = calloc (1, sizeof *h);

  if (h == NULL) {
    msg_error ("holding writes back: %m");
    return NULL;
  }
  h->log = log;
  h->sector_size = writelog_sector_size (log);
  h->bound = bound;
  h->tmpdir = tmpdir;
  h->fd = -1;
  pthread_mutex_init (&h->lock, NULL);
  if (open_file (h) == -1) {
    const int err = errno;

    hold_close (h);
    errno = err;
    return NULL;
  }
  return h;
}

/* ---- The list.  Called with the lock. */

static void
link_behind (struct hold *h, struct held *before, struct held *e)
{
  e->prev = before;
  e->next = before ? before->next : h->first;
  if (e->prev)
    e->prev->next = e;
  else
    h->first = e;
  if (e->next)
    e->next->prev = e;
  else
    h->last = e;
  if (e->place == IN_MEMORY)
    h->in_memory += e->len;
}

/* Give back the place that a part of an entry takes. */
static void
give_back (struct hold *h, const struct held *e, uint64_t skip, uint64_t len)
{
  /* If the file system cannot do it the file just stays larger. */
  if (e->place == IN_FILE && len > 0)
    (void) !fallocate (h->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       e->offset + skip, len);
}

static void
drop (struct hold *h, struct held *e)
{
  give_back (h, e, 0, e->len);
  if (e->place == IN_MEMORY)
    h->in_memory -= e->len;
  if (e->prev)
    e->prev->next = e->next;
  else
    h->first = e->next;
  if (e->next)
    e->next->prev = e->prev;
  else
    h->last = e->prev;
  free (e);
}

/* ---- Adding */

static int
write_file (struct hold *h, const uint8_t *data, uint64_t len,
            uint64_t offset)
{
  while (len > 0) {
    const ssize_t r = pwrite (h->fd, data, len, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1) {
      msg_error ("%s: write of %" PRIu64 " bytes at offset %" PRIu64 " of the "
                 "temporary file: %m", h->tmpdir, len, offset);
      return -1;
    }
    data += r;
    len -= r;
    offset += r;
  }
  return 0;
}

static int
read_file (struct hold *h, uint8_t *data, uint64_t len, uint64_t offset)
{
  while (len > 0) {
    const ssize_t r = pread (h->fd, data, len, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      if (r == 0)
        errno = EIO;
      msg_error ("%s: read of %" PRIu64 " bytes at offset %" PRIu64 " of the "
                 "temporary file: %m", h->tmpdir, len, offset);
      return -1;
    }
    data += r;
    len -= r;
    offset += r;
  }
  return 0;
}

/* Write the pieces behind each other; zeroes are left as a hole. */
static int
write_pieces (struct hold *h, const struct writelog_piece *pieces,
              unsigned n)
{
  uint64_t offset = h->file_end;

  for (unsigned i = 0; i < n; ++i) {
    if (pieces[i].data &&
        write_file (h, pieces[i].data, pieces[i].len, offset) == -1)
      return -1;
    offset += pieces[i].len;
  }
  /* A hole at the end must be in the file as well. */
  if (ftruncate (h->fd, offset) == -1) {
    msg_error ("%s: a temporary file for held writes: %m", h->tmpdir);
    return -1;
  }
  return 0;
}

static void
copy_pieces (uint8_t *to, const struct writelog_piece *pieces, unsigned n)
{
  for (unsigned i = 0; i < n; ++i) {
    if (pieces[i].data)
      memcpy (to, pieces[i].data, pieces[i].len);
    else
      memset (to, 0, pieces[i].len);
    to += pieces[i].len;
  }
}

static struct held *
new_held (const struct writelog_entry *entry, enum place place, size_t len)
{
  struct held *e =
    malloc (sizeof *e + (place == IN_MEMORY ? len : 0));

  if (e == NULL) {
    msg_error ("holding a write of %zu bytes back: %m", len);
    return NULL;
  }
  e->entry = *entry;
  e->place = place;
  e->len = len;
  return e;
}

/* Where will the data go? */
static enum place
choose_place (const struct hold *h, const struct writelog_piece *pieces,
              unsigned n, size_t len)
{
  bool all_zero = true;

  for (unsigned i = 0; i < n; ++i)
    all_zero &= pieces[i].data == NULL || pieces[i].len == 0;
  if (all_zero)
    return NO_DATA;
  /* Data that come after others in the file may go to memory again. */
  return len <= h->bound - h->in_memory ? IN_MEMORY : IN_FILE;
}

/* Called with the lock. */
static int
add (struct hold *h, const struct writelog_entry *entry,
     const struct writelog_piece *pieces, unsigned n)
{
  const size_t len = writelog_data_sectors (entry) * h->sector_size;
  const enum place place = choose_place (h, pieces, n, len);
  struct held *e;

  if (place == IN_FILE && write_pieces (h, pieces, n) == -1)
    return -1;
  e = new_held (entry, place, len);
  if (e == NULL)
    return -1;
  if (place == IN_MEMORY)
    copy_pieces (e->data, pieces, n);
  if (place == IN_FILE) {
    e->offset = h->file_end;
    h->file_end += len;
  }
  e->number = h->next++;
  link_behind (h, h->last, e);
  return 0;
}

int
hold_add (struct hold *h, const struct writelog_entry *entry,
          const struct writelog_piece *pieces, unsigned n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (add (h, entry, pieces, n) == 0)
    return 0;
  writelog_fail (h->log, "a write cannot be held back");
  return -1;
}

/* ---- Logging */

static uint64_t
end_of (const struct writelog_entry *entry)
{
  return entry->sector + entry->nr_sectors;
}

/* Make a new entry of the sectors of e from "sector" on. */
static struct held *
tail_of (struct hold *h, const struct held *e, uint64_t sector)
{
  const size_t skip = e->entry.flags & WRITELOG_DISCARD ? 0 :
    (sector - e->entry.sector) * h->sector_size;
  struct held *tail = new_held (&e->entry, e->place, e->len - skip);

  if (tail == NULL)
    return NULL;
  tail->entry.sector = sector;
  tail->entry.nr_sectors = end_of (&e->entry) - sector;
  tail->number = e->number;
  if (e->place == IN_MEMORY)
    memcpy (tail->data, e->data + skip, tail->len);
  if (e->place == IN_FILE)
    tail->offset = e->offset + skip;
  return tail;
}

/* Take the sectors from start to end out of a held entry. */
static int
cut (struct hold *h, struct held *e, uint64_t start, uint64_t end)
{
  const uint64_t first = MAX (start, e->entry.sector);
  const uint64_t keep = (first - e->entry.sector) * h->sector_size;

  if (end < end_of (&e->entry)) {
    struct held *tail = tail_of (h, e, end);

    if (tail == NULL)
      return -1;
    link_behind (h, e, tail);
    if (e->place == IN_MEMORY)
      h->in_memory -= tail->len;
    e->len -= tail->len;
    e->entry.nr_sectors = end - e->entry.sector;
  }
  if (keep == 0) {
    drop (h, e);
    return 0;
  }
  if (e->len > 0) {
    if (e->place == IN_MEMORY)
      h->in_memory -= e->len - keep;
    give_back (h, e, keep, e->len - keep);
    e->len = keep;
  }
  e->entry.nr_sectors = first - e->entry.sector;
  return 0;
}

/* Append a held entry to the log. */
static int
append_held (struct hold *h, struct held *e)
{
  struct writelog_piece piece = { .len = e->len };
  CLEANUP_FREE uint8_t *buf = NULL;

  if (e->place == IN_MEMORY)
    piece.data = e->data;
  else if (e->place == IN_FILE) {
    piece.data = buf = malloc (e->len);
    if (buf == NULL) {
      msg_error ("logging a held write of %zu bytes: %m", e->len);
      writelog_fail (h->log, "a held write could not be logged");
      return -1;
    }
    if (read_file (h, buf, e->len, e->offset) == -1) {
      writelog_fail (h->log, "a held write could not be logged");
      return -1;
    }
  }
  return writelog_append (h->log, &e->entry, &piece, 1);
}

int
hold_overtake (struct hold *h, const struct writelog_entry *entry,
               const struct writelog_piece *pieces, unsigned n)
{
  struct held *e, *next;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  for (e = h->first; e; e = next) {
    next = e->next;
    if (e->entry.sector < end_of (entry) &&
        entry->sector < end_of (&e->entry) &&
        cut (h, e, entry->sector, end_of (entry)) == -1) {
      writelog_fail (h->log, "a held write could not be cut");
      return -1;
    }
  }
  return writelog_append (h->log, entry, pieces, n);
}

uint64_t
hold_mark (struct hold *h)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  return h->next;
}

/* Log what was added before "mark".  Called with the lock. */
static int
log_until (struct hold *h, uint64_t mark)
{
  while (h->first && h->first->number < mark) {
    if (append_held (h, h->first) == -1)
      return -1;
    drop (h, h->first);
  }
  return 0;
}

int
hold_release (struct hold *h, uint64_t mark)
{
  const struct writelog_entry flush = { .flags = WRITELOG_FLUSH };

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  if (log_until (h, mark) == -1)
    return -1;
  return writelog_append (h->log, &flush, NULL, 0);
}

int
hold_close (struct hold *h)
{
  int r, err;

  if (h == NULL)
    return 0;
  r = log_until (h, UINT64_MAX);
  err = errno;
  while (h->first)
    drop (h, h->first);
  if (h->fd >= 0)
    close (h->fd);
  pthread_mutex_destroy (&h->lock);
  free (h);
  errno = err;
  return r;
}
