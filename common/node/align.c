/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A write that does not cover its first or last block reads that block,
 * and writes it back with what the caller gave in the middle.  Another
 * write to the same block in between would be undone by this.  So such
 * a write claims the blocks that it touches exclusively, from before it
 * reads until it has written; and a write of whole blocks, which could
 * fall in between, claims its blocks too, but shared, since two of them
 * do each other no harm.  The same holds for zeroes and discards.
 *
 * Reads claim nothing.  A block is written back with the bytes around
 * the caller's as they are, so whoever reads it meanwhile finds those
 * bytes unchanged.
 *
 * The caller's data is never copied for a write: what was read of the
 * edge blocks goes in front of it and behind it in the vector.  Reads
 * go through a bounded buffer where they are not aligned.
 *
 * A file may end within a block, which is as long as what there is of it.
 *
 * Claims are taken before any lock of the inner node, and one request
 * holds one at a time.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node/align.h"
#include "request/claim.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Unaligned reads are copied in pieces of this size, a multiple of any
 * alignment (NBD allows up to 64K).
 */
#define BOUNCE_SIZE (UINT64_C (1024) * 1024)

struct align_node {
  struct node node;
  struct node *inner;           /* owned */
  uint32_t block;               /* its alignment, bytes */
  struct claims claims;         /* on blocks that are being written */
};

/* Not enough memory for a request. */
static int
no_memory (const struct align_node *a, const char *what, uint64_t count,
           uint64_t offset)
{
  msg_error ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": %m",
             a->node.name, what, count, offset);
  return -1;
}

static int
align_start (struct node *n)
{
  return node_start (((struct align_node *) n)->inner);
}

static int
align_close (struct node *n)
{
  struct align_node *a = (struct align_node *) n;
  const int r = node_close (a->inner);
  const int err = errno;

  claims_destroy (&a->claims);
  free (n->name);
  free (a);
  errno = err;
  return r;
}

/* Read what lies in the blocks around it, at most BOUNCE_SIZE, and hand
 * out what was asked for.  Returns how much that was, or -1.
 */
static ssize_t
bounced_read (struct align_node *a, char *bounce, void *buf, size_t count,
              uint64_t offset)
{
  const size_t skip = offset & (a->block - 1);
  const size_t wanted =
    MIN (round_up (skip + MIN (count, BOUNCE_SIZE), a->block), BOUNCE_SIZE);
  const size_t len = MIN (wanted, node_size (a->inner) - (offset - skip));
  const size_t use = MIN (len - skip, count);

  if (node_pread (a->inner, bounce, len, offset - skip) == -1)
    return -1;
  memcpy (buf, bounce + skip, use);
  return use;
}

static int
align_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct align_node *a = (struct align_node *) n;
  const size_t widened =
    round_up (offset + count, a->block) - round_down (offset, a->block);
  CLEANUP_FREE char *bounce = NULL;

  if (is_aligned (offset | count, a->block))
    return node_pread (a->inner, buf, count, offset);

  bounce = malloc (MIN (widened, BOUNCE_SIZE));
  if (bounce == NULL)
    return no_memory (a, "read", count, offset);

  while (count > 0) {
    ssize_t r;

    /* The aligned middle of a long read needs no copy. */
    if (is_aligned (offset, a->block) && count >= BOUNCE_SIZE) {
      r = round_down (count, a->block);
      if (node_pread (a->inner, buf, r, offset) == -1)
        return -1;
    }
    else {
      r = bounced_read (a, bounce, buf, count, offset);
      if (r == -1)
        return -1;
    }
    buf = (char *) buf + r;
    count -= r;
    offset += r;
  }
  return 0;
}

/* The blocks that a request touches. */
struct window {
  uint64_t start, end;
  size_t before, after;         /* bytes in them that it leaves alone */
};

static struct window
window_of (const struct align_node *a, uint64_t count, uint64_t offset)
{
  const uint64_t start = round_down (offset, a->block);
  const uint64_t end = MIN (round_up (offset + count, a->block),
                            MAX (node_size (a->inner), offset + count));

  return (struct window) {
    .start = start, .end = end,
    .before = offset - start, .after = end - (offset + count),
  };
}

