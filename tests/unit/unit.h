/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the unit tests share: threads, random numbers, and what has been
 * said through message.h.
 */

#ifndef BLOCKDRIVERS_UNIT_H
#define BLOCKDRIVERS_UNIT_H

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "utils/cleanup.h"
#include "utils/message.h"

/* cmocka's assertions jump, which works in the main thread only.  This
 * one works in all of them, and ends the program.
 */
#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      fprintf (stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__,       \
               #condition);                                             \
      _exit (1);                                                        \
    }                                                                   \
  } while (0)

/* The value is one of these, or between them.  cmocka's own assert_in_range
 * is deprecated in its version 2.
 */
#define assert_within(value, least, most)                               \
  do {                                                                  \
    const uint64_t value_ = (value), least_ = (least), most_ = (most);  \
                                                                        \
    if (value_ < least_ || value_ > most_)                              \
      fail_msg ("%s is %" PRIu64 ", not from %" PRIu64 " to %" PRIu64,  \
                #value, value_, least_, most_);                         \
  } while (0)

/* A test that hangs has failed.  The slowest take a minute under the thread
 * sanitizer, and three on a processor that five of them share.
 */
#define HANG_SECONDS 800

/* Of many states that are tried, the sanitizers, which are slow and look for
 * something else, see one in so many.
 */
#if defined __SANITIZE_THREAD__
#define ONE_IN 8
#elif defined __SANITIZE_ADDRESS__
#define ONE_IN 2
#else
#define ONE_IN 1
#endif

/* Small and repeatable: the state is the seed, any number but 0. */
static inline uint64_t
next_random (uint64_t *state)
{
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

/* A number below limit. */
static inline uint64_t
random_below (uint64_t *state, uint64_t limit)
{
  return (next_random (state) >> 11) % limit;
}

struct unit_thread {
  unsigned nr;                  /* from 0 */
  uint64_t seed;                /* a different one for each thread */
  void *opaque;
  void (*run) (struct unit_thread *t);
  pthread_t thread;
};

static inline void *
unit_thread_main (void *vp)
{
  struct unit_thread *t = vp;

  t->run (t);
  return NULL;
}

static inline void
start_threads (struct unit_thread *threads, unsigned n,
               void (*run) (struct unit_thread *t), void *opaque)
{
  for (unsigned i = 0; i < n; ++i) {
    threads[i] = (struct unit_thread) {
      .nr = i, .seed = (i + 1) * UINT64_C (0x9e3779b97f4a7c15),
      .opaque = opaque, .run = run,
    };
    CHECK (pthread_create (&threads[i].thread, NULL, unit_thread_main,
                           &threads[i]) == 0);
  }
}

static inline void
join_threads (struct unit_thread *threads, unsigned n)
{
  for (unsigned i = 0; i < n; ++i)
    CHECK (pthread_join (threads[i].thread, NULL) == 0);
}

/* Run a function in n threads at the same time, and wait for them. */
static inline void
run_threads (unsigned n, void (*run) (struct unit_thread *t), void *opaque)
{
  struct unit_thread threads[n];

  start_threads (threads, n, run, opaque);
  join_threads (threads, n);
}

/* Messages since the last forget_messages. */
static struct {
  pthread_mutex_t lock;         /* protects the rest; a leaf lock */
  unsigned nr;                  /* errors and warnings */
  char first[512], last[512];
} messages = { .lock = PTHREAD_MUTEX_INITIALIZER };

static inline void __attribute__ ((format (printf, 2, 0)))
collect_message (enum msg_level level, const char *fs, va_list args)
{
  const int err = errno;        /* for %m */

  if (level == MSG_DEBUG)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&messages.lock);
  errno = err;
  vsnprintf (messages.last, sizeof messages.last, fs, args);
  if (messages.nr++ == 0)
    strcpy (messages.first, messages.last);
}

static inline void
forget_messages (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&messages.lock);
  messages.nr = 0;
  messages.first[0] = messages.last[0] = '\0';
}

static inline unsigned
nr_messages (void)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&messages.lock);
  return messages.nr;
}

/* Exactly n messages, the last of which contains this text. */
#define assert_messages(n, text)                                        \
  do {                                                                  \
    if (nr_messages () != (n) || !strstr (messages.last, (text)))       \
      print_error ("%u messages, the last: %s\n", nr_messages (),       \
                   messages.last);                                      \
    assert_int_equal (nr_messages (), (n));                             \
    assert_non_null (strstr (messages.last, (text)));                   \
  } while (0)

#endif /* BLOCKDRIVERS_UNIT_H */
