/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A process that tries one state after the other: it serves them and runs
 * the command, so whatever the command does to its server or its parent is
 * done to this.
 */

#ifndef BLOCKDRIVERS_WRITELOG_WORKER_H
#define BLOCKDRIVERS_WRITELOG_WORKER_H

#include <sys/types.h>

#include "writelog/explore/try.h"

struct worker {
  pid_t pid;                    /* 0: there is none */
  int fd;                       /* tasks go there, outcomes come back */
};

/* Fork workers[job], one of nr.  It ends when its fd is closed, also by our
 * death, and then takes its part of the folder away, the last one all.  The
 * index's node must not have been started.  -1 after a message.
 */
extern int worker_start (struct worker *workers, size_t nr,
                         const struct try_setup *setup, unsigned job);

/* Hand it a task.  -1 if it is dead. */
extern int worker_give (struct worker *worker, const struct try_task *task);

/* The outcome; waits for it.  -1 if it is dead, or out of memory. */
extern int worker_take (struct worker *worker, struct try_outcome *outcome);

/* Let it go, whatever it does, and wait until it has ended; at this time
 * (utils/clock.h) it is killed.  Returns its exit status, as of waitpid.
 */
extern int worker_end (struct worker *worker, int64_t limit);

/* Take away what it left, if it was killed. */
extern void worker_clean (const struct try_setup *setup, unsigned job);

#endif /* BLOCKDRIVERS_WRITELOG_WORKER_H */
