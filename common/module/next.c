/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The node of the layer below an nbdkit filter.
 *
 * Notes on the design
 *
 * nbdkit gives a filter a context of the next layer for each connection.
 * A filter that has work of its own to do between connections, and state
 * that all of them share, needs one that belongs to none of them; this
 * is a node over such a context.  Whatever the filter asks of the layer
 * goes through it, so nbdkit's own contexts are never opened.
 *
 * A filter without such work sees the layer as each connection does,
 * through the context that nbdkit has opened for that; then the node is
 * one of the connection.
 *
 * nbdkit lets no request through before the layer was asked what it can
 * do, and asks the plugin only once.  All of these questions are put
 * when the node is opened, so that they cannot fail later.
 *
 * nbdkit serialises the requests of clients as the thread model demands,
 * but knows nothing of our threads.  So unless the model is parallel a
 * lock is held around each call to a context of our own.
 *
 * The layers below have printed a message when a call fails; there is
 * none to add.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/iovec.h"
#include "utils/message.h"
#include "module/next.h"
#include "utils/rounding.h"

/* The longest calls with data (nbdkit's limit is 64 MiB) and without (a
 * count has 32 bits).
 */
#define MAX_DATA (UINT32_C (32) * 1024 * 1024)
#define MAX_RANGE (UINT32_MAX - 65535)

/* A vector of several parts is written through a buffer of this size, a
 * multiple of any alignment.
 */
#define BOUNCE_SIZE (UINT64_C (1024) * 1024)

struct next_node {
  struct node node;
  nbdkit_next *next;
  bool own_context;             /* next is ours to close */
  bool prepared;                /* and to finalize */

  /* What the layer can do. */
  bool can_flush, can_trim, can_zero, can_fua, can_extents, can_cache;
  uint32_t max_data, max_range; /* bytes, multiples of node.align */

  /* Held around each call if serialize is set, so during I/O; no other
   * lock is taken by us under it.
   */
  bool serialize;
  pthread_mutex_t lock;
};

static void
call_begin (struct next_node *n)
{
  if (n->serialize)
    pthread_mutex_lock (&n->lock);
}

/* The end of a call that returned r, and its error in err. */
static int
call_end (struct next_node *n, int r, int err)
{
  if (n->serialize)
    pthread_mutex_unlock (&n->lock);
  if (r == -1)
    errno = err ? err : EIO;
  return r;
}

static int
next_close (struct node *node)
{
  struct next_node *n = (struct next_node *) node;
  int r = 0;

  if (n->next && n->own_context) {
    if (n->prepared)
      r = n->next->finalize (n->next);
    nbdkit_next_context_close (n->next);
  }
  pthread_mutex_destroy (&n->lock);
  free (n->node.name);
  free (n);
  return r;
}

static int
next_pread (struct node *node, void *buf, size_t count, uint64_t offset)
{
  struct next_node *n = (struct next_node *) node;

  while (count > 0) {
    const uint32_t len = MIN (count, n->max_data);
    int r, err = 0;

    call_begin (n);
    r = n->next->pread (n->next, buf, len, offset, 0, &err);
    if (call_end (n, r, err) == -1)
      return -1;
    buf = (char *) buf + len;
    count -= len;
    offset += len;
  }
  return 0;
}

static int
write_buffer (struct next_node *n, const void *buf, size_t count,
              uint64_t offset, uint32_t flags)
{
  while (count > 0) {
    const uint32_t len = MIN (count, n->max_data);
    int r, err = 0;

    call_begin (n);
    r = n->next->pwrite (n->next, buf, len, offset, flags, &err);
    if (call_end (n, r, err) == -1)
      return -1;
    buf = (const char *) buf + len;
    count -= len;
    offset += len;
  }
  return 0;
}

static int
write_vector (struct next_node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset, uint32_t flags)
{
  CLEANUP_FREE char *bounce = NULL;
  struct iov_cursor cursor = { .iov = iov };

  if (iovcnt == 1)
    return write_buffer (n, iov->iov_base, count, offset, flags);

  bounce = malloc (MIN (count, BOUNCE_SIZE));
  if (bounce == NULL && count > 0) {
    msg_error ("%s: write of %zu bytes at offset %" PRIu64 ": %m",
               n->node.name, count, offset);
    return -1;
  }
  while (count > 0) {
    const size_t len = MIN (count, BOUNCE_SIZE);

    iov_copy (&cursor, bounce, len);
    if (write_buffer (n, bounce, len, offset, flags) == -1)
      return -1;
    count -= len;
    offset += len;
  }
  return 0;
}

