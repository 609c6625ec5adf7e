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

/* The machine was started again. */
extern void divert_boot (void);

#endif /* BLOCKDRIVERS_CHAOS_DIVERT_H */
