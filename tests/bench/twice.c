/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A filter for the benches, which writes with each piece of data
 *
 * - twice=NAME: the same once more, behind a sector, at the end of a file:
 *   no log can do less (bench/blklogwrites.sh);
 * - table=NAME: 4 KiB that stand for a table with 8 bytes for each 64 KiB of
 *   the disk: no image that keeps its table in the file when it acknowledges
 *   a write to a new cluster can do much less (bench/qed.sh).
 *
 * It keeps no order, holds nothing back, knows nothing of failures.
 */

#include <config.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#define SECTOR 512
#define SLICE 4096

static int fd = -1;
static bool table;
static atomic_ullong end;

static int
twice_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
              const char *key, const char *value)
{
  table = strcmp (key, "table") == 0;
  if (!table && strcmp (key, "twice") != 0)
    return next (nxdata, key, value);
  fd = open (value, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd == -1)
    nbdkit_error ("%s: %m", value);
  return fd == -1 ? -1 : 0;
}

static int
write_log (const void *buf, uint32_t count)
{
  static char sector[SECTOR];
  const struct iovec iov[] = {
    { .iov_base = sector, .iov_len = SECTOR },
    { .iov_base = (void *) buf, .iov_len = count }
  };
  const ssize_t both = SECTOR + (ssize_t) count;

  return pwritev (fd, iov, 2, atomic_fetch_add (&end, both)) == both ? 0 : -1;
}

static int
write_table (uint64_t offset)
{
  static const char slice[SLICE];
  const uint64_t entry = offset / 65536 * 8;

  return pwrite (fd, slice, SLICE, entry - entry % SLICE) == SLICE ? 0 : -1;
}

static int
twice_pwrite (nbdkit_next *next, void *handle, const void *buf,
              uint32_t count, uint64_t offset, uint32_t flags, int *err)
{
  if (next->pwrite (next, buf, count, offset, flags, err) == -1)
    return -1;
  return table ? write_table (offset) : write_log (buf, count);
}

static struct nbdkit_filter filter = {
  .name = "twice",
  .longname = "writes something with all data",
  .config = twice_config,
  .pwrite = twice_pwrite,
};

NBDKIT_REGISTER_FILTER (filter)
