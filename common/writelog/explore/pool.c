/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Workers and what they do.  This process has no threads, so it may fork at
 * any time, which it does when a worker has died.
 */

#include <config.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "writelog/explore/children.h"
#include "writelog/explore/pool.h"
#include "writelog/explore/worker.h"

/* How long workers may take to end, in milliseconds: a log or base on a
 * server that does not answer holds them.
 */
#define PATIENCE 5000

struct slot {
  bool busy;
  size_t number;                /* of its task */
};

struct pool {
  const struct try_setup *setup;
  unsigned jobs;
  struct worker *workers;
  struct slot *slots;
  struct pollfd *fds;
  pid_t *pids;                  /* room for those of the workers */
  int children;                 /* a descriptor, see children_adopt */
  sigset_t waiting;             /* the signals while we wait */
};

static const int signals[] = { SIGINT, SIGTERM, SIGHUP };
#define NR_SIGNALS (sizeof signals / sizeof signals[0])

static volatile sig_atomic_t interrupted;
static struct sigaction old_actions[NR_SIGNALS];

static void
interrupt (int sig)
{
  interrupted = 1;
}

/* They are handled while we wait, and at no other time. */
static void
catch_signals (struct pool *pool)
{
  const struct sigaction action = { .sa_handler = interrupt };
  sigset_t set;

  interrupted = 0;
  sigemptyset (&set);
  for (size_t i = 0; i < NR_SIGNALS; ++i) {
    sigaction (signals[i], NULL, &old_actions[i]);
    /* What was ignored, as nohup has it, stays so. */
    if (old_actions[i].sa_handler != SIG_IGN || signals[i] != SIGHUP)
      sigaction (signals[i], &action, NULL);
    sigaddset (&set, signals[i]);
  }
  sigprocmask (SIG_BLOCK, &set, &pool->waiting);
  for (size_t i = 0; i < NR_SIGNALS; ++i)
    sigdelset (&pool->waiting, signals[i]);
}

static void
release_signals (void)
{
  sigset_t set;

  sigemptyset (&set);
  for (size_t i = 0; i < NR_SIGNALS; ++i) {
    sigaction (signals[i], &old_actions[i], NULL);
    sigaddset (&set, signals[i]);
  }
  sigprocmask (SIG_UNBLOCK, &set, NULL);
}

static void
free_pool (struct pool *pool)
{
  if (pool) {
    free (pool->workers);
    free (pool->slots);
    free (pool->fds);
    free (pool->pids);
  }
  free (pool);
}

struct pool *
pool_start (const struct try_setup *setup, unsigned jobs)
{
  struct pool *pool = calloc (1, sizeof *pool);

  if (pool) {
    pool->workers = calloc (jobs, sizeof *pool->workers);
    pool->slots = calloc (jobs, sizeof *pool->slots);
    pool->fds = calloc (jobs, sizeof *pool->fds);
    pool->pids = calloc (jobs, sizeof *pool->pids);
  }
  if (pool == NULL || pool->workers == NULL || pool->slots == NULL ||
      pool->fds == NULL || pool->pids == NULL) {
    msg_error ("%u jobs: %m", jobs);
    goto error;
  }
  pool->setup = setup;
  pool->children = children_adopt ();
  if (pool->children == -1)
    goto error;
  catch_signals (pool);
  for (; pool->jobs < jobs; ++pool->jobs)
    if (worker_start (pool->workers, jobs, setup, pool->jobs) == -1) {
      pool_end (pool);
      return NULL;
    }
  return pool;

 error:
  free_pool (pool);
  return NULL;
}

bool
pool_interrupted (const struct pool *pool)
{
  sigset_t pending;

  if (interrupted)
    return true;
  sigpending (&pending);
  for (size_t i = 0; i < NR_SIGNALS; ++i)
    if (sigismember (&pending, signals[i]))
      return true;
  return false;
}

unsigned
pool_jobs (const struct pool *pool)
{
  return pool->jobs;
}

/* Whose parent died with the worker is ours now, and nobody else's: the
 * living workers keep theirs.
 */
static void
end_orphans (struct pool *pool)
{
  size_t nr = 0;

  for (unsigned i = 0; i < pool->jobs; ++i)
    if (pool->workers[i].pid)
      pool->pids[nr++] = pool->workers[i].pid;
  children_end (pool->pids, nr);
}

