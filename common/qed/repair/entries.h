/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Repair of entries of tables. */

#ifndef BLOCKDRIVERS_QED_ENTRIES_H
#define BLOCKDRIVERS_QED_ENTRIES_H

#include "qed/image/image.h"

/* Point entries that are wrong in one bit to the leaked tables and
 * clusters that they meant.  *fixed is how many.
 */
extern int repair_entries (struct qed *s,
                           void (*report) (void *opaque, const char *line),
                           void *opaque, uint64_t *fixed);

#endif /* BLOCKDRIVERS_QED_ENTRIES_H */
