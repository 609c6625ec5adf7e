/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Giving leaked clusters back. */

#ifndef BLOCKDRIVERS_QED_COMPACT_H
#define BLOCKDRIVERS_QED_COMPACT_H

#include "qed/image/image.h"

/* Move what stands at the end of the file into leaked clusters, and cut
 * the file.  The image must have no other faults and not be of fixed size.
 * L1 entries in memory must be read again afterwards.
 */
extern int compact_image (struct qed *s);

#endif /* BLOCKDRIVERS_QED_COMPACT_H */
