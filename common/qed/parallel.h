/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Going over a disk with several threads: one at a time finds the next
 * piece that needs work, all work side by side.
 */

#ifndef BLOCKDRIVERS_QED_PARALLEL_H
#define BLOCKDRIVERS_QED_PARALLEL_H

#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "qed/qed.h"

/* Length of the buffers that each thread has. */
#define PARALLEL_BUFFER (512 * 1024)

/* As many threads as there can be. */
#define PARALLEL_MAX_THREADS 16u

struct piece {
  uint64_t offset, length;      /* of the disk, in bytes */
  uint64_t number;              /* in the order of the disk, from 0; set
                                   when next has returned */
  struct node *from;            /* the rest is for next and work alone */
  uint64_t from_offset;
};

struct parallel {
  uint64_t size;                /* of the disk, in bytes */

  /* Fill in the first piece at or behind offset; a length of 0 if there
   * is none.  Called by one thread at a time.
   */
  int (*next) (void *opaque, uint64_t offset, struct piece *piece);

  int (*work) (void *opaque, const struct piece *piece,
               uint8_t *buf1, uint8_t *buf2);
  void *opaque;
  const struct qed_progress *progress; /* may be NULL */
  unsigned threads;             /* 0: as many as seem good */
  uint64_t rate;                /* bytes of pieces a second, 0: no limit */
};

/* Do it all.  Stops early when something fails, and returns -1 with the
 * errno of what failed first.
 */
extern int parallel_run (const struct parallel *p);

/* A raw disk may end within the last sector of an image that has been made
 * for it.  Does it reach to size, but for such a rest?  Where it does, the
 * functions below write what it has room for; it only grows to a whole
 * sector for bytes that are not zero, and that is an error if it cannot.
 */
extern bool parallel_reaches (const struct node *n, uint64_t size);
extern int parallel_write (struct node *n, const uint8_t *buf,
                           uint64_t count, uint64_t offset);

/* Make a range read as zeroes, where it does not yet. */
extern int parallel_zero (struct node *n, uint64_t count, uint64_t offset);

#endif /* BLOCKDRIVERS_QED_PARALLEL_H */
