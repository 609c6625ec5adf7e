/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The export of a secondary's guest. */

#ifndef BLOCKDRIVERS_REPLICATION_GUEST_H
#define BLOCKDRIVERS_REPLICATION_GUEST_H

#include "filters/replication/secondary/state.h"

extern void guest_init (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_GUEST_H */
