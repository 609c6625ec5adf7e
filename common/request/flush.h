/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Flush coalescing by generation.  Every completed write counts up a
 * generation; a flush that finds all earlier generations durable
 * returns at once; flushes that wait at the same time share one.
 * Specification: block-layer.md, "The request core", flush coalescing.
 */

#ifndef BLOCKDRIVERS_FLUSH_H
#define BLOCKDRIVERS_FLUSH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct flusher {
  int (*flush) (void *opaque);  /* makes earlier writes durable; 0 or -1
                                   with errno */
  void *opaque;

  _Atomic uint64_t written;     /* generation of the last write */
  _Atomic uint64_t durable;     /* last generation known to be durable */

  pthread_mutex_t lock;         /* protects the rest, not held while
                                   flushing; a leaf lock */
  pthread_cond_t done;
  bool running;                 /* somebody is in flush () */
  int failed_errno;             /* of the flush that failed, or 0; does not
                                   change any more then */
};

extern void flusher_init (struct flusher *f, int (*flush) (void *),
                          void *opaque);
extern void flusher_destroy (struct flusher *f);

/* Call after each write, before it is acknowledged; also after one that
 * failed, which may have been done, and read by somebody.
 */
extern void flusher_written (struct flusher *f);

/* Return when all that was written before the call is durable, also by an
 * earlier process: the first call always flushes.  A flush
 * that failed is reported to everybody who waited for it, and so is each
 * flush after it.
 */
extern int flusher_flush (struct flusher *f);

/* Has any flush ever failed?  Then what lies on the medium is unknown. */
extern bool flusher_has_failed (struct flusher *f);

#endif /* BLOCKDRIVERS_FLUSH_H */
