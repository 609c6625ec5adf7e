/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
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
#include <sys/statvfs.h>

#include "utils/rounding.h"
#include "writelog/record/room.h"

/* A local file is made longer by this many bytes. */
#define GROW_STEP (UINT64_C (64) * 1024 * 1024)

/* Its space is allocated in multiples of this; on a file system that has
 * less than this left it is full.
 */
#define ALLOCATE_STEP (UINT64_C (256) * 1024)

void
room_init (struct room *room, struct node *log)
{
  *room = (struct room) { .log = log };
  pthread_mutex_init (&room->lock, NULL);
}

void
room_destroy (struct room *room)
{
  pthread_mutex_destroy (&room->lock);
}

/* Allocate the space from "start", or from where that ends which has been
 * allocated, up to "end".  Nobody gets a place in what is zeroed here
 * meanwhile.
 */
static int
allocate (struct room *room, uint64_t start, uint64_t end)
{
  const uint64_t from = MAX (room->allocated, start);
  const uint64_t to = MIN (round_up (end, ALLOCATE_STEP),
                           node_size (room->log));

  if (end <= from)
    return 0;
  if (node_zero (room->log, to - from, from, 0) == -1)
    return -1;
  room->allocated = to;
  return 0;
}

/* Allocate the space for what goes behind the end, up to "end", and for
 * what is promised behind that.  Of a hole only the first sector takes
 * space.
 */
static int
allocate_room (struct room *room, uint64_t end, bool hole)
{
  if (!hole)
    return allocate (room, room->end, end + room->promised);
  if (allocate (room, room->end, room->end + room->sector_size) == -1)
    return -1;
  return allocate (room, end, end + room->promised);
}

int
room_make (struct room *room, uint64_t nr_sectors, bool hole)
{
  const uint64_t used = room->end + room->promised;
  const uint64_t len = nr_sectors * room->sector_size;

  if (nr_sectors > (INT64_MAX - GROW_STEP - used) / room->sector_size) {
    errno = EFBIG;
    return -1;
  }
  if (used + len > node_size (room->log)) {
    if (room->log->fixed_size) {
      errno = ENOSPC;
      return -1;
    }
    if (node_resize (room->log, used + len + GROW_STEP) == -1)
      return -1;
  }
  return room->promises && !room->log->fixed_size
    ? allocate_room (room, room->end + len, hole) : 0;
}

uint64_t
room_take (struct room *room, uint64_t nr_sectors, bool promised)
{
  const uint64_t offset = room->end;
  const uint64_t len = nr_sectors * room->sector_size;

  if (promised)
    room->promised -= len;
  room->end += len;
  return offset;
}

bool
room_has_plenty (const struct room *room, uint64_t len)
{
  struct statvfs fs;

  return statvfs (room->log->name, &fs) == 0 &&
    len / fs.f_frsize < fs.f_bavail / 2;
}
