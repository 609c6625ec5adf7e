/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reading what is below a layer. */

#ifndef BLOCKDRIVERS_QED_BACKING_H
#define BLOCKDRIVERS_QED_BACKING_H

#include "qed/image/image.h"

/* Ask for the first extent or for zeroes of a backing image: NULL if there is
 * none.  It reads as zeroes behind its end (node_pread_padded).
 */
extern int backing_extents (struct node *backing, uint64_t count,
                            uint64_t offset, struct extent *e);
extern int backing_zeroes (struct node *backing, uint64_t count,
                           uint64_t offset, uint64_t *length);

/* How many bytes from offset, at most count, does the backing image
 * hold that may be other than zero; *skip is the number of zero bytes
 * before them.  In a short range it does not look for the end of data,
 * which may take longer than to read all of it.
 */
extern int backing_data (struct qed *s, uint64_t count, uint64_t offset,
                         uint64_t *skip, uint64_t *length);

/* What has been read of (or asked about) the backing image, where this
 * layer had nothing: for how many bytes from offset, at most count, did
 * it belong to the disk?  All, unless others write to the backing image
 * once this layer holds what they overwrite: then those bytes only that
 * this layer still does not have.
 */
extern int backing_unchanged (struct qed *s, uint64_t count, uint64_t offset,
                              uint64_t *length);

#endif /* BLOCKDRIVERS_QED_BACKING_H */
