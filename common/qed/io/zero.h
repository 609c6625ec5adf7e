/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Zeroes, for other requests. */

#ifndef BLOCKDRIVERS_QED_ZERO_H
#define BLOCKDRIVERS_QED_ZERO_H

#include "qed/image/image.h"

/* qed_zero, inside a request. */
extern int zero_range (struct qed *s, uint64_t count, uint64_t offset,
                       unsigned flags);

#endif /* BLOCKDRIVERS_QED_ZERO_H */
