/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How far a long operation of a tool is.
 *
 * It is printed each time that it is a hundredth further, over and over
 * into one line: also where this is no terminal, since programs that
 * call qemu-img read up to the next carriage return.  What SIGUSR1 asks
 * for comes with the next report, in a line of its own.
 */

#include <config.h>

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

#include "tool/progress.h"
#include "tool/tool.h"

/* Only progress_report changes these while an operation runs, and it is called
 * from one thread at a time.
 */
static bool shown;
static double printed;          /* per cent; negative if nothing was */

static atomic_bool asked;       /* SIGUSR1 came; lock-free, for the handler */

static void
ask (int sig)
{
  atomic_store (&asked, true);
}

static void
print (FILE *fp, double percent, char end)
{
  fprintf (fp, "    (%3.2f/100%%)%c", percent, end);
  if (fp == stdout)
    tool_flush ();
  else
    fflush (fp);
}

void
progress_report (void *opaque, uint64_t done, uint64_t total)
{
  const double percent = total ? 100.0 * done / total : 100;

  if (atomic_exchange (&asked, false) && !shown)
    print (stderr, percent, '\n');
  if (shown && (printed < 0 || percent >= printed + 1 ||
                (done == total && percent > printed))) {
    print (stdout, percent, '\r');
    printed = percent;
  }
}

void
progress_start (bool show)
{
  const struct sigaction action = { .sa_handler = ask,
                                    .sa_flags = SA_RESTART };

  shown = show;
  printed = -1;
  sigaction (SIGUSR1, &action, NULL);
  progress_report (NULL, 0, 1);
}

void
progress_end (void)
{
  progress_report (NULL, 1, 1);
  if (shown)
    putchar ('\n');
  shown = false;
}
