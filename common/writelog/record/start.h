/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a log's node holds when it is opened for writing, and making it a
 * log.  Specification: write-log.md, promise 8.
 */

#ifndef BLOCKDRIVERS_WRITELOG_START_H
#define BLOCKDRIVERS_WRITELOG_START_H

#include <stdint.h>

#include "node/node.h"
#include "writelog/format.h"
#include "writelog/reader.h"

/* Write the super block; nothing is flushed. */
extern int start_write_super (struct node *node,
                              const struct writelog_super *super);

/* Make the node a log of 0 entries, on its medium. */
extern int start_log (struct node *node, const struct writelog_super *super);

/* Look at the super block; sector_size is that of a new log.  When it is
 * BAD there has been a message.
 */
extern enum writelog_super_kind
start_look (struct node *node, uint32_t sector_size,
            struct writelog_super *super);

/* The last entries of a log that have sectors of the disk, in order. */
#define LOG_RECENT 16

struct log_recent {
  struct writelog_item items[LOG_RECENT]; /* no marks */
  unsigned nr;
};

struct log_end {
  uint64_t entries;
  uint64_t offset;              /* bytes: behind the last one */
  char *last_mark;              /* to be freed, or NULL */
  struct log_recent recent;
};

/* Find the end of a log by walking its entries.  On failure, after a
 * message, nothing is to be freed.
 */
extern int start_find_end (struct node *node, struct log_end *end);

#endif /* BLOCKDRIVERS_WRITELOG_START_H */
