/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Updates of L1 and L2 tables, in the order that survives a crash. */

#ifndef BLOCKDRIVERS_QED_TABLE_H
#define BLOCKDRIVERS_QED_TABLE_H

#include "qed/image/image.h"

/* Where is the L2 table of a cluster of the disk?  Makes one if there is none.
 * As table_map between need_check_begin and need_check_end.
 */
extern int table_need (struct qed *s, uint64_t cluster, uint64_t *table);

/* Map clusters of the disk, all in one slice of this table: the first of n to
 * value, the next to value + stride, ...  What value refers to has been
 * written, and where s->ordered asks for it been made durable.  After an error
 * the table may refer to it.
 */
extern int table_map (struct qed *s, uint64_t table, uint64_t cluster,
                      unsigned n, uint64_t value, uint64_t stride);

/* The tables in the file are empty; so are those in memory now.  While no
 * request is in flight.
 */
extern void table_forget (struct qed *s);

#endif /* BLOCKDRIVERS_QED_TABLE_H */
