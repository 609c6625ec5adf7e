/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* L2 tables in memory, in slices: lookups without a lock, and what an
 * update needs.
 */

#ifndef BLOCKDRIVERS_QED_CACHE_H
#define BLOCKDRIVERS_QED_CACHE_H

#include "qed/image/image.h"

/* A slice is what the cache holds and what an update writes: a piece of
 * an L2 table that never straddles two tables, since tables are at
 * least this long.
 */
#define SLICE_ENTRIES 512
#define SLICE_LEN (SLICE_ENTRIES * QED_ENTRY_LEN)
#define SLICE_BITS 9

struct slice {
  /* What lookups read without a lock.  sequence is odd while the slice
   * is being replaced, and another number afterwards.
   */
  _Atomic uint64_t sequence;
  _Atomic uint64_t key;         /* slice number + 1, or 0 */
  _Atomic uint64_t *entries;    /* SLICE_ENTRIES; constant */
  atomic_bool used;             /* since the clock hand last passed */

  /* Under cache->lock. */
  unsigned pins;                /* users that keep it from being replaced */
  uint64_t loading;             /* the key that is being read, or 0 */
  uint64_t doubtful;            /* the key of what may differ from the file,
                                   or 0; changes while it is pinned by who
                                   writes it, or by nobody */

  /* Under update_lock, for table.c. */
  bool writing;                 /* somebody writes it to the file */
  struct l2_update *pending;    /* updates that wait for the next write */
};

/* Make the cache of an image, of at most so many bytes. */
extern int cache_init (struct qed *s, uint64_t max_bytes);
extern void cache_free (struct qed *s);

/* Forget all slices, while no request is in flight: the tables in the
 * file have been changed by other means.
 */
extern void cache_forget (struct qed *s);

/* The L2 entry of a cluster of the disk, whose table stands at
 * table_offset in the file.  A hit takes no lock.
 */
extern int cache_lookup (struct qed *s, uint64_t cluster,
                         uint64_t table_offset, uint64_t *entry);

/* How many entries from that of this cluster on, which was just looked up,
 * are the same?  At least 1; counted up to the end of its slice at most.
 */
extern uint64_t cache_run (struct qed *s, uint64_t cluster, uint64_t entry);

/* The slice that holds this entry, in memory until cache_unpin.  NULL
 * with errno after a message.  A thread that holds a pin must not wait
 * for another one.
 */
extern struct slice *cache_pin (struct qed *s, uint64_t cluster,
                                uint64_t table_offset);
extern void cache_unpin (struct qed *s, struct slice *slice);

/* A write of a pinned slice has failed, and may have been done all the
 * same: it is read again before anybody decides by it.
 */
extern void cache_doubt (struct qed *s, struct slice *slice);

#endif /* BLOCKDRIVERS_QED_CACHE_H */
