/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What nbdkit does not tell a plugin before the first client comes. */

#ifndef BLOCKDRIVERS_SERVER_H
#define BLOCKDRIVERS_SERVER_H

#include <stdbool.h>

/* Will nbdkit open this plugin read-only only (-r, or a filter that
 * never writes below itself)?  A guess: if it is wrong, clients find
 * the disk read-only, or an image opened for writing is not written.
 */
extern bool server_is_read_only (void);

#endif /* BLOCKDRIVERS_SERVER_H */
