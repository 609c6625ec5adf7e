/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The beginning of the queue is in memory, the rest in a file without a
 * name, one record behind the other: a header and the data.  As long as
 * there is anything in the file, all that comes goes there too; so the
 * order is kept without a list of what is in the file, and memory is used
 * again when it has been emptied.  Records are read in order, many small
 * ones at once.  What has been read is given back to the file system by
 * punching holes, and all of it when the file has been emptied.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/filelimit.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/record/spool.h"

/* Records up to this length are written at once. */
#define SMALL_RECORD ((size_t) 64 * 1024)

/* The file is read in pieces of at least this length, and punched. */
#define READ_AHEAD ((uint64_t) 256 * 1024)
#define PUNCH_STEP (UINT64_C (1024) * 1024)

/* What stands before the data. */
struct header {
  struct writelog_entry entry;
  uint64_t len;                 /* of the data that follow, bytes */
};

/* In memory. */
struct record {
  struct record *next;
  struct header header;
  uint8_t data[];
};

struct spool {
  size_t bound;
  const char *tmpdir;           /* borrowed */

  struct record *first, *last;
  size_t in_memory;             /* bytes */

  int fd;                       /* the temporary file */
  uint64_t punched, start, end; /* in it: where the first record is, and
                                   the next one goes */

  uint8_t *buffer;              /* what has been read of it */
  size_t buffer_size;
  uint64_t buffer_offset, buffer_end;
};

static int
open_file (struct spool *s)
{
  CLEANUP_FREE char *name = NULL;

  if (asprintf (&name, "%s/blklogwritesXXXXXX", s->tmpdir) == -1)
    name = NULL;
  else
    s->fd = mkostemp (name, O_CLOEXEC);
  if (s->fd == -1) {
    msg_error ("%s: a temporary file for held writes: %m", s->tmpdir);
    return -1;
  }
  unlink (name);
  return 0;
}

struct spool *
spool_new (size_t bound, const char *tmpdir)
{
  struct spool *s = calloc (1, sizeof *s);

  if (s == NULL) {
    msg_error ("holding writes back: %m");
    return NULL;
  }
  s->bound = bound;
  s->tmpdir = tmpdir;
  s->fd = -1;
  if (open_file (s) == -1) {
    const int err = errno;

    spool_free (s);
    errno = err;
    return NULL;
  }
  return s;
}

void
spool_free (struct spool *s)
{
  if (s == NULL)
    return;
  while (s->first) {
    struct record *r = s->first;

    s->first = r->next;
    free (r);
  }
  if (s->fd >= 0)
    close (s->fd);
  free (s->buffer);
  free (s);
}

/* ---- The file */

static int
write_file (struct spool *s, const void *data, uint64_t len, uint64_t offset)
{
  BEAR_FILE_LIMIT_FOR_CURRENT_SCOPE (offset + len);
  while (len > 0) {
    const ssize_t r = pwrite (s->fd, data, len, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1) {
      msg_error ("%s: write of %" PRIu64 " bytes at offset %" PRIu64 " of the "
                 "temporary file: %m", s->tmpdir, len, offset);
      return -1;
    }
    data = (const uint8_t *) data + r;
    len -= r;
    offset += r;
  }
  return 0;
}

static int
read_file (struct spool *s, uint8_t *data, uint64_t len, uint64_t offset)
{
  while (len > 0) {
    const ssize_t r = pread (s->fd, data, len, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      if (r == 0)
        errno = EIO;
      msg_error ("%s: read of %" PRIu64 " bytes at offset %" PRIu64 " of the "
                 "temporary file: %m", s->tmpdir, len, offset);
      return -1;
    }
    data += r;
    len -= r;
    offset += r;
  }
  return 0;
}

static int
resize_buffer (struct spool *s, size_t size)
{
  uint8_t *buffer = malloc (size);

  if (buffer == NULL) {
    msg_error ("logging a held write of %zu bytes: %m", size);
    return -1;
  }
  free (s->buffer);
  s->buffer = buffer;
  s->buffer_size = size;
  s->buffer_offset = s->buffer_end = 0;
  return 0;
}

/* Read from the file, which has that much, or has been read already.  The
 * result is valid until the next call.
 */
static const uint8_t *
fetch (struct spool *s, uint64_t offset, size_t len)
{
  if (offset < s->buffer_offset || offset + len > s->buffer_end) {
    const size_t size = MAX (len, READ_AHEAD);
    const uint64_t end = MIN (offset + size, s->end);

    /* A buffer that was made for a long record is not kept. */
    if (s->buffer_size != size && resize_buffer (s, size) == -1)
      return NULL;
    s->buffer_end = 0;
    if (read_file (s, s->buffer, end - offset, offset) == -1)
      return NULL;
    s->buffer_offset = offset;
    s->buffer_end = end;
  }
  return s->buffer + (offset - s->buffer_offset);
}

