/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Lookups: where the bytes of the disk are. */

#ifndef BLOCKDRIVERS_QED_MAP_H
#define BLOCKDRIVERS_QED_MAP_H

#include "qed/image/image.h"
#include "utils/bitmap.h"

/* What a scan has found wrong: what lookups must not follow. */
struct damage {
  struct bitmap tables;         /* clusters of header and tables */
  struct bitmap shared;         /* data clusters mapped more than once */
  struct bitmap l1;             /* L1 entries that cannot be used */

  pthread_mutex_t lock;         /* protects reported; a leaf lock */
  struct bitmap reported;       /* entries told of already */
};

extern void damage_free (struct damage *d); /* NULL is ignored */

enum map_kind { MAP_UNALLOCATED, MAP_ZERO, MAP_DATA };

/* A run of bytes of the disk with one kind of mapping in this layer;
 * for data, one after the other in the file.
 */
struct mapping {
  enum map_kind kind;
  uint64_t length;              /* bytes, at least 1 */
  uint64_t file_offset;         /* only for data */
};

/* Look up the run that begins at offset, at most count bytes of it.
 * Fails with EIO, after a message the first time, if the mapping of the
 * first byte is damaged.
 */
extern int qed_map (struct qed *s, uint64_t count, uint64_t offset,
                    struct mapping *m);

#endif /* BLOCKDRIVERS_QED_MAP_H */
