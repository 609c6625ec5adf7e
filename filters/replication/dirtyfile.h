/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The file that keeps the map of dirty areas over a restart: of a primary, or
 * of a secondary since its failover.
 *
 * The file has a header of 4096 bytes and the map behind it; numbers are
 * little-endian.
 *
 *   offset  size
 *        0     8  magic, "BDDIRTY" and a zero byte
 *        8     4  version, 1
 *       12     4  bytes in an area, 65536
 *       16     8  size of the disk in bytes
 *       24     4  flags; bit 0: in use; bit 1: the disk was changed by
 *                 others, or is another one, since
 *       28     4  zero
 *       32    36  boot identifier of the host that used it last, as text
 *       68    32  history of the remote disk that the map is about, as text
 *                 (history.h); zeroes if it is not known
 *      100    32  identifier of the primary whose map this is, as text
 *      132    64  if the disk parted from a pair by a failover: the primary of
 *                 that pair, and the history of this disk before, as text.
 *                 The map then is of what has changed here since; what the
 *                 primary's own map says comes to it.  Else zeroes
 *      196     4  zero
 *      200    24  inode of the disk's file, and after a clean end when it was
 *                 changed last, in seconds and nanoseconds; 0: not known
 *      224        zeroes up to the end of the header
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

#include "filters/replication/below.h"
#include "filters/replication/history.h"

#define DIRTY_AREA 65536

struct dirty_file;

/* Open the file, and create it if missing.  An empty file is a new one;
 * any other that is no map is refused.  Takes the locks of an image, so
 * that two cannot use it.  NULL with errno after a message.
 */
extern struct dirty_file *dirty_file_open (const char *name);

/* The disk's file, borrowed; before dirty_file_begin. */
extern void dirty_file_set_below (struct dirty_file *f,
                                  const struct below *below);

/* Was the disk changed, or replaced, while the map was not in use?  All is
 * dirty then, and this stays until the map is about another remote.
 */
extern bool dirty_file_disk_was_changed (const struct dirty_file *f);

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

/* The pair from which the disk has parted, both "" for none. */
extern void dirty_file_get_parted (const struct dirty_file *f,
                                   struct pairing *parted);

/* The map is about another disk from now on; durable.  NULL: about none. */
extern int dirty_file_put_partner (struct dirty_file *f,
                                   const struct history *history,
                                   const struct pairing *parted);

/* If the process dies now, all areas count as dirty; until the next of the
 * function above.  If that fails the file is wrong, since its user goes on.
 */
extern int dirty_file_distrust (struct dirty_file *f);

/* Has it missed something, without being distrusted for that by the next one?
 */
extern bool dirty_file_is_wrong (const struct dirty_file *f);

/* If so, try again to have it distrusted.  -1 with errno, after a message, if
 * it still is wrong.
 */
extern int dirty_file_tell (struct dirty_file *f);

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
