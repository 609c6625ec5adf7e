/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Which sectors of held entries are stale, since a later FUA entry has
 * overtaken them (held.c).  Entries are numbered from 0 in the order in
 * which they were held back.  It also bounds the number of held discards
 * that a FUA entry may cut in two.  The caller sees to it that only one
 * thread uses it at a time.
 */

#ifndef BLOCKDRIVERS_WRITELOG_STALE_H
#define BLOCKDRIVERS_WRITELOG_STALE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is true from a sector on up to the next step. */
struct stale_step {
  uint64_t start;               /* sector */
  uint64_t below;               /* entries before this number are stale */
  uint64_t discards;            /* not stale ones, at most so many */
  uint64_t last;                /* number of the last of these */
};

/* Zeroed it is empty: nothing is stale, and there is no room. */
struct stale {
  struct stale_step *steps;     /* in order; before the first one and
                                   behind the last one nothing is stale */
  size_t n, max;
};

/* Get the first memory, so that from now on there is room once it has been
 * cleared.  Returns -1 with errno ENOMEM.
 */
extern int stale_init (struct stale *s);
extern void stale_clear (struct stale *s);
extern void stale_free (struct stale *s);

/* Is there room for one more stale_overtake or stale_discard?  Memory is
 * bounded; if not, log what is held and clear.
 */
extern bool stale_has_room (struct stale *s);

/* A FUA entry: in these sectors entries before this number are stale. */
extern void stale_overtake (struct stale *s, uint64_t start, uint64_t end,
                            uint64_t number);

/* A discard with this number is held. */
extern void stale_discard (struct stale *s, uint64_t start, uint64_t end,
                           uint64_t number);

/* How many discards at most have this sector and are not stale there? */
extern uint64_t stale_nr_discards (const struct stale *s, uint64_t sector);

/* Is the entry with this number stale in the sector "at"?  *len is set to
 * the number of sectors, up to "end", of which the same is true.
 */
extern bool stale_at (const struct stale *s, uint64_t number, uint64_t at,
                      uint64_t end, uint64_t *len);

/* Entries before this number are not held any more. */
extern void stale_forget (struct stale *s, uint64_t oldest);

#endif /* BLOCKDRIVERS_WRITELOG_STALE_H */
