/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See forward-work.h. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "filters/replication/primary/forward-work.h"
#include "request/job.h"
#include "utils/message.h"
#include "utils/rounding.h"

static const char *const names[] = {
  [WRITE] = "write", [ZERO] = "zero", [DISCARD] = "discard",
  [FLUSH] = "flush", [DRAIN] = "drain"
};

/* Called with the lock. */
void
forward_free_request (struct forward *f, struct request *r)
{
  if (r->awaited)
    pthread_cond_destroy (&r->changed);
  if (r->kind == WRITE && r->count == PIECE && f->nr_spare < MAX_SPARE) {
    r->next = f->spare;
    f->spare = r;
    f->nr_spare++;
  }
  else
    free (r);
}

/* ---- Giving up.  All of these are called with the lock. */

/* Whoever waits frees what he waits for, if no worker has begun it. */
void
forward_stop_working (struct forward *f, int state)
{
  f->state = state;
  while (f->first) {
    struct request *r = f->first;

    f->first = r->next;
    f->bytes -= bytes_of (r);
    if (!r->awaited)
      forward_free_request (f, r);
  }
  f->aside = NULL;
  for (struct request *r = f->waiters; r; r = r->next_waiter)
    pthread_cond_signal (&r->changed);
  pthread_cond_broadcast (&f->room);
  pthread_cond_broadcast (&f->done);
  pthread_cond_broadcast (&f->work);
}

void
forward_give_up (struct forward *f)
{
  msg_error ("%s: no answer from the secondary for %.1f seconds: nothing is "
             "forwarded any more", f->node->name, f->limit / 1000.0);
  replication_error_set (f->error, "forwarding: no answer for %.1f seconds",
                         f->limit / 1000.0);
  forward_stop_working (f, GIVEN_UP);
}

/* When is the patience of somebody at its end who waits since then? */
static int64_t
patience_ends (const struct forward *f, int64_t since)
{
  return MIN (MAX (since, f->progress) + f->limit,
              since + ALONE * (int64_t) f->limit);
}

/* The same for what runs; INT64_MAX if nothing does.  A flush may have much
 * to do, and nothing else gets on meanwhile.
 */
int64_t
forward_workers_end (const struct forward *f)
{
  int64_t end = INT64_MAX;

  for (unsigned i = 0; i < NR_WORKERS; ++i) {
    const struct request *r = f->workers[i].request;

    if (r)
      end = MIN (end, r->kind == FLUSH
                 ? r->since + ALONE * (int64_t) f->limit
                 : patience_ends (f, r->since));
  }
  return end;
}

/* Wait for something that comes when workers get on, and give up when they
 * do not.
 */
void
forward_wait_patiently (struct forward *f, pthread_cond_t *cond)
{
  const int64_t end = forward_workers_end (f), time = clock_ms ();

  if (time >= end)
    forward_give_up (f);
  else
    clock_wait (cond, &f->lock, MIN (end, time + f->limit));
}

int
forward_refuse (const struct forward *f)
{
  errno = f->state == CUT ? ECANCELED : ETIMEDOUT;
  return -1;
}

/* ---- The workers */

static int
make_request (struct node *node, const struct request *r)
{
  switch (r->kind) {
  case WRITE: return node_pwrite (node, r->data, r->count, r->offset);
  case ZERO: return node_zero (node, r->count, r->offset, r->flags);
  case DISCARD: return node_discard (node, r->count, r->offset);
  case FLUSH: return node_flush (node);
  case DRAIN: return 0;
  }
  abort ();
}

/* Must the later one wait until the earlier one has been carried out? */
static bool
must_wait (const struct request *later, const struct request *earlier)
{
  return later->offset < earlier->offset + earlier->count &&
    earlier->offset < later->offset + later->count;
}

/* What is at the head of the queue, if it may run.  Called with the
 * lock.
 */
static struct request *
find_work (const struct forward *f)
{
  struct request *r = f->first;

  for (unsigned i = 0; r && i < NR_WORKERS; ++i)
    if (f->workers[i].request && must_wait (r, f->workers[i].request))
      return NULL;
  return r;
}

/* The first request that has not been carried out, or the next one to
 * come.  Called with the lock.
 */
uint64_t
forward_oldest_number (const struct forward *f)
{
  const struct request *r = f->first;
  uint64_t oldest = f->next_number;

  while (r && is_barrier (r))
    r = r->next;
  if (r)
    oldest = r->number;
  for (unsigned i = 0; i < NR_WORKERS; ++i) {
    r = f->workers[i].request;
    if (r && !is_barrier (r))
      oldest = MIN (oldest, r->number);
  }
  return oldest;
}

/* Queue what no longer has to wait for others.  Called with the lock. */
void
forward_bring_in (struct forward *f)
{
  const uint64_t oldest = forward_oldest_number (f);
  struct request **p = &f->aside;

  while (*p) {
    struct request *r = *p;

    if (r->number > oldest) {
      p = &r->next;
      continue;
    }
    *p = r->next;
    r->next = f->first;
    f->first = r;
    if (r->next == NULL)
      f->last = r;
    f->bytes += bytes_of (r);
  }
}

/* A request has been carried out.  Called with the lock. */
static void
end_request (struct forward *f, struct request *r, int res, int err)
{
  f->progress = clock_ms ();
  if (f->progress < r->since + MOMENT)
    f->slow = false;
  f->bytes -= bytes_of (r);
  if (f->nr_for_room > 0)
    pthread_cond_signal (&f->room);
  if (f->nr_for_done > 0)
    pthread_cond_broadcast (&f->done);
  if (r->awaited && !r->abandoned) {
    r->r = res;
    r->err = err;
    r->done = true;
    pthread_cond_signal (&r->changed);
    return;
  }
  if (res == -1)
    replication_error_set (f->error, "forwarding a %s at offset %" PRIu64
                           ": %s", names[r->kind], r->offset,
                           strerror (err));
  forward_free_request (f, r);
}

/* Carry out what was found.  Called and returns with the lock. */
static void
work_on (struct worker *w, struct request *r)
{
  struct forward *f = w->forward;
  int res, err;

  f->first = r->next;
  r->begun = true;
  r->since = clock_ms ();
  w->request = r;
  if (f->first && f->nr_idle > 0)
    pthread_cond_signal (&f->work);
  pthread_mutex_unlock (&f->lock);
  res = make_request (f->node, r);
  err = errno;
  pthread_mutex_lock (&f->lock);
  w->request = NULL;
  end_request (f, r, res, err);
  if (f->aside)
    forward_bring_in (f);
}

int
forward_worker_thread (struct job *job, void *opaque)
{
  struct worker *w = opaque;
  struct forward *f = w->forward;

  (void) job;
  pthread_mutex_lock (&f->lock);
  for (;;) {
    struct request *r = find_work (f);

    if (r)
      work_on (w, r);
    else if (f->ending && f->first == NULL)
      break;
    else {
      f->nr_idle++;
      pthread_cond_wait (&f->work, &f->lock);
      f->nr_idle--;
    }
  }
  f->nr_workers--;
  pthread_cond_signal (&f->ended);
  pthread_cond_broadcast (&f->work); /* who waited for the last request */
  pthread_mutex_unlock (&f->lock);
  return 0;
}

/* Called with the lock. */
bool
forward_is_working (const struct forward *f)
{
  for (unsigned i = 0; i < NR_WORKERS; ++i)
    if (f->workers[i].request)
      return true;
  return false;
}
