/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A throw-away layer.
 *
 * Notes on the design
 *
 * What has been written is a sorted array of pieces of the disk, each with
 * its place in the file, or with none if it is zeroes.  A write goes to the
 * end of the file, unless it lies inside a piece that is in the file
 * already.  So there are no blocks, nothing is copied up, and a disk of any
 * size can be zeroed by one piece.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "node/scratch.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define ZEROES UINT64_MAX

struct piece {
  uint64_t start, end;          /* bytes of the disk */
  uint64_t place;               /* in the file, or ZEROES */
};

struct scratch {
  struct node node;
  struct node *below;
  int fd;
  _Atomic int error;

  /* Held while the file is read or written.  A leaf lock, but for the node
   * below, which is read under it.
   */
  pthread_rwlock_t lock;
  struct piece *pieces;         /* in order, none touches another one */
  size_t nr, allocated;
  uint64_t file_end;
};

/* ---- Pieces */

/* The first one that ends behind an offset. */
static size_t
find (const struct scratch *s, uint64_t offset)
{
  size_t low = 0, high = s->nr;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (s->pieces[middle].end <= offset)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* What stands at an offset: a place in the file, ZEROES, or (false) nothing
 * of ours.  *end is moved to where that ends, if this is before it.
 */
static bool
look_up (const struct scratch *s, uint64_t offset, uint64_t *end,
         uint64_t *place)
{
  const size_t i = find (s, offset);
  const struct piece *p = &s->pieces[i];

  if (i == s->nr)
    return false;
  if (p->start > offset) {
    *end = MIN (*end, p->start);
    return false;
  }
  *end = MIN (*end, p->end);
  *place = p->place == ZEROES ? ZEROES : p->place + (offset - p->start);
  return true;
}

/* Room for two more. */
static int
grow (struct scratch *s)
{
  const size_t wanted = s->allocated + s->allocated / 2 + 16;
  struct piece *larger;

  if (s->nr + 2 <= s->allocated)
    return 0;
  larger = reallocarray (s->pieces, wanted, sizeof *larger);
  if (larger == NULL) {
    atomic_store (&s->error, ENOMEM);
    return -1;
  }
  s->pieces = larger;
  s->allocated = wanted;
  return 0;
}

static bool
follows (const struct piece *a, const struct piece *b)
{
  if (a->end != b->start)
    return false;
  return a->place == ZEROES ? b->place == ZEROES
    : b->place != ZEROES && a->place + (a->end - a->start) == b->place;
}

static struct piece
tail_of (const struct piece *p, uint64_t start)
{
  return (struct piece) {
    start, p->end,
    p->place == ZEROES ? ZEROES : p->place + (start - p->start),
  };
}

/* Put a piece in the place of all that it covers.  There is room. */
static void
put (struct scratch *s, struct piece new)
{
  size_t first = find (s, new.start), last;
  struct piece tail = { 0 };
  size_t nr;

  if (first < s->nr && s->pieces[first].start < new.start) {
    if (s->pieces[first].end > new.end)
      tail = tail_of (&s->pieces[first], new.end);
    s->pieces[first++].end = new.start;
  }
  for (last = first; last < s->nr && s->pieces[last].end <= new.end; ++last)
    ;
  if (last < s->nr && s->pieces[last].start < new.end)
    s->pieces[last] = tail_of (&s->pieces[last], new.end);

  if (first > 0 && follows (&s->pieces[first - 1], &new)) {
    new.start = s->pieces[--first].start;
    new.place = s->pieces[first].place;
  }
  /* first..last are replaced by new, and tail if there is one. */
  nr = 1 + (tail.end > 0);
  memmove (&s->pieces[first + nr], &s->pieces[last],
           (s->nr - last) * sizeof *s->pieces);
  s->nr = s->nr - (last - first) + nr;
  s->pieces[first] = new;
  if (tail.end > 0)
    s->pieces[first + 1] = tail;
}

/* ---- The file */

static int
failed (struct scratch *s, const char *what)
{
  const int err = errno;

  atomic_store (&s->error, err);
  msg_error ("temporary file for what is written to %s: %s: %m",
             s->node.name, what);
  errno = err;
  return -1;
}

static int
read_file (struct scratch *s, char *buf, size_t count, uint64_t place)
{
  while (count > 0) {
    const ssize_t r = pread (s->fd, buf, count, place);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0) {
      if (r == 0)
        errno = EIO;
      return failed (s, "read");
    }
    buf += r;
    count -= r;
    place += r;
  }
  return 0;
}

static int
write_file (struct scratch *s, const char *buf, size_t count,
            uint64_t place)
{
  while (count > 0) {
    const ssize_t r = pwrite (s->fd, buf, count, place);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0)
      return failed (s, "write");
    buf += r;
    count -= r;
    place += r;
  }
  return 0;
}

/* ---- The node */

