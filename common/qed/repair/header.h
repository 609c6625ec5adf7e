/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Repair of the header. */

#ifndef BLOCKDRIVERS_QED_REPAIR_HEADER_H
#define BLOCKDRIVERS_QED_REPAIR_HEADER_H

#include "node/node.h"

/* Read the header of an image that is to be repaired, and correct a
 * single bit of it, or give the L1 table clusters that the end of the
 * file does not have any more, if the image can be opened only (or
 * without any fault) that way.  The report is as in qed_check.  Returns 1
 * if it did one of these, 0 if there was nothing to do or that could be
 * done, -1 after a message.
 */
extern int repair_header (struct node *file,
                          void (*report) (void *opaque, const char *line),
                          void *opaque);

#endif /* BLOCKDRIVERS_QED_REPAIR_HEADER_H */
