/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The requests of a QED node, for its struct node_ops (node.h has their
 * contracts).
 */

#ifndef BLOCKDRIVERS_QED_IO_H
#define BLOCKDRIVERS_QED_IO_H

#include "node/node.h"
#include "qed/image/image.h"

/* Bracket a request.  A read-only image is never drained, so its requests need
 * not be counted, which many threads would have to take turns for.
 */
static inline void
qed_request_begin (struct qed *s)
{
  if (!s->node.read_only)
    request_begin (&s->requests);
}

static inline void
qed_request_end (struct qed *s)
{
  if (!s->node.read_only)
    request_end (&s->requests);
}

extern int qed_pread (struct node *n, void *buf, size_t count,
                      uint64_t offset);
extern int qed_cache (struct node *n, uint64_t count, uint64_t offset);
extern int qed_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                        size_t count, uint64_t offset);
extern int qed_zero (struct node *n, uint64_t count, uint64_t offset,
                     unsigned flags);
extern int qed_discard (struct node *n, uint64_t count, uint64_t offset);
extern int qed_extents (struct node *n, uint64_t count, uint64_t offset,
                        struct extent *ret);
extern int qed_zeroes (struct node *n, uint64_t count, uint64_t offset,
                       uint64_t *length);
extern int qed_resize (struct node *n, uint64_t size); /* see qed.h */

#endif /* BLOCKDRIVERS_QED_IO_H */