static int
next_pwritev (struct node *node, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  return write_vector ((struct next_node *) node, iov, iovcnt, count, offset,
                       0);
}

static int
next_flush (struct node *node)
{
  struct next_node *n = (struct next_node *) node;
  int r, err = 0;

  if (!n->can_flush)
    return 0;
  call_begin (n);
  r = n->next->flush (n->next, 0, &err);
  return call_end (n, r, err);
}

static int
next_pwritev_fua (struct node *node, const struct iovec *iov, int iovcnt,
                  size_t count, uint64_t offset)
{
  struct next_node *n = (struct next_node *) node;

  if (n->can_fua)
    return write_vector (n, iov, iovcnt, count, offset, NBDKIT_FLAG_FUA);
  if (write_vector (n, iov, iovcnt, count, offset, 0) == -1)
    return -1;
  return node_flush (node);
}

/* The calls that take a range and flags: zero, trim and cache. */
typedef int range_call (nbdkit_next *next, uint32_t count, uint64_t offset,
                        uint32_t flags, int *err);

static int
call_range (struct next_node *n, range_call *call, uint64_t count,
            uint64_t offset, uint32_t flags)
{
  while (count > 0) {
    const uint32_t len = MIN (count, n->max_range);
    int r, err = 0;

    call_begin (n);
    r = call (n->next, len, offset, flags, &err);
    if (call_end (n, r, err) == -1)
      return -1;
    count -= len;
    offset += len;
  }
  return 0;
}

/* A fast zero that is refused must have changed nothing, so the first
 * call decides for all.
 */
static int
next_zero (struct node *node, uint64_t count, uint64_t offset,
           unsigned flags)
{
  struct next_node *n = (struct next_node *) node;
  const bool fast = flags & NODE_FAST;
  const uint32_t layer_flags =
    (flags & NODE_MAY_TRIM ? NBDKIT_FLAG_MAY_TRIM : 0) |
    (flags & NODE_FUA && n->can_fua ? NBDKIT_FLAG_FUA : 0);
  const uint64_t first = fast ? MIN (count, n->max_range) : 0;

  if (!n->can_zero || (fast && !n->node.can_fast_zero)) {
    errno = ENOTSUP;
    return -1;
  }
  if (call_range (n, n->next->zero, first, offset,
                  layer_flags | NBDKIT_FLAG_FAST_ZERO) == -1 ||
      call_range (n, n->next->zero, count - first, offset + first,
                  layer_flags) == -1)
    return -1;
  return flags & NODE_FUA && !n->can_fua ? node_flush (node) : 0;
}

static int
next_discard (struct node *node, uint64_t count, uint64_t offset)
{
  struct next_node *n = (struct next_node *) node;

  return n->can_trim ? call_range (n, n->next->trim, count, offset, 0) : 0;
}

static int
next_cache (struct node *node, uint64_t count, uint64_t offset)
{
  struct next_node *n = (struct next_node *) node;

  return n->can_cache ? call_range (n, n->next->cache, count, offset, 0) : 0;
}

/* The first of the extents that the layer knows. */
static int
first_extent (struct next_node *n, uint32_t count, uint64_t offset,
              struct extent *ret)
{
  struct nbdkit_extents *extents =
    nbdkit_extents_new (offset, offset + count);
  int r, err = 0;

  if (extents == NULL)
    return -1;
  call_begin (n);
  r = n->next->extents (n->next, count, offset, NBDKIT_FLAG_REQ_ONE,
                        extents, &err);
  r = call_end (n, r, err);

  if (r == 0 && nbdkit_extents_count (extents) > 0) {
    const struct nbdkit_extent e = nbdkit_get_extent (extents, 0);

    ret->length = MIN (e.length, count);
    if (e.type & NBDKIT_EXTENT_ZERO)
      ret->flags |= EXTENT_ZERO;
    if (e.type & NBDKIT_EXTENT_HOLE)
      ret->flags |= EXTENT_HOLE;
  }
  nbdkit_extents_free (extents);
  return r;
}

static int
next_extents (struct node *node, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  struct next_node *n = (struct next_node *) node;

  *ret = (struct extent) {
    .length = count, .where = node, .offset = offset, .flags = EXTENT_MAPPED
  };
  if (!n->can_extents)
    return 0;
  return first_extent (n, MIN (count, n->max_range), offset, ret);
}

