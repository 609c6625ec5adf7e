/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Several workers, that try states at the same time. */

#ifndef BLOCKDRIVERS_WRITELOG_POOL_H
#define BLOCKDRIVERS_WRITELOG_POOL_H

#include <stdbool.h>
#include <stddef.h>

#include "writelog/explore/try.h"

struct pool;

/* Start workers.  The setup is borrowed.  Until pool_end the signals INT,
 * TERM and HUP only make the tries end.  NULL after a message.
 */
extern struct pool *pool_start (const struct try_setup *setup,
                                unsigned jobs);

/* A task for number 0, 1 and so on.  0: there are no more; -1 with errno:
 * it cannot be made.
 */
typedef int (*pool_next) (void *opaque, size_t number,
                          struct try_task *task);

/* What has come of it, in any order.  The outcome is freed afterwards unless
 * this has taken it.  false: start no more tasks.
 */
typedef bool (*pool_done) (void *opaque, size_t number,
                           struct try_outcome *outcome);

/* Try all of them.  -1 after a message, or if it was interrupted; those that
 * were running then are never done.  idle, if it is not NULL, is called
 * about each second.
 */
extern int pool_run (struct pool *pool, pool_next next, pool_done done,
                     void (*idle) (void *opaque), void *opaque);

/* Has a signal come? */
extern bool pool_interrupted (const struct pool *pool);

extern unsigned pool_jobs (const struct pool *pool);

/* End all workers, whatever they do, and what they have started. */
extern void pool_end (struct pool *pool);

#endif /* BLOCKDRIVERS_WRITELOG_POOL_H */
