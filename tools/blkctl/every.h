/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* blkctl --every: checkpoints again and again. */

#ifndef BLOCKDRIVERS_EVERY_H
#define BLOCKDRIVERS_EVERY_H

/* The seconds of --every, as milliseconds; does not return for mistakes. */
extern int every_parse (const char *seconds);

/* Make a checkpoint of the disks behind nr sockets each so many milliseconds,
 * from the beginning of one to that of the next, until SIGTERM, SIGINT or
 * SIGHUP.  Returns the exit status: that of the last checkpoint.
 */
extern int every_checkpoint (int milliseconds, char *sockets[], int nr);

#endif /* BLOCKDRIVERS_EVERY_H */
