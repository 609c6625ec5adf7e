/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See serial.h. */

#include <config.h>

#include <errno.h>
#include <stddef.h>

#include "utils/cleanup.h"
#include "request/job.h"
#include "request/serial.h"

/* Work that waits, on the stack of its caller. */
struct serial_work {
  int (*work) (void *opaque);
  void *opaque;

  /* Protected by serial_queue.lock. */
  struct serial_work *next;
  bool done;                    /* r and err are valid */
  int r, err;
  pthread_cond_t changed;
};

void
serial_queue_init (struct serial_queue *q)
{
  *q = (struct serial_queue) { .job = NULL };
  pthread_mutex_init (&q->lock, NULL);
}

void
serial_queue_destroy (struct serial_queue *q)
{
  job_finish (q->job);
  pthread_mutex_destroy (&q->lock);
}

/* Called and returns with the lock. */
static void
do_work (struct serial_queue *q, struct serial_work *w)
{
  pthread_mutex_unlock (&q->lock);
  w->r = w->work (w->opaque);
  w->err = errno;
  pthread_mutex_lock (&q->lock);
  w->done = true;
}

/* Do what waits, until nothing does.  Called and returns with the lock,
 * after the queue was handed on.
 */
static void
serve (struct serial_queue *q)
{
  while (q->first) {
    struct serial_work *w = q->first;

    q->first = w->next;
    do_work (q, w);
    pthread_cond_signal (&w->changed);
  }
  q->busy = q->handed_on = false;
}

static int
queue_thread (struct job *job, void *opaque)
{
  struct serial_queue *q = opaque;

  while (!job_cancelled (job)) {
    {
      ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);
      if (q->handed_on)
        serve (q);
    }
    job_sleep (job, -1);
  }
  return 0;
}

int
serial_queue_start (struct serial_queue *q)
{
  q->job = job_start ("serial-queue", queue_thread, q);
  return q->job ? 0 : -1;
}

/* Called and returns with the lock, while somebody else is at work. */
static void
wait_until_done (struct serial_queue *q, struct serial_work *w)
{
  if (q->first == NULL)
    q->first = w;
  else
    q->last->next = w;
  q->last = w;

  pthread_cond_init (&w->changed, NULL);
  while (!w->done)
    pthread_cond_wait (&w->changed, &q->lock);
  pthread_cond_destroy (&w->changed);
}

int
serial_queue_run (struct serial_queue *q, int (*work) (void *opaque),
                  void *opaque)
{
  struct serial_work w = { .work = work, .opaque = opaque };
  bool wake = false;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&q->lock);
    if (q->busy)
      wait_until_done (q, &w);
    else {
      q->busy = true;
      do_work (q, &w);
      wake = q->handed_on = q->busy = q->first != NULL;
    }
  }
  if (wake)
    job_wake (q->job);
  errno = w.err;
  return w.r;
}
