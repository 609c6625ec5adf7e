/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The disk of a log as it was at a moment. */

#ifndef BLOCKDRIVERS_WRITELOG_STATE_H
#define BLOCKDRIVERS_WRITELOG_STATE_H

#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "writelog/moments/index.h"
#include "writelog/moments/loss.h"

/* The disk at a moment, as a read-only node of size bytes, any number
 * below 2^63.  What no entry has written is read from base, which is
 * borrowed and must outlive the node, and behind the end of base, or if
 * base is NULL, as zeroes.  Entries that reach behind the node's end are
 * cut there.  Extents: data in the log are MAPPED to the log's node, a
 * discard is ZERO and HOLE, and base is asked for the rest.
 *
 * The moment is copied.  This takes no longer than that, however large the
 * log.  Returns
 * NULL with errno after a message.
 */
extern struct node *writelog_moment_open (const struct writelog_index *index,
                                          const struct writelog_moment *moment,
                                          struct node *base, uint64_t size);

/* Where sectors start..end (not empty) of the disk come from at a moment:
 * visit is called for one run after the other.  The entry is
 * WRITELOG_NO_ENTRY for what is of the base.  Nothing is read.  The bounds of
 * entries cut the sectors in parts; false if there are more of them than that,
 * give or take a run.
 */
#define WRITELOG_NO_ENTRY UINT32_MAX
extern bool
writelog_moment_visit (const struct writelog_index *index,
                       const struct writelog_moment *moment,
                       uint64_t start, uint64_t end, unsigned most_parts,
                       void (*visit) (void *opaque, uint64_t start,
                                      uint64_t end, uint32_t entry),
                       void *opaque);

#endif /* BLOCKDRIVERS_WRITELOG_STATE_H */
