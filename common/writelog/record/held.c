/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Held entries stand in a queue (spool.h) in the order in which their
 * requests completed, in memory and then in a file.  Those of overlapping
 * requests are in the order in which they reached the disk, since they
 * are added under a claim.  A flush logs the entries that were there when
 * it was received, and then itself; nothing comes between, because the
 * lock is held meanwhile.
 *
 * A FUA entry is logged ahead of what is held.  Replayed, an older entry
 * on the same sectors would undo it.  So the older one loses these
 * sectors, as it does in the cache of a disk.  Which are lost is noted
 * (stale.h), and when the older one is logged it is cut.  All other
 * sectors stay held, so the order of what remains does not matter to the
 * result.  The notes take bounded memory too: when they need more, all
 * that is held is logged early, without a FLUSH entry, as a cache does
 * that is full.
 *
 * Before a request is acknowledged the log has promised room for all that
 * will be logged for it, so that only a device that fails can lose it:
 *
 * - the entry's own sector and its data.  Cut, an entry with data needs
 *   no more, since where a sector for a new piece is needed a sector of
 *   data has been dropped.
 * - a sector for each new piece of a discard, which has no data.  A FUA
 *   entry that overtakes makes at most one new piece of each discard
 *   that has its first sector: these are spare, until a flush logs the
 *   discards.
 * - one for the FLUSH entry, of which the next flush that is received
 *   takes possession.
 *
 * In a local file zeroes take space as long as they are held (room.c).
 * So there is a bound, and where space is short they are not held at all:
 * then all that is held is logged early, and the zeroes at once, as a
 * hole.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "utils/cleanup.h"
#include "writelog/record/held.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/record/spool.h"
#include "writelog/record/stale.h"

/* Zeroes that are held for a local file have at most so many bytes; but
 * short ones are always held.
 */
#define ZEROES_BOUND (UINT64_C (256) * 1024 * 1024)
#define LONG_ZEROES (UINT64_C (64) * 1024)

struct hold {
  struct writelog *log;         /* borrowed */
  uint32_t sector_size;

  pthread_mutex_t lock;         /* protects what follows, and the order of
                                   entries in the log; taken before the
                                   log's own lock */
  struct spool *spool;
  struct stale stale;
  uint64_t first, next;         /* numbers of the oldest held entry and of
                                   the next one */
  uint64_t zeroes;              /* bytes of zeroes that are held */

  /* Promised by the log besides what each entry needs. */
  bool flush_promised;          /* a sector for a FLUSH entry */
  uint64_t spare;               /* sectors for pieces of discards */
  uint64_t spare_ever;          /* how many there were in all */
};

struct hold *
hold_new (struct writelog *log, size_t bound, const char *tmpdir)
{
  struct hold *h = calloc (1, sizeof *h);

  if (h == NULL) {
    msg_error ("holding writes back: %m");
    return NULL;
  }
  h->spool = spool_new (bound, tmpdir);
  if (h->spool && stale_init (&h->stale) == -1) {
    msg_error ("holding writes back: %m");
    spool_free (h->spool);
    h->spool = NULL;
  }
  if (h->spool == NULL) {
    const int err = errno;

    free (h);
    errno = err;
    return NULL;
  }
  h->log = log;
  h->sector_size = writelog_sector_size (log);
  pthread_mutex_init (&h->lock, NULL);
  writelog_use_promises (log);
  return h;
}

static uint64_t
end_of (const struct writelog_entry *entry)
{
  return entry->sector + entry->nr_sectors;
}

/* Sectors of the log. */
static uint64_t
needed (const struct writelog_entry *entry)
{
  return 1 + writelog_data_sectors (entry);
}

static uint64_t
data_len (const struct hold *h, const struct writelog_entry *entry)
{
  return writelog_data_sectors (entry) * h->sector_size;
}

/* ---- Logging what is held.  Called with the lock. */

/* Log a piece of an entry.  *room is what remains of the entry's own
 * promise.
 */
static int
log_piece (struct hold *h, const struct spool_item *item, uint64_t sector,
           uint64_t nr_sectors, uint64_t *room)
{
  const uint64_t skip = (sector - item->entry.sector) * h->sector_size;
  struct writelog_entry entry = item->entry;
  struct writelog_piece piece;
  uint64_t own;

  entry.sector = sector;
  entry.nr_sectors = nr_sectors;
  piece.len = data_len (h, &entry);
  piece.data = item->data ? item->data + skip : NULL;
  own = MIN (needed (&entry), *room);
  *room -= own;
  h->spare -= needed (&entry) - own;
  return writelog_append_promised (h->log, &entry, &piece, 1);
}

/* Log what is not stale of the oldest entry. */
static int
log_item (struct hold *h, const struct spool_item *item)
{
  const uint64_t end = end_of (&item->entry);
  uint64_t room = needed (&item->entry);
  uint64_t at, len;

  for (at = item->entry.sector; at < end; at += len)
    if (!stale_at (&h->stale, h->first, at, end, &len) &&
        log_piece (h, item, at, len, &room) == -1)
      return -1;
  writelog_withdraw (h->log, room);
  return 0;
}

/* Log what was added before "number". */
static int
log_until (struct hold *h, uint64_t number)
{
  struct spool_item item;

  while (h->first < MIN (number, h->next)) {
    if (spool_first (h->spool, &item) != 1) {
      writelog_fail (h->log, "a held write could not be logged");
      return -1;
    }
    if (log_item (h, &item) == -1)
      return -1;
    if (item.data == NULL)
      h->zeroes -= data_len (h, &item.entry);
    spool_drop (h->spool);
    h->first++;
  }
  if (h->stale.n > 0)
    stale_forget (&h->stale, h->first);
  return 0;
}

