/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The header of a new image, for those who count what it takes. */

#ifndef BLOCKDRIVERS_QED_CREATE_H
#define BLOCKDRIVERS_QED_CREATE_H

#include "qed/format.h"
#include "qed/qed.h"

/* The header of a new image; -1 after a message if the options break a
 * rule.
 */
extern int qed_make_header (const char *name,
                            const struct qed_create_options *options,
                            struct qed_header *header);

#endif /* BLOCKDRIVERS_QED_CREATE_H */
