/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The two buffers of a secondary.  All print a message when they return -1. */

#ifndef BLOCKDRIVERS_REPLICATION_BUFFERS_H
#define BLOCKDRIVERS_REPLICATION_BUFFERS_H

#include "filters/replication/secondary/state.h"

/* Open those that are there, before the disk is known; it must be possible to
 * make others.  Changes nothing.
 */
extern int buffers_open (struct secondary *s);

/* Make those that are missing; all have the disk's size. */
extern int buffers_make (struct secondary *s);

/* Empty both while requests are drained: first what may fail, then the switch,
 * which changes both or none.
 */
extern int buffers_empty_prepare (struct secondary *s);
extern int buffers_empty_switch (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_BUFFERS_H */