static const struct node_ops next_ops = {
  .type = "next",
  .close = next_close,
  .pread = next_pread,
  .pwritev = next_pwritev,
  .pwritev_fua = next_pwritev_fua,
  .flush = next_flush,
  .extents = next_extents,
  .zero = next_zero,
  .discard = next_discard,
  .cache = next_cache,
};

/* Requests are at most as long as the layer wants them. */
static int
ask_block_size (struct next_node *n)
{
  uint32_t minimum, preferred, maximum;

  if (n->next->block_size (n->next, &minimum, &preferred, &maximum) == -1)
    return -1;
  if (minimum == 0)             /* it does not say */
    return 0;
  if (!is_power_of_2 (minimum) || minimum > BOUNCE_SIZE) {
    errno = EINVAL;
    msg_error ("%s: the minimum block size %" PRIu32 " is not supported",
               n->node.name, minimum);
    return -1;
  }
  n->node.align = minimum;
  n->node.zero_align = minimum;
  if (is_power_of_2 (preferred))
    n->node.preferred = preferred;
  n->max_data = MIN (n->max_data, round_down (maximum, minimum));
  n->max_range = MIN (n->max_range, round_down (maximum, minimum));
  return 0;
}

/* Is the answer an error?  Then this is one too. */
static bool
yes (int answer, bool *failed)
{
  if (answer == -1)
    *failed = true;
  return answer > 0;
}

/* Put all questions to the layer that nbdkit wants asked before the
 * first request.
 */
static int
ask (struct next_node *n)
{
  nbdkit_next *next = n->next;
  const int64_t size = next->get_size (next);
  bool failed = size == -1;
  bool native_zero;

  atomic_init (&n->node.size, size);
  n->node.read_only = !yes (next->can_write (next), &failed);
  n->can_flush = yes (next->can_flush (next), &failed);
  n->can_trim = yes (next->can_trim (next), &failed);
  n->can_zero = yes (next->can_zero (next), &failed);
  native_zero = n->can_zero && next->can_zero (next) == NBDKIT_ZERO_NATIVE;
  n->node.can_fast_zero =
    yes (next->can_fast_zero (next), &failed) && native_zero;
  n->can_fua = yes (next->can_fua (next), &failed);
  yes (next->can_multi_conn (next), &failed);
  n->can_extents = yes (next->can_extents (next), &failed);
  n->can_cache = yes (next->can_cache (next), &failed) &&
    next->can_cache (next) == NBDKIT_CACHE_NATIVE;
  return failed ? -1 : ask_block_size (n);
}

static struct next_node *
new_next_node (const char *name)
{
  struct next_node *n = calloc (1, sizeof *n);

  if (n)
    n->node.name = strdup (name);
  if (n == NULL || n->node.name == NULL) {
    msg_error ("%s: %m", name);
    free (n);
    return NULL;
  }
  n->node.ops = &next_ops;
  n->node.fixed_size = true;
  n->node.keeps_flush_error = true;
  n->node.align = 1;
  n->node.zero_align = 1;
  n->node.preferred = 4096;
  n->max_data = MAX_DATA;
  n->max_range = MAX_RANGE;
  pthread_mutex_init (&n->lock, NULL);
  return n;
}

struct node *
next_node_open (nbdkit_backend *backend, int thread_model, const char *name)
{
  struct next_node *n = new_next_node (name);
  struct node *aligned;

  if (n == NULL)
    return NULL;
  n->serialize = thread_model != NBDKIT_THREAD_MODEL_PARALLEL;
  n->own_context = true;
  n->next = nbdkit_next_context_open (backend, 0, "", 1);
  if (n->next)
    n->prepared = n->next->prepare (n->next) == 0;
  if (!n->prepared || ask (n) == -1) {
    next_close (&n->node);
    errno = EIO;
    return NULL;
  }
  if (n->node.align == 1)
    return &n->node;

  aligned = align_node (&n->node);
  if (aligned == NULL) {
    msg_error ("%s: %m", name);
    next_close (&n->node);
  }
  return aligned;
}

struct node *
next_node_of (nbdkit_next *next, const char *name)
{
  struct next_node *n = new_next_node (name);

  if (n == NULL)
    return NULL;
  n->next = next;
  if (ask (n) == -1) {
    next_close (&n->node);
    errno = EIO;
    return NULL;
  }
  return &n->node;
}
