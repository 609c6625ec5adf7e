/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Background jobs: one thread with cancel and sleep, which
 * ends before whoever started it goes away.  Start jobs only after the
 * last fork.  Specification: block-layer.md, "The request core",
 * background jobs.
 */

#ifndef BLOCKDRIVERS_JOB_H
#define BLOCKDRIVERS_JOB_H

#include <stdbool.h>
#include <stdint.h>

struct job;

/* The job itself: returns 0 when its work is done or was cancelled, -1
 * with errno after a message when it failed.
 */
typedef int (*job_function) (struct job *job, void *opaque);

/* Start a thread; its name (at most 15 characters) shows up in ps.
 * Returns NULL with errno after a message.
 */
extern struct job *job_start (const char *name, job_function run,
                              void *opaque);

/* Ask the job to end, wait until it has, free it.  Returns what the
 * function returned, with its errno.  NULL is ignored.
 */
extern int job_finish (struct job *job);

/* Wait until it ends by itself, free it; otherwise the same. */
extern int job_wait (struct job *job);

/* Wake the job from job_sleep. */
extern void job_wake (struct job *job);

/* For the function that runs. */
extern bool job_cancelled (struct job *job);

/* Sleep for some milliseconds (-1: no limit), or until job_wake or
 * job_finish.  A wake-up that came between two sleeps is not lost.
 * Returns false when the time ran out.
 */
extern bool job_sleep (struct job *job, int64_t milliseconds);

#endif /* BLOCKDRIVERS_JOB_H */
