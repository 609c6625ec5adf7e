/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Cleanup by scope, so that an error path is one "return -1". */

#ifndef BLOCKDRIVERS_CLEANUP_H
#define BLOCKDRIVERS_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void
cleanup_free (void *p)
{
  free (*(void **) p);
}

static inline void
cleanup_unlock (pthread_mutex_t **lock)
{
  pthread_mutex_unlock (*lock);
}

static inline void
cleanup_close (int *fd)
{
  if (*fd >= 0)
    close (*fd);
}

/* The variable is passed to free, or its descriptor closed, at the end
 * of its scope.  Set it to NULL (-1) to hand ownership on.  For some versions
 * of clang that is no use of it.
 */
#define CLEANUP_FREE __attribute__ ((cleanup (cleanup_free), unused))
#define CLEANUP_CLOSE __attribute__ ((cleanup (cleanup_close), unused))

/* Take a mutex until the end of the current scope. */
#define ACQUIRE_LOCK_FOR_CURRENT_SCOPE(mutex)                           \
  __attribute__ ((cleanup (cleanup_unlock), unused))                    \
  pthread_mutex_t *ACQUIRE_NAME (__LINE__) = (mutex);                   \
  pthread_mutex_lock (mutex)
#define ACQUIRE_NAME(line) ACQUIRE_NAME_ (line)
#define ACQUIRE_NAME_(line) acquired_lock_ ## line

#endif /* BLOCKDRIVERS_CLEANUP_H */
