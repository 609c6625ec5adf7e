/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How far a long operation of a tool is: on standard output, or when
 * the signal SIGUSR1 asks for it on standard error.
 */

#ifndef BLOCKDRIVERS_PROGRESS_H
#define BLOCKDRIVERS_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* One operation at a time.  With show it is printed to standard output;
 * without, SIGUSR1 asks for one line on standard error.
 */
extern void progress_start (bool show);

/* So much of total is done.  From one thread at a time; opaque is
 * ignored, so that this can be a callback.
 */
extern void progress_report (void *opaque, uint64_t done, uint64_t total);

/* Call it when all is done. */
extern void progress_end (void);

#endif /* BLOCKDRIVERS_PROGRESS_H */
