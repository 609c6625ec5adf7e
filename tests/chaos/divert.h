/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Files that have names, and whose bytes are on media: opening a file is
 * diverted, and the file itself only stands for the medium that has its inode
 * number.
 */

#ifndef BLOCKDRIVERS_CHAOS_DIVERT_H
#define BLOCKDRIVERS_CHAOS_DIVERT_H

#include "tests/chaos/medium.h"

/* From now on, to media of this world; NULL: none are. */
extern void divert_to (struct world *w);

/* A machine of those in divert_host was started again. */
#define MACHINES 2
extern void divert_boot (unsigned machine);

/* The one on which the thread asks which boot this is. */
extern _Thread_local unsigned divert_host;

#endif /* BLOCKDRIVERS_CHAOS_DIVERT_H */
