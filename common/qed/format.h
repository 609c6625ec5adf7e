/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The QED format on disk: this is the only place that knows an offset
 * in the file.  Specification: qed.md, "On disk".
 */

#ifndef BLOCKDRIVERS_QED_FORMAT_H
#define BLOCKDRIVERS_QED_FORMAT_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "utils/byteorder.h"

#define QED_HEADER_LEN 64       /* bytes */
#define QED_MAX_BACKING_LEN 4095 /* bytes */
#define QED_SECTOR 512          /* bytes; image_size is a multiple */

#define QED_MIN_CLUSTER_SIZE 4096
#define QED_MAX_CLUSTER_SIZE (64 * 1024 * 1024)
#define QED_MAX_TABLE_SIZE 16

/* features */
#define QED_BACKING_FILE 1
#define QED_NEED_CHECK 2
#define QED_BACKING_NO_PROBE 4
#define QED_KNOWN_FEATURES 7
/* compat_features and autoclear_features: none are defined */
#define QED_KNOWN_COMPAT 0
#define QED_KNOWN_AUTOCLEAR 0

/* But this one of autoclear_features is set while a repair of ours is
 * under way, and cleared by whoever does not know it (journal.c).
 */
#define QED_REPAIRING (UINT64_C (1) << 63)

/* The header, in the order of the file, in host byte order. */
struct qed_header {
  uint32_t cluster_size;        /* bytes */
  uint32_t table_size;          /* clusters */
  uint32_t header_size;         /* clusters */
  uint64_t features;
  uint64_t compat_features;
  uint64_t autoclear_features;
  uint64_t l1_table_offset;     /* bytes */
  uint64_t image_size;          /* bytes */
  uint32_t backing_offset;      /* bytes */
  uint32_t backing_len;         /* bytes */
};

extern void qed_header_encode (const struct qed_header *header,
                               uint8_t buf[QED_HEADER_LEN]);

/* Decode and check all rules of the header table that need neither the
 * backing name nor the file's length.  A message names the field; there
 * is none if name is NULL.
 */
extern int qed_header_decode (const uint8_t buf[QED_HEADER_LEN],
                              const char *name, struct qed_header *header);
extern bool qed_has_magic (const uint8_t *buf, size_t len);

/* Which field is this bit of the header in, counted from bit 0 of byte
 * 0: features (all three of them), or l1_table_offset?
 */
extern bool qed_is_feature_bit (unsigned bit);
extern bool qed_is_l1_offset_bit (unsigned bit);

/* In a header on disk, put the L1 table right behind the header. */
extern void qed_l1_behind_header (uint8_t buf[QED_HEADER_LEN]);

/* The rules for a geometry, shared by opening and creating. */
extern bool qed_cluster_size_ok (uint64_t cluster_size);
extern bool qed_table_size_ok (uint64_t table_size);
/* Largest image_size of a geometry, in bytes, rounded down to sectors. */
extern uint64_t qed_max_image_size (uint32_t cluster_size,
                                    uint32_t table_size);

/* An entry of a table.  L1: 0, or the offset of an L2 table.  L2: 0, 1,
 * or the offset of a data cluster.
 */
#define QED_UNALLOCATED 0
#define QED_ZERO 1
#define QED_ENTRY_LEN 8         /* bytes */

static inline uint64_t
qed_entry_get (const uint8_t *table, uint64_t i)
{
  return get_le64 (table + i * QED_ENTRY_LEN);
}

static inline void
qed_entry_put (uint8_t *table, uint64_t i, uint64_t value)
{
  put_le64 (table + i * QED_ENTRY_LEN, value);
}

/* Bytes in a table; entries in a table (a power of two, at least 512). */
static inline uint64_t
qed_table_bytes (const struct qed_header *h)
{
  return (uint64_t) h->table_size * h->cluster_size;
}

static inline uint64_t
qed_table_entries (const struct qed_header *h)
{
  return qed_table_bytes (h) / QED_ENTRY_LEN;
}

/* Bytes of the header's clusters, where regular clusters begin. */
static inline uint64_t
qed_header_bytes (const struct qed_header *h)
{
  return (uint64_t) h->header_size * h->cluster_size;
}

#endif /* BLOCKDRIVERS_QED_FORMAT_H */