/* ---- Running */

struct run {
  struct pool *pool;
  pool_next next;
  pool_done done;
  void *opaque;
  size_t number;                /* of the next task */
  size_t busy;
  bool no_more;
};

static void
finish (struct run *r, struct slot *slot, struct try_outcome *outcome)
{
  slot->busy = false;
  r->busy--;
  if (!r->done (r->opaque, slot->number, outcome))
    r->no_more = true;
  try_free (outcome);
}

/* A worker has died over its task.  Start another one. */
static int
bury (struct run *r, struct slot *slot)
{
  struct try_outcome outcome = { .verdict = TRY_UNTOLD };
  const unsigned job = slot - r->pool->slots;
  const bool busy = slot->busy;
  const int status = worker_end (&r->pool->workers[job],
                                 clock_ms () + PATIENCE);

  end_orphans (r->pool);
  worker_clean (r->pool->setup, job);
  if (!busy || (WIFEXITED (status) && WEXITSTATUS (status) != 0)) {
    msg_error ("the server of job %u has failed", job);
    return -1;
  }
  if (WIFSIGNALED (status) &&
      asprintf (&outcome.why, "its server was killed by signal %d (%s)",
                WTERMSIG (status), strsignal (WTERMSIG (status))) == -1)
    outcome.why = NULL;
  else if (!WIFSIGNALED (status))
    outcome.why = strdup ("its server has ended");
  finish (r, slot, &outcome);
  return worker_start (r->pool->workers, r->pool->jobs, r->pool->setup, job);
}

static int
give (struct run *r, struct slot *slot)
{
  struct try_task task = { .export = NULL };
  const int more = r->next (r->opaque, r->number, &task);
  int sent;

  if (more == -1) {
    msg_error ("the next state: %m");
    return -1;
  }
  if (more == 0) {
    r->no_more = true;
    return 0;
  }
  slot->number = r->number++;
  slot->busy = true;
  r->busy++;
  sent = worker_give (&r->pool->workers[slot - r->pool->slots], &task);
  try_free_task (&task);
  return sent == -1 ? bury (r, slot) : 0;
}

static int
fill (struct run *r)
{
  for (unsigned i = 0; i < r->pool->jobs && !r->no_more; ++i)
    if (!r->pool->slots[i].busy && give (r, &r->pool->slots[i]) == -1)
      return -1;
  return 0;
}

static int
collect (struct run *r)
{
  for (unsigned i = 0; i < r->pool->jobs; ++i) {
    struct slot *const slot = &r->pool->slots[i];
    struct try_outcome outcome;

    if (!r->pool->fds[i].revents)
      continue;
    if (!slot->busy || worker_take (&r->pool->workers[i], &outcome) == -1) {
      if (bury (r, slot) == -1)
        return -1;
    }
    else
      finish (r, slot, &outcome);
  }
  return 0;
}

int
pool_run (struct pool *pool, pool_next next, pool_done done,
          void (*idle) (void *opaque), void *opaque)
{
  const struct timespec second = { .tv_sec = 1 };
  struct run r = {
    .pool = pool, .next = next, .done = done, .opaque = opaque,
  };

  for (;;) {
    if (pool_interrupted (pool) || fill (&r) == -1)
      return -1;
    if (r.busy == 0)
      return 0;
    for (unsigned i = 0; i < pool->jobs; ++i)
      pool->fds[i] = (struct pollfd) {
        .fd = pool->workers[i].fd, .events = POLLIN,
      };
    if (ppoll (pool->fds, pool->jobs, &second, &pool->waiting) == -1)
      continue;
    if (collect (&r) == -1)
      return -1;
    if (idle)
      idle (opaque);
  }
}

void
pool_end (struct pool *pool)
{
  const int64_t limit = clock_ms () + PATIENCE;

  if (pool == NULL)
    return;
  for (unsigned i = 0; i < pool->jobs; ++i)
    if (pool->workers[i].pid)
      shutdown (pool->workers[i].fd, SHUT_RDWR);
  for (unsigned i = 0; i < pool->jobs; ++i) {
    worker_end (&pool->workers[i], limit);
    worker_clean (pool->setup, i);
  }
  children_end (NULL, 0);
  close (pool->children);
  release_signals ();
  free_pool (pool);
}
