/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Space: where the next cluster goes.  This is the only place that changes
 * the end of the image and what has been given back.
 */

#ifndef BLOCKDRIVERS_QED_SPACE_H
#define BLOCKDRIVERS_QED_SPACE_H

#include "qed/image/image.h"

/* Does new space there read as zeroes? */
static inline bool
space_is_zero (const struct qed *s, uint64_t file_offset)
{
  return !s->file->fixed_size && file_offset >= atomic_load (&s->stale_end);
}

/* The image ends here, and nothing is left of what was given back.  cut:
 * nothing stands behind the end, or it may be used as it is.  While
 * nobody reserves.
 */
extern void space_begin (struct qed *s, uint64_t end, bool cut);

/* Up to here new space may hold anything.  While nobody reserves. */
extern void space_set_stale (struct qed *s, uint64_t end);

/* Bytes that storage must have for an image with so many L2 tables and data
 * clusters.  That is more than header, tables and data: on storage of fixed
 * size the room of one table is never allocated, so that an image can be
 * emptied (empty.c) when it is full.
 */
extern uint64_t space_needed (const struct qed_header *h, uint64_t tables,
                              uint64_t clusters);

/* From now on storage of fixed size keeps that room free. */
extern void space_keep_table (struct qed *s);

/* Reserve n clusters, one after the other: *offset in the file. */
extern int space_reserve (struct qed *s, uint64_t n, uint64_t *offset);

/* Return clusters that nothing refers to.  errno stays. */
extern void space_give_back (struct qed *s, uint64_t n, uint64_t offset);

/* Make the file reach to "end".  Under space_lock. */
extern int space_reach (struct qed *s, uint64_t end);

/* Cut the file behind the last cluster, if somebody has reserved any. */
extern int space_cut (struct qed *s);

#endif /* BLOCKDRIVERS_QED_SPACE_H */
