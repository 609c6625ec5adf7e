/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reading a write log from its first entry to its last.  Any file can
 * be read: nothing is allocated by what a field says, and each entry is
 * checked before it is given out.  A log may grow while it is read; the
 * entries that were counted when it was opened are read.
 * Specification: write-log.md, "On disk" and promise 8.
 */

#ifndef BLOCKDRIVERS_WRITELOG_READER_H
#define BLOCKDRIVERS_WRITELOG_READER_H

#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "writelog/format.h"

struct writelog_reader {
  struct node *node;            /* the log; data may be read from it by
                                   any thread at data_offset */
  struct writelog_super super;  /* as it was at the open */

  /* Where the walk is. */
  uint64_t next;                /* number of the next entry, from 0 */
  uint64_t offset;              /* bytes, where that one stands */

  bool borrowed;                /* the node is */

  /* For reader.c: what has been read ahead. */
  uint8_t *buffer;
  uint64_t buffer_offset;
  size_t buffer_len;
  size_t ahead;                 /* how much to read the next time */
  char *mark;                   /* the last one */
};

/* An entry as it was met. */
struct writelog_item {
  struct writelog_entry entry;
  uint64_t number;              /* from 0 */
  uint64_t offset;              /* bytes in the log, of its own sector */
  uint64_t data_offset;         /* bytes in the log, of its data */
  const char *mark;             /* a mark's text up to its first NUL,
                                   else NULL; valid until the next call */
};

/* Open a log.  What is no log, an empty file, or one that ends within
 * the sector of its super block, is refused.  Returns NULL with errno
 * after a message.
 */
extern struct writelog_reader *writelog_reader_open (const char *name);

/* The same over a node, which is owned also when it fails. */
extern struct writelog_reader *writelog_reader_open_node (struct node *node);
/* The node stays the caller's. */
extern struct writelog_reader *
writelog_reader_borrow_node (struct node *node);
extern void writelog_reader_close (struct writelog_reader *reader);

/* The next entry: 1; 0 behind the last one; -1 with errno after a
 * message that names entry and offset (the entry breaks a rule or does
 * not lie wholly inside the log).  From one thread only.
 */
extern int writelog_reader_next (struct writelog_reader *reader,
                                 struct writelog_item *item);

/* Begin again at the first entry. */
extern void writelog_reader_rewind (struct writelog_reader *reader);

/* Go on with an entry that has been met, or with the one behind the
 * last: what next and offset were before it was read.
 */
extern void writelog_reader_seek (struct writelog_reader *reader,
                                  uint64_t number, uint64_t offset);

#endif /* BLOCKDRIVERS_WRITELOG_READER_H */
