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
#include <stddef.h>
#include <stdint.h>

#include "writelog/record/writer.h"

struct recorder;

/* Flags of requests. */
#define RECORD_FUA       1
#define RECORD_MAY_TRIM  2      /* zero: space may be given back */
#define RECORD_FAST_ZERO 4      /* zero: fail with ENOTSUP or EOPNOTSUPP,
                                   with nothing changed, if it is slow */

/* The disk that is recorded, as one connection sees it.  The functions
 * take byte offsets inside the disk, and return 0, or -1 with errno
 * (after a message, if it is worth one).
 */
struct recorded_disk {
  const struct recorded_disk_ops *ops;
  void *opaque;
  uint64_t size;                /* bytes */
  uint32_t max_read;            /* bytes, not 0; a power of two or a
                                   multiple of what reads must be aligned
                                   to */
  bool can_extents;
};

struct recorded_disk_ops {
  int (*pread) (struct recorded_disk *disk, void *buf, uint32_t count,
                uint64_t offset);
  int (*pwrite) (struct recorded_disk *disk, const void *buf,
                 uint32_t count, uint64_t offset, unsigned flags);
  int (*zero) (struct recorded_disk *disk, uint32_t count, uint64_t offset,
               unsigned flags);
  int (*trim) (struct recorded_disk *disk, uint32_t count, uint64_t offset,
               unsigned flags);
  int (*flush) (struct recorded_disk *disk);

  /* How far from offset on (*len, at least 1, at most count) does it
   * read as zeroes (*zero is true), or may it not?  Only with
   * can_extents.  Sets neither if it fails.
   */
  int (*extents) (struct recorded_disk *disk, uint32_t count,
                  uint64_t offset, uint64_t *len, bool *zero);
};

enum record_order { RECORD_COMPLETION, RECORD_DURABILITY };

/* Record into a log, which is borrowed, and need not have been started.
 * Returns NULL with errno after a message.
 */
extern struct recorder *recorder_new (struct writelog *log,
                                      enum record_order order);

/* Log what is still held back, and free.  NULL is ignored. */
extern int recorder_close (struct recorder *rec);

/* A request of a client, from any thread.  It returns 0 when it is both
 * on the disk and in the log, -1 with errno otherwise: that of the
 * disk, or that of the log, after whose failure the disk is not touched
 * any more.
 */
extern int record_write (struct recorder *rec, struct recorded_disk *disk,
                         const void *buf, uint32_t count, uint64_t offset,
                         unsigned flags);
extern int record_zero (struct recorder *rec, struct recorded_disk *disk,
                        uint32_t count, uint64_t offset, unsigned flags);
extern int record_trim (struct recorder *rec, struct recorded_disk *disk,
                        uint32_t count, uint64_t offset, unsigned flags);
extern int record_flush (struct recorder *rec, struct recorded_disk *disk);

#endif /* BLOCKDRIVERS_WRITELOG_RECORD_H */
