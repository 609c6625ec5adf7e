/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See parallel.h.  The threads end when there are no more pieces, or
 * one of them has failed; parallel_run waits for all.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>

#include "qed/format.h"
#include "qed/parallel.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define THREADS 4               /* if the caller does not say */

struct run {
  const struct parallel *p;

  pthread_mutex_t lock;         /* protects the rest; held in next and
                                   in progress->report */
  uint64_t position;            /* where the next search begins */
  uint64_t number;              /* of the next piece */
  uint64_t done;                /* bytes that have been dealt with */
  int64_t due;                  /* when the next piece may begin, by
                                   clock_ms, if there is a rate */
  int error;                    /* errno of the first failure, or 0 */
};

static void
fail (struct run *run)
{
  if (run->error == 0)
    run->error = errno;
}

/* When this piece may begin.  Called with the lock. */
static int64_t
schedule (struct run *run, uint64_t length)
{
  const int64_t begin = MAX (run->due, clock_ms ());

  if (run->p->rate > 0)
    run->due = begin + length * 1000.0 / run->p->rate;
  return begin;
}

/* Find the next piece.  *span is what it takes the search forward. */
static bool
take (struct run *run, struct piece *piece, uint64_t *span, int64_t *begin)
{
  const struct parallel *p = run->p;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&run->lock);
  *piece = (struct piece) { .length = 0 };
  if (run->error || run->position >= p->size)
    return false;
  if (p->next (p->opaque, run->position, piece) == -1) {
    fail (run);
    return false;
  }
  *span = piece->length
    ? piece->offset + piece->length - run->position
    : p->size - run->position;
  run->position += *span;
  if (piece->length)
    piece->number = run->number++;
  *begin = schedule (run, piece->length);
  return true;
}

static void
parallel_finish (struct run *run, int r, uint64_t span)
{
  const struct qed_progress *progress = run->p->progress;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&run->lock);
  if (r == -1) {
    fail (run);
    return;
  }
  run->done += span;
  if (progress)
    progress->report (progress->opaque, run->done, run->p->size);
}

static void *
worker (void *vp)
{
  struct run *run = vp;
  const struct parallel *p = run->p;
  /* Aligned, so that what is read past the page cache is not copied. */
  CLEANUP_FREE uint8_t *buf = aligned_alloc (4096, 2 * PARALLEL_BUFFER);
  struct piece piece;
  uint64_t span;
  int64_t begin;

  if (buf == NULL) {
    msg_error ("copying: %m");
    parallel_finish (run, -1, 0);
    return NULL;
  }
  while (take (run, &piece, &span, &begin)) {
    if (p->rate > 0)
      clock_sleep_until (begin);

    const int r = piece.length == 0 ? 0
      : p->work (p->opaque, &piece, buf, buf + PARALLEL_BUFFER);

    parallel_finish (run, r, span);
  }
  return NULL;
}

/* ---- Writing */

bool
parallel_reaches (const struct node *n, uint64_t size)
{
  return round_up (node_size (n), QED_SECTOR) >= size;
}

/* How many of these bytes does the node have? */
static uint64_t
within (const struct node *n, uint64_t count, uint64_t offset)
{
  const uint64_t size = node_size (n);

  return offset >= size ? 0 : MIN (count, size - offset);
}

static int
grow_to_sector (struct node *n)
{
  const uint64_t size = node_size (n);

  if (node_resize (n, round_up (size, QED_SECTOR)) == 0)
    return 0;
  if (errno == ENOTSUP)
    msg_error ("%s: the image has bytes behind offset %" PRIu64 " that are "
               "not zero, where this ends and cannot grow", n->name, size);
  return -1;
}

int
parallel_write (struct node *n, const uint8_t *buf, uint64_t count,
                uint64_t offset)
{
  uint64_t fits = within (n, count, offset);

  if (fits < count && !is_zero (buf + fits, count - fits)) {
    if (grow_to_sector (n) == -1)
      return -1;
    fits = count;
  }
  return fits > 0 ? node_pwrite (n, buf, fits, offset) : 0;
}

int
parallel_zero (struct node *n, uint64_t count, uint64_t offset)
{
  count = within (n, count, offset);
  while (count > 0) {
    struct extent e;

    if (node_extents (n, count, offset, &e) == -1 ||
        (!(e.flags & EXTENT_ZERO) &&
         node_zero (n, e.length, offset, NODE_MAY_TRIM) == -1))
      return -1;
    count -= e.length;
    offset += e.length;
  }
  return 0;
}

int
parallel_run (const struct parallel *p)
{
  struct run run = { .p = p };
  const unsigned nr_threads = MIN (p->threads ? : THREADS,
                                   PARALLEL_MAX_THREADS);
  pthread_t threads[PARALLEL_MAX_THREADS];
  unsigned n;

  pthread_mutex_init (&run.lock, NULL);
  /* This thread is the first worker, and enough if there are no more. */
  for (n = 0; n < nr_threads - 1; ++n)
    if (pthread_create (&threads[n], NULL, worker, &run) != 0)
      break;
  worker (&run);
  while (n > 0)
    pthread_join (threads[--n], NULL);
  pthread_mutex_destroy (&run.lock);
  errno = run.error;
  return run.error ? -1 : 0;
}
