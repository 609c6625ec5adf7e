/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Opening nodes by name, and what all drivers have in common: bounds,
 * and answers for what a driver lacks.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

/* Zeroes are written out in pieces of this size. */
#define ZERO_PIECE ((uint64_t) 1024 * 1024)

struct node *
node_open (const char *name, const struct node_open_options *options)
{
  struct node *n = node_is_uri (name) ? nbd_node_open (name, options)
                                      : file_node_open (name, options);

  if (n) {
    n->sync = options->cache == NODE_CACHE_WRITETHROUGH ||
      options->cache == NODE_CACHE_DIRECTSYNC;
    n->no_flush = options->cache == NODE_CACHE_UNSAFE;
  }
  return n;
}

int
node_start (struct node *n)
{
  return n->ops->start ? n->ops->start (n) : 0;
}

int
node_close (struct node *n)
{
  return n ? n->ops->close (n) : 0;
}

static int
check_bounds (const struct node *n, const char *what, uint64_t count,
              uint64_t offset)
{
  const uint64_t size = node_size (n);

  if (offset <= size && count <= size - offset)
    return 0;
  errno = EIO;
  msg_error ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 " goes beyond "
             "the end at %" PRIu64, n->name, what, count, offset, size);
  return -1;
}

static int
check_writable (const struct node *n, const char *what, uint64_t offset)
{
  if (!n->read_only)
    return 0;
  errno = EROFS;
  msg_error ("%s: %s at offset %" PRIu64 ": opened read-only",
             n->name, what, offset);
  return -1;
}

/* One after the other where a failure stays: of two at the same time one may
 * lose what was written and fail, and the other finds nothing left to do.
 */
static int
flush (struct node *n)
{
  int err, r;

  if (!n->keeps_flush_error)
    return n->ops->flush (n);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->flush_lock);
  err = atomic_load (&n->flush_errno);
  if (err) {
    errno = err;
    msg_error ("%s: flush: an earlier flush failed and data may have been "
               "lost; mend the cause and open the image again: %m", n->name);
    return -1;
  }
  r = n->ops->flush (n);
  if (r == -1)
    atomic_store (&n->flush_errno, errno ? errno : EIO);
  return r;
}

/* What a change returned; make it durable if each one is to be. */
static int
settle (struct node *n, int r)
{
  return r == 0 && n->sync ? flush (n) : r;
}

int
node_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  if (check_bounds (n, "read", count, offset) == -1)
    return -1;
  return n->ops->pread (n, buf, count, offset);
}

int
node_pread_padded (struct node *n, void *buf, size_t count, uint64_t offset)
{
  const uint64_t size = n ? node_size (n) : 0;
  const size_t there =
    offset < size ? MIN (size - offset, (uint64_t) count) : 0;

  memset ((char *) buf + there, 0, count - there);
  return there ? node_pread (n, buf, there, offset) : 0;
}

int
node_pwrite (struct node *n, const void *buf, size_t count, uint64_t offset)
{
  const struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  return node_pwritev (n, &iov, 1, offset);
}

int
node_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
              uint64_t offset)
{
  size_t count = 0;

  for (int i = 0; i < iovcnt; ++i)
    count += iov[i].iov_len;
  if (check_writable (n, "write", offset) == -1 ||
      check_bounds (n, "write", count, offset) == -1)
    return -1;
  return settle (n, n->ops->pwritev (n, iov, iovcnt, count, offset));
}

int
node_pwrite_flags (struct node *n, const void *buf, size_t count,
                   uint64_t offset, unsigned flags)
{
  const struct iovec iov = { .iov_base = (void *) buf, .iov_len = count };

  if (!(flags & NODE_FUA))
    return node_pwritev (n, &iov, 1, offset);
  if (n->ops->pwritev_fua == NULL)
    return node_pwritev (n, &iov, 1, offset) == -1 ? -1 : node_flush (n);
  if (check_writable (n, "write", offset) == -1 ||
      check_bounds (n, "write", count, offset) == -1)
    return -1;
  return n->ops->pwritev_fua (n, &iov, 1, count, offset);
}

