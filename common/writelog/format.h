/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The write-log format on disk: this is the only place that knows an
 * offset in a sector of the log.  Specification: write-log.md, "On
 * disk".
 */

#ifndef BLOCKDRIVERS_WRITELOG_FORMAT_H
#define BLOCKDRIVERS_WRITELOG_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WRITELOG_SUPER_LEN 28   /* bytes; the rest of sector 0 is zero, but
                                   for our note in sectors of 512 and up */
#define WRITELOG_NOTED_LEN 416  /* bytes, with the note */
#define WRITELOG_MAX_PLACES 8
#define WRITELOG_ENTRY_LEN 32   /* bytes; the rest of the sector is zero,
                                   or a mark's text */

/* Sector sizes of logs that exist, and of those that we make. */
#define WRITELOG_MIN_SECTOR_SIZE 32
#define WRITELOG_MAX_SECTOR_SIZE (8 * 1024 * 1024)
#define WRITELOG_DEFAULT_SECTOR_SIZE 512

enum {
  WRITELOG_FLUSH = 1,
  WRITELOG_FUA = 2,
  WRITELOG_DISCARD = 4,
  WRITELOG_MARK = 8,
  WRITELOG_METADATA = 16,
  WRITELOG_KNOWN_FLAGS = 31
};

/* What a sector of the disk had before the log's first entry. */
struct writelog_place {
  uint64_t sector;
  uint64_t hash;                /* writelog_hash; behind the end of the disk
                                   are zeroes */
};

struct writelog_super {
  uint64_t nr_entries;          /* complete entries in the log */
  uint32_t sector_size;         /* bytes, power of two */

  /* Our note on the disk; all zero in logs of others. */
  uint64_t disk_size;           /* bytes; 0: not noted */
  bool ended;                   /* its writer has come to its end, with all
                                   that it did to the disk in the log */
  unsigned nr_places;
  struct writelog_place places[WRITELOG_MAX_PLACES];
};

/* An entry, in host byte order; sectors are the log's. */
struct writelog_entry {
  uint64_t sector;              /* of the disk */
  uint64_t nr_sectors;          /* of the disk; 0 for marks and bare
                                   flushes */
  uint64_t flags;
  uint64_t data_len;            /* bytes of a mark's text; otherwise other
                                   writers store what they like, we 0 */
};

/* buf has len bytes of zeroes, at least WRITELOG_SUPER_LEN, and at most a
 * sector.  The note is written if there is room.
 */
extern void writelog_super_encode (const struct writelog_super *super,
                                   uint8_t *buf, size_t len);

enum writelog_super_kind {
  WRITELOG_SUPER_OK,
  WRITELOG_SUPER_EMPTY,         /* all zero: no log has been started */
  WRITELOG_SUPER_BAD            /* not a log of ours, or damaged */
};

/* Decode the first len bytes of a log, at least WRITELOG_SUPER_LEN
 * (less is BAD), and WRITELOG_NOTED_LEN to find the note.  When it is BAD,
 * *why is set to a string constant, as "the magic number is wrong".
 */
extern enum writelog_super_kind
writelog_super_decode (const uint8_t *buf, size_t len,
                       struct writelog_super *super, const char **why);

/* buf has WRITELOG_ENTRY_LEN bytes.  Decoding checks nothing. */
extern void writelog_entry_encode (const struct writelog_entry *entry,
                                   uint8_t *buf);
extern void writelog_entry_decode (const uint8_t *buf,
                                   struct writelog_entry *entry);

/* Does an entry keep the rules: known flags, a range that has byte
 * offsets below 2^63 (it may end there, since the last sector of a disk of
 * 2^63 - 1 bytes is padded), a mark whose text fits in its sector and that
 * has no data?  Returns NULL, or a string constant that says what is wrong.
 *
 * All zeroes is no entry either: it would say that nothing happened, and
 * is what one finds where a log was counted further than it was written,
 * or in the holes of a sparse file.
 */
extern const char *writelog_entry_problem (const struct writelog_entry *entry,
                                           uint32_t sector_size);

/* Sectors of data that follow the entry's own sector.  The entry must
 * have been found without a problem.
 */
extern uint64_t writelog_data_sectors (const struct writelog_entry *entry);

/* FNV-1a.  What is hashed has not been chosen to collide. */
extern uint64_t writelog_hash (const void *data, size_t len);

/* The longest text of a mark, in bytes. */
extern size_t writelog_max_mark (uint32_t sector_size);

/* The name of a single flag, in lower case as users see it; NULL if the
 * bit is unknown.
 */
extern const char *writelog_flag_name (uint64_t flag);

#endif /* BLOCKDRIVERS_WRITELOG_FORMAT_H */
