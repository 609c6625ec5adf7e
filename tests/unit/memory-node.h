/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A node in memory for unit tests, which can be told to fail. */

#ifndef BLOCKDRIVERS_MEMORY_NODE_H
#define BLOCKDRIVERS_MEMORY_NODE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

enum memory_op { MEMORY_READ, MEMORY_WRITE, MEMORY_FLUSH, MEMORY_OPS };

struct memory_node {
  struct node node;

  pthread_mutex_t lock;         /* protects data; a leaf lock */
  uint8_t *data;

  /* Fail with EIO from when it is 0 on; counts down if it is more. */
  _Atomic int64_t fail_after[MEMORY_OPS];
  atomic_uint count[MEMORY_OPS];
  atomic_uint delay;            /* microseconds that reads and writes take */

  /* Writes that begin before this offset wait. */
  _Atomic uint64_t blocked;

  /* Called before a read and before a question for extents, once. */
  void (*_Atomic meanwhile) (void *opaque);
  void *opaque;
};

#define MEMORY_NEVER INT64_MAX

static inline struct memory_node *
memory_of (struct node *n)
{
  return (struct memory_node *) n;
}

static inline int
memory_op (struct node *n, enum memory_op op, const char *what)
{
  struct memory_node *m = memory_of (n);

  atomic_fetch_add (&m->count[op], 1);
  if (atomic_load (&m->fail_after[op]) == MEMORY_NEVER ||
      atomic_fetch_sub (&m->fail_after[op], 1) > 0)
    return 0;
  atomic_store (&m->fail_after[op], 0);
  errno = EIO;
  msg_error ("%s: %s: failed on purpose", n->name, what);
  errno = EIO;
  return -1;
}

static inline void
memory_wait (struct memory_node *m)
{
  const unsigned delay = atomic_load (&m->delay);

  if (delay)
    usleep (delay);
}

static inline void
memory_await (struct memory_node *m, uint64_t offset)
{
  while (offset < atomic_load (&m->blocked))
    usleep (1000);
}

static inline void
memory_meanwhile (struct memory_node *m)
{
  void (*meanwhile) (void *);

  if (atomic_load (&m->meanwhile) == NULL)
    return;
  meanwhile = atomic_exchange (&m->meanwhile, NULL);
  if (meanwhile)
    meanwhile (m->opaque);
}

static inline int
memory_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct memory_node *m = memory_of (n);

  if (memory_op (n, MEMORY_READ, "read") == -1)
    return -1;
  memory_meanwhile (m);
  memory_wait (m);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  memcpy (buf, m->data + offset, count);
  return 0;
}

static inline int
memory_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                size_t count, uint64_t offset)
{
  struct memory_node *m = memory_of (n);

  (void) count;
  if (memory_op (n, MEMORY_WRITE, "write") == -1)
    return -1;
  memory_wait (m);
  memory_await (m, offset);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  for (int i = 0; i < iovcnt; ++i) {
    memcpy (m->data + offset, iov[i].iov_base, iov[i].iov_len);
    offset += iov[i].iov_len;
  }
  return 0;
}

static inline int
memory_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct memory_node *m = memory_of (n);

  (void) flags;
  if (memory_op (n, MEMORY_WRITE, "zero") == -1)
    return -1;
  memory_await (m, offset);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  memset (m->data + offset, 0, count);
  return 0;
}

static inline int
memory_discard (struct node *n, uint64_t count, uint64_t offset)
{
  return memory_zero (n, count, offset, 0);
}

static inline int
memory_flush (struct node *n)
{
  return memory_op (n, MEMORY_FLUSH, "flush");
}

/* Blocks of 4 KiB, zero or not. */
static inline int
memory_extents (struct node *n, uint64_t count, uint64_t offset,
                struct extent *ret)
{
  struct memory_node *m = memory_of (n);
  const uint64_t end = offset + count;
  uint64_t next = offset;
  bool zero = false;

  memory_meanwhile (m);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  while (next < end) {
    const uint64_t stop = MIN (round_up (next + 1, 4096), end);
    const bool z = is_zero (m->data + next, stop - next);

    if (next == offset)
      zero = z;
    if (z != zero)
      break;
    next = stop;
  }
  *ret = (struct extent) {
    .length = next - offset, .where = n, .offset = offset,
    .flags = EXTENT_MAPPED | (zero ? EXTENT_ZERO | EXTENT_HOLE : 0)
  };
  return 0;
}

static inline int
memory_close (struct node *n)
{
  struct memory_node *m = memory_of (n);

  pthread_mutex_destroy (&m->lock);
  free (m->data);
  free (m);
  return 0;
}

static const struct node_ops memory_ops = {
  .type = "memory",
  .close = memory_close,
  .pread = memory_pread,
  .pwritev = memory_pwritev,
  .flush = memory_flush,
  .extents = memory_extents,
  .zero = memory_zero,
  .discard = memory_discard,
};

/* A node of zeroes. */
static inline struct memory_node *
memory_node_new (uint64_t size)
{
  struct memory_node *m = calloc (1, sizeof *m);

  if (m == NULL || (m->data = calloc (1, size)) == NULL)
    abort ();
  m->node = (struct node) {
    .ops = &memory_ops, .name = (char *) "memory", .fixed_size = true,
    .can_fast_zero = true, .zero_align = 1, .align = 1, .preferred = 4096
  };
  atomic_init (&m->node.size, size);
  pthread_mutex_init (&m->lock, NULL);
  for (int i = 0; i < MEMORY_OPS; ++i)
    atomic_init (&m->fail_after[i], MEMORY_NEVER);
  return m;
}

#endif /* BLOCKDRIVERS_MEMORY_NODE_H */
