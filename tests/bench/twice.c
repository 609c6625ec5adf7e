/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A filter for bench/blklogwrites.sh: writes each piece of data a second
 * time, behind a sector, to the file twice=NAME.  It keeps no order, holds
 * nothing back, knows nothing of failures: no log can do less.
 */

#include <config.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#define SECTOR 512

static int fd = -1;
static atomic_ullong end;

static int
twice_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
              const char *key, const char *value)
{
  if (strcmp (key, "twice") != 0)
    return next (nxdata, key, value);
  fd = open (value, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd == -1)
    nbdkit_error ("%s: %m", value);
  return fd == -1 ? -1 : 0;
}

static int
twice_pwrite (nbdkit_next *next, void *handle, const void *buf,
              uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  static char sector[SECTOR];
  const struct iovec iov[] = {
    { .iov_base = sector, .iov_len = SECTOR },
    { .iov_base = (void *) buf, .iov_len = count }
  };
  const ssize_t both = SECTOR + (ssize_t) count;

  if (next->pwrite (next, buf, count, offset, flags, err) == -1)
    return -1;
  return pwritev (fd, iov, 2, atomic_fetch_add (&end, both)) == both ? 0 : -1;
}

static struct nbdkit_filter filter = {
  .name = "twice",
  .longname = "writes all data twice",
  .config = twice_config,
  .pwrite = twice_pwrite,
};

NBDKIT_REGISTER_FILTER (filter)
