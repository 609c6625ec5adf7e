/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See job.h.  The thread ends when its function returns; job_finish and
 * job_wait join it.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "utils/cleanup.h"
#include "request/job.h"
#include "utils/message.h"
#include "utils/rounding.h"

struct job {
  job_function run;
  void *opaque;
  pthread_t thread;

  pthread_mutex_t lock;         /* protects the rest; a leaf lock */
  pthread_cond_t changed;       /* woken or cancelled */
  bool woken, cancelled, ended;
  uint64_t done, total;
  int result, result_errno;
};

static void *
job_thread (void *vp)
{
  struct job *job = vp;
  const int r = job->run (job, job->opaque);
  const int err = errno;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  job->result = r;
  job->result_errno = err;
  job->ended = true;
  return NULL;
}

struct job *
job_start (const char *name, job_function run, void *opaque)
{
  struct job *job = calloc (1, sizeof *job);
  pthread_condattr_t attr;
  int err;

  if (job == NULL) {
    msg_error ("%s: starting a background job: %m", name);
    return NULL;
  }
  job->run = run;
  job->opaque = opaque;
  pthread_mutex_init (&job->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&job->changed, &attr);
  pthread_condattr_destroy (&attr);

  err = pthread_create (&job->thread, NULL, job_thread, job);
  if (err) {
    errno = err;
    msg_error ("%s: starting a background job: %m", name);
    pthread_cond_destroy (&job->changed);
    pthread_mutex_destroy (&job->lock);
    free (job);
    errno = err;
    return NULL;
  }
  pthread_setname_np (job->thread, name);
  return job;
}

int
job_wait (struct job *job)
{
  int r, err;

  if (job == NULL)
    return 0;
  pthread_join (job->thread, NULL);
  r = job->result;
  err = job->result_errno;
  pthread_cond_destroy (&job->changed);
  pthread_mutex_destroy (&job->lock);
  free (job);
  errno = err;
  return r;
}

int
job_finish (struct job *job)
{
  if (job) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
    job->cancelled = true;
    pthread_cond_broadcast (&job->changed);
  }
  return job_wait (job);
}

void
job_wake (struct job *job)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  job->woken = true;
  pthread_cond_broadcast (&job->changed);
}

bool
job_progress (struct job *job, uint64_t *done, uint64_t *total)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  *done = job->done;
  *total = job->total;
  return !job->ended;
}

bool
job_cancelled (struct job *job)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  return job->cancelled;
}

void
job_set_progress (struct job *job, uint64_t done, uint64_t total)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  job->done = done;
  job->total = total;
}

static struct timespec
deadline_in (int64_t milliseconds)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  ts.tv_sec += milliseconds / 1000;
  ts.tv_nsec += milliseconds % 1000 * 1000000;
  if (ts.tv_nsec >= 1000000000) {
    ts.tv_sec++;
    ts.tv_nsec -= 1000000000;
  }
  return ts;
}

bool
job_sleep (struct job *job, int64_t milliseconds)
{
  const struct timespec deadline = deadline_in (MAX (milliseconds, 0));
  int r = 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  while (!job->woken && !job->cancelled && r != ETIMEDOUT) {
    if (milliseconds < 0)
      pthread_cond_wait (&job->changed, &job->lock);
    else
      r = pthread_cond_timedwait (&job->changed, &job->lock, &deadline);
  }
  if (!job->woken && !job->cancelled)
    return false;
  job->woken = false;
  return true;
}