static void
forget_file (struct spool *s)
{
  /* If the file system cannot do it the file just stays as it is. */
  if (s->start == s->end) {
    (void) !ftruncate (s->fd, 0);
    s->punched = s->start = s->end = s->buffer_end = 0;
  }
  else if (s->start - s->punched >= PUNCH_STEP) {
    (void) !fallocate (s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                       s->punched, s->start - s->punched);
    s->punched = s->start;
  }
}

/* ---- Putting */

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

/* Write the pieces behind each other; zeroes are left as a hole. */
static int
write_pieces (struct spool *s, const struct writelog_piece *pieces,
              unsigned n, uint64_t offset)
{
  for (unsigned i = 0; i < n; ++i) {
    if (pieces[i].data &&
        write_file (s, pieces[i].data, pieces[i].len, offset) == -1)
      return -1;
    offset += pieces[i].len;
  }
  /* A hole at the end must be in the file as well. */
  if (ftruncate (s->fd, offset) == -1) {
    msg_error ("%s: a temporary file for held writes: %m", s->tmpdir);
    return -1;
  }
  return 0;
}

static int
write_small (struct spool *s, const struct header *h,
             const struct writelog_piece *pieces, unsigned n)
{
  uint8_t record[sizeof *h + SMALL_RECORD];

  memcpy (record, h, sizeof *h);
  if (h->len > 0)
    copy_pieces (record + sizeof *h, pieces, n);
  return write_file (s, record, sizeof *h + h->len, s->end);
}

static int
write_long (struct spool *s, const struct header *h,
            const struct writelog_piece *pieces, unsigned n)
{
  if (write_file (s, h, sizeof *h, s->end) == -1)
    return -1;
  return write_pieces (s, pieces, n, s->end + sizeof *h);
}

static int
put_in_file (struct spool *s, const struct header *h,
             const struct writelog_piece *pieces, unsigned n)
{
  const int r = h->len <= SMALL_RECORD ? write_small (s, h, pieces, n)
                                       : write_long (s, h, pieces, n);

  if (r == -1) {
    const int err = errno;

    /* Holes are made behind the end only. */
    (void) !ftruncate (s->fd, s->end);
    errno = err;
    return -1;
  }
  s->end += sizeof *h + h->len;
  return 0;
}

static int
put_in_memory (struct spool *s, const struct header *h,
               const struct writelog_piece *pieces, unsigned n)
{
  struct record *r = malloc (sizeof *r + h->len);

  if (r == NULL) {
    msg_error ("holding a write of %" PRIu64 " bytes back: %m", h->len);
    return -1;
  }
  r->next = NULL;
  r->header = *h;
  if (h->len > 0)
    copy_pieces (r->data, pieces, n);
  if (s->first == NULL)
    s->first = r;
  else
    s->last->next = r;
  s->last = r;
  s->in_memory += sizeof *r + h->len;
  return 0;
}

/* How many bytes are to be kept of the pieces? */
static uint64_t
length (const struct writelog_piece *pieces, unsigned n)
{
  bool all_zero = true;
  uint64_t len = 0;

  for (unsigned i = 0; i < n; ++i) {
    all_zero &= pieces[i].data == NULL || pieces[i].len == 0;
    len += pieces[i].len;
  }
  return all_zero ? 0 : len;
}

int
spool_put (struct spool *s, const struct writelog_entry *entry,
           const struct writelog_piece *pieces, unsigned n)
{
  const struct header h = { .entry = *entry, .len = length (pieces, n) };
  const uint64_t size = sizeof (struct record) + h.len;

  if (s->start == s->end && size <= s->bound - s->in_memory)
    return put_in_memory (s, &h, pieces, n);
  return put_in_file (s, &h, pieces, n);
}

/* ---- Taking */

int
spool_first (struct spool *s, struct spool_item *item)
{
  const uint8_t *record;
  struct header h;

  if (s->first) {
    item->entry = s->first->header.entry;
    item->data = s->first->header.len > 0 ? s->first->data : NULL;
    return 1;
  }
  if (s->start == s->end)
    return 0;

  record = fetch (s, s->start, sizeof h);
  if (record == NULL)
    return -1;
  memcpy (&h, record, sizeof h);
  record = fetch (s, s->start, sizeof h + h.len);
  if (record == NULL)
    return -1;
  item->entry = h.entry;
  item->data = h.len > 0 ? record + sizeof h : NULL;
  return 1;
}

void
spool_drop (struct spool *s)
{
  struct record *r = s->first;
  struct header h;

  if (r) {
    s->first = r->next;
    s->in_memory -= sizeof *r + r->header.len;
    free (r);
    return;
  }
  /* It has just been fetched. */
  memcpy (&h, s->buffer + (s->start - s->buffer_offset), sizeof h);
  s->start += sizeof h + h.len;
  forget_file (s);
}
