/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A place is a sector that a request has changed, and none had touched
 * before: its hash tells the disk before the log from the disk after it.
 * Only a few are needed, so only the first requests are looked at.  Their
 * claims keep two on the same sector apart, and in order.
 *
 * What the disk must have when a log is continued need not be noted: it is
 * in the log.  But that is so only if the log ended cleanly.  A writer that
 * was killed may have written to the disk what did not get into the log.
 * So the note of an end is taken back, on the medium, before anything is
 * written again.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/record/disknote.h"

/* So much of a request is compared, or a sector if that is longer. */
#define COMPARED ((uint64_t) 64 * 1024)

void
disknote_init (struct disknote *note)
{
  pthread_mutex_init (&note->lock, NULL);
  note->exact = true;
  atomic_init (&note->looking, true);
}

void
disknote_destroy (struct disknote *note)
{
  pthread_mutex_destroy (&note->lock);
}

void
disknote_continue (struct disknote *note, const struct writelog_super *super,
                   const struct log_end *end)
{
  note->super = *super;
  note->recent = end->recent;
  /* The writer may have been killed, also with no entry in the log since it
   * held all back.  What it left undone in the log is on the disk, so the
   * base may be the disk as it is now.
   */
  note->exact = super->ended;
  if (!super->ended)
    note->super.nr_places = 0;
  atomic_init (&note->looking, super->ended && end->entries == 0);
}

struct writelog_super
disknote_super (struct disknote *note, uint64_t nr_entries,
                uint32_t sector_size)
{
  struct writelog_super super;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  super = note->super;
  super.nr_entries = nr_entries;
  super.sector_size = sector_size;
  return super;
}

bool
disknote_begin (struct disknote *note, uint64_t size)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  const bool ended = note->super.ended;

  note->super.disk_size = size;
  note->super.ended = false;
  return ended;
}

void
disknote_end (struct disknote *note)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  note->super.ended = note->exact;
}

void
disknote_spoil (struct disknote *note)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  note->exact = false;
}

/* ---- The disk of a log that is continued */

/* Does a later one of the last entries cover the first sector of this one?
 */
static bool
is_covered (const struct log_recent *recent, unsigned i)
{
  const uint64_t sector = recent->items[i].entry.sector;

  for (unsigned j = i + 1; j < recent->nr; ++j) {
    const struct writelog_entry *e = &recent->items[j].entry;

    if (sector >= e->sector && sector - e->sector < e->nr_sectors)
      return true;
  }
  return false;
}

/* Has the disk what an entry wrote to its first sector? */
static int
check_entry (struct node *log, uint32_t sector_size, struct node *disk,
             const struct writelog_item *item, uint8_t *bufs)
{
  const uint64_t offset = item->entry.sector * sector_size;
  const uint64_t len =
    MIN (node_size (disk) - MIN (offset, node_size (disk)),
         (uint64_t) sector_size);

  memset (bufs, 0, sector_size);
  if (len == 0)
    return 0;
  if (!(item->entry.flags & WRITELOG_DISCARD) &&
      node_pread (log, bufs, len, item->data_offset) == -1)
    return -1;
  if (node_pread_padded (disk, bufs + sector_size, sector_size, offset) == -1)
    return -1;
  if (memcmp (bufs, bufs + sector_size, len) == 0)
    return 0;
  errno = EINVAL;
  msg_error ("%s: this is the log of another disk, or the disk has been "
             "changed since: it has not what entry %" PRIu64 " at offset %"
             PRIu64 " wrote to sector %" PRIu64, log->name, item->number,
             item->offset, item->entry.sector);
  return -1;
}

