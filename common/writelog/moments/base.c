/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Comparing a base with the places that a log has noted. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "writelog/moments/base.h"
#include "writelog/moments/moments.h"

/* Where a sector begins, in bytes; those that no disk has are behind the end
 * of all.
 */
static uint64_t
offset_of (const struct writelog_super *super, uint64_t sector)
{
  return sector > UINT64_MAX / super->sector_size ? UINT64_MAX
    : sector * super->sector_size;
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

    if (node_pread_padded (base, buf, super->sector_size,
                           offset_of (super, p->sector)) == -1)
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
