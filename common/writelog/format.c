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
enum {
  NOTE_MAGIC = 256, NOTE_DISK_SIZE = 264,
  NOTE_ENDED = 272,             /* 1 + nr_entries, or 0: another program that
                                   appends does not know that it has to
                                   change this */
  NOTE_NR_PLACES = 280,
  NOTE_PLACES = 288, PLACE_HASH = 8, PLACE_LEN = 16,
  NOTE_SECTOR_SIZE = 512
};
enum { SECTOR = 0, NR_SECTORS = 8, FLAGS = 16, DATA_LEN = 24 };

static void
encode_note (const struct writelog_super *super, uint8_t *buf)
{
  memcpy (buf + NOTE_MAGIC, note_magic, sizeof note_magic);
  put_le64 (buf + NOTE_DISK_SIZE, super->disk_size);
  put_le64 (buf + NOTE_ENDED, super->ended ? super->nr_entries + 1 : 0);
  put_le32 (buf + NOTE_NR_PLACES, super->nr_places);
  for (unsigned i = 0; i < super->nr_places; ++i) {
    uint8_t *place = buf + NOTE_PLACES + i * PLACE_LEN;

    put_le64 (place, super->places[i].sector);
    put_le64 (place + PLACE_HASH, super->places[i].hash);
  }
}

void
writelog_super_encode (const struct writelog_super *super, uint8_t *buf,
                       size_t len)
{
  put_le64 (buf + MAGIC, LOG_MAGIC);
  put_le64 (buf + FORMAT_VERSION, LOG_VERSION);
  put_le64 (buf + NR_ENTRIES, super->nr_entries);
  put_le32 (buf + SECTOR_SIZE, super->sector_size);
  if (len >= WRITELOG_NOTED_LEN && super->disk_size > 0)
    encode_note (super, buf);
}

/* The note, if there is one: in small sectors entries stand there. */
static void
decode_note (const uint8_t *buf, size_t len, struct writelog_super *super)
{
  super->disk_size = 0;
  super->ended = false;
  super->nr_places = 0;
  if (len < WRITELOG_NOTED_LEN || super->sector_size < NOTE_SECTOR_SIZE ||
      memcmp (buf + NOTE_MAGIC, note_magic, sizeof note_magic) != 0)
    return;
  super->disk_size = get_le64 (buf + NOTE_DISK_SIZE);
  if (super->disk_size > INT64_MAX)
    super->disk_size = 0;
  super->ended = get_le64 (buf + NOTE_ENDED) == super->nr_entries + 1;
  super->nr_places = MIN (get_le32 (buf + NOTE_NR_PLACES),
                          (uint32_t) WRITELOG_MAX_PLACES);
  for (unsigned i = 0; i < super->nr_places; ++i) {
    const uint8_t *place = buf + NOTE_PLACES + i * PLACE_LEN;

    super->places[i].sector = get_le64 (place);
    super->places[i].hash = get_le64 (place + PLACE_HASH);
  }
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
    decode_note (buf, len, super);
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

uint64_t
writelog_hash (const void *data, size_t len)
{
  const uint8_t *p = data;
  uint64_t hash = UINT64_C (0xcbf29ce484222325);

  for (size_t i = 0; i < len; ++i)
    hash = (hash ^ p[i]) * UINT64_C (0x100000001b3);
  return hash;
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
