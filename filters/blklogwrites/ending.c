/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A filter is not told when nbdkit is asked to end: its cleanup comes after
 * the last request, and that may be the one that waits for the log.  But
 * nbdkit_nanosleep ends early then, in any thread.
 *
 * The thread ends by job_finish, at the latest when it wakes the next time.
 */

#include <config.h>

#include <inttypes.h>
#include <stdlib.h>

#include <nbdkit-filter.h>

#include "filters/blklogwrites/ending.h"
#include "utils/message.h"

/* Seconds without progress; -D blklogwrites.patience=N is for tests. */
NBDKIT_DLL_PUBLIC int blklogwrites_debug_patience = 30;

/* Sleep until nbdkit is asked to end.  False if the job is, first. */
static bool
wait_for_shutdown (struct job *job)
{
  while (!job_cancelled (job))
    if (nbdkit_nanosleep (1, 0) == -1)
      return true;
  return false;
}

static uint64_t
entries_of (struct writelog *log)
{
  struct writelog_status status;

  writelog_query (log, &status);
  free (status.last_mark);
  free (status.error);
  return status.entries;
}

static int
watch (struct job *job, void *opaque)
{
  struct writelog *log = opaque;
  uint64_t entries, before;
  int seconds = 0;

  if (!wait_for_shutdown (job))
    return 0;
  before = entries_of (log);
  while (seconds < blklogwrites_debug_patience) {
    job_sleep (job, 1000);
    if (job_cancelled (job))
      return 0;
    entries = entries_of (log);
    seconds = entries == before ? seconds + 1 : 0;
    before = entries;
  }
  msg_error ("the log has not got on for %d seconds; its server is cut off, "
             "and what is not in the log yet is lost", seconds);
  writelog_cut (log);
  return 0;
}

struct job *
ending_start (struct writelog *log)
{
  return job_start ("log-ending", watch, log);
}
