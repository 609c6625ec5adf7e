/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Steps of emptying a layer, for buffers; see qed.h for the whole. */

#ifndef BLOCKDRIVERS_QED_EMPTY_H
#define BLOCKDRIVERS_QED_EMPTY_H

#include "qed/image/image.h"

/* Point the header to an L1 table, and set NEED_CHECK in it. */
extern int empty_switch_table (struct qed *s, uint64_t l1, bool flush);

/* What is in memory follows the header: the layer is empty.  While neither
 * requests nor updates are in flight.
 */
extern void empty_forget (struct qed *s);

#endif /* BLOCKDRIVERS_QED_EMPTY_H */