/* Read the first and last block of a window into edges, one behind the
 * other, as far as something in them must be kept.
 */
static int
read_edges (struct align_node *a, const struct window *w, char *edges)
{
  const uint64_t last = round_down (w->end - 1, a->block);

  if (w->before > 0 &&
      node_pread (a->inner, edges, MIN (a->block, w->end - w->start),
                  w->start) == -1)
    return -1;
  if (w->after == 0)
    return 0;
  if (w->before > 0 && last == w->start) {
    memcpy (edges + a->block, edges, a->block);
    return 0;
  }
  return node_pread (a->inner, edges + a->block, w->end - last, last);
}

/* Read-modify-write.  The caller has claimed the window. */
static int
write_unaligned (struct align_node *a, const struct iovec *iov, int iovcnt,
                 size_t count, uint64_t offset)
{
  const struct window w = window_of (a, count, offset);
  CLEANUP_FREE char *edges = malloc (2 * (size_t) a->block);
  CLEANUP_FREE struct iovec *all = malloc ((iovcnt + 2) * sizeof *all);
  int n = 0;

  if (edges == NULL || all == NULL)
    return no_memory (a, "write", count, offset);
  if (read_edges (a, &w, edges) == -1)
    return -1;

  if (w.before > 0)
    all[n++] = (struct iovec) { .iov_base = edges, .iov_len = w.before };
  memcpy (all + n, iov, iovcnt * sizeof *iov);
  n += iovcnt;
  if (w.after > 0)
    all[n++] = (struct iovec) {
      .iov_base = edges + a->block +
        (w.end - round_down (w.end - 1, a->block)) - w.after,
      .iov_len = w.after
    };
  return node_pwritev (a->inner, all, n, w.start);
}

/* Claim the window of a request, exclusively if it has edges. */
static void
claim_window (struct align_node *a, struct claim *claim, uint64_t count,
              uint64_t offset)
{
  const struct window w = window_of (a, count, offset);

  claim_acquire (&a->claims, claim, w.start, w.end - w.start,
                 w.before || w.after ? CLAIM_EXCLUSIVE : CLAIM_SHARED);
}

static int
align_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
               size_t count, uint64_t offset)
{
  struct align_node *a = (struct align_node *) n;
  struct claim claim;

  if (count == 0)
    return 0;
  claim_window (a, &claim, count, offset);
  CLEANUP_CLAIM struct claim_holder holder = { &a->claims, &claim };

  if (is_aligned (offset | count, a->block))
    return node_pwritev (a->inner, iov, iovcnt, offset);
  return write_unaligned (a, iov, iovcnt, count, offset);
}

static int
align_flush (struct node *n)
{
  return node_flush (((struct align_node *) n)->inner);
}

/* Zero part of one block.  The caller has claimed it. */
static int
zero_part (struct align_node *a, size_t count, uint64_t offset)
{
  CLEANUP_FREE char *zeroes = calloc (1, count);
  const struct iovec iov = { .iov_base = zeroes, .iov_len = count };

  if (zeroes == NULL)
    return no_memory (a, "zero", count, offset);
  return write_unaligned (a, &iov, 1, count, offset);
}

/* Zero both edges and what is between them.  The caller has claimed all
 * of it.
 */
static int
zero_unaligned (struct align_node *a, uint64_t count, uint64_t offset,
                unsigned flags)
{
  const uint64_t end = offset + count;
  const uint64_t first = round_up (offset, a->block);
  const uint64_t last = round_down (end, a->block);

  if (first > last)             /* inside one block */
    return zero_part (a, count, offset);
  if (first > offset && zero_part (a, first - offset, offset) == -1)
    return -1;
  if (last > first && node_zero (a->inner, last - first, first, flags) == -1)
    return -1;
  return end > last ? zero_part (a, end - last, last) : 0;
}

static int
align_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct align_node *a = (struct align_node *) n;
  const bool aligned = is_aligned (offset | count, a->block);
  struct claim claim;

  if (count == 0)
    return 0;
  if (!aligned && (flags & NODE_FAST)) {
    errno = ENOTSUP;
    return -1;
  }
  claim_window (a, &claim, count, offset);
  CLEANUP_CLAIM struct claim_holder holder = { &a->claims, &claim };

  if (aligned)
    return node_zero (a->inner, count, offset, flags);
  return zero_unaligned (a, count, offset, flags);
}

