/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Writing one entry at its place in a log's node. */

#ifndef BLOCKDRIVERS_WRITELOG_STORE_H
#define BLOCKDRIVERS_WRITELOG_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "writelog/format.h"

/* A part of an entry's data; zeroes if data is NULL. */
struct writelog_piece {
  const void *data;
  uint64_t len;                 /* bytes, may be 0 */
};

#define WRITELOG_MAX_PIECES 4

struct store_entry {
  const struct writelog_entry *entry;
  const char *mark;             /* its text, data_len bytes, or NULL */
  const struct writelog_piece *pieces;
  unsigned n;                   /* at most WRITELOG_MAX_PIECES */
};

/* Are all of its data zeroes that are not written to a local file? */
extern bool store_is_hole (const struct store_entry *e);

/* Write an entry's own sector and its data at a byte offset, in one
 * vectored write but for long zeroes.  In a local file these are there
 * already; "allocated" says that they take space there, which is given
 * back.
 */
extern int store_write (struct node *log, uint32_t sector_size,
                        bool allocated, uint64_t offset,
                        const struct store_entry *e);

#endif /* BLOCKDRIVERS_WRITELOG_STORE_H */
