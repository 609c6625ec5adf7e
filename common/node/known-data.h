/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A region of a node that is known to be data, so that nobody asks for
 * its block status again: to find the end of data takes some file systems
 * as long as to go over all of them (tmpfs), and a server a round trip.
 * Specification: block-layer.md, "Nodes", block status.
 *
 * It is safe to call a hole data.  So what others do to the node need not
 * be seen, nor that a hole is made while somebody asks; but holes that
 * are made through the node cut the region.
 */

#ifndef BLOCKDRIVERS_KNOWN_DATA_H
#define BLOCKDRIVERS_KNOWN_DATA_H

#include <pthread.h>
#include <stdint.h>

#include "utils/cleanup.h"
#include "utils/rounding.h"

struct known_data {
  pthread_mutex_t lock;         /* protects the others; a leaf lock, no I/O
                                   is done under it */
  uint64_t start, end;          /* bytes; nothing is known if they are equal */
};

static inline void
known_data_init (struct known_data *k)
{
  pthread_mutex_init (&k->lock, NULL);
  k->start = k->end = 0;
}

static inline void
known_data_destroy (struct known_data *k)
{
  pthread_mutex_destroy (&k->lock);
}

/* How many bytes from offset on are known to be data?  May be none. */
static inline uint64_t
known_data_at (struct known_data *k, uint64_t offset)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
  return offset >= k->start && offset < k->end ? k->end - offset : 0;
}

/* Take note that there are data.  What was known is kept if it is beside
 * them, and given up otherwise.
 */
static inline void
known_data_add (struct known_data *k, uint64_t start, uint64_t end)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
  if (start <= k->end && k->start <= end) {
    start = MIN (start, k->start);
    end = MAX (end, k->end);
  }
  k->start = start;
  k->end = end;
}

/* This range may not be data any more: keep the longer of what is before
 * and behind it.
 */
static inline void
known_data_cut (struct known_data *k, uint64_t start, uint64_t end)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
  if (start >= k->end || end <= k->start)
    return;
  if (start > k->start && (end >= k->end ||
                           start - k->start >= k->end - end))
    k->end = start;
  else if (end < k->end)
    k->start = end;
  else
    k->start = k->end = 0;
}

/* Somebody who goes backward asks before the region again and again.
 * Where could he ask instead, so that the region doubles each time?
 */
static inline uint64_t
known_data_before (struct known_data *k, uint64_t offset)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
  return offset >= k->start ? offset
    : offset - MIN (offset, k->end - k->start);
}

#endif /* BLOCKDRIVERS_KNOWN_DATA_H */
