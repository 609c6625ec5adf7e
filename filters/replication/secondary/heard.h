/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Is the primary still there?  (replication.md, "Whose data is right";
 * interfaces.md, replication-timeout.)
 */

#ifndef BLOCKDRIVERS_REPLICATION_HEARD_H
#define BLOCKDRIVERS_REPLICATION_HEARD_H

#include "filters/replication/secondary/state.h"

/* The thread that keeps the time. */
extern int heard_begin (struct secondary *s);
extern void heard_end (struct secondary *s);

/* It has sent something just now.  Costs next to nothing. */
extern void heard_now (struct secondary *s);

/* The last connection is gone. */
extern void heard_the_end (struct secondary *s);

/* What there is to say of it. */
extern void heard_query (struct secondary *s,
                         struct replication_status *status);

#endif /* BLOCKDRIVERS_REPLICATION_HEARD_H */
