/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Writes to the file of an open image, all of which the next flush has to
 * make durable: what was tried is counted, done or failed, since a write
 * that failed may have been done, and read by somebody.
 *
 * Who rewrites an image that serves nobody (repair, rebase, emptying)
 * writes to the node, and syncs it.
 * Specification: block-layer.md, "The request core", flush coalescing.
 */

#ifndef BLOCKDRIVERS_QED_FILE_H
#define BLOCKDRIVERS_QED_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "qed/image/image.h"

/* Return 0, or -1 with errno, as those of the node do. */
static inline int
file_pwrite (struct qed *s, const void *buf, size_t count, uint64_t offset)
{
  const int r = node_pwrite (s->file, buf, count, offset);

  flusher_written (&s->flusher);
  return r;
}

static inline int
file_zero (struct qed *s, uint64_t count, uint64_t offset, unsigned flags)
{
  const int r = node_zero (s->file, count, offset, flags);

  flusher_written (&s->flusher);
  return r;
}

static inline int
file_discard (struct qed *s, uint64_t count, uint64_t offset)
{
  const int r = node_discard (s->file, count, offset);

  flusher_written (&s->flusher);
  return r;
}

#endif /* BLOCKDRIVERS_QED_FILE_H */
