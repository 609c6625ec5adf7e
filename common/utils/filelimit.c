/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The kernel sends SIGXFSZ to the thread that goes beyond the limit, and
 * prlimit(1) may set one at any time.  So a thread blocks the signal, once
 * and for good: one that comes stays pending for it, and does nothing.
 *
 * The main thread keeps it blocked during a write only, and takes it when it
 * came.  That is four calls of the kernel, and so done only where the limit
 * may be hit; to ask for that is one.
 */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "utils/filelimit.h"

static bool
is_pending (void)
{
  sigset_t set;

  return sigpending (&set) == 0 && sigismember (&set, SIGXFSZ) == 1;
}

static sigset_t
only_xfsz (void)
{
  sigset_t set;

  sigemptyset (&set);
  sigaddset (&set, SIGXFSZ);
  return set;
}

/* The main thread starts programs (--run), which inherit its mask. */
static bool
is_main_thread (void)
{
  return getpid () == gettid ();
}

/* May the thread go beyond the limit as it is? */
static bool
is_borne (uint64_t end)
{
  struct rlimit limit;

  return getrlimit (RLIMIT_FSIZE, &limit) == 0 && end <= limit.rlim_cur;
}

struct file_limit
file_limit_begin (uint64_t end)
{
  static _Thread_local bool blocked;
  const sigset_t set = only_xfsz ();
  struct file_limit l = { .guarded = false };
  int err;

  if (blocked)
    return l;
  err = errno;
  if (!is_main_thread ()) {
    pthread_sigmask (SIG_BLOCK, &set, NULL);
    blocked = true;
  }
  else if (!is_borne (end)) {
    l.guarded = true;
    l.pending = is_pending ();
    pthread_sigmask (SIG_BLOCK, &set, &l.mask);
  }
  errno = err;
  return l;
}

void
file_limit_end (struct file_limit *l)
{
  const int err = errno;

  if (!l->guarded)
    return;
  /* One that was there before is someone else's. */
  if (!l->pending && is_pending ()) {
    const sigset_t set = only_xfsz ();
    const struct timespec at_once = { 0 };

    sigtimedwait (&set, NULL, &at_once);
  }
  pthread_sigmask (SIG_SETMASK, &l->mask, NULL);
  errno = err;
}
