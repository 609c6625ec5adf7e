/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Time that goes by faster, for what waits before it tries again. */

#ifndef BLOCKDRIVERS_CHAOS_CLOCK_H
#define BLOCKDRIVERS_CHAOS_CLOCK_H

/* From now on, and for the whole process, which has made no threads yet: so
 * many times as fast.  Conditions must go by CLOCK_MONOTONIC (utils/clock.h).
 */
extern void clock_hurry (unsigned times);

#endif /* BLOCKDRIVERS_CHAOS_CLOCK_H */
