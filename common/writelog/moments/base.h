/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The disk before a log's first entry. */

#ifndef BLOCKDRIVERS_WRITELOG_BASE_H
#define BLOCKDRIVERS_WRITELOG_BASE_H

#include "node/node.h"
#include "writelog/moments/index.h"

/* Is it this one, as far as the log has noted?  -1 with EINVAL after a
 * message if it cannot be, as a disk which the log's entries have changed
 * is none.  NULL is a disk of zeroes; if it was not, there is a warning.
 */
extern int writelog_check_base (const struct writelog_index *index,
                                struct node *base);

#endif /* BLOCKDRIVERS_WRITELOG_BASE_H */