/* Of what is spare, keep at most so much. */
static void
limit_spare (struct hold *h, uint64_t limit)
{
  if (h->spare > limit) {
    writelog_withdraw (h->log, h->spare - limit);
    h->spare = limit;
  }
}

/* Log all that is held, early. */
static int
log_all (struct hold *h)
{
  if (log_until (h, h->next) == -1)
    return -1;
  stale_clear (&h->stale);
  limit_spare (h, 0);
  return 0;
}

int
hold_close (struct hold *h)
{
  int r, err;

  if (h == NULL)
    return 0;
  r = log_all (h);
  err = errno;
  spool_free (h->spool);
  stale_free (&h->stale);
  pthread_mutex_destroy (&h->lock);
  free (h);
  errno = err;
  return r;
}

/* ---- Adding and overtaking.  Called with the lock. */

static bool
is_discard (const struct writelog_entry *entry)
{
  return entry->flags & WRITELOG_DISCARD;
}

/* Bytes of data, if all of them are zeroes, else 0. */
static uint64_t
zero_len (const struct hold *h, const struct writelog_entry *entry,
          const struct writelog_piece *pieces, unsigned n)
{
  for (unsigned i = 0; i < n; ++i)
    if (pieces[i].data && pieces[i].len > 0)
      return 0;
  return data_len (h, entry);
}

/* Would these zeroes take too much space together with those that are
 * held?
 */
static bool
too_many_zeroes (const struct hold *h, uint64_t len)
{
  return len >= LONG_ZEROES && writelog_can_grow (h->log) &&
    (h->zeroes + len > ZEROES_BOUND || !writelog_has_plenty (h->log, len));
}

/* Get the promises for an entry. */
static int
get_room (struct hold *h, const struct writelog_entry *entry)
{
  const uint64_t flush = h->flush_promised ? 0 : 1;

  if (writelog_promise (h->log, needed (entry) + flush) == -1) {
    writelog_fail (h->log, "there is no room for a write that is held back");
    return -1;
  }
  h->flush_promised = true;
  return 0;
}

static int
put (struct hold *h, const struct writelog_entry *entry,
     const struct writelog_piece *pieces, unsigned n)
{
  if (get_room (h, entry) == -1)
    return -1;
  if (spool_put (h->spool, entry, pieces, n) == -1) {
    writelog_withdraw (h->log, needed (entry));
    writelog_fail (h->log, "a write cannot be held back");
    return -1;
  }
  if (is_discard (entry))
    stale_discard (&h->stale, entry->sector, end_of (entry), h->next);
  h->next++;
  return 0;
}

int
hold_add (struct hold *h, const struct writelog_entry *entry,
          const struct writelog_piece *pieces, unsigned n)
{
  const uint64_t zeroes = zero_len (h, entry, pieces, n);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  if (too_many_zeroes (h, zeroes))
    return log_all (h) == -1 ? -1 : writelog_append (h->log, entry, pieces, n);
  if (is_discard (entry) && !stale_has_room (&h->stale) && log_all (h) == -1)
    return -1;
  if (put (h, entry, pieces, n) == -1)
    return -1;
  h->zeroes += zeroes;
  return 0;
}

/* Log a FUA entry; older ones are held. */
static int
overtake (struct hold *h, const struct writelog_entry *entry,
          const struct writelog_piece *pieces, unsigned n)
{
  const uint64_t spare = stale_nr_discards (&h->stale, entry->sector);

  if (writelog_promise (h->log, spare) == -1) {
    writelog_fail (h->log, "there is no room for what a FUA write cuts");
    return -1;
  }
  h->spare += spare;
  h->spare_ever += spare;
  if (writelog_append (h->log, entry, pieces, n) == -1)
    return -1;
  stale_overtake (&h->stale, entry->sector, end_of (entry), h->next);
  return 0;
}

int
hold_overtake (struct hold *h, const struct writelog_entry *entry,
               const struct writelog_piece *pieces, unsigned n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (!stale_has_room (&h->stale) && log_all (h) == -1)
    return -1;
  if (h->first == h->next)
    return writelog_append (h->log, entry, pieces, n);
  return overtake (h, entry, pieces, n);
}

/* ---- Flushes */

struct hold_mark
hold_mark (struct hold *h)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  const struct hold_mark mark = {
    .number = h->next, .spare_ever = h->spare_ever,
    .promised = h->flush_promised,
  };

  h->flush_promised = false;
  return mark;
}

/* Keep the promise for the next flush.  Called with the lock. */
static void
forget (struct hold *h, const struct hold_mark *mark)
{
  if (mark->promised && h->flush_promised)
    writelog_withdraw (h->log, 1);
  h->flush_promised |= mark->promised;
}

void
hold_forget (struct hold *h, const struct hold_mark *mark)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  forget (h, mark);
}

int
hold_release (struct hold *h, const struct hold_mark *mark)
{
  const struct writelog_entry flush = { .flags = WRITELOG_FLUSH };

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  if (log_until (h, mark->number) == -1) {
    forget (h, mark);
    return -1;
  }
  /* What FUA entries before the mark needed, they cut entries before the
   * mark.
   */
  limit_spare (h, h->spare_ever - mark->spare_ever);
  return mark->promised ? writelog_append_promised (h->log, &flush, NULL, 0)
                        : writelog_append (h->log, &flush, NULL, 0);
}
