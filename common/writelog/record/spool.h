/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A queue of entries with their data, of any length in bounded memory:
 * what does not fit there goes to a temporary file.  The caller sees to
 * it that only one thread uses it at a time.
 */

#ifndef BLOCKDRIVERS_WRITELOG_SPOOL_H
#define BLOCKDRIVERS_WRITELOG_SPOOL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/record/writer.h"

struct spool;

/* Use up to "bound" bytes of memory, and a temporary file in the folder
 * tmpdir (borrowed), which is made now.  Returns NULL with errno after a
 * message.
 */
extern struct spool *spool_new (size_t bound, const char *tmpdir);

/* NULL is ignored. */
extern void spool_free (struct spool *s);

/* Put an entry at the end, and a copy of its data, the pieces.  Zeroes
 * alone are not stored.  Returns -1 with errno after a message.
 */
extern int spool_put (struct spool *s, const struct writelog_entry *entry,
                      const struct writelog_piece *pieces, unsigned n);

struct spool_item {
  struct writelog_entry entry;
  const uint8_t *data;          /* or NULL: none, or zeroes; valid until
                                   the next call */
};

/* Look at the first entry: 1; 0 if there is none; -1 with errno after a
 * message.
 */
extern int spool_first (struct spool *s, struct spool_item *item);

/* Remove the one that spool_first has returned. */
extern void spool_drop (struct spool *s);

#endif /* BLOCKDRIVERS_WRITELOG_SPOOL_H */
