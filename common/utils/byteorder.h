/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fields of on-disk structures, which may stand at any address: in
 * little-endian order, as ours are, or big-endian, as some of others.
 */

#ifndef BLOCKDRIVERS_BYTEORDER_H
#define BLOCKDRIVERS_BYTEORDER_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t
get_le32 (const uint8_t *p)
{
  uint32_t le;

  memcpy (&le, p, sizeof le);
  return le32toh (le);
}

static inline uint64_t
get_le64 (const uint8_t *p)
{
  uint64_t le;

  memcpy (&le, p, sizeof le);
  return le64toh (le);
}

static inline uint64_t
get_be64 (const uint8_t *p)
{
  uint64_t be;

  memcpy (&be, p, sizeof be);
  return be64toh (be);
}

static inline void
put_le32 (uint8_t *p, uint32_t value)
{
  const uint32_t le = htole32 (value);

  memcpy (p, &le, sizeof le);
}

static inline void
put_le64 (uint8_t *p, uint64_t value)
{
  const uint64_t le = htole64 (value);

  memcpy (p, &le, sizeof le);
}

#endif /* BLOCKDRIVERS_BYTEORDER_H */
