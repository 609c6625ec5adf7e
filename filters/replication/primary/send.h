/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The threads of a mirror that copy what is dirty. */

#ifndef BLOCKDRIVERS_SEND_H
#define BLOCKDRIVERS_SEND_H

#include "filters/replication/primary/mirror-state.h"

/* One of them, of which opaque is the sender. */
extern int sender_thread (struct job *job, void *opaque);

#endif /* BLOCKDRIVERS_SEND_H */
