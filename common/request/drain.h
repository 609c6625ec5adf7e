/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Requests in flight, and drain: stop new requests, wait for those in
 * flight, do something, go on.  A request costs two atomic additions.
 * Specification: block-layer.md, "The request core", drain.
 */

#ifndef BLOCKDRIVERS_DRAIN_H
#define BLOCKDRIVERS_DRAIN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

struct drain {
  /* Twice the number of requests in flight, plus one while draining. */
  _Atomic uint64_t state;

  pthread_mutex_t lock;         /* for waiting until state changes */
  pthread_cond_t changed;
};

extern void drain_init (struct drain *d);
extern void drain_destroy (struct drain *d);

/* Bracket a request.  request_begin waits while the image is drained.
 * Requests do not nest: an inner one could wait for a drain that waits
 * for the outer one.
 */
extern void request_begin (struct drain *d);
extern void request_end (struct drain *d);

/* After drain_begin no request is in flight until drain_end.  Several
 * callers take turns.  Not from inside a request.
 */
extern void drain_begin (struct drain *d);
extern void drain_end (struct drain *d);

#endif /* BLOCKDRIVERS_DRAIN_H */
