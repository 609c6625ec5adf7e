/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the log notes of its disk (../format.h), so that later another disk
 * is not taken for it: the size, what some places had before the first
 * entry, and whether the log ended with all that was done to the disk.  A
 * disk to which such a log is continued must have what the last entries
 * wrote.
 */

#ifndef BLOCKDRIVERS_WRITELOG_DISKNOTE_H
#define BLOCKDRIVERS_WRITELOG_DISKNOTE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "writelog/record/start.h"
#include "writelog/record/store.h"

/* Places are looked for in so many requests. */
#define DISKNOTE_REQUESTS 256

struct disknote {
  pthread_mutex_t lock;         /* protects what follows; a leaf lock */
  struct writelog_super super;  /* of this, what is noted */
  struct log_recent recent;     /* of a log that is continued */
  bool exact;                   /* so far, all that was done to the disk is
                                   in the log, and nothing but the log has
                                   done it */
  atomic_bool looking;          /* for places, in ranges of sectors that no
                                   earlier request has touched: */
  struct { uint64_t start, end; } touched[DISKNOTE_REQUESTS];
  unsigned nr_touched;
};

/* For a log of no entries. */
extern void disknote_init (struct disknote *note);
extern void disknote_destroy (struct disknote *note);

/* For one that is continued. */
extern void disknote_continue (struct disknote *note,
                               const struct writelog_super *super,
                               const struct log_end *end);

/* A super block with the note. */
extern struct writelog_super disknote_super (struct disknote *note,
                                             uint64_t nr_entries,
                                             uint32_t sector_size);

/* Before the first request to a disk of so many bytes: note the size.
 * Must the note on the medium be changed, since the disk will no longer be
 * what the log says?
 */
extern bool disknote_begin (struct disknote *note, uint64_t size);

/* All that was done to the disk is in the log; or not. */
extern void disknote_end (struct disknote *note);
extern void disknote_spoil (struct disknote *note);

/* Is this the disk?  -1 with EINVAL after a message if it cannot be. */
extern int disknote_check_disk (struct disknote *note, struct node *log,
                                uint32_t sector_size, struct node *disk);

/* A request that is about to change a range of the disk, in bytes, and
 * has claimed it.  What it has there before is kept if places are looked
 * for, and given to disknote_after when it has been written, with the data,
 * or else to disknote_forget.
 */
struct disknote_before {
  uint8_t *buf;                 /* NULL if nothing is to be compared */
  uint64_t len;                 /* bytes, whole sectors */
  unsigned number;              /* of the request */
};
extern void disknote_before (struct disknote *note,
                             struct disknote_before *before,
                             uint32_t sector_size, struct node *disk,
                             uint64_t start, uint64_t end, bool compare);
extern void disknote_after (struct disknote *note,
                            struct disknote_before *before,
                            uint32_t sector_size, uint64_t start,
                            const struct writelog_piece *pieces, unsigned n);
extern void disknote_forget (struct disknote_before *before);

#endif /* BLOCKDRIVERS_WRITELOG_DISKNOTE_H */
