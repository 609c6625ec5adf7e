/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Clusters of the disk that get a mapping: the only place that claims,
 * looks up again and allocates, and the only one that copies up from the
 * backing image.
 */

#ifndef BLOCKDRIVERS_QED_ALLOCATE_H
#define BLOCKDRIVERS_QED_ALLOCATE_H

#include "qed/image/image.h"

enum allocate_kind {
  ALLOCATE_DATA,                /* data from a buffer */
  ALLOCATE_ZEROES,              /* data clusters that hold zeroes */
  ALLOCATE_COPY,                /* what the backing image has */
  ALLOCATE_COPY_OR_MARK,        /* the same; zero markers for clusters that
                                   are zero there.  Whole clusters */
  ALLOCATE_MARK                 /* zero markers.  Whole clusters */
};

/* Do that for the beginning of a range that was found to be unallocated
 * (or, the first two, zero).  What the first three leave untouched in a
 * cluster stays as it was.  buf is for the first kind.  The last cluster of
 * the disk is whole if all that the disk has of it is there.  *done is how
 * many bytes of the range are as they were to be: 0 if they have got
 * another mapping meanwhile.  Inside a request.
 */
extern int allocate (struct qed *s, enum allocate_kind kind, const void *buf,
                     uint64_t count, uint64_t offset, uint64_t *done);

/* Copy up what the backing image has, where this layer has nothing and it
 * is not zero.
 */
extern int allocate_copy_up (struct qed *s, uint64_t count, uint64_t offset);

/* Copy up all of a range, with zero markers where it is zero: afterwards
 * nothing of it is unallocated.  Whole clusters, save at the end of the
 * disk.
 */
extern int allocate_hold (struct qed *s, uint64_t count, uint64_t offset);

/* Free the memory that copies have used. */
extern void allocate_forget (struct qed *s);

#endif /* BLOCKDRIVERS_QED_ALLOCATE_H */
