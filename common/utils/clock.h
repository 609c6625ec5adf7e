/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The clock by which time limits are kept: CLOCK_MONOTONIC, in
 * milliseconds.
 */

#ifndef BLOCKDRIVERS_CLOCK_H
#define BLOCKDRIVERS_CLOCK_H

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <time.h>

static inline int64_t
clock_ms (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * INT64_C (1000) + ts.tv_nsec / 1000000;
}

/* A condition that goes by this clock, too. */
static inline void
clock_cond_init (pthread_cond_t *cond)
{
  pthread_condattr_t attr;

  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (cond, &attr);
  pthread_condattr_destroy (&attr);
}

/* Wait for such a condition until that time at the latest; INT64_MAX: as long
 * as it takes.
 */
static inline void
clock_wait (pthread_cond_t *cond, pthread_mutex_t *lock, int64_t when)
{
  const struct timespec ts = {
    .tv_sec = when / 1000, .tv_nsec = when % 1000 * 1000000
  };

  if (when == INT64_MAX)
    pthread_cond_wait (cond, lock);
  else
    pthread_cond_timedwait (cond, lock, &ts);
}

static inline void
clock_sleep_until (int64_t when)
{
  const struct timespec ts = {
    .tv_sec = when / 1000, .tv_nsec = when % 1000 * 1000000
  };

  while (clock_nanosleep (CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
    ;
}

#endif /* BLOCKDRIVERS_CLOCK_H */
