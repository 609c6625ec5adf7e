/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a primary and its secondary live on in pair.c: their media, which die
 * with them at a change, and the way from one to the other.
 */

#ifndef BLOCKDRIVERS_CHAOS_PAIR_H
#define BLOCKDRIVERS_CHAOS_PAIR_H

#include "filters/replication/secondary/secondary.h"
#include "tests/chaos/divert.h"
#include "tests/chaos/medium.h"

#define DISK_SIZE (192 * 1024)
#define SECTORS (DISK_SIZE / MEDIUM_SECTOR)
#define MEDIUM_BYTES (UINT64_C (4) << 20)
#define KILLED 42               /* the exit status of a life cut short */

/* ---- What outlives the processes */

struct kept {
  unsigned machine;
  uint64_t ino, len, size;
  uint8_t data[MEDIUM_BYTES];
};

/* What a guest sees, and what may be there when it looks again; a bit for
 * each value, of each sector.
 */
struct guest {
  uint64_t live[SECTORS], allowed[SECTORS];
};

enum wait { IS_OFF, IS_ASKED, IS_DONE };

struct account {
  struct kept media[MAX_MEDIA];
  unsigned nr_media;
  unsigned value;               /* the last that a guest wrote */
  struct guest p, s;
  enum wait promotion, reset, copy;
  bool wrote_alone;             /* the secondary's guest, after a stop */
  bool accepted;
  uint64_t changes;             /* from the command on */
};

extern struct account *account;

enum kind { POWER, POWER_OF_PRIMARY, POWER_OF_SECONDARY, ONCE_BEFORE,
            ONCE_AFTER, ALWAYS_BEFORE, ALWAYS_AFTER, KINDS };

/* What happens, at which change (from 1; 0: none), and what decides the
 * rest.
 */
extern enum kind kind;
extern uint64_t at, seed;

/* The machines: their disks, and the folders of their files. */
enum { OF_PRIMARY, OF_SECONDARY };
extern struct medium *disks[MACHINES];
extern char folders[MACHINES][32];

/* Is that how the life ends, and is this one of the machines then? */
extern bool is_power_loss (enum kind k);
extern bool loses_power (enum kind k, unsigned machine);

extern struct secondary *secondary;

/* A process begins to live on what the account keeps. */
extern void begin_world (void);

/* Changes count, and may be the one. */
extern void arm (bool on);

/* A change of a name, which is counted, fails and ends the life as those of
 * media do.  What run returns, with errno, or -1.
 */
extern int change_folder (int (*run) (const void *opaque),
                          const void *opaque);

/* Make them; remove what is in them; and themselves. */
extern void folders_make (void);
extern void folders_empty (void);
extern void folders_remove (void);

/* Of the names that were changed since their folder was flushed, the last ones
 * are what they were before; the others, and all of a machine that has not
 * lost power, stay.
 */
extern void folder_lose (uint64_t seed);

/* Keep what is on the media, after a power loss or not. */
extern void keep_media (bool lose);

/* Files have the lengths of their media, which tells them from new ones. */
extern void adjust_files (void);

#endif /* BLOCKDRIVERS_CHAOS_PAIR_H */
