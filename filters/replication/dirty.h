/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a remote disk lacks of a local one: a map of dirty blocks, kept
 * by areas, with an optional file (dirtyfile.h) that survives the
 * process.  A secondary has one, too, from its failover on, and copies
 * nothing.  Specification: replication.md, "Beyond QEMU".
 *
 * Notes on the design
 *
 * A block of 4 KiB is dirty from before it is changed until it is taken
 * to be copied.  Only one copy of an area (64 KiB) is under way at a
 * time: the area is busy.  When the remote has acknowledged the copy the
 * area is unsure: it may yet lose the data, if it goes away before its
 * next flush.  A flush that begins makes all unsure areas settling, and
 * if it succeeds they are clean, if they are not something else as well.
 * When the remote is lost all areas that are unsure or settling are
 * dirty as a whole.
 *
 * The file has a bit for each area that is not clean.  It is set before
 * the area is changed.  It is not cleared until the flush that makes the
 * area clean, so an area that is written to all the time costs one small
 * write to the file from flush to flush.
 *
 * All this is about one remote disk, which is known by its history.
 */

#ifndef BLOCKDRIVERS_DIRTY_H
#define BLOCKDRIVERS_DIRTY_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "filters/replication/dirtyfile.h"

#define DIRTY_BLOCK 4096
#define DIRTY_ALL 0xffff        /* all blocks of an area */

struct dirty {
  uint64_t size;                /* of the disk, bytes; constant */
  uint64_t nr_areas;            /* constant */
  struct dirty_file *file;      /* or NULL; constant */

  /* The file is written to under this lock, so who changes an area of which
   * the file does not know waits for that.  Taken before lock.
   */
  pthread_mutex_t file_lock;
  uint64_t *file_map;           /* what the file has, or is being given; one
                                   bit an area, or NULL */
  bool file_failed;

  pthread_mutex_t lock;         /* protects the rest; a leaf lock, without any
                                   I/O under it */
  uint16_t *blocks;             /* dirty blocks of each area */
  /* One bit an area: */
  uint64_t *dirty;              /* some block is dirty */
  uint64_t *busy;               /* being copied */
  uint64_t *unsure;             /* copied since the last flush began */
  uint64_t *settling;           /* copied before the flush that runs */
  uint64_t *in_file;            /* what the file is known to have, or NULL */
  bool doubtful;                /* it is not, since all of the file's map was
                                   to be another one, and that failed */
  uint64_t nr_dirty;            /* blocks that are dirty */
  uint64_t nr_taken;            /* blocks that are being copied */
  uint64_t nr_unsure;           /* areas */
  uint64_t next;                /* area where to look for dirty ones */
  struct history history;       /* of the remote disk, "" if not known */
  struct pairing parted;        /* from which the disk has; or both "" */
};

/* Make a clean map, or the one that is in the file, which stays the
 * caller's.  Returns -1 with errno after a message.
 */
extern int dirty_init (struct dirty *d, uint64_t size,
                       struct dirty_file *file);
extern void dirty_destroy (struct dirty *d);

/* This range is going to be changed.  Returns -1 with errno, after a
 * message, if the file could not be told; the map in memory is right
 * nevertheless.  If dirty_is_wrong then says so the range must not be changed:
 * who finds the file when the process was killed would not know of it.
 */
extern int dirty_mark (struct dirty *d, uint64_t offset, uint64_t count);

/* Who the primary is: by its file, else a new identifier. */
extern int dirty_get_self (struct dirty *d, struct history *self);

/* The history of the remote disk that the map is about, and another one
 * from now on; -1 as above.
 */
extern void dirty_get_history (struct dirty *d, struct history *history);
extern int dirty_set_history (struct dirty *d,
                              const struct history *history);

/* The pair from which the disk has parted, if it was failed over and the map
 * has not been about another one since; both "" if not.
 */
extern void dirty_get_parted (struct dirty *d, struct pairing *parted);

/* For one with a file that copies nothing.  Everything is dirty from now on,
 * and the map about no disk; or: the map is what the words say (borrowed, as
 * many as dirty_nr_words), and the disk parts from this pair.  Durable.  After
 * -1 with errno the file may say one or the other, or that all is dirty.
 */
extern int dirty_forget (struct dirty *d);
extern int dirty_part (struct dirty *d, const uint64_t *words,
                       const struct pairing *parted);

/* See dirty_file_disk_was_changed; false without a file. */
extern bool dirty_disk_was_changed (struct dirty *d);

/* Does the file lack something; and does it not say so? */
extern bool dirty_has_failed (struct dirty *d);
extern bool dirty_is_wrong (struct dirty *d);

/* If it does not, try again to have it say so.  -1 with errno, after a
 * message, if that cannot be written.
 */
extern int dirty_tell (struct dirty *d);

/* What the file says: a bit an area, in so many words. */
extern size_t dirty_nr_words (const struct dirty *d);
extern void dirty_get_words (struct dirty *d, uint64_t *words);

/* Take up to max dirty areas that are not busy, in ascending order from
 * where the last call ended, and make them busy.  Returns their number.
 * *end says that there are none behind them: the next call begins a new
 * pass, at the first area.
 */
extern size_t dirty_take (struct dirty *d, uint64_t *areas, size_t max,
                          bool *end);

/* Which blocks of this busy area are to be copied?  (Bit 0 is the first
 * one.)  They are clean from now on; nobody may be changing them.
 */
extern uint16_t dirty_begin_copy (struct dirty *d, uint64_t area);

/* These blocks have been copied, or not; the area is no longer busy. */
extern void dirty_end_copy (struct dirty *d, uint64_t area, uint16_t blocks,
                            bool ok);

/* Bracket a flush of the remote; one at a time.  With nothing unsure
 * there is no need for one.
 */
extern void dirty_begin_flush (struct dirty *d);
extern int dirty_end_flush (struct dirty *d, bool ok);

/* The remote is gone; no flush is under way, and no copy that has begun
 * to be sent to it.
 */
extern void dirty_lost (struct dirty *d);

/* Is there something that the next flush would settle? */
extern bool dirty_is_unsure (struct dirty *d);

/* Is nothing of this area dirty or being copied? */
extern bool dirty_is_clean (struct dirty *d, uint64_t area);

/* Bytes that the remote lacks, those being copied among them: not more
 * than the disk has, though blocks that were changed while they were copied
 * count twice, and the last one as a whole.
 */
extern uint64_t dirty_bytes (struct dirty *d);

#endif /* BLOCKDRIVERS_DIRTY_H */
