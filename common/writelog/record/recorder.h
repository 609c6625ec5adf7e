/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Recording: requests that change a disk go to the disk and into a
 * write log, so that the log gives what the disk is.  Specification:
 * write-log.md, "The filter's promises".
 */

#ifndef BLOCKDRIVERS_WRITELOG_RECORD_H
#define BLOCKDRIVERS_WRITELOG_RECORD_H

#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "writelog/record/writer.h"

struct recorder;

enum record_order { RECORD_COMPLETION, RECORD_DURABILITY };

/* Record into a log, which is borrowed, and need not have been started.
 * Returns NULL with errno after a message.
 */
extern struct recorder *recorder_new (struct writelog *log,
                                      enum record_order order);

/* Log what is still held back, and free.  NULL is ignored. */
extern int recorder_close (struct recorder *rec);

/* A request of a client, from any thread, with the flags of node.h.  disk
 * is the disk as the client's connection sees it.  It returns 0 when it is
 * both on the disk and in the log, -1 with errno otherwise: that of the
 * disk, or that of the log, after whose failure the disk is not touched
 * any more.
 */
extern int record_write (struct recorder *rec, struct node *disk,
                         const void *buf, uint32_t count, uint64_t offset,
                         unsigned flags);
extern int record_zero (struct recorder *rec, struct node *disk,
                        uint32_t count, uint64_t offset, unsigned flags);
extern int record_trim (struct recorder *rec, struct node *disk,
                        uint32_t count, uint64_t offset, unsigned flags);
extern int record_flush (struct recorder *rec, struct node *disk);

/* Does the log have all that was done to the disk?  It lacks what a request
 * has left that failed, or a trim, while the disk could not be read.  That is
 * tried again first, as each record_flush does.
 */
extern bool record_settle (struct recorder *rec, struct node *disk);

#endif /* BLOCKDRIVERS_WRITELOG_RECORD_H */
