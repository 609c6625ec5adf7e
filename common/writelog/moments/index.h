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

/* What the log holds. */
struct writelog_totals {
  uint32_t sector_size;         /* bytes */
  uint64_t entries;
  uint64_t flushes, fuas, marks; /* entries with this flag */
  uint64_t end;                 /* bytes: the end of the highest sector of
                                   the disk that an entry reaches, 0 if
                                   none does */
  uint64_t end_entry;           /* the first entry that reaches it */
  uint64_t memory;              /* bytes, of the index */
};
extern void writelog_index_totals (const struct writelog_index *index,
                                   struct writelog_totals *totals);

/* A moment: what has happened to the disk.  A plain value, to be filled
 * in by the functions below, and good for the index that it came from.
 *
 * The first entries of the log have happened, and of these the first
 * certain ones are there wholly.  The others are there if they are FUA
 * writes; else what key, chance and whole say (moment.c, "Power loss").
 * certain is the same as entries but after a power loss.
 */
struct writelog_moment {
  uint64_t entries, certain;
  uint64_t key;
  unsigned chance;
  bool whole;
};

/* These return -1, with errno ENOENT and without a message, if there is
 * no such moment.  writelog_moment_mark and writelog_moment_parse read
 * the log, and return -1 with another errno, after a message, if that
 * fails.
 */

/* After the first n entries. */
extern int writelog_moment_entries (const struct writelog_index *index,
                                    uint64_t n,
                                    struct writelog_moment *moment);

/* At the first mark of this name. */
extern int writelog_moment_mark (const struct writelog_index *index,
                                 const char *name,
                                 struct writelog_moment *moment);

/* Just after the n-th entry, from 1, with the flag FLUSH or FUA.  The
 * data of that entry itself are there.
 */
extern int writelog_moment_flag (const struct writelog_index *index,
                                 uint64_t flag, uint64_t n,
                                 struct writelog_moment *moment);

/* A power loss between flush n (0: the start) and the one after it, or
 * the end of the log.  The seed chooses one of many; 0 is flush n.
 */
extern int writelog_moment_crash (const struct writelog_index *index,
                                  uint64_t n, uint64_t seed,
                                  struct writelog_moment *moment);

/* By name, as interfaces.md lists them: "" for the last one, "entry/N",
 * "mark/NAME", "flush/N", "fua/N", "crash/N/SEED".  There is a message
 * in any case, and it says what exists if this does not.
 */
extern int writelog_moment_parse (const struct writelog_index *index,
                                  const char *name,
                                  struct writelog_moment *moment);

/* The i-th mark, from 0, in the order of the log.  *name is to be freed
 * by the caller; *first says whether it is the first one of this name.
 * Returns -1 with errno, after a message, if the log cannot be read.
 */
extern int writelog_index_mark (const struct writelog_index *index,
                                uint64_t i, char **name, uint64_t *entry,
                                bool *first);

/* The disk at a moment, as a read-only node of size bytes, any number
 * below 2^63.  What no entry has written is read from base, which is
 * borrowed and must outlive the node, and behind the end of base, or if
 * base is NULL, as zeroes.  Entries that reach behind the node's end are
 * cut there.  Extents: data in the log are MAPPED to the log's node, a
 * discard is ZERO and HOLE, and base is asked for the rest.
 *
 * This takes no longer than a malloc, however large the log.  Returns
 * NULL with errno after a message.
 */
extern struct node *writelog_moment_open (const struct writelog_index *index,
                                          const struct writelog_moment *moment,
                                          struct node *base, uint64_t size);

#endif /* BLOCKDRIVERS_WRITELOG_INDEX_H */
