/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A writer counts up "written" when its write has ended.  Whoever
 * wants to be durable notes "written" (its target) and waits until
 * "durable" has come that far.  At most one of those who wait is in
 * flush () at a time: it notes "written" at the start, and if the flush
 * succeeds all up to there is durable.  Those that came too late for
 * this round elect one for the next; so n waiters cost at most two
 * flushes.
 *
 * When a flush fails nobody knows what has reached the medium, and a
 * later flush that succeeds says nothing about the writes before the one
 * that failed: the kernel, here or at a server, may have dropped what it
 * could not write.  What was lost may be metadata on which everything
 * newer depends.  So a failure stays: all flushes after it fail, too,
 * until what is flushed is opened again.
 */

#include <config.h>

#include <errno.h>
#include <stddef.h>

#include "utils/cleanup.h"
#include "request/flush.h"

void
flusher_init (struct flusher *f, int (*flush) (void *), void *opaque)
{
  f->flush = flush;
  f->opaque = opaque;
  /* An earlier process may have left something that is not durable, and its
   * clients, which come back, ask for that with the next flush.
   */
  atomic_init (&f->written, 1);
  atomic_init (&f->durable, 0);
  pthread_mutex_init (&f->lock, NULL);
  pthread_cond_init (&f->done, NULL);
  f->running = false;
  f->failed_errno = 0;
}

void
flusher_destroy (struct flusher *f)
{
  pthread_mutex_destroy (&f->lock);
  pthread_cond_destroy (&f->done);
}

void
flusher_written (struct flusher *f)
{
  atomic_fetch_add (&f->written, 1);
}

bool
flusher_has_failed (struct flusher *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  return f->failed_errno != 0;
}

/* Flush once, for all that wait, who are to be woken (see flusher_flush).
 * Called and returns with the lock.
 */
static void
run_round (struct flusher *f)
{
  const uint64_t covers = atomic_load (&f->written);
  int r, err;

  f->running = true;
  pthread_mutex_unlock (&f->lock);
  r = f->flush (f->opaque);
  err = errno;
  pthread_mutex_lock (&f->lock);
  f->running = false;

  if (f->failed_errno == 0 && r == 0)
    atomic_store (&f->durable, covers);
  else if (f->failed_errno == 0)
    f->failed_errno = err ? err : EIO;
}

/* After a failure a flush is made all the same, for its message. */
static void
say_again (struct flusher *f)
{
  while (f->running)
    pthread_cond_wait (&f->done, &f->lock);
  run_round (f);
}

/* *ran: this has flushed, for others, too. */
static int
flush_or_wait (struct flusher *f, bool *ran)
{
  const uint64_t target = atomic_load (&f->written);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  *ran = f->failed_errno != 0;
  if (f->failed_errno)
    say_again (f);
  while (atomic_load (&f->durable) < target && f->failed_errno == 0) {
    if (f->running)
      pthread_cond_wait (&f->done, &f->lock);
    else {
      run_round (f);
      *ran = true;
    }
  }
  if (f->failed_errno == 0)
    return 0;
  errno = f->failed_errno;
  return -1;
}

int
flusher_flush (struct flusher *f)
{
  bool ran;
  const int r = flush_or_wait (f, &ran);
  const int err = errno;

  /* Without the lock, for which they would wait again. */
  if (ran)
    pthread_cond_broadcast (&f->done);
  errno = err;
  return r;
}
