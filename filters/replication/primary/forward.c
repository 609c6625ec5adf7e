/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A request to the layer below an nbdkit filter cannot be given up: it
 * returns when that layer thinks fit, which with nbdkit's nbd plugin and a
 * server that hangs is never.  So requests are made by workers, from a
 * queue with copies of the data.  A write of the guest is complete when it
 * is in the queue, as with a mirror it is when it is known to be dirty: its
 * errors are not for the guest anyway, and to wait for the worker would
 * cost a good part of the speed of a healthy secondary.  A flush and a
 * checkpoint wait for all that is before them in the queue.
 *
 * Memory is bounded: when the queue has MAX_BYTES the guest waits for room.
 * But it waits only while there is progress, and so does everybody else.
 * When there has been none for some time the node is given up for good:
 * what no worker has begun is dropped, all who wait go, and every later
 * request fails at once.  What a worker has begun stays with him, and may
 * yet arrive at the secondary, which lacks others then.
 *
 * Any request that returns is progress; large ones are cut into pieces, so
 * that a slow way is not taken for one that hangs.  One that does not return
 * while others do is borne for longer, but not for ever.
 *
 * Workers take what is at the head of the queue only, and if it overlaps
 * something that runs they wait for that.  So nothing can overtake what it
 * must not.  A flush first waits aside, until all that came before it is
 * done, and then goes to the head of the queue.
 *
 * Threads: the workers, from forward_open to forward_close.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "filters/replication/primary/forward.h"
#include "filters/replication/primary/forward-work.h"
#include "request/job.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* ---- Requests */

/* A spare one, or NULL. */
static struct request *
take_spare (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  struct request *r = f->spare;

  if (r) {
    f->spare = r->next;
    f->nr_spare--;
  }
  return r;
}

/* Without its data.  NULL with errno. */
static struct request *
new_request (struct forward *f, const struct request *what)
{
  struct request *r = NULL;

  if (what->kind == WRITE && what->count == PIECE)
    r = take_spare (f);
  if (r == NULL)
    r = malloc (bytes_of (what));
  if (r == NULL)
    return NULL;
  *r = *what;
  if (r->awaited)
    clock_cond_init (&r->changed);
  return r;
}

/* Wait for room, and put it into the queue.  Called with the lock.  On -1
 * it is still the caller's.
 */
static int
enqueue (struct forward *f, struct request *r)
{
  f->nr_for_room++;
  while (f->state == WORKING && f->bytes >= MAX_BYTES)
    forward_wait_patiently (f, &f->room);
  f->nr_for_room--;
  if (f->state != WORKING)
    return forward_refuse (f);

  f->bytes += bytes_of (r);
  r->number = f->next_number++;
  if (f->first)
    f->last->next = r;
  else
    f->first = r;
  f->last = r;
  r->since = clock_ms ();
  if (f->nr_idle > 0)
    pthread_cond_signal (&f->work);
  return 0;
}

/* The same for one that waits for those before it, and needs no room. */
static int
set_aside (struct forward *f, struct request *r)
{
  if (f->state != WORKING)
    return forward_refuse (f);
  r->number = f->next_number;
  r->next = f->aside;
  f->aside = r;
  forward_bring_in (f);
  if (f->first && f->nr_idle > 0)
    pthread_cond_signal (&f->work);
  return 0;
}

/* Is there nothing else, and is it worth to wait for a moment? */
static bool
is_alone (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  return f->bytes == 0 && !f->slow;
}

/* Wait until all that has come so far is done, but not for long. */
static void
wait_a_moment (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  const uint64_t next = f->next_number;
  const int64_t end = clock_ms () + MOMENT;

  f->nr_for_done++;
  while (f->state == WORKING && forward_oldest_number (f) < next &&
         clock_ms () < end)
    clock_wait (&f->done, &f->lock, end);
  f->nr_for_done--;
  if (forward_oldest_number (f) < next)
    f->slow = true;
}

/* One that nobody waits for. */
static int
run (struct forward *f, struct request *r)
{
  int err;

  if (r == NULL)
    return -1;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  if (enqueue (f, r) == 0)
    return 0;
  err = errno;
  forward_free_request (f, r);
  errno = err;
  return -1;
}

static void
forget_waiter (struct forward *f, struct request *r)
{
  struct request **p = &f->waiters;

  while (*p != r)
    p = &(*p)->next_waiter;
  *p = r->next_waiter;
}

/* Wait for one that is in the queue.  It is freed here or, if that takes
 * too long, by the worker who has begun it.  Called with the lock.
 */
static int
await (struct forward *f, struct request *r)
{
  int res, err;

  r->next_waiter = f->waiters;
  f->waiters = r;
  while (!r->done && f->state == WORKING)
    forward_wait_patiently (f, &r->changed);
  forget_waiter (f, r);
  res = r->done ? r->r : forward_refuse (f);
  err = r->done ? r->err : errno;
  r->abandoned = r->begun && !r->done;
  if (!r->abandoned)
    forward_free_request (f, r);
  errno = err;
  return res;
}

/* One that its maker waits for. */
static int
run_and_wait (struct forward *f, const struct request *what)
{
  struct request *r = new_request (f, what);
  int err;

  if (r == NULL)
    return -1;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  if ((is_barrier (r) ? set_aside (f, r) : enqueue (f, r)) == 0)
    return await (f, r);
  err = errno;
  forward_free_request (f, r);
  errno = err;
  return -1;
}

