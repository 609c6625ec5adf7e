/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The callbacks of a connection.  The handle is the node of the export,
 * and next is always NULL: no connection opens the layer below.
 */

#include <config.h>

#include <errno.h>

#include "module/export.h"
#include "filters/replication/requests.h"

int64_t
request_get_size (nbdkit_next *next, void *handle)
{
  return export_get_size (handle);
}

int
request_block_size (nbdkit_next *next, void *handle, uint32_t *minimum,
                    uint32_t *preferred, uint32_t *maximum)
{
  return export_block_size (handle, minimum, preferred, maximum);
}

int
request_can_write (nbdkit_next *next, void *handle)
{
  return export_can_write (handle);
}

int
request_can_zero (nbdkit_next *next, void *handle)
{
  return NBDKIT_ZERO_NATIVE;
}

int
request_can_fua (nbdkit_next *next, void *handle)
{
  return export_can_fua (handle);
}

int
request_can_cache (nbdkit_next *next, void *handle)
{
  return export_can_cache (handle);
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

/* nbdkit wants a filter's error number in *err. */
static int
finish (int r, int *err)
{
  if (r == -1)
    *err = errno;
  return r;
}

int
request_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  return finish (export_pread (handle, buf, count, offset, flags), err);
}

int
request_pwrite (nbdkit_next *next, void *handle, const void *buf,
                uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  return finish (export_pwrite (handle, buf, count, offset, flags), err);
}

int
request_flush (nbdkit_next *next, void *handle, uint32_t flags, int *err)
{
  return finish (export_flush (handle, flags), err);
}

int
request_trim (nbdkit_next *next, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  return finish (export_trim (handle, count, offset, flags), err);
}

int
request_zero (nbdkit_next *next, void *handle, uint32_t count,
              uint64_t offset, uint32_t flags, int *err)
{
  return finish (export_zero (handle, count, offset, flags), err);
}

int
request_extents (nbdkit_next *next, void *handle, uint32_t count,
                 uint64_t offset, uint32_t flags,
                 struct nbdkit_extents *extents, int *err)
{
  return finish (export_extents (handle, count, offset, flags, extents), err);
}

int
request_cache (nbdkit_next *next, void *handle, uint32_t count,
               uint64_t offset, uint32_t flags, int *err)
{
  return finish (export_cache (handle, count, offset, flags), err);
}
