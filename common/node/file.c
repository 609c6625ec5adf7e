/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The node of a local regular file or block device. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/filelimit.h"
#include "utils/iovec.h"
#include "node/direct.h"
#include "node/file.h"
#include "node/lock.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

/* What is read and written of a regular file past the page cache, and the
 * memory for it, is a multiple of this: no file system wants more.
 */
#define DIRECT_BLOCK 4096

/* The name is relative to a folder that may be another one now. */
static void
remove_created (struct file_node *f)
{
  struct stat st;

  if (stat (f->created, &st) == 0 && st.st_dev == f->dev &&
      st.st_ino == f->ino)
    unlink (f->created);
}

static int
file_close (struct node *n)
{
  struct file_node *f = (struct file_node *) n;
  int r = 0;

  if (f->created)               /* while it is locked */
    remove_created (f);
  free (f->created);
  if (f->fd >= 0 && close (f->fd) == -1) {
    msg_error ("%s: close: %m", n->name);
    r = -1;
  }
  pthread_mutex_destroy (&f->length_lock);
  known_data_destroy (&f->known);
  free (n->name);
  free (f);
  return r;
}

static int
file_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct file_node *f = (struct file_node *) n;

  while (count > 0) {
    const ssize_t r = f->direct
      ? direct_pread (f->fd, buf, count, offset, n->align)
      : pread (f->fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1) {
      msg_error ("%s: read of %zu bytes at offset %" PRIu64 ": %m",
                 n->name, count, offset);
      return -1;
    }
    if (r == 0) {
      msg_error ("%s: read of %zu bytes at offset %" PRIu64 ": "
                 "unexpected end of file", n->name, count, offset);
      errno = EIO;
      return -1;
    }
    buf = (char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

/* Write what is left of a vector of which the first "done" bytes have
 * been written; the vector has at most UIO_MAXIOV elements.
 */
static ssize_t
write_rest (int fd, const struct iovec *iov, int iovcnt, size_t done,
            uint64_t offset)
{
  struct iov_cursor at = { .iov = iov };
  struct iovec first;

  iov_skip (&at, done);
  first.iov_len = iov_here (&at);
  if (first.iov_len == at.iov->iov_len)
    return pwritev (fd, at.iov, iovcnt - (at.iov - iov), offset);
  first.iov_base = iov_take (&at, first.iov_len);
  return pwritev (fd, &first, 1, offset);
}

static int
write_all (struct node *n, const struct iovec *iov, int iovcnt,
           size_t count, uint64_t offset)
{
  struct file_node *f = (struct file_node *) n;
  size_t done = 0;

  /* The last block may be written whole, and cut again. */
  BEAR_FILE_LIMIT_FOR_CURRENT_SCOPE (offset + round_up (count, DIRECT_BLOCK));
  while (done < count) {
    ssize_t r;

    if (f->direct)
      r = direct_pwritev (f->fd, iov, iovcnt, done, count, offset, n->align);
    else if (iovcnt == 1)
      r = pwrite (f->fd, (char *) iov->iov_base + done, count - done,
                  offset + done);
    else
      r = write_rest (f->fd, iov, iovcnt, done, offset + done);
    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1) {
      msg_error ("%s: write of %zu bytes at offset %" PRIu64 ": %m",
                 n->name, count - done, offset + done);
      return -1;
    }
    done += r;
  }
  return 0;
}

static int
set_length (struct file_node *f, uint64_t size)
{
  BEAR_FILE_LIMIT_FOR_CURRENT_SCOPE (size);
  if (size <= INT64_MAX && ftruncate (f->fd, size) == 0)
    return 0;
  if (size > INT64_MAX)
    errno = EFBIG;
  msg_error ("%s: changing the length to %" PRIu64 " bytes: %m",
             f->node.name, size);
  return -1;
}

/* A write that ends within a block, where the file ends, makes it longer
 * up to the end of the block, so it is cut again.
 */
static int
write_to_end (struct node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  struct file_node *f = (struct file_node *) n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->length_lock);
  if (write_all (n, iov, iovcnt, count, offset) == -1)
    return -1;
  return set_length (f, node_size (n));
}

static int
file_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  struct file_node *f = (struct file_node *) n;

  return f->direct && !is_aligned (count, n->align)
    ? write_to_end (n, iov, iovcnt, count, offset)
    : write_all (n, iov, iovcnt, count, offset);
}

static int
file_flush (struct node *n)
{
  struct file_node *f = (struct file_node *) n;

  if (fdatasync (f->fd) == 0)
    return 0;
  msg_error ("%s: flush: %m", n->name);
  return -1;
}

/* fallocate, with "cannot do that here" told apart by ENOTSUP and no
 * message.
 */
