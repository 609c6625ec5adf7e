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
#include "request/job.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* As many requests as nbdkit makes at a time for one client. */
#define NR_WORKERS 16

/* Of the requests in the queue and those that run; one more fits if there
 * are less.
 */
#define MAX_BYTES (UINT64_C (16) * 1024 * 1024)

/* Milliseconds for which a guest waits that has the queue to itself.  Once
 * that was in vain nobody waits until a request takes less.
 */
#define MOMENT 20

/* Requests are cut into pieces of this size, zeroes too: a secondary copies
 * what they replace.
 */
#define PIECE (UINT64_C (1024) * 1024)

/* So many buffers of this size are kept for the next ones. */
#define MAX_SPARE 16

/* A request that does not return is borne this many times the limit while
 * others do, and a flush in any case.
 */
#define ALONE 3

/* Milliseconds to wait in the end for a node that was given up. */
#define FAREWELL 1000

struct request {
  enum { WRITE, ZERO, DISCARD, FLUSH, DRAIN } kind;
  bool awaited;                 /* its maker waits for the result */
  uint64_t count, offset;
  unsigned flags;               /* ZERO */

  /* Protected by forward.lock. */
  struct request *next;         /* in the queue, or aside */
  struct request *next_waiter;  /* if awaited */
  uint64_t number;              /* of arrival; of a flush or drain: that of
                                   the next request */
  int64_t since;                /* when it came, or began to run */
  bool done;                    /* r and err are valid */
  bool begun, abandoned;        /* if both, the worker frees it */
  int r, err;
  pthread_cond_t changed;       /* for its maker, if awaited */

  char data[];                  /* WRITE */
};

static const char *const names[] = {
  [WRITE] = "write", [ZERO] = "zero", [DISCARD] = "discard",
  [FLUSH] = "flush", [DRAIN] = "drain"
};

struct worker {
  struct forward *forward;
  struct job *job;
  struct request *request;      /* that runs; protected by forward.lock */
};

struct forward {
  struct node *node;
  unsigned limit;               /* milliseconds */
  struct replication_error *error;
  struct worker workers[NR_WORKERS];
  pthread_condattr_t monotonic;

  pthread_mutex_t lock;         /* protects the rest; taken before that of
                                   error */
  pthread_cond_t work;          /* for workers: anything below */
  pthread_cond_t room;          /* bytes or state has changed */
  pthread_cond_t done;          /* a request is, or state has changed */
  pthread_cond_t ended;         /* a worker has */
  enum { WORKING, GIVEN_UP, CUT } state;
  bool ending;
  unsigned nr_workers, nr_idle;
  unsigned nr_for_room;         /* guests that wait for it */
  unsigned nr_for_done;         /* who waits for that, but not for long */
  bool slow;                    /* more than a MOMENT */
  struct request *first, *last; /* the queue: what nobody has begun */
  struct request *aside;        /* flushes and drains that are not in the
                                   queue yet */
  struct request *waiters;      /* awaited ones, in no order */
  uint64_t next_number;
  uint64_t bytes;               /* in the queue and running */
  int64_t progress;             /* when there was some */
  struct request *spare;        /* free ones of PIECE bytes: fresh
                                   memory costs as much as the copying */
  unsigned nr_spare;
};

/* Does it wait for those before it? */
static bool
is_barrier (const struct request *r)
{
  return r->kind == FLUSH || r->kind == DRAIN;
}

/* What a request takes of MAX_BYTES. */
static uint64_t
bytes_of (const struct request *r)
{
  return sizeof *r + (r->kind == WRITE ? r->count : 0);
}

