/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the disk of a log holds at a moment, as a number: two moments whose
 * sectors come from the same entries have the same one, and others hardly
 * ever.  Nothing is read.
 */

#ifndef BLOCKDRIVERS_WRITELOG_CONTENT_H
#define BLOCKDRIVERS_WRITELOG_CONTENT_H

#include <stdbool.h>
#include <stdint.h>

#include "writelog/moments/index.h"
#include "writelog/moments/loss.h"

struct content {
  const struct writelog_index *index;
  bool zero_base;               /* discards are the same as the base */
  uint64_t nr_given_up;         /* shares that are not what they should be */
};

/* The share of sectors start..end in the number of a moment.  Shares add
 * up: that of the whole disk is the sum of those of its parts.  Where that
 * would take too long it is a number that no other share is, so that what is
 * equal may be taken to differ, but not the other way round.
 */
extern uint64_t content_share (struct content *c,
                               const struct writelog_moment *moment,
                               uint64_t start, uint64_t end);

/* What the share of these sectors becomes if all of them are of an entry. */
extern uint64_t content_of_entry (const struct content *c, uint64_t entry,
                                  uint64_t start, uint64_t end);

#endif /* BLOCKDRIVERS_WRITELOG_CONTENT_H */
