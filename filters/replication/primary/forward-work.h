/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The queue of a forwarder and its workers; only for forward.c, whose notes
 * on the design are about both.
 */

#ifndef BLOCKDRIVERS_FORWARD_WORK_H
#define BLOCKDRIVERS_FORWARD_WORK_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "filters/replication/status.h"
#include "node/node.h"
#include "request/job.h"

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
static inline bool
is_barrier (const struct request *r)
{
  return r->kind == FLUSH || r->kind == DRAIN;
}

/* What a request takes of MAX_BYTES. */
static inline uint64_t
bytes_of (const struct request *r)
{
  return sizeof *r + (r->kind == WRITE ? r->count : 0);
}

/* ---- All of these are called with the lock, but for the thread. */

/* Called with the lock. */
extern void forward_free_request (struct forward *f, struct request *r);

/* Whoever waits frees what he waits for, if no worker has begun it. */
extern void forward_stop_working (struct forward *f, int state);

extern void forward_give_up (struct forward *f);

/* When is the patience with what runs at its end?  INT64_MAX if nothing
 * does.  A flush may have much to do, and nothing else gets on meanwhile.
 */
extern int64_t forward_workers_end (const struct forward *f);

/* Wait for something that comes when workers get on, and give up when they
 * do not.
 */
extern void forward_wait_patiently (struct forward *f, pthread_cond_t *cond);

extern int forward_refuse (const struct forward *f);

/* The first request that has not been carried out, or the next one to
 * come.  Called with the lock.
 */
extern uint64_t forward_oldest_number (const struct forward *f);

/* Queue what no longer has to wait for others.  Called with the lock. */
extern void forward_bring_in (struct forward *f);

extern int forward_worker_thread (struct job *job, void *opaque);

/* Called with the lock. */
extern bool forward_is_working (const struct forward *f);

#endif /* BLOCKDRIVERS_FORWARD_WORK_H */
