/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See every.h.
 *
 * A checkpoint that fails is no reason to give up: a remote goes and comes
 * back.  So that a log does not fill, the first failure of a row is told, with
 * what the servers say, and then its end.  A signal takes effect between two
 * checkpoints only.
 */

#include <config.h>

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <time.h>

#include "tool/tool.h"
#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/checkpoint.h"
#include "tools/blkctl/every.h"
#include "utils/clock.h"
#include "utils/message.h"

/* Eleven days; milliseconds fit an int. */
#define MAX_SECONDS 1000000

int
every_parse (const char *seconds)
{
  char *end;
  const double s = strtod (seconds, &end);

  if (end == seconds || *end || !(s >= 0.001 && s <= MAX_SECONDS))
    tool_usage_error ("--every: '%s' is no number of seconds from 0.001 to "
                      "%d", seconds, MAX_SECONDS);
  return s * 1000;
}

static void
drop_message (enum msg_level level, const char *fs, va_list args)
{
}

static void
wanted_signals (sigset_t *set)
{
  sigemptyset (set);
  sigaddset (set, SIGHUP);
  sigaddset (set, SIGINT);
  sigaddset (set, SIGTERM);
}

/* Sleep until this time, or a signal.  Returns false for that. */
static bool
sleep_until (int64_t when)
{
  sigset_t set;
  int64_t left;

  wanted_signals (&set);
  for (;;) {
    left = when - clock_ms ();
    if (left < 0)
      left = 0;

    const struct timespec t = {
      .tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000
    };

    if (sigtimedwait (&set, NULL, &t) >= 0)
      return false;
    if (errno == EAGAIN)
      return true;
  }
}

int
every_checkpoint (int milliseconds, char *sockets[], int nr)
{
  unsigned long failures = 0;
  int status;
  sigset_t set;

  wanted_signals (&set);
  sigprocmask (SIG_BLOCK, &set, NULL);
  for (;;) {
    const int64_t start = clock_ms ();

    if (failures > 0)
      msg_set_handler (drop_message);
    status = checkpoint_together (sockets, nr);
    msg_set_handler (NULL);
    if (status != EXIT_SUCCESS && failures++ == 0)
      msg_warning ("going on to try, and silent until a checkpoint is made");
    else if (status == EXIT_SUCCESS && failures > 0) {
      msg_warning ("checkpoints are made again, after %lu that failed",
                   failures);
      failures = 0;
    }
    if (!sleep_until (start + milliseconds))
      return status;
  }
}