static int
allocate (struct file_node *f, int mode, uint64_t count, uint64_t offset)
{
  int r;

  BEAR_FILE_LIMIT_FOR_CURRENT_SCOPE (offset + count);
  do
    r = fallocate (f->fd, mode, offset, count);
  while (r == -1 && errno == EINTR);

  if (r == 0) {
    known_data_cut (&f->known, offset, offset + count);
    return 0;
  }
  /* Block devices say EINVAL for ranges that are no whole sectors. */
  if (errno == EOPNOTSUPP || errno == ENOSYS || errno == ENODEV ||
      (f->is_block_device && errno == EINVAL))
    errno = ENOTSUP;
  else
    msg_error ("%s: zeroing %" PRIu64 " bytes at offset %" PRIu64 ": %m",
               f->node.name, count, offset);
  return -1;
}

static int
punch_hole (struct file_node *f, uint64_t count, uint64_t offset)
{
  int r;

  if (atomic_load (&f->no_punch_hole)) {
    errno = ENOTSUP;
    return -1;
  }
  r = allocate (f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, count, offset);
  if (r == -1 && errno == ENOTSUP && !f->is_block_device)
    atomic_store (&f->no_punch_hole, true);
  return r;
}

static int
file_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct file_node *f = (struct file_node *) n;

  if (flags & NODE_MAY_TRIM) {
    if (punch_hole (f, count, offset) == 0)
      return 0;
    if (errno != ENOTSUP)
      return -1;
  }

  if (!atomic_load (&f->no_zero_range)) {
    if (allocate (f, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                  count, offset) == 0)
      return 0;
    if (errno != ENOTSUP)
      return -1;
    if (!f->is_block_device)
      atomic_store (&f->no_zero_range, true);
  }

  /* tmpfs has no ZERO_RANGE, but a new hole can be filled again. */
  if (!f->is_block_device && punch_hole (f, count, offset) == 0)
    return allocate (f, FALLOC_FL_KEEP_SIZE, count, offset);
  return -1;
}

static int
file_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct file_node *f = (struct file_node *) n;

  if (punch_hole (f, count, offset) == -1 && errno != ENOTSUP)
    return -1;
  return 0;
}

/* How far does data go that offset is in?  0 if that is not known. */
static uint64_t
find_end_of_data (struct file_node *f, uint64_t offset)
{
  const uint64_t before = known_data_before (&f->known, offset);
  off_t hole = -1;

  if (before < offset)
    hole = lseek (f->fd, before, SEEK_HOLE);
  if (hole > (off_t) offset)
    known_data_add (&f->known, before, hole);
  else {
    hole = lseek (f->fd, offset, SEEK_HOLE);
    if (hole > (off_t) offset)
      known_data_add (&f->known, offset, hole);
  }
  return hole > (off_t) offset ? hole - offset : 0;
}

/* The number of bytes at offset, at most count, that are a hole.  Takes
 * the file system no time worth mentioning, other than to find the end of
 * data.
 */
static uint64_t
hole_at (struct file_node *f, uint64_t count, uint64_t offset)
{
  const off_t data = lseek (f->fd, offset, SEEK_DATA);

  if (data == -1 && errno == ENXIO)     /* a hole up to the end */
    return count;
  /* Where it cannot tell all is data. */
  return data > (off_t) offset ? MIN (count, data - offset) : 0;
}

static int
file_extents (struct node *n, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  struct file_node *f = (struct file_node *) n;
  uint64_t length;

  *ret = (struct extent) {
    .length = count, .where = n, .offset = offset, .flags = EXTENT_MAPPED
  };
  if (f->is_block_device)
    return 0;

  length = known_data_at (&f->known, offset);
  if (length == 0) {
    length = hole_at (f, count, offset);
    if (length > 0)
      ret->flags |= EXTENT_HOLE | EXTENT_ZERO;
    else
      length = find_end_of_data (f, offset);
  }
  if (length > 0)
    ret->length = MIN (count, length);
  return 0;
}

static int
file_zeroes (struct node *n, uint64_t count, uint64_t offset,
             uint64_t *length)
{
  struct file_node *f = (struct file_node *) n;

  *length = f->is_block_device || known_data_at (&f->known, offset) > 0
    ? 0 : hole_at (f, count, offset);
  return 0;
}

static int
file_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct file_node *f = (struct file_node *) n;
  const int err = posix_fadvise (f->fd, offset, count, POSIX_FADV_WILLNEED);

  if (err == 0)
    return 0;
  errno = err;
  msg_error ("%s: read-ahead at offset %" PRIu64 ": %m", n->name, offset);
  return -1;
}

static int
file_resize (struct node *n, uint64_t size)
{
  struct file_node *f = (struct file_node *) n;

  if (f->is_block_device) {
    errno = ENOTSUP;
    return -1;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->length_lock);
  if (set_length (f, size) == -1)
    return -1;
  known_data_cut (&f->known, size, UINT64_MAX);
  atomic_store_explicit (&n->size, size, memory_order_release);
  return 0;
}

static int64_t
file_allocated_size (struct node *n)
{
  struct file_node *f = (struct file_node *) n;
  struct stat st;

  if (fstat (f->fd, &st) == -1)
    return -1;
  return (int64_t) st.st_blocks * 512;
}

