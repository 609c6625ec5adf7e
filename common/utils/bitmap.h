/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A set of numbers from a range that may be huge, held in memory that
 * is proportional to the members (a page for each 512 numbers of which
 * one is in the set).  Used for sets of clusters, where a hostile
 * file decides how large the range is.  Not thread-safe.
 */

#ifndef BLOCKDRIVERS_BITMAP_H
#define BLOCKDRIVERS_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bitmap_page;

struct bitmap {
  struct bitmap_page **slots;   /* open addressing, nr_slots or NULL */
  size_t nr_slots;              /* power of two */
  size_t nr_pages;
  struct bitmap_page *last;     /* found by the last call */
  uint64_t members;
};

#define BITMAP_EMPTY ((struct bitmap) { NULL })

/* Add a number.  Returns 1 if it was in the set already, 0 if not, -1
 * with errno ENOMEM.
 */
extern int bitmap_add (struct bitmap *b, uint64_t n);

extern void bitmap_remove (struct bitmap *b, uint64_t n);

/* Changes nothing, so may be called from many threads at once. */
extern bool bitmap_has (const struct bitmap *b, uint64_t n);

/* Empties the set and frees its memory. */
extern void bitmap_free (struct bitmap *b);

#endif /* BLOCKDRIVERS_BITMAP_H */
