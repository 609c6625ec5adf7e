/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The kernel sends SIGXFSZ to the thread that goes beyond the limit, so
 * that thread keeps it blocked meanwhile, and takes it when it came.  That
 * is four calls of the kernel, and so done only where the limit may be
 * hit; to ask for the limit is one, a hundredth of a write's time.  It
 * is asked for each time, because prlimit(1) may change it.
 */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

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

struct file_limit
file_limit_begin (uint64_t end)
{
  const int err = errno;
  struct file_limit l;
  struct rlimit limit;

  l.guarded = getrlimit (RLIMIT_FSIZE, &limit) == -1 || end > limit.rlim_cur;
  if (l.guarded) {
    const sigset_t set = only_xfsz ();

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
