/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Who guesses the format of an image lets its content decide what is
 * opened: a guest that writes the header of a QED image to its disk, which
 * is committed into a raw image whose format nobody has named, would have
 * the next one who opens it follow that header, to a file of the host that
 * it names.  So what was raw by guess stays raw.
 *
 * A write near the beginning or the end is looked at first: what would the
 * image be taken for, if it was done?  To see that, its bytes are laid over
 * the file, in a node that can only be read.  These writes wait for each
 * other, since two of them could make one magic.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qed/chain.h"
#include "qed/guard.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

struct guard {
  struct node node;
  struct node *file;
  pthread_mutex_t lock;         /* held while something is written near
                                   the ends, or the length changes: I/O */
};

static struct guard *
guard_of (struct node *n)
{
  return (struct guard *) n;
}

/* The image as it would be: of another length, or with count bytes from
 * buf (zeroes if that is NULL) at offset.
 */
struct view {
  struct node node;
  struct node *file;
  const uint8_t *buf;
  uint64_t count, offset;
};

static int
view_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  const struct view *v = (struct view *) n;
  const uint64_t size = node_size (v->file);
  const uint64_t there = offset < size ? MIN (size - offset, count) : 0;
  const uint64_t start = MAX (offset, v->offset);
  const uint64_t end = MIN (offset + count, v->offset + v->count);
  uint8_t *to = buf;

  memset (to, 0, count);
  if (there > 0 && node_pread (v->file, to, there, offset) == -1)
    return -1;
  if (start < end && v->buf)
    memcpy (to + (start - offset), v->buf + (start - v->offset),
            end - start);
  else if (start < end)
    memset (to + (start - offset), 0, end - start);
  return 0;
}

static const struct node_ops view_ops = {
  .type = "view",
  .pread = view_pread,
};

/* Would it still be raw?  Under the lock. */
static int
stays_raw (struct guard *g, const void *buf, uint64_t count, uint64_t offset,
           uint64_t size)
{
  struct view view = {
    .node = { .ops = &view_ops, .name = g->node.name, .read_only = true },
    .file = g->file, .buf = buf, .count = count, .offset = offset
  };
  const char *format;

  atomic_init (&view.node.size, size);
  if (chain_name_format (&view.node, &format) == -1)
    return -1;
  if (format == NULL)
    return 0;
  errno = EPERM;
  msg_error ("%s: write of %" PRIu64 " bytes at offset %" PRIu64 ": the "
             "format of this image is not known, only guessed to be raw, and "
             "would be taken for %s afterwards; if it is raw, say so: "
             "qed-img rebase -u -b NAME -F raw OVERLAY", g->node.name, count,
             offset, format);
  return -1;
}

static bool
is_near_ends (const struct guard *g, uint64_t count, uint64_t offset)
{
  return offset < CHAIN_MAGIC_LEN ||
    offset + count + CHAIN_MAGIC_LEN > node_size (&g->node);
}

static int
guard_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  return node_pread (guard_of (n)->file, buf, count, offset);
}

static int
guard_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
               size_t count, uint64_t offset)
{
  struct guard *g = guard_of (n);

  if (!is_near_ends (g, count, offset))
    return node_pwritev (g->file, iov, iovcnt, offset);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g->lock);
  for (int i = 0; i < iovcnt; ++i) {
    if (stays_raw (g, iov[i].iov_base, iov[i].iov_len, offset, node_size (n))
        == -1 ||
        node_pwrite (g->file, iov[i].iov_base, iov[i].iov_len, offset) == -1)
      return -1;
    offset += iov[i].iov_len;
  }
  return 0;
}

static int
guard_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct guard *g = guard_of (n);

  if (!is_near_ends (g, count, offset))
    return node_zero (g->file, count, offset, flags);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g->lock);
  return stays_raw (g, NULL, count, offset, node_size (n)) == -1 ? -1
    : node_zero (g->file, count, offset, flags);
}

static int
guard_flush (struct node *n)
{
  return node_flush (guard_of (n)->file);
}

static int
guard_extents (struct node *n, uint64_t count, uint64_t offset,
               struct extent *ret)
{
  return node_extents (guard_of (n)->file, count, offset, ret);
}

static int
guard_resize (struct node *n, uint64_t size)
{
  struct guard *g = guard_of (n);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&g->lock);
  if (stays_raw (g, NULL, 0, 0, size) == -1 ||
      node_resize (g->file, size) == -1)
    return -1;
  atomic_store (&n->size, node_size (g->file));
  return 0;
}

static int64_t
guard_allocated_size (struct node *n)
{
  return node_allocated_size (guard_of (n)->file);
}

static int
guard_start (struct node *n)
{
  return node_start (guard_of (n)->file);
}

static int
guard_close (struct node *n)
{
  struct guard *g = guard_of (n);
  const int r = node_close (g->file);

  pthread_mutex_destroy (&g->lock);
  free (n->name);
  free (g);
  return r;
}

/* What it lacks (discard) node/open.c answers by doing nothing. */
static const struct node_ops guard_ops = {
  .type = "raw",
  .start = guard_start,
  .close = guard_close,
  .pread = guard_pread,
  .pwritev = guard_pwritev,
  .flush = guard_flush,
  .extents = guard_extents,
  .zero = guard_zero,
  .resize = guard_resize,
  .allocated_size = guard_allocated_size,
};

struct node *
guard_raw (struct node *file)
{
  struct guard *g = calloc (1, sizeof *g);

  if (g == NULL || (g->node.name = strdup (file->name)) == NULL) {
    msg_error ("Could not open '%s': %m", file->name);
    free (g);
    node_close (file);
    return NULL;
  }
  g->file = file;
  g->node.ops = &guard_ops;
  g->node.fixed_size = file->fixed_size;
  g->node.can_fast_zero = file->can_fast_zero;
  g->node.zero_align = file->zero_align;
  g->node.align = file->align;
  g->node.preferred = file->preferred;
  atomic_init (&g->node.size, node_size (file));
  pthread_mutex_init (&g->lock, NULL);
  return &g->node;
}
