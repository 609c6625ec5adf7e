/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Holding entries back until the next flush: the kernel's order of a
 * log, in which a disk has a volatile write cache that loses as much as
 * it may.  Specification: write-log.md, log order "durability".
 */

#ifndef BLOCKDRIVERS_WRITELOG_HOLD_H
#define BLOCKDRIVERS_WRITELOG_HOLD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/record/writer.h"

struct hold;

/* Hold entries back from a log (borrowed), using up to "bound" bytes of
 * memory for them, and more in a temporary file in the folder tmpdir
 * (borrowed), which is made now.  Before the log's first entry.  Returns
 * NULL with errno after a message.
 */
extern struct hold *hold_new (struct writelog *log, size_t bound,
                              const char *tmpdir);

/* Log all that is held, in the order in which it was added, and free.
 * NULL is ignored.
 */
extern int hold_close (struct hold *hold);

/* Hold an entry back.  The pieces are copied, and there will be room for
 * them in the log.  Returns -1 with errno after a message if they cannot
 * be kept; then nothing can be logged any more, but what is held.
 */
extern int hold_add (struct hold *hold, const struct writelog_entry *entry,
                     const struct writelog_piece *pieces, unsigned n);

/* Log an entry with FUA at once, ahead of those that are held.  What
 * these have in its sectors is dropped, since it is older.  The caller
 * has a claim on the sectors.
 */
extern int hold_overtake (struct hold *hold,
                          const struct writelog_entry *entry,
                          const struct writelog_piece *pieces, unsigned n);

/* Which entries a flush covers. */
struct hold_mark {
  uint64_t number;              /* those before it */
  uint64_t spare_ever;          /* for held.c */
  bool promised;                /* room for the flush's own entry */
};

/* When a flush is received.  To be given to one of the following. */
extern struct hold_mark hold_mark (struct hold *hold);

/* When it is done: log these and a FLUSH entry. */
extern int hold_release (struct hold *hold, const struct hold_mark *mark);

/* When it has failed. */
extern void hold_forget (struct hold *hold, const struct hold_mark *mark);

#endif /* BLOCKDRIVERS_WRITELOG_HOLD_H */