static const struct node_ops file_ops = {
  .type = "file",
  .close = file_close,
  .pread = file_pread,
  .pwritev = file_pwritev,
  .flush = file_flush,
  .extents = file_extents,
  .zeroes = file_zeroes,
  .zero = file_zero,
  .discard = file_discard,
  .cache = file_cache,
  .resize = file_resize,
  .allocated_size = file_allocated_size,
};

/* The size of a block device, and what else it says of itself. */
static int
identify_device (struct file_node *f, uint64_t *size)
{
  int read_only, sector_size;

  f->is_block_device = true;
  f->node.fixed_size = true;
  if (ioctl (f->fd, BLKGETSIZE64, size) == -1) {
    msg_error ("Could not open '%s': size of the block device: %m",
               f->node.name);
    return -1;
  }
  /* The kernel lets root open it for writing, and refuses each write. */
  if (!f->node.read_only &&
      ioctl (f->fd, BLKROGET, &read_only) == 0 && read_only) {
    errno = EROFS;
    msg_error ("Could not open '%s': the block device is read-only",
               f->node.name);
    return -1;
  }
  if (ioctl (f->fd, BLKSSZGET, &sector_size) == 0 && sector_size > 0)
    f->node.zero_align = sector_size;
  if (f->direct)
    f->node.align = f->node.zero_align;
  return 0;
}

/* Find out kind, size and identity. */
static int
identify (struct file_node *f)
{
  struct stat st;
  uint64_t size;

  if (fstat (f->fd, &st) == -1) {
    msg_error ("Could not open '%s': fstat: %m", f->node.name);
    return -1;
  }
  if (S_ISREG (st.st_mode)) {
    size = st.st_size;
    if (f->direct)
      f->node.align = f->node.zero_align = DIRECT_BLOCK;
  }
  else if (S_ISBLK (st.st_mode)) {
    if (identify_device (f, &size) == -1)
      return -1;
  }
  else {
    errno = S_ISDIR (st.st_mode) ? EISDIR : EINVAL;
    msg_error ("Could not open '%s': neither a regular file nor a block "
               "device",
               f->node.name);
    return -1;
  }
  f->dev = st.st_dev;
  f->ino = st.st_ino;
  atomic_init (&f->node.size, size);
  return 0;
}

struct file_node *
file_node_new (const char *name, bool read_only)
{
  struct file_node *f = calloc (1, sizeof *f);

  if (f == NULL || (f->node.name = strdup (name)) == NULL) {
    msg_error ("Could not open '%s': %m", name);
    free (f);
    return NULL;
  }
  f->fd = -1;
  pthread_mutex_init (&f->length_lock, NULL);
  known_data_init (&f->known);
  f->node.ops = &file_ops;
  f->node.read_only = read_only;
  f->node.keeps_flush_error = true;
  f->node.can_fast_zero = true;
  f->node.align = f->node.zero_align = 1;
  f->node.preferred = 4096;
  return f;
}

int
file_node_open_file (struct file_node *f)
{
  f->fd = open (f->node.name,
                (f->node.read_only ? O_RDONLY : O_RDWR) |
                (f->direct ? O_DIRECT : 0) | FILE_OPEN_FLAGS);
  if (f->fd == -1 && f->direct && errno == EINVAL)
    msg_error ("Could not open '%s': filesystem does not support O_DIRECT",
               f->node.name);
  else if (f->fd == -1)
    msg_error ("Could not open '%s': %m", f->node.name);
  return f->fd == -1 ? -1 : 0;
}

int
file_node_settle (struct file_node *f, enum node_lock lock)
{
  if (identify (f) == -1)
    return -1;
  return image_lock (f->fd, f->node.name, lock, f->node.read_only);
}

struct node *
file_node_give_up (struct file_node *f)
{
  const int err = errno;

  file_close (&f->node);
  errno = err;
  return NULL;
}

struct node *
file_node_open (const char *name, const struct node_open_options *options)
{
  struct file_node *f = file_node_new (name, options->read_only);

  if (f == NULL)
    return NULL;
  f->direct = options->cache == NODE_CACHE_NONE ||
    options->cache == NODE_CACHE_DIRECTSYNC;
  if (file_node_open_file (f) == -1 ||
      file_node_settle (f, options->lock) == -1)
    return file_node_give_up (f);
  return &f->node;
}

struct file_node *
file_node_of (const struct node *n)
{
  while (n->ops != &file_ops && n->adapted)
    n = n->adapted;
  return n->ops == &file_ops ? (struct file_node *) n : NULL;
}

bool
node_identity (const struct node *n, dev_t *dev, ino_t *ino)
{
  const struct file_node *f = file_node_of (n);

  if (f == NULL)
    return false;
  *dev = f->dev;
  *ino = f->ino;
  return true;
}

bool
node_is_removed (const struct node *n)
{
  const struct file_node *f = file_node_of (n);
  struct stat st;

  return f && fstat (f->fd, &st) == 0 && st.st_nlink == 0;
}

int
node_add_lock (struct node *n, enum node_lock lock)
{
  struct file_node *f = file_node_of (n);

  return f ? image_lock (f->fd, f->node.name, lock, f->node.read_only) : 0;
}
