/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See export.h. */

#include <config.h>

#include <errno.h>

/* Filters have the same flags, and functions for extents. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "module/export.h"
#include "node/node.h"

/* Extents that one reply is made of at most. */
#define MAX_EXTENTS 4096

int64_t
export_get_size (void *handle)
{
  return node_size (handle);
}

int
export_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
  const struct node *n = handle;

  *minimum = 1;
  *preferred = n->preferred;
  *maximum = UINT32_MAX;
  return 0;
}

int
export_can_write (void *handle)
{
  const struct node *n = handle;

  return !n->read_only;
}

int
export_can_fua (void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

/* What cannot be read ahead is read once by nbdkit itself. */
int
export_can_cache (void *handle)
{
  const struct node *n = handle;

  return n->ops->cache ? NBDKIT_CACHE_NATIVE : NBDKIT_CACHE_EMULATE;
}

int
export_yes (void *handle)
{
  return 1;
}

/* The end of each request.  nbdkit insists on an error number, and on
 * one other than ENOTSUP unless the request was a fast zero.
 */
static int
finish (int r, uint32_t flags)
{
  if (r == -1 &&
      (errno == 0 ||
       (errno == ENOTSUP && !(flags & NBDKIT_FLAG_FAST_ZERO))))
    errno = EIO;
  return r;
}

int
export_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  return finish (node_pread (handle, buf, count, offset), flags);
}

static unsigned
from_nbdkit_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? NODE_FUA : 0) |
    (flags & NBDKIT_FLAG_MAY_TRIM ? NODE_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? NODE_FAST : 0);
}

int
export_pwrite (void *handle, const void *buf, uint32_t count,
               uint64_t offset, uint32_t flags)
{
  return finish (node_pwrite_flags (handle, buf, count, offset,
                                    from_nbdkit_flags (flags)), flags);
}

int
export_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return finish (node_zero (handle, count, offset, from_nbdkit_flags (flags)),
                 flags);
}

int
export_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  int r = node_discard (handle, count, offset);

  if (r == 0 && (flags & NBDKIT_FLAG_FUA))
    r = node_flush (handle);
  return finish (r, flags);
}

int
export_flush (void *handle, uint32_t flags)
{
  return finish (node_flush (handle), flags);
}

int
export_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  return finish (node_cache (handle, count, offset), flags);
}

/* At least one extent, unless it fails. */
int
export_extents (void *handle, uint32_t count, uint64_t offset,
                uint32_t flags, struct nbdkit_extents *extents)
{
  const uint64_t end = offset + count;

  for (unsigned i = 0; offset < end && i < MAX_EXTENTS; ++i) {
    struct extent e;
    uint32_t type = 0;

    if (node_extents (handle, end - offset, offset, &e) == -1)
      return i > 0 ? 0 : finish (-1, flags);
    if (e.flags & EXTENT_ZERO)
      type |= NBDKIT_EXTENT_ZERO;
    if (e.flags & EXTENT_HOLE)
      type |= NBDKIT_EXTENT_HOLE;
    if (nbdkit_add_extent (extents, offset, e.length, type) == -1)
      return finish (-1, flags);
    if (flags & NBDKIT_FLAG_REQ_ONE)
      break;
    offset += e.length;
  }
  return 0;
}