int
node_pwrite_many (struct node *n, const struct node_write *writes, size_t nr)
{
  for (size_t i = 0; i < nr; ++i) {
    if (n->ops->pwrite_many == NULL) {
      if (node_pwrite (n, writes[i].buf, writes[i].count,
                       writes[i].offset) == -1)
        return -1;
    }
    else if (check_writable (n, "write", writes[i].offset) == -1 ||
             check_bounds (n, "write", writes[i].count,
                           writes[i].offset) == -1)
      return -1;
  }
  return n->ops->pwrite_many
    ? settle (n, n->ops->pwrite_many (n, writes, nr)) : 0;
}

static int
write_zeroes (struct node *n, uint64_t count, uint64_t offset)
{
  CLEANUP_FREE char *zeroes = calloc (1, MIN (count, ZERO_PIECE));

  if (zeroes == NULL) {
    msg_error ("%s: zeroing at offset %" PRIu64 ": %m", n->name, offset);
    return -1;
  }
  while (count > 0) {
    const size_t len = MIN (count, ZERO_PIECE);

    if (node_pwrite (n, zeroes, len, offset) == -1)
      return -1;
    count -= len;
    offset += len;
  }
  return 0;
}

/* Zeroes, durable if that is asked for and the driver can do it. */
static int
zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  if (n->ops->zero) {
    if (n->ops->zero (n, count, offset, flags) == 0)
      return settle (n, 0);
    if (errno != ENOTSUP)
      return -1;
  }
  if (flags & NODE_FAST) {
    errno = ENOTSUP;
    return -1;
  }
  if (write_zeroes (n, count, offset) == -1)
    return -1;
  return flags & NODE_FUA ? node_flush (n) : 0;
}

int
node_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  if (check_writable (n, "zero", offset) == -1 ||
      check_bounds (n, "zero", count, offset) == -1)
    return -1;
  if (!(flags & NODE_FUA) || n->ops->pwritev_fua)
    return zero (n, count, offset, flags);
  if (zero (n, count, offset, flags & ~NODE_FUA) == -1)
    return -1;
  return node_flush (n);
}

int
node_discard (struct node *n, uint64_t count, uint64_t offset)
{
  if (check_writable (n, "discard", offset) == -1 ||
      check_bounds (n, "discard", count, offset) == -1)
    return -1;
  return n->ops->discard ? n->ops->discard (n, count, offset) : 0;
}

int
node_flush (struct node *n)
{
  return n->read_only || n->no_flush ? 0 : flush (n);
}

int
node_extents (struct node *n, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  if (check_bounds (n, "block status", count, offset) == -1)
    return -1;
  return n->ops->extents (n, count, offset, ret);
}

int
node_zeroes (struct node *n, uint64_t count, uint64_t offset,
             uint64_t *length)
{
  struct extent e;

  if (n->ops->zeroes) {
    if (check_bounds (n, "block status", count, offset) == -1)
      return -1;
    return n->ops->zeroes (n, count, offset, length);
  }
  if (node_extents (n, count, offset, &e) == -1)
    return -1;
  *length = e.flags & EXTENT_ZERO ? e.length : 0;
  return 0;
}

int
node_cache (struct node *n, uint64_t count, uint64_t offset)
{
  if (check_bounds (n, "cache", count, offset) == -1)
    return -1;
  return n->ops->cache ? n->ops->cache (n, count, offset) : 0;
}

int
node_resize (struct node *n, uint64_t size)
{
  if (n->ops->resize == NULL) {
    errno = ENOTSUP;
    return -1;
  }
  if (check_writable (n, "resize", size) == -1)
    return -1;
  return settle (n, n->ops->resize (n, size));
}

int64_t
node_allocated_size (struct node *n)
{
  if (n->ops->allocated_size == NULL)
    return -1;
  return n->ops->allocated_size (n);
}

void
node_cut (struct node *n)
{
  if (n->ops->cut)
    n->ops->cut (n);
}

bool
node_is_lost (struct node *n, char *cause, size_t size)
{
  return n->ops->is_lost && n->ops->is_lost (n, cause, size);
}
