/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites list --lost: what a state after a power loss lacks. */

#ifndef BLOCKDRIVERS_LOGWRITES_LOST_H
#define BLOCKDRIVERS_LOGWRITES_LOST_H

#include <stdbool.h>
#include <stdint.h>

#include "writelog/moments/index.h"

/* Print the pieces of entries that the state of this export of the logreplay
 * plugin (crash/N/SEED or lost/N/SET) lacks.  tear is as the plugin's
 * parameter, NULL for its default.  -1 after a message.
 */
extern int logwrites_list_lost (const char *log, const char *export,
                                const char *tear, bool json);

/* The value of --tear, or NULL for the default, in sectors of the log.  -1
 * after a message.
 */
extern int logwrites_parse_tear (const struct writelog_index *index,
                                 const char *text, uint64_t *tear);

#endif /* BLOCKDRIVERS_LOGWRITES_LOST_H */
