/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Encoding, decoding and checking the sectors of a write log. */

#include <config.h>

#include <string.h>

#include "utils/byteorder.h"
#include "writelog/format.h"
#include "utils/iszero.h"
#include "utils/rounding.h"

#define LOG_MAGIC UINT64_C (0x6a736677736872)
#define LOG_VERSION 1

static const char note_magic[8] = {
  'n', 'b', 'd', 'k', 'i', 't', 'w', 'l'
};

/* Where the fields stand: in the super block, in an entry. */
enum { MAGIC = 0, FORMAT_VERSION = 8, NR_ENTRIES = 16, SECTOR_SIZE = 24 };
enum { NOTE_MAGIC = 256, NOTE_DISK_SIZE = 264, NOTE_SECTOR_SIZE = 512 };
enum { SECTOR = 0, NR_SECTORS = 8, FLAGS = 16, DATA_LEN = 24 };

void
writelog_super_encode (const struct writelog_super *super, uint8_t *buf,
                       size_t len)
{
  put_le64 (buf + MAGIC, LOG_MAGIC);
  put_le64 (buf + FORMAT_VERSION, LOG_VERSION);
  put_le64 (buf + NR_ENTRIES, super->nr_entries);
  put_le32 (buf + SECTOR_SIZE, super->sector_size);
  if (len >= WRITELOG_NOTED_LEN && super->disk_size > 0) {
    memcpy (buf + NOTE_MAGIC, note_magic, sizeof note_magic);
    put_le64 (buf + NOTE_DISK_SIZE, super->disk_size);
  }
}

/* The disk's size, if it is noted: in small sectors entries stand there. */
static uint64_t
noted_disk_size (const uint8_t *buf, size_t len, uint32_t sector_size)
{
  if (len < WRITELOG_NOTED_LEN || sector_size < NOTE_SECTOR_SIZE ||
      memcmp (buf + NOTE_MAGIC, note_magic, sizeof note_magic) != 0)
    return 0;
  return get_le64 (buf + NOTE_DISK_SIZE);
}

enum writelog_super_kind
writelog_super_decode (const uint8_t *buf, size_t len,
                       struct writelog_super *super, const char **why)
{
  if (is_zero (buf, len))
    return WRITELOG_SUPER_EMPTY;

  *why = NULL;
  if (len < WRITELOG_SUPER_LEN)
    *why = "it is too short for a super block";
  else if (get_le64 (buf + MAGIC) != LOG_MAGIC)
    *why = "the magic number is wrong";
  else if (get_le64 (buf + FORMAT_VERSION) != LOG_VERSION)
    *why = "the version is not 1";
  else {
    super->nr_entries = get_le64 (buf + NR_ENTRIES);
    super->sector_size = get_le32 (buf + SECTOR_SIZE);
    super->disk_size = noted_disk_size (buf, len, super->sector_size);
    if (!is_power_of_2 (super->sector_size) ||
        super->sector_size < WRITELOG_MIN_SECTOR_SIZE ||
        super->sector_size > WRITELOG_MAX_SECTOR_SIZE)
      *why = "the sector size is no power of two from 32 to 8388608";
  }
  return *why ? WRITELOG_SUPER_BAD : WRITELOG_SUPER_OK;
}

void
writelog_entry_encode (const struct writelog_entry *entry, uint8_t *buf)
{
  put_le64 (buf + SECTOR, entry->sector);
  put_le64 (buf + NR_SECTORS, entry->nr_sectors);
  put_le64 (buf + FLAGS, entry->flags);
  put_le64 (buf + DATA_LEN, entry->data_len);
}

void
writelog_entry_decode (const uint8_t *buf, struct writelog_entry *entry)
{
  entry->sector = get_le64 (buf + SECTOR);
  entry->nr_sectors = get_le64 (buf + NR_SECTORS);
  entry->flags = get_le64 (buf + FLAGS);
  entry->data_len = get_le64 (buf + DATA_LEN);
}

const char *
writelog_entry_problem (const struct writelog_entry *entry,
                        uint32_t sector_size)
{
  const uint64_t max_sectors = (UINT64_C (1) << 63) / sector_size;

  if ((entry->sector | entry->nr_sectors | entry->flags |
       entry->data_len) == 0)
    return "nothing has been written there";
  if (entry->flags & ~(uint64_t) WRITELOG_KNOWN_FLAGS)
    return "unknown flags";
  if (entry->flags & WRITELOG_MARK) {
    if (entry->nr_sectors != 0)
      return "a mark with data";
    if (entry->data_len > writelog_max_mark (sector_size))
      return "a mark whose text does not fit in its sector";
  }
  if (entry->sector > max_sectors ||
      entry->nr_sectors > max_sectors - entry->sector)
    return "a range of sectors that goes beyond 2^63 bytes";
  return NULL;
}

uint64_t
writelog_data_sectors (const struct writelog_entry *entry)
{
  return entry->flags & WRITELOG_DISCARD ? 0 : entry->nr_sectors;
}

size_t
writelog_max_mark (uint32_t sector_size)
{
  return sector_size - WRITELOG_ENTRY_LEN;
}

const char *
writelog_flag_name (uint64_t flag)
{
  switch (flag) {
  case WRITELOG_FLUSH: return "flush";
  case WRITELOG_FUA: return "fua";
  case WRITELOG_DISCARD: return "discard";
  case WRITELOG_MARK: return "mark";
  case WRITELOG_METADATA: return "metadata";
  default: return NULL;
  }
}
