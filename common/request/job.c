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

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "request/job.h"
#include "utils/message.h"
#include "utils/rounding.h"

struct job {
  job_function run;
  void *opaque;
  pthread_t thread;

  pthread_mutex_t lock;         /* protects the rest; a leaf lock */
  pthread_cond_t changed;       /* woken or cancelled */
  bool woken, cancelled;
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
  return NULL;
}

struct job *
job_start (const char *name, job_function run, void *opaque)
{
  struct job *job = calloc (1, sizeof *job);
  int err;

  if (job == NULL) {
    msg_error ("%s: starting a background job: %m", name);
    return NULL;
  }
  job->run = run;
  job->opaque = opaque;
  pthread_mutex_init (&job->lock, NULL);
  clock_cond_init (&job->changed);

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
job_cancelled (struct job *job)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  return job->cancelled;
}

bool
job_sleep (struct job *job, int64_t milliseconds)
{
  const int64_t until = milliseconds < 0 ? INT64_MAX
                                         : clock_ms () + milliseconds;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&job->lock);
  while (!job->woken && !job->cancelled && clock_ms () < until)
    clock_wait (&job->changed, &job->lock, until);
  if (!job->woken && !job->cancelled)
    return false;
  job->woken = false;
  return true;
}