/* Only whole blocks can be discarded; that is allowed to do less. */
static int
align_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct align_node *a = (struct align_node *) n;
  const uint64_t first = round_up (offset, a->block);
  const uint64_t last = round_down (offset + count, a->block);
  struct claim claim;

  if (first >= last)
    return 0;
  claim_window (a, &claim, last - first, first);
  CLEANUP_CLAIM struct claim_holder holder = { &a->claims, &claim };

  return node_discard (a->inner, last - first, first);
}

static int
align_extents (struct node *n, uint64_t count, uint64_t offset,
               struct extent *ret)
{
  struct align_node *a = (struct align_node *) n;
  const struct window w = window_of (a, count, offset);

  if (node_extents (a->inner, w.end - w.start, w.start, ret) == -1)
    return -1;
  if (ret->length <= w.before)
    /* It ends within the block, before our offset, and the rest of the
     * block cannot be asked for: call it data.
     */
    *ret = (struct extent) {
      .length = a->block, .where = a->inner, .offset = w.start,
      .flags = EXTENT_MAPPED,
    };

  ret->length = MIN (ret->length - w.before, count);
  if (ret->flags & EXTENT_MAPPED)
    ret->offset += w.before;
  return 0;
}

static int
align_zeroes (struct node *n, uint64_t count, uint64_t offset,
              uint64_t *length)
{
  struct align_node *a = (struct align_node *) n;
  const struct window w = window_of (a, count, offset);

  if (node_zeroes (a->inner, w.end - w.start, w.start, length) == -1)
    return -1;
  *length = *length > w.before ? MIN (*length - w.before, count) : 0;
  return 0;
}

static int
align_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct align_node *a = (struct align_node *) n;
  const struct window w = window_of (a, count, offset);

  return node_cache (a->inner, w.end - w.start, w.start);
}

static void
set_size (struct align_node *a)
{
  uint64_t size = node_size (a->inner);

  if (a->inner->fixed_size)
    size = round_down (size, a->block);
  atomic_store_explicit (&a->node.size, size, memory_order_release);
}

static int
align_resize (struct node *n, uint64_t size)
{
  struct align_node *a = (struct align_node *) n;

  if (node_resize (a->inner, size) == -1)
    return -1;
  set_size (a);
  return 0;
}

static int64_t
align_allocated_size (struct node *n)
{
  return node_allocated_size (((struct align_node *) n)->inner);
}

static void
align_cut (struct node *n)
{
  node_cut (((struct align_node *) n)->inner);
}

static bool
align_is_lost (struct node *n, char *cause, size_t size)
{
  return node_is_lost (((struct align_node *) n)->inner, cause, size);
}

static const struct node_ops align_ops = {
  .type = "align",
  .start = align_start,
  .close = align_close,
  .pread = align_pread,
  .pwritev = align_pwritev,
  .flush = align_flush,
  .extents = align_extents,
  .zeroes = align_zeroes,
  .zero = align_zero,
  .discard = align_discard,
  .cache = align_cache,
  .resize = align_resize,
  .allocated_size = align_allocated_size,
  .cut = align_cut,
  .is_lost = align_is_lost,
};

struct node *
align_node (struct node *inner)
{
  struct align_node *a = calloc (1, sizeof *a);

  if (a == NULL)
    return NULL;
  a->node = *inner;
  a->node.ops = &align_ops;
  a->node.align = 1;
  a->node.name = strdup (inner->name);
  if (a->node.name == NULL) {
    free (a);
    return NULL;
  }
  a->node.sync = false;         /* inner does it */
  a->node.adapted = a->inner = inner;
  a->block = inner->align;
  claims_init (&a->claims);
  set_size (a);
  return &a->node;
}

struct node *
align_open (const char *name, const struct node_open_options *options)
{
  struct node *inner = node_open (name, options);
  struct node *n;

  if (inner == NULL || inner->align == 1)
    return inner;

  n = align_node (inner);
  if (n == NULL) {
    msg_error ("Could not open '%s': %m", name);
    node_close (inner);
    errno = ENOMEM;
  }
  return n;
}
