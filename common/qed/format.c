/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Encoding, decoding and checking the header of a QED image. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "utils/byteorder.h"
#include "qed/format.h"
#include "utils/message.h"
#include "utils/rounding.h"

static const uint8_t magic[4] = { 'Q', 'E', 'D', 0 };

/* Where the fields stand. */
enum {
  MAGIC = 0, CLUSTER_SIZE = 4, TABLE_SIZE = 8, HEADER_SIZE = 12,
  FEATURES = 16, COMPAT_FEATURES = 24, AUTOCLEAR_FEATURES = 32,
  L1_TABLE_OFFSET = 40, IMAGE_SIZE = 48,
  BACKING_OFFSET = 56, BACKING_LEN = 60
};

void
qed_header_encode (const struct qed_header *header,
                   uint8_t buf[QED_HEADER_LEN])
{
  memcpy (buf + MAGIC, magic, sizeof magic);
  put_le32 (buf + CLUSTER_SIZE, header->cluster_size);
  put_le32 (buf + TABLE_SIZE, header->table_size);
  put_le32 (buf + HEADER_SIZE, header->header_size);
  put_le64 (buf + FEATURES, header->features);
  put_le64 (buf + COMPAT_FEATURES, header->compat_features);
  put_le64 (buf + AUTOCLEAR_FEATURES, header->autoclear_features);
  put_le64 (buf + L1_TABLE_OFFSET, header->l1_table_offset);
  put_le64 (buf + IMAGE_SIZE, header->image_size);
  put_le32 (buf + BACKING_OFFSET, header->backing_offset);
  put_le32 (buf + BACKING_LEN, header->backing_len);
}

bool
qed_has_magic (const uint8_t *buf, size_t len)
{
  return len >= sizeof magic && memcmp (buf, magic, sizeof magic) == 0;
}

bool
qed_is_feature_bit (unsigned bit)
{
  return bit >= FEATURES * 8 && bit < L1_TABLE_OFFSET * 8;
}

bool
qed_is_l1_offset_bit (unsigned bit)
{
  return bit >= L1_TABLE_OFFSET * 8 && bit < IMAGE_SIZE * 8;
}

void
qed_l1_behind_header (uint8_t buf[QED_HEADER_LEN])
{
  put_le64 (buf + L1_TABLE_OFFSET,
            (uint64_t) get_le32 (buf + HEADER_SIZE) *
            get_le32 (buf + CLUSTER_SIZE));
}

bool
qed_cluster_size_ok (uint64_t cluster_size)
{
  return is_power_of_2 (cluster_size) &&
    cluster_size >= QED_MIN_CLUSTER_SIZE &&
    cluster_size <= QED_MAX_CLUSTER_SIZE;
}

bool
qed_table_size_ok (uint64_t table_size)
{
  return is_power_of_2 (table_size) && table_size <= QED_MAX_TABLE_SIZE;
}

uint64_t
qed_max_image_size (uint32_t cluster_size, uint32_t table_size)
{
  const unsigned cluster_bits = log_2 (cluster_size);
  const unsigned entry_bits = log_2 (cluster_size) + log_2 (table_size) - 3;
  const unsigned bits = cluster_bits + 2 * entry_bits;

  /* Disks are limited to what fits an off_t. */
  if (bits >= 63)
    return round_down (INT64_MAX, QED_SECTOR);
  return UINT64_C (1) << bits;
}

static int
header_refuse (const char *name, const char *field, uint64_t value,
               const char *rule)
{
  errno = EINVAL;
  if (name)
    msg_error ("Could not open '%s': QED header: %s is %" PRIu64
               ", but %s", name, field, value, rule);
  return -1;
}

static int
check_features (const char *name, const struct qed_header *h)
{
  const uint64_t unknown = h->features & ~(uint64_t) QED_KNOWN_FEATURES;

  if (unknown == 0)
    return 0;
  errno = ENOTSUP;
  if (name)
    msg_error ("Could not open '%s': QED header: features has unknown bits "
               "0x%" PRIx64 ", the image needs a newer program", name,
               unknown);
  return -1;
}

static int
check_backing (const char *name, const struct qed_header *h)
{
  if (!(h->features & QED_BACKING_FILE))
    return 0;
  if (h->backing_len > QED_MAX_BACKING_LEN)
    return header_refuse (name, "backing_filename_size", h->backing_len,
                          "it must be below 4096");
  if ((uint64_t) h->backing_offset + h->backing_len > qed_header_bytes (h))
    return header_refuse (name, "backing_filename_offset", h->backing_offset,
                          "the name must lie inside the header's clusters");
  return 0;
}

int
qed_header_decode (const uint8_t buf[QED_HEADER_LEN], const char *name,
                   struct qed_header *h)
{
  if (!qed_has_magic (buf, QED_HEADER_LEN)) {
    errno = EINVAL;
    if (name)
      msg_error ("Could not open '%s': Image not in QED format", name);
    return -1;
  }

  h->cluster_size = get_le32 (buf + CLUSTER_SIZE);
  h->table_size = get_le32 (buf + TABLE_SIZE);
  h->header_size = get_le32 (buf + HEADER_SIZE);
  h->features = get_le64 (buf + FEATURES);
  h->compat_features = get_le64 (buf + COMPAT_FEATURES);
  h->autoclear_features = get_le64 (buf + AUTOCLEAR_FEATURES);
  h->l1_table_offset = get_le64 (buf + L1_TABLE_OFFSET);
  h->image_size = get_le64 (buf + IMAGE_SIZE);
  h->backing_offset = get_le32 (buf + BACKING_OFFSET);
  h->backing_len = get_le32 (buf + BACKING_LEN);

  if (check_features (name, h) == -1)
    return -1;
  if (!qed_cluster_size_ok (h->cluster_size))
    return header_refuse (name, "cluster_size", h->cluster_size,
                          "it must be a power of two from 4096 to 67108864");
  if (!qed_table_size_ok (h->table_size))
    return header_refuse (name, "table_size", h->table_size,
                          "it must be a power of two from 1 to 16");
  if (h->header_size == 0 || qed_header_bytes (h) > UINT32_MAX)
    return header_refuse (name, "header_size", h->header_size,
                          "header_size times cluster_size must be from 1 to "
                          "4294967295 bytes");
  if (!is_aligned (h->image_size, QED_SECTOR))
    return header_refuse (name, "image_size", h->image_size,
                          "it must be a multiple of 512");
  if (h->image_size > qed_max_image_size (h->cluster_size, h->table_size))
    return header_refuse (name, "image_size", h->image_size,
                          "that is more than tables of this geometry can map");
  if (!is_aligned (h->l1_table_offset, h->cluster_size))
    return header_refuse (name, "l1_table_offset", h->l1_table_offset,
                          "it must be a multiple of cluster_size");
  if (h->l1_table_offset < qed_header_bytes (h))
    return header_refuse (name, "l1_table_offset", h->l1_table_offset,
                          "the table must lie behind the header's clusters");
  return check_backing (name, h);
}
