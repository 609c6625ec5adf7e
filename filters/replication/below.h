/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The file in which the layer below keeps the disk, if it is a local one: to
 * see that nobody else replicates it, and whether it was changed while no
 * server was there.  Specification: replication.md, "Whose data is right".
 *
 * A filter is not told what the plugin opens; but what it opens appears among
 * the descriptors of the process meanwhile.  If that is exactly one regular
 * file or block device, this is the disk.  Else nothing is known.
 */

#ifndef BLOCKDRIVERS_REPLICATION_BELOW_H
#define BLOCKDRIVERS_REPLICATION_BELOW_H

#include <stdbool.h>
#include <stdint.h>

#define BELOW_MAX_FDS 256

struct below {
  unsigned char before[BELOW_MAX_FDS / 8];
  int fd;                       /* to the same file, or -1 */
};

/* Bracket the opening of the layer below, with no other threads about.  -1
 * with errno after a message if another server replicates the same file.
 */
extern void below_watch (struct below *b);
extern int below_find (struct below *b);

/* Nothing is known, or not any more. */
extern void below_close (struct below *b);

/* Which file it is, and when it was changed last. */
struct below_stamp {
  uint64_t inode;               /* 0: not known */
  uint64_t seconds, nanoseconds; /* 0: not known */
};

/* last: nobody changes it any more, and the time is to survive a power loss.
 */
extern void below_stamp (const struct below *b, bool last,
                         struct below_stamp *stamp);

#endif /* BLOCKDRIVERS_REPLICATION_BELOW_H */
