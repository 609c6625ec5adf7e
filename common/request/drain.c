/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * One word holds twice the number of requests in flight, and whether
 * somebody drains.  A request adds two when it begins and takes them
 * off when it ends; only if it finds the draining bit set does it come
 * near the lock.  A request that begins while draining takes its two
 * off again and waits.
 */

#include <config.h>

#include <stdbool.h>
#include <stddef.h>

#include "utils/cleanup.h"
#include "request/drain.h"

#define DRAINING 1
#define ONE_REQUEST 2

void
drain_init (struct drain *d)
{
  atomic_init (&d->state, 0);
  pthread_mutex_init (&d->lock, NULL);
  pthread_cond_init (&d->changed, NULL);
}

void
drain_destroy (struct drain *d)
{
  pthread_mutex_destroy (&d->lock);
  pthread_cond_destroy (&d->changed);
}

void
request_begin (struct drain *d)
{
  while (atomic_fetch_add (&d->state, ONE_REQUEST) & DRAINING) {
    request_end (d);

    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
    while (atomic_load (&d->state) & DRAINING)
      pthread_cond_wait (&d->changed, &d->lock);
  }
}

void
request_end (struct drain *d)
{
  if (atomic_fetch_sub (&d->state, ONE_REQUEST) == (ONE_REQUEST | DRAINING)) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);
    pthread_cond_broadcast (&d->changed);
  }
}

void
drain_begin (struct drain *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  while (atomic_load (&d->state) & DRAINING)
    pthread_cond_wait (&d->changed, &d->lock);
  atomic_fetch_or (&d->state, DRAINING);
  while (atomic_load (&d->state) != DRAINING)
    pthread_cond_wait (&d->changed, &d->lock);
}

void
drain_end (struct drain *d)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&d->lock);

  atomic_fetch_and (&d->state, ~(uint64_t) DRAINING);
  pthread_cond_broadcast (&d->changed);
}
