/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The least that makes a state bad, found by trying: of a state that has
 * lost something, the fewest writes that must be lost; of one that has not,
 * the first entry with which it is bad.
 */

#ifndef BLOCKDRIVERS_WRITELOG_SHRINK_H
#define BLOCKDRIVERS_WRITELOG_SHRINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/explore/pool.h"
#include "writelog/moments/index.h"
#include "writelog/moments/loss.h"

struct shrink {
  struct pool *pool;
  const struct writelog_index *index;
  uint64_t most;                /* runs for one state */
  uint64_t from;                /* the earliest moment, in entries */

  /* What is known of states that have lost nothing. */
  struct known {
    uint64_t entries;
    enum try_verdict verdict;
  } *known;                     /* in order */
  size_t nr_known, allocated;

  uint64_t runs;                /* of the command, so far */
};

/* What a bad state comes down to. */
struct least {
  uint64_t entries;             /* the moment */
  struct lost_piece *lost;      /* owned; none: it is bad with all there */
  size_t nr_lost;
  bool proven;                  /* none of lost can be left out, or there is
                                   a good moment just before */
  uint64_t good;                /* without losses: the last good moment, or
                                   UINT64_MAX if none was found */
  struct try_outcome outcome;   /* of this state, if it was tried; owned */
  bool tried;
};

extern void shrink_free (struct shrink *shrink);
extern void least_free (struct least *least);

/* Note a verdict on a state that has lost nothing.  -1 with errno ENOMEM. */
extern int shrink_note (struct shrink *shrink, uint64_t entries,
                        enum try_verdict verdict);

/* From a moment that is bad.  guesses are sets that were the least of others:
 * the first of them that is bad here is taken as it is.  -1 after a message,
 * or if it was interrupted.
 */
extern int shrink_moment (struct shrink *shrink,
                          const struct writelog_moment *moment,
                          const struct least *const *guesses, size_t nr,
                          struct least *least);

#endif /* BLOCKDRIVERS_WRITELOG_SHRINK_H */
