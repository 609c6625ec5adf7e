/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a crash has left in the buffers of a secondary. */

#ifndef BLOCKDRIVERS_REPLICATION_RECOVER_H
#define BLOCKDRIVERS_REPLICATION_RECOVER_H

#include "filters/replication/secondary/state.h"

/* Look at what a crash has left in the buffers that are there, and refuse
 * what s->recover does not allow; changes nothing.
 */
extern int secondary_check_buffers (struct secondary *s);

/* Deal with what was left and has not been refused, as s->recover says. */
extern int secondary_do_recover (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_RECOVER_H */