int
disknote_check_disk (struct disknote *note, struct node *log,
                     uint32_t sector_size, struct node *disk)
{
  const struct log_recent *recent = &note->recent;
  const uint64_t noted = note->super.disk_size;
  CLEANUP_FREE uint8_t *bufs = NULL;

  if (noted == 0)
    return 0;
  if (noted != node_size (disk)) {
    errno = EINVAL;
    msg_error ("%s: this is the log of another disk: it says that the disk "
               "has %" PRIu64 " bytes, but this one has %" PRIu64,
               log->name, noted, node_size (disk));
    return -1;
  }
  if (!note->super.ended)
    return 0;
  bufs = malloc (2 * (size_t) sector_size);
  if (bufs == NULL) {
    msg_error ("%s: %m", log->name);
    return -1;
  }
  for (unsigned i = 0; i < recent->nr; ++i)
    if (!is_covered (recent, i) &&
        check_entry (log, sector_size, disk, &recent->items[i], bufs) == -1)
      return -1;
  return 0;
}

/* ---- Places */

/* A request has its number, in the order of requests on the same sectors.
 * False if there have been enough.
 */
static bool
touch (struct disknote *note, uint64_t start, uint64_t end, unsigned *number)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);

  if (note->nr_touched == DISKNOTE_REQUESTS) {
    atomic_store (&note->looking, false);
    return false;
  }
  *number = note->nr_touched++;
  note->touched[*number].start = start;
  note->touched[*number].end = end;
  return true;
}

void
disknote_before (struct disknote *note, struct disknote_before *before,
                 uint32_t sector_size, struct node *disk, uint64_t start,
                 uint64_t end, bool compare)
{
  before->buf = NULL;
  if (!atomic_load_explicit (&note->looking, memory_order_relaxed) ||
      !touch (note, start / sector_size, end / sector_size,
              &before->number) || !compare)
    return;
  before->len = MIN (end - start, MAX (COMPARED, (uint64_t) sector_size));
  before->buf = malloc (before->len);
  /* It can be told without this place. */
  if (before->buf &&
      node_pread_padded (disk, before->buf, before->len, start) == -1)
    disknote_forget (before);
}

void
disknote_forget (struct disknote_before *before)
{
  free (before->buf);
  before->buf = NULL;
}

/* The same bytes as they are now; to be freed, or NULL. */
static uint8_t *
copy_pieces (const struct writelog_piece *pieces, unsigned n, uint64_t len)
{
  uint8_t *copy = calloc (1, len);
  uint64_t at = 0;

  for (unsigned i = 0; copy && i < n && at < len; ++i) {
    const uint64_t count = MIN (pieces[i].len, len - at);

    if (pieces[i].data)
      memcpy (copy + at, pieces[i].data, count);
    at += count;
  }
  return copy;
}

static bool
was_touched (const struct disknote *note, uint64_t sector, unsigned number)
{
  for (unsigned i = 0; i < number; ++i)
    if (sector >= note->touched[i].start && sector < note->touched[i].end)
      return true;
  return false;
}

/* False if another request has touched it before. */
static bool
add_place (struct disknote *note, uint64_t sector, uint64_t hash,
           unsigned number)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&note->lock);
  struct writelog_super *super = &note->super;

  if (was_touched (note, sector, number))
    return false;
  if (super->nr_places < WRITELOG_MAX_PLACES)
    super->places[super->nr_places++] = (struct writelog_place) {
      .sector = sector, .hash = hash,
    };
  if (super->nr_places == WRITELOG_MAX_PLACES)
    atomic_store (&note->looking, false);
  return true;
}

void
disknote_after (struct disknote *note, struct disknote_before *before,
                uint32_t sector_size, uint64_t start,
                const struct writelog_piece *pieces, unsigned n)
{
  CLEANUP_FREE uint8_t *buf = before->buf;
  CLEANUP_FREE uint8_t *now = NULL;

  if (buf == NULL)
    return;
  before->buf = NULL;
  now = copy_pieces (pieces, n, before->len);
  for (uint64_t at = 0; now && at < before->len; at += sector_size)
    if (memcmp (buf + at, now + at, sector_size) != 0 &&
        add_place (note, (start + at) / sector_size,
                   writelog_hash (buf + at, sector_size), before->number))
      return;
}
