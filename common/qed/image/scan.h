/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reading all tables of an image: which clusters are in use, where the
 * last one ends, and what is wrong.  Every open begins with it, so what
 * is served is known to be consistent; the check is made from it too.
 */

#ifndef BLOCKDRIVERS_QED_SCAN_H
#define BLOCKDRIVERS_QED_SCAN_H

#include "qed/image/image.h"
#include "utils/bitmap.h"

enum finding_kind {
  TABLE_OUTSIDE,                /* an L1 entry that no table can have */
  TABLE_OVERLAPS,               /* an L2 table on clusters of header, L1
                                   or an L2 table found before it */
  TABLE_UNREADABLE,             /* I/O error */
  DATA_OUTSIDE,                 /* an L2 entry that no cluster can have */
  DATA_IN_TABLE,                /* data on clusters of header or tables */
  DATA_SHARED,                  /* a data cluster mapped before */
};

struct finding {
  enum finding_kind kind;
  uint64_t l1_index;
  uint64_t l2_index;            /* only for DATA_... */
  uint64_t entry;               /* what the entry says */
  uint64_t offset, length;      /* of the disk, in bytes: what it maps */
  uint64_t corruptions;         /* as qemu-img counts them */
  bool cut;                     /* ..._OUTSIDE: the file ends within what is
                                   there */
  uint64_t other;               /* DATA_SHARED: offset of the disk that the
                                   cluster is mapped at too, or
                                   SCAN_UNKNOWN */
};

#define SCAN_UNKNOWN UINT64_MAX

/* In place of an L2 index: it is about an L2 table. */
#define SCAN_TABLE UINT64_MAX

struct scan {
  /* In.  found is told what is wrong, unit of each L2 table and data
   * cluster that is right: where it is in the file.  Both may be NULL.
   */
  void (*found) (void *opaque, const struct finding *finding);
  void (*unit) (void *opaque, uint64_t l1_index, uint64_t l2_index,
                uint64_t offset);
  void *opaque;

  /* In: is there anything for this entry at an offset of the file that
   * is good otherwise?  A repair makes copies, which entries that
   * pointed to nothing must not find.  NULL: always.
   */
  bool (*is_there) (void *opaque, uint64_t l1_index, uint64_t l2_index,
                    uint64_t offset, uint64_t bytes);

  /* Out; to be freed with scan_free. */
  struct qed_check_result result;
  struct bitmap used;           /* clusters of the file */
  struct bitmap tables;         /* of these, header and tables */
  struct bitmap contested;      /* of these, claimed by two tables */
  struct bitmap shared;         /* data clusters mapped more than once */
  struct bitmap bad_l1;         /* L1 entries that cannot be used */

  uint64_t previous;            /* data cluster of the table being read */
  uint64_t hole, hole_end;      /* of the file, that was found last */
  uint8_t *buf;                 /* memory for L2 tables */
};

/* Returns -1 after a message if the L1 table cannot be read or memory
 * runs out; everything else is a finding.
 */
extern int scan_image (struct qed *s, struct scan *scan);
extern void scan_free (struct scan *scan);

/* A finding in one line of words; returns buf. */
#define FINDING_LEN 320
extern char *finding_text (const struct finding *f, char buf[FINDING_LEN]);

#endif /* BLOCKDRIVERS_QED_SCAN_H */
