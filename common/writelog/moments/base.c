/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Comparing a base with the places that a log has noted. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/moments/base.h"
#include "writelog/moments/moments.h"

/* Read a sector of the base, and zeroes behind its end. */
static int
read_sector (struct node *base, uint8_t *buf, uint32_t sector_size,
             uint64_t sector)
{
  const uint64_t size = base ? node_size (base) : 0;
  uint64_t offset, inside = 0;

  if (!__builtin_mul_overflow (sector, (uint64_t) sector_size, &offset) &&
      offset < size)
    inside = MIN (size - offset, (uint64_t) sector_size);
  memset (buf + inside, 0, sector_size - inside);
  return inside > 0 ? node_pread (base, buf, inside, offset) : 0;
}

int
writelog_check_base (const struct writelog_index *index, struct node *base)
{
  const struct writelog_super *super = &index->reader->super;
  const char *log = index->reader->node->name;
  CLEANUP_FREE uint8_t *buf = malloc (super->sector_size);

  if (buf == NULL) {
    msg_error ("%s: %m", log);
    return -1;
  }
  for (unsigned i = 0; i < super->nr_places; ++i) {
    const struct writelog_place *p = &super->places[i];

    if (read_sector (base, buf, super->sector_size, p->sector) == -1)
      return -1;
    if (writelog_hash (buf, super->sector_size) == p->hash)
      continue;
    if (base == NULL) {
      msg_warning ("%s: the disk was not all zeroes before the log began: "
                   "without its base, what no entry has written reads as "
                   "zeroes", log);
      return 0;
    }
    errno = EINVAL;
    msg_error ("%s: this is not what the disk was before the log %s began: "
               "sector %" PRIu64 " was another one then", base->name, log,
               p->sector);
    return -1;
  }
  return 0;
}
