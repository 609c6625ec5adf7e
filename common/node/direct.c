/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See direct.h.  Memory that is not aligned goes through a buffer that
 * is, in pieces.
 */

#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/direct.h"
#include "utils/cleanup.h"
#include "utils/iovec.h"
#include "utils/rounding.h"

#define BOUNCE_SIZE (UINT64_C (1024) * 1024)

static void *
new_bounce (size_t size, uint32_t block)
{
  void *p;
  const int err = posix_memalign (&p, block, size);

  if (err == 0)
    return p;
  errno = err;
  return NULL;
}

static bool
memory_ok (const void *p, size_t size, uint32_t block)
{
  return is_aligned ((uintptr_t) p | size, block);
}

ssize_t
direct_pread (int fd, void *buf, size_t count, uint64_t offset,
              uint32_t block)
{
  const size_t len = MIN (round_up (count, block), BOUNCE_SIZE);
  CLEANUP_FREE void *bounce = NULL;
  ssize_t r;

  /* The last read ended within a block, so the file did. */
  if (!is_aligned (offset, block))
    return 0;
  if (memory_ok (buf, count, block))
    return pread (fd, buf, count, offset);

  bounce = new_bounce (len, block);
  if (bounce == NULL)
    return -1;
  r = pread (fd, bounce, len, offset);
  if (r > 0) {
    r = MIN ((size_t) r, count);
    memcpy (buf, bounce, r);
  }
  return r;
}

/* Copy bytes out of a vector, from the one behind the first "done". */
static void
gather (uint8_t *buf, size_t len, const struct iovec *iov, size_t done)
{
  struct iov_cursor at = { .iov = iov };

  iov_skip (&at, done);
  iov_copy (&at, buf, len);
}

/* The last block, of which the vector has the first len bytes. */
static ssize_t
write_tail (int fd, uint8_t *bounce, const struct iovec *iov, size_t done,
            size_t len, uint64_t offset, uint32_t block)
{
  ssize_t r;

  memset (bounce, 0, block);
  if (pread (fd, bounce, block, offset) == -1)
    return -1;
  gather (bounce, len, iov, done);
  r = pwrite (fd, bounce, block, offset);
  return r == -1 ? -1 : (ssize_t) MIN ((size_t) r, len);
}

ssize_t
direct_pwritev (int fd, const struct iovec *iov, int iovcnt, size_t done,
                size_t count, uint64_t offset, uint32_t block)
{
  const size_t left = count - done;
  const size_t len = left < block ? block
    : MIN (round_down (left, block), BOUNCE_SIZE);
  CLEANUP_FREE uint8_t *bounce = NULL;
  bool aligned = done == 0;

  for (int i = 0; i < iovcnt && aligned; ++i)
    aligned = memory_ok (iov[i].iov_base, iov[i].iov_len, block);
  if (aligned)
    return pwritev (fd, iov, iovcnt, offset);

  bounce = new_bounce (len, block);
  if (bounce == NULL)
    return -1;
  if (left < block)
    return write_tail (fd, bounce, iov, done, left, offset + done, block);
  gather (bounce, len, iov, done);
  return pwrite (fd, bounce, len, offset + done);
}
