/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A failover of several disks to the same checkpoint. */

#ifndef BLOCKDRIVERS_FAILOVER_H
#define BLOCKDRIVERS_FAILOVER_H

#include <stdbool.h>

/* force: each to where it is.  Returns the exit status, after messages. */
extern int failover_together (char *sockets[], int nr, bool force);

#endif /* BLOCKDRIVERS_FAILOVER_H */