/* Called with the lock. */
static void
free_request (struct forward *f, struct request *r)
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
static void
stop_working (struct forward *f, int state)
{
  f->state = state;
  while (f->first) {
    struct request *r = f->first;

    f->first = r->next;
    f->bytes -= bytes_of (r);
    if (!r->awaited)
      free_request (f, r);
  }
  f->aside = NULL;
  for (struct request *r = f->waiters; r; r = r->next_waiter)
    pthread_cond_signal (&r->changed);
  pthread_cond_broadcast (&f->room);
  pthread_cond_broadcast (&f->done);
  pthread_cond_broadcast (&f->work);
}

static void
give_up (struct forward *f)
{
  msg_error ("%s: no answer from the secondary for %.1f seconds: nothing is "
             "forwarded any more", f->node->name, f->limit / 1000.0);
  replication_error_set (f->error, "forwarding: no answer for %.1f seconds",
                         f->limit / 1000.0);
  stop_working (f, GIVEN_UP);
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
static int64_t
workers_end (const struct forward *f)
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
static void
wait_patiently (struct forward *f, pthread_cond_t *cond)
{
  const int64_t end = workers_end (f), time = clock_ms ();

  if (time >= end)
    give_up (f);
  else
    clock_wait (cond, &f->lock, MIN (end, time + f->limit));
}

static int
refuse (const struct forward *f)
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
static uint64_t
oldest_number (const struct forward *f)
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
static void
bring_in (struct forward *f)
{
  const uint64_t oldest = oldest_number (f);
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
  free_request (f, r);
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
    bring_in (f);
}

static int
worker_thread (struct job *job, void *opaque)
{
  struct worker *w = opaque;
  struct forward *f = w->forward;

  (void) job;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
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
  return 0;
}

/* Called with the lock. */
static bool
is_working (const struct forward *f)
{
  for (unsigned i = 0; i < NR_WORKERS; ++i)
    if (f->workers[i].request)
      return true;
  return false;
}

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
    pthread_cond_init (&r->changed, &f->monotonic);
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
    wait_patiently (f, &f->room);
  f->nr_for_room--;
  if (f->state != WORKING)
    return refuse (f);

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
    return refuse (f);
  r->number = f->next_number;
  r->next = f->aside;
  f->aside = r;
  bring_in (f);
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
  while (f->state == WORKING && oldest_number (f) < next && clock_ms () < end)
    clock_wait (&f->done, &f->lock, end);
  f->nr_for_done--;
  if (oldest_number (f) < next)
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
  free_request (f, r);
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
    wait_patiently (f, &r->changed);
  forget_waiter (f, r);
  res = r->done ? r->r : refuse (f);
  err = r->done ? r->err : errno;
  r->abandoned = r->begun && !r->done;
  if (!r->abandoned)
    free_request (f, r);
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
  free_request (f, r);
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

  if (f->state == WORKING && clock_ms () >= workers_end (f))
    give_up (f);
}

void
forward_cut (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  if (f->state == WORKING)
    stop_working (f, CUT);
}

bool
forward_settle (struct forward *f, unsigned ms)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);
  const int64_t end = clock_ms () + ms;

  f->nr_for_done++;
  while (is_working (f) && clock_ms () < end)
    clock_wait (&f->done, &f->lock, end);
  f->nr_for_done--;
  return !is_working (f);
}

/* ---- Open and close */

static int
start_workers (struct forward *f)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&f->lock);

  for (; f->nr_workers < NR_WORKERS; f->nr_workers++) {
    struct worker *w = &f->workers[f->nr_workers];

    w->forward = f;
    w->job = job_start ("forward", worker_thread, w);
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
  pthread_condattr_init (&f->monotonic);
  pthread_condattr_setclock (&f->monotonic, CLOCK_MONOTONIC);
  pthread_cond_init (&f->work, NULL);
  pthread_cond_init (&f->room, &f->monotonic);
  pthread_cond_init (&f->done, &f->monotonic);
  pthread_cond_init (&f->ended, &f->monotonic);
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
    wait_patiently (f, &f->ended);
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
  pthread_condattr_destroy (&f->monotonic);
  pthread_mutex_destroy (&f->lock);
  free (f);
  return true;
}
