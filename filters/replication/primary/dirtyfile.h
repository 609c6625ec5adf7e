/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The file that keeps the map of dirty areas over a restart.
 *
 * The file has a header of 4096 bytes and the map behind it; numbers are
 * little-endian.
 *
 *   offset  size
 *        0     8  magic, "BDDIRTY" and a zero byte
 *        8     4  version, 1
 *       12     4  bytes in an area, 65536
 *       16     8  size of the disk in bytes
 *       24     4  flags; bit 0: in use
 *       28     4  zero
 *       32    36  boot identifier of the host that used it last, as text
 *       68    32  history of the remote disk that the map is about, as text
 *                 (history.h); zeroes if it is not known
 *      100    32  identifier of the primary whose map this is, as text
 *      132        zeroes up to the end of the header
 *     4096        one bit an area, set if the remote may lack a part of
 *                 it: area i is bit i % 8 of byte i / 8.  Padded with
 *                 zeroes to a multiple of 8 bytes
 *
 * A bit is in the file (not: on its medium) before the write that makes
 * the area differ begins, so the map may be trusted after the process
 * was killed.  When the host went down as well, bits may be lost: the
 * flag is then found set with another boot identifier, and all areas
 * count as dirty.  Flag and identifier are on the medium before the
 * first write.
 */

#ifndef BLOCKDRIVERS_DIRTYFILE_H
#define BLOCKDRIVERS_DIRTYFILE_H

#include <stdbool.h>
#include <stdint.h>

#include "filters/replication/history.h"

#define DIRTY_AREA 65536

struct dirty_file;

/* Open the file, and create it if missing.  An empty file is a new one;
 * any other that is no map is refused.  Takes the locks of an image, so
 * that two cannot use it.  NULL with errno after a message.
 */
extern struct dirty_file *dirty_file_open (const char *name);

/* Use it for a disk of this size (EINVAL, after a message, if it was
 * made for another one), and note that it is in use.  map has a bit for
 * each area, bit i % 64 of map[i / 64], and receives what is in the file.
 */
extern int dirty_file_begin (struct dirty_file *f, uint64_t size,
                             uint64_t *map);

/* The primary's own identifier, which the file keeps: that of the first one
 * that used it.  After dirty_file_begin.
 */
extern void dirty_file_get_self (const struct dirty_file *f,
                                 struct history *self);

/* The history in the file, "" if there is none. */
extern void dirty_file_get_history (const struct dirty_file *f,
                                    struct history *history);

/* Write another one; durable. */
extern int dirty_file_put_history (struct dirty_file *f,
                                   const struct history *history);

/* Write words first..last of the map. */
extern int dirty_file_write (struct dirty_file *f, const uint64_t *map,
                             uint64_t first, uint64_t last);

/* A clean end, if all calls before succeeded; closes and frees.  A file
 * that was made, but not begun, is removed again.
 */
extern int dirty_file_end (struct dirty_file *f);

/* Close and free; all areas count as dirty when it is used again. */
extern void dirty_file_abandon (struct dirty_file *f);

#endif /* BLOCKDRIVERS_DIRTYFILE_H */
