/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commands on the control socket.  Specification: replication.md,
 * "Stages"; interfaces.md, "Control commands".
 */

#ifndef BLOCKDRIVERS_REPLICATION_COMMANDS_H
#define BLOCKDRIVERS_REPLICATION_COMMANDS_H

#include "filters/replication/side.h"

struct commands;

/* Make the control socket, whose commands will be for side, and which tells of
 * events until it is closed (both borrowed).  NULL with errno after a message.
 */
extern struct commands *commands_open (const char *socket, struct side *side,
                                       struct events *events);

/* Begin to answer; once, after the last fork and side_begin. */
extern int commands_start (struct commands *commands);

/* End a command that runs, undo what a client has begun, remove the
 * socket.  NULL is ignored.
 */
extern void commands_close (struct commands *commands);

#endif /* BLOCKDRIVERS_REPLICATION_COMMANDS_H */