static int
read_locked (struct scratch *s, char *buf, size_t count, uint64_t offset)
{
  const uint64_t end = offset + count;

  while (offset < end) {
    uint64_t piece_end = end, place;
    const bool ours = look_up (s, offset, &piece_end, &place);
    const size_t len = piece_end - offset;

    if (!ours) {
      if (node_pread (s->below, buf, len, offset) == -1) {
        atomic_store (&s->error, errno);
        return -1;
      }
    }
    else if (place == ZEROES)
      memset (buf, 0, len);
    else if (read_file (s, buf, len, place) == -1)
      return -1;
    buf += len;
    offset += len;
  }
  return 0;
}

static int
scratch_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct scratch *s = (struct scratch *) n;
  int r;

  pthread_rwlock_rdlock (&s->lock);
  r = read_locked (s, buf, count, offset);
  pthread_rwlock_unlock (&s->lock);
  return r;
}

/* Inside of a piece in the file it stays where it is, and otherwise goes
 * behind all others, since a write that fails half way must leave the rest
 * of the disk alone.
 */
static int
write_locked (struct scratch *s, const char *buf, size_t count,
              uint64_t offset)
{
  uint64_t end = offset + count, place;

  if (look_up (s, offset, &end, &place) && place != ZEROES &&
      end == offset + count)
    return write_file (s, buf, count, place);
  if (grow (s) == -1 || write_file (s, buf, count, s->file_end) == -1)
    return -1;
  put (s, (struct piece) { offset, offset + count, s->file_end });
  s->file_end += count;
  return 0;
}

static int
scratch_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                 size_t count, uint64_t offset)
{
  struct scratch *s = (struct scratch *) n;
  int r = 0;

  pthread_rwlock_wrlock (&s->lock);
  for (int i = 0; i < iovcnt && r == 0; ++i) {
    if (iov[i].iov_len > 0)
      r = write_locked (s, iov[i].iov_base, iov[i].iov_len, offset);
    offset += iov[i].iov_len;
  }
  pthread_rwlock_unlock (&s->lock);
  return r;
}

static int
scratch_zero (struct node *n, uint64_t count, uint64_t offset,
              unsigned flags)
{
  struct scratch *s = (struct scratch *) n;
  int r = 0;

  if (count == 0)
    return 0;
  pthread_rwlock_wrlock (&s->lock);
  r = grow (s);
  if (r == 0)
    put (s, (struct piece) { offset, offset + count, ZEROES });
  pthread_rwlock_unlock (&s->lock);
  return r;
}

static int
scratch_discard (struct node *n, uint64_t count, uint64_t offset)
{
  return scratch_zero (n, count, offset, 0);
}

/* It is dropped anyway. */
static int
scratch_flush (struct node *n)
{
  return 0;
}

static int
scratch_extents (struct node *n, uint64_t count, uint64_t offset,
                 struct extent *ret)
{
  struct scratch *s = (struct scratch *) n;
  uint64_t end = offset + count, place;
  int r = 0;

  pthread_rwlock_rdlock (&s->lock);
  if (look_up (s, offset, &end, &place))
    *ret = (struct extent) {
      .length = end - offset, .where = n,
      .flags = place == ZEROES ? EXTENT_ZERO | EXTENT_HOLE : 0,
    };
  else {
    r = node_extents (s->below, end - offset, offset, ret);
    ret->depth++;
  }
  pthread_rwlock_unlock (&s->lock);
  return r;
}

static int
scratch_close (struct node *n)
{
  struct scratch *s = (struct scratch *) n;
  int r = ftruncate (s->fd, 0);

  if (r == -1)
    failed (s, "cut");
  if (node_close (s->below) == -1)
    r = -1;
  pthread_rwlock_destroy (&s->lock);
  free (s->pieces);
  free (s->node.name);
  free (s);
  return r;
}

static const struct node_ops scratch_ops = {
  .type = "scratch",
  .close = scratch_close,
  .pread = scratch_pread,
  .pwritev = scratch_pwritev,
  .flush = scratch_flush,
  .extents = scratch_extents,
  .zero = scratch_zero,
  .discard = scratch_discard,
};

struct node *
scratch_open (struct node *below, int fd)
{
  struct scratch *s = calloc (1, sizeof *s);
  char *name = strdup (below->name);

  if (s == NULL || name == NULL || ftruncate (fd, 0) == -1) {
    msg_error ("%s: temporary file for what is written to it: %m",
               below->name);
    free (s);
    free (name);
    node_close (below);
    return NULL;
  }
  s->node.ops = &scratch_ops;
  s->node.name = name;
  s->node.size = node_size (below);
  s->node.fixed_size = true;
  s->node.can_fast_zero = true;
  s->node.zero_align = 1;
  s->node.align = 1;
  s->node.preferred = below->preferred;
  s->below = below;
  s->fd = fd;
  pthread_rwlock_init (&s->lock, NULL);
  return &s->node;
}

int
scratch_error (const struct node *n)
{
  return atomic_load (&((struct scratch *) n)->error);
}
