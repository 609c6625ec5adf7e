/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the index of moments holds, for the files of this folder: index.c
 * builds it, loss.c says what a moment has lost, moment.c finds moments by
 * name, state.c reads the disk at a moment.
 */

#ifndef BLOCKDRIVERS_WRITELOG_MOMENTS_H
#define BLOCKDRIVERS_WRITELOG_MOMENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/moments/cover.h"
#include "writelog/moments/index.h"

/* The text of a mark stays in the log. */
struct mark {
  uint64_t hash;                /* of the text, writelog_hash */
  uint64_t entry;
};

/* Numbers of entries, ascending. */
struct entry_list {
  uint32_t *numbers;
  size_t nr, allocated;
};

/* How many of them are below n? */
extern size_t entry_list_below (const struct entry_list *list, uint64_t n);

struct writelog_index {
  struct writelog_reader *reader;
  uint32_t sector_size;
  size_t nr_entries;

  /* For each entry, its flags, and where its data stand in the log: byte
   * b of the disk at b + place, modulo 2^64.  For a mark, place is the
   * offset of its own sector.
   */
  uint8_t *flags;
  uint64_t *place;
  uint64_t *sector;             /* its first one of the disk, and how many; */
  uint64_t *nr_sectors;         /* 0 for marks and bare flushes */

  struct cover cover;           /* numbers are those of entries, places
                                   are sectors of the disk */
  struct entry_list flushes, fuas;
  struct mark *marks;           /* in the order of the log */
  size_t nr_marks;
  uint64_t end, end_entry;      /* as in struct writelog_totals */
};

#endif /* BLOCKDRIVERS_WRITELOG_MOMENTS_H */
