/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a power loss leaves of the entries of a log.  Specification:
 * interfaces.md, "nbdkit-logreplay-plugin", crash/N/SEED and lost/N/SET;
 * cut/N/SEED is the manual's.
 */

#ifndef BLOCKDRIVERS_WRITELOG_LOSS_H
#define BLOCKDRIVERS_WRITELOG_LOSS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/moments/index.h"

/* Sectors of the disk that an entry has lost: start..end. */
struct lost_piece {
  uint64_t entry;
  uint64_t start, end;
};

/* A moment: what has happened to the disk.  It is good for the index that
 * it came from, and is to be freed.
 *
 * The first entries of the log have happened, and of these the first
 * certain ones are there wholly.  Of the others some pieces are lost: if
 * there are seeds those that key, chance and unit choose (loss.c, "Power
 * loss"; FUA writes that were acknowledged are there then), else those that
 * are listed.
 */
struct writelog_moment {
  uint64_t entries, certain;

  bool seeded;
  bool in_flight;               /* the last entry was not acknowledged */
  uint64_t key;
  unsigned chance;              /* of 64 */
  uint64_t unit;                /* sectors that are lost together; 0: all of
                                   an entry */

  bool bare;                    /* only FUA writes and this one are there */
  uint64_t one;                 /* UINT64_MAX: none */

  struct lost_piece *lost;      /* owned; in order, none touches another */
  size_t nr_lost;
};

extern void writelog_moment_free (struct writelog_moment *moment);

/* The least unit in which a power loss takes a part of a write: in sectors
 * of the log, or all of an entry.
 */
#define TEAR_ENTRY 0
#define TEAR_SECTOR 1

/* A power loss between flush n (0: the start) and the one after it, or
 * the end of the log.  The seed chooses one of many; 0 is flush n.  -1 with
 * errno ENOENT, and without a message, if there is no such flush.
 */
extern int writelog_moment_crash (const struct writelog_index *index,
                                  uint64_t n, uint64_t seed, uint64_t tear,
                                  struct writelog_moment *moment);

/* The same with what may also happen: the last entry, if it is a FUA write,
 * and flush n + 1, if it has data, may not have been acknowledged; the data
 * of flush n itself, without FUA, are not covered by it.
 */
extern int writelog_moment_cut (const struct writelog_index *index,
                                uint64_t n, uint64_t seed, uint64_t tear,
                                struct writelog_moment *moment);

/* The first n entries without some pieces, which are copied, in any order.
 * Those that are not inside an entry that can be lost are refused: -1 with
 * errno ENOENT, and *wrong, if it is not NULL, is the entry.
 */
extern int writelog_moment_lost (const struct writelog_index *index,
                                 uint64_t n, const struct lost_piece *lost,
                                 size_t nr, struct writelog_moment *moment,
                                 uint64_t *wrong);

/* Can it be lost: is it a write, zeroes or a discard? */
extern bool writelog_can_lose (const struct writelog_index *index,
                               uint64_t entry);

/* All entries before start, and behind it FUA writes and this one only.
 * There are these entries.
 */
extern struct writelog_moment writelog_moment_only (uint64_t start,
                                                    uint64_t entry);

/* SET of lost/N/SET. */
extern int writelog_lost_parse (const struct writelog_index *index,
                                uint64_t n, const char *set,
                                struct writelog_moment *moment,
                                uint64_t *wrong);

/* The other way round, in the shortest form; to be freed.  NULL with
 * errno ENOMEM.
 */
extern char *writelog_lost_print (const struct writelog_index *index,
                                  const struct lost_piece *lost, size_t nr);

/* All that a moment has lost of its entries, also where later ones are
 * over it.  *lost is to be freed, -1 with errno ENOMEM.
 */
extern int writelog_moment_losses (const struct writelog_index *index,
                                   const struct writelog_moment *moment,
                                   struct lost_piece **lost, size_t *nr);

/* How much of an entry, one of those that are not certain, is there? */
enum presence { ABSENT, PRESENT, IN_PARTS };
extern enum presence moment_presence (const struct writelog_index *index,
                                      const struct writelog_moment *moment,
                                      uint64_t entry);

/* Of one that is absent: from which entry on up to this one are all absent?
 * That is for skipping, and need not be the first.
 */
extern uint64_t moment_absent_from (const struct writelog_index *index,
                                    const struct writelog_moment *moment,
                                    uint64_t entry);

/* Of one that is there in parts: this sector of the disk? */
extern bool moment_has (const struct writelog_index *index,
                        const struct writelog_moment *moment,
                        uint64_t entry, uint64_t sector);

#endif /* BLOCKDRIVERS_WRITELOG_LOSS_H */
