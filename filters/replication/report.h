/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The events of a replication, as clients of the control socket get them.  The
 * members of their data have the names that they have in query-replication.
 * None of these functions waits; each may be called under any lock.
 * Specification: interfaces.md, "blkctl".
 */

#ifndef BLOCKDRIVERS_REPLICATION_REPORT_H
#define BLOCKDRIVERS_REPLICATION_REPORT_H

#include "control/control.h"
#include "filters/replication/status.h"

/* The stage or the role has become this. */
extern void report_stage (struct events *events, enum replication_stage stage,
                          const char *role);

/* desc: why there is no connection, "" if there is nothing to say. */
extern void report_link (struct events *events, const char *link,
                         const char *desc);

/* A first copy or a resynchronisation of so many bytes begins, or is over. */
extern void report_sync (struct events *events, bool running, uint64_t total);

extern void report_checkpoint_failed (struct events *events,
                                      const char *desc);

#endif /* BLOCKDRIVERS_REPLICATION_REPORT_H */