/* Copy the next bytes of a vector; *skip are those of its first part that
 * were copied before.
 */
static void
gather (char *to, size_t count, const struct iovec **iov, size_t *skip)
{
  while (count > 0) {
    const size_t len = MIN ((*iov)->iov_len - *skip, count);

    memcpy (to, (const char *) (*iov)->iov_base + *skip, len);
    to += len;
    count -= len;
    *skip += len;
    if (*skip == (*iov)->iov_len) {
      (*iov)++;
      *skip = 0;
    }
  }
}

int
forward_pwritev (struct forward *f, const struct iovec *iov, int iovcnt,
                 size_t count, uint64_t offset)
{
  const bool alone = is_alone (f);
  size_t skip = 0;

  (void) iovcnt;                /* count says the same */
  while (count > 0) {
    const size_t len = MIN (count, PIECE);
    struct request *r =
      new_request (f, &(struct request) {
        .kind = WRITE, .count = len, .offset = offset
      });

    if (r)
      gather (r->data, len, &iov, &skip);
    if (run (f, r) == -1)
      return -1;
    count -= len;
    offset += len;
  }
  if (alone)
    wait_a_moment (f);
  return 0;
}

/* A zero request or discard, in pieces. */
static int
run_pieces (struct forward *f, struct request what, uint64_t count)
{
  const bool alone = is_alone (f);

  while (count > 0) {
    what.count = MIN (count, PIECE);
    if (run (f, new_request (f, &what)) == -1)
      return -1;
    count -= what.count;
    what.offset += what.count;
  }
  if (alone)
    wait_a_moment (f);
  return 0;
}

int
forward_zero (struct forward *f, uint64_t count, uint64_t offset,
              unsigned flags)
{
  const struct request what = {
    .kind = ZERO, .count = count, .offset = offset, .flags = flags,
    .awaited = flags & NODE_FAST
  };

  return what.awaited ? run_and_wait (f, &what)
    : run_pieces (f, what, count);
}

int
forward_discard (struct forward *f, uint64_t count, uint64_t offset)
{
  const struct request what = { .kind = DISCARD, .offset = offset };

  return run_pieces (f, what, count);
}

int
forward_flush (struct forward *f)
{
  return run_and_wait (f, &(struct request) {
    .kind = FLUSH, .awaited = true
  });
}

int
forward_drain (struct forward *f)
{
  return run_and_wait (f, &(struct request) {
    .kind = DRAIN, .awaited = true
  });
}

void
forward_check (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  if (f->state == WORKING && clock_ms () >= forward_workers_end (f))
    forward_give_up (f);
}

void
forward_cut (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  if (f->state == WORKING)
    forward_stop_working (f, CUT);
}

bool
forward_settle (struct forward *f, unsigned ms)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  const int64_t end = clock_ms () + ms;

  f->nr_for_done++;
  while (forward_is_working (f) && clock_ms () < end)
    clock_wait (&f->done, &f->lock, end);
  f->nr_for_done--;
  return !forward_is_working (f);
}

/* ---- Open and close */

static int
start_workers (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  for (; f->nr_workers < NR_WORKERS; f->nr_workers++) {
    struct worker *w = &f->workers[f->nr_workers];

    w->forward = f;
    w->job = job_start ("forward", forward_worker_thread, w);
    if (w->job == NULL)
      return -1;
  }
  return 0;
}

struct forward *
forward_open (struct node *node, unsigned limit,
              struct replication_error *error)
{
  struct forward *f = calloc (1, sizeof *f);

  if (f == NULL) {
    msg_error ("%s: %m", node->name);
    return NULL;
  }
  f->node = node;
  f->limit = limit;
  f->error = error;
  pthread_mutex_init (&f->lock, NULL);
  pthread_cond_init (&f->work, NULL);
  clock_cond_init (&f->room);
  clock_cond_init (&f->done);
  clock_cond_init (&f->ended);
  if (start_workers (f) == -1) {
    const int err = errno;

    forward_close (f);
    errno = err;
    return NULL;
  }
  return f;
}

/* Let the workers do what is left, if they get on with it.  Have all
 * ended?  The second time nobody waits for them: the layer below, which
 * they are in, has ended, so the process should too.
 */
static bool
end_workers (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  const bool again = f->ending;
  int64_t end;

  f->ending = true;
  pthread_cond_broadcast (&f->work);
  while (f->nr_workers > 0 && f->state == WORKING)
    forward_wait_patiently (f, &f->ended);
  end = again ? 0 : clock_ms () + FAREWELL;
  while (f->nr_workers > 0 && clock_ms () < end)
    clock_wait (&f->ended, &f->lock, end);
  if (f->nr_workers > 0 && !again)
    msg_error ("%s: still no answer at the end, so it is not closed",
               f->node->name);
  return f->nr_workers == 0;
}

bool
forward_close (struct forward *f)
{
  if (f == NULL)
    return true;
  if (!end_workers (f))
    return false;
  for (unsigned i = 0; i < NR_WORKERS; ++i)
    job_wait (f->workers[i].job);
  while (f->spare)
    free (take_spare (f));
  pthread_cond_destroy (&f->ended);
  pthread_cond_destroy (&f->done);
  pthread_cond_destroy (&f->room);
  pthread_cond_destroy (&f->work);
  pthread_mutex_destroy (&f->lock);
  free (f);
  return true;
}
