/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Repairing what a scan finds. */

#ifndef BLOCKDRIVERS_QED_CHECK_H
#define BLOCKDRIVERS_QED_CHECK_H

#include "qed/image/image.h"

/* Repair what scans find, until one finds nothing that can be repaired
 * any more; fills in the last one's result with the sums of what was
 * fixed.  Leaks inside the file are made holes, or if thorough is set
 * given back; and then findings tell who shares a cluster.
 */
extern int repair_image (struct qed *s, enum qed_fix fix, bool thorough,
                         void (*report) (void *opaque, const char *line),
                         void *opaque, struct qed_check_result *result);

#endif /* BLOCKDRIVERS_QED_CHECK_H */
