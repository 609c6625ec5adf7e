/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The end of nbdkit does not wait for ever for a log's server that stands
 * still: when nothing more has got into the log for a while the server is
 * cut off, and what waits for it fails.
 */

#ifndef BLOCKDRIVERS_BLKLOGWRITES_ENDING_H
#define BLOCKDRIVERS_BLKLOGWRITES_ENDING_H

#include "request/job.h"
#include "writelog/record/writer.h"

/* Start a thread that watches over the end of a log, which is borrowed until
 * job_finish.  NULL after a message.
 */
extern struct job *ending_start (struct writelog *log);

#endif /* BLOCKDRIVERS_BLKLOGWRITES_ENDING_H */
