/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* An index of the moments of a log: it opens the disk as it was at any
 * moment as a node, at once, without replaying anything.  All moments
 * share its memory, which is proportional to the number of entries and
 * not to their data, however long and however tangled they are.
 * Specification: interfaces.md, "nbdkit-logreplay-plugin".
 *
 * Once built, an index never changes: all functions may be called from
 * any thread at the same time, without a lock, when the log's node has
 * been started (node_start (writelog_index_log (index))), and from one
 * thread before that.
 */

#ifndef BLOCKDRIVERS_WRITELOG_INDEX_H
#define BLOCKDRIVERS_WRITELOG_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "node/node.h"
#include "writelog/format.h"
#include "writelog/reader.h"

struct writelog_index;

/* Walk all entries of a log and build their index.  The reader is owned
 * from then on, also when this fails: NULL with errno after a message,
 * which names entry and offset if the log is damaged.
 */
extern struct writelog_index *
writelog_index_open (struct writelog_reader *reader);

/* All nodes of its moments must be closed before.  NULL is ignored. */
extern void writelog_index_close (struct writelog_index *index);

/* The log's node, borrowed. */
extern struct node *writelog_index_log (const struct writelog_index *index);

/* Read the log by another node from now on, which is owned.  For a process
 * that was forked and cannot use its parent's: that one is not closed.
 */
extern void writelog_index_set_log (struct writelog_index *index,
                                    struct node *log);

/* What the log holds. */
struct writelog_totals {
  uint32_t sector_size;         /* bytes */
  uint64_t entries;
  uint64_t flushes, fuas, marks; /* entries with this flag */
  uint64_t end;                 /* bytes: the end of the highest sector of
                                   the disk that an entry reaches, 0 if
                                   none does */
  uint64_t end_entry;           /* the first entry that reaches it */
  uint64_t disk_size;           /* bytes, as the log has noted it, or 0 */
  uint64_t memory;              /* bytes, of the index */
};
extern void writelog_index_totals (const struct writelog_index *index,
                                   struct writelog_totals *totals);

/* What an entry is. */
struct writelog_index_entry {
  unsigned flags;
  uint64_t sector, nr_sectors;  /* of the disk; none for marks and bare
                                   flushes */
};
extern struct writelog_index_entry
writelog_index_entry (const struct writelog_index *index, uint64_t entry);

#endif /* BLOCKDRIVERS_WRITELOG_INDEX_H */
