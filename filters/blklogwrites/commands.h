/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commands of the filter's control socket: marks and status. */

#ifndef BLOCKDRIVERS_BLKLOGWRITES_COMMANDS_H
#define BLOCKDRIVERS_BLKLOGWRITES_COMMANDS_H

#include "control/control.h"
#include "writelog/record/writer.h"

/* A control socket for this log, which is borrowed; see control_open. */
extern struct control *commands_open (const char *path,
                                      struct writelog *log);

#endif /* BLOCKDRIVERS_BLKLOGWRITES_COMMANDS_H */
