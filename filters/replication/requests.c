/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The callbacks of a connection.  The handle is the node of the export,
 * and next is always NULL: no connection opens the layer below.
 */

#include <config.h>

#include <errno.h>

#include "module/module.h"
#include "node/node.h"
#include "filters/replication/requests.h"

int64_t
request_get_size (nbdkit_next *next, void *handle)
{
  return node_size (handle);
}

int
request_block_size (nbdkit_next *next, void *handle, uint32_t *minimum,
                    uint32_t *preferred, uint32_t *maximum)
{
  const struct node *n = handle;

  *minimum = 1;
  *preferred = n->preferred;
  *maximum = UINT32_MAX;
  return 0;
}

int
request_can_write (nbdkit_next *next, void *handle)
{
  const struct node *n = handle;

  return !n->read_only;
}

int
request_can_zero (nbdkit_next *next, void *handle)
{
  return NBDKIT_ZERO_NATIVE;
}

int
request_can_fua (nbdkit_next *next, void *handle)
{
  return NBDKIT_FUA_NATIVE;
}

int
request_can_cache (nbdkit_next *next, void *handle)
{
  return NBDKIT_CACHE_NATIVE;
}

int
request_yes (nbdkit_next *next, void *handle)
{
  return 1;
}

int
request_no (nbdkit_next *next, void *handle)
{
  return 0;
}

/* The end of each request.  nbdkit insists on an error number, and on
 * one other than ENOTSUP unless the request was a fast zero.
 */
static int
finish (int r, uint32_t flags, int *err)
{
  if (r == -1) {
    *err = errno;
    if (*err == 0 ||
        (*err == ENOTSUP && !(flags & NBDKIT_FLAG_FAST_ZERO)))
      *err = EIO;
  }
  return r;
}

/* The same for one that changes something. */
static int
finish_write (int r, struct node *n, uint32_t flags, int *err)
{
  if (r == 0 && (flags & NBDKIT_FLAG_FUA))
    r = node_flush (n);
  return finish (r, flags, err);
}

int
request_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  return finish (node_pread (handle, buf, count, offset), flags, err);
}

int
request_pwrite (nbdkit_next *next, void *handle, const void *buf,
                uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  return finish_write (node_pwrite (handle, buf, count, offset), handle,
                       flags, err);
}

int
request_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  return finish (node_flush (handle), flags, err);
}

int
request_trim (nbdkit_next *next, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  return finish_write (node_discard (handle, count, offset), handle, flags,
                       err);
}

int
request_zero (nbdkit_next *next, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  const unsigned node_flags =
    (flags & NBDKIT_FLAG_MAY_TRIM ? NODE_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? NODE_FAST : 0);

  return finish_write (node_zero (handle, count, offset, node_flags), handle,
                       flags, err);
}

int
request_extents (nbdkit_next *next, void *handle, uint32_t count,
                 uint64_t offset, uint32_t flags,
                 struct nbdkit_extents *extents, int *err)
{
  return finish (module_add_extents (extents, handle, count, offset, flags),
                 flags, err);
}

int
request_cache (nbdkit_next *next, void *handle, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  return finish (node_cache (handle, count, offset), flags, err);
}
