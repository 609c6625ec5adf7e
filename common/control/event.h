/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Events of a control socket on their way to its clients; only for the files
 * of this folder.
 */

#ifndef BLOCKDRIVERS_CONTROL_EVENT_H
#define BLOCKDRIVERS_CONTROL_EVENT_H

#include "control/state.h"

extern void event_queue_init (struct event_queue *queue);
extern void event_queue_destroy (struct event_queue *queue);

/* Hand what has been raised to the clients that want it, and have room for it.
 * From the first thread.
 */
extern void event_deliver (struct control *control);

#endif /* BLOCKDRIVERS_CONTROL_EVENT_H */
