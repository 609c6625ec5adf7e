/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See clock.h. */

#include <config.h>

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#include "tests/chaos/clock.h"

#define NS INT64_C (1000000000)

static unsigned speed = 1;
static int64_t begin;           /* ns, on both clocks */

extern __typeof__ (clock_gettime) __real_clock_gettime, __wrap_clock_gettime;
extern __typeof__ (clock_nanosleep) __real_clock_nanosleep,
  __wrap_clock_nanosleep;
extern __typeof__ (pthread_cond_timedwait) __real_pthread_cond_timedwait,
  __wrap_pthread_cond_timedwait;

static int64_t
in_ns (const struct timespec *ts)
{
  return ts->tv_sec * NS + ts->tv_nsec;
}

static struct timespec
of_ns (int64_t ns)
{
  return (struct timespec) { .tv_sec = ns / NS, .tv_nsec = ns % NS };
}

/* When a time of the fast clock is on the real one. */
static struct timespec
real_time (const struct timespec *ts)
{
  const int64_t ns = in_ns (ts);

  return speed == 1 || ns < begin ? *ts
    : of_ns (begin + (ns - begin) / speed);
}

void
clock_hurry (unsigned times)
{
  struct timespec now;

  __real_clock_gettime (CLOCK_MONOTONIC, &now);
  begin = in_ns (&now);
  speed = times;
}

int
__wrap_clock_gettime (clockid_t clock, struct timespec *ts)
{
  const int r = __real_clock_gettime (clock, ts);

  if (r == 0 && clock == CLOCK_MONOTONIC && speed != 1)
    *ts = of_ns (begin + (in_ns (ts) - begin) * speed);
  return r;
}

int
__wrap_pthread_cond_timedwait (pthread_cond_t *cond, pthread_mutex_t *lock,
                               const struct timespec *until)
{
  const struct timespec real = real_time (until);

  return __real_pthread_cond_timedwait (cond, lock, &real);
}

int
__wrap_clock_nanosleep (clockid_t clock, int flags,
                        const struct timespec *until,
                        struct timespec *remain)
{
  const struct timespec real = real_time (until);

  return __real_clock_nanosleep (clock, flags, &real, remain);
}
