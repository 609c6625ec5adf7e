/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* QEMU's image locks (qed.md, invariant 8). */

#ifndef BLOCKDRIVERS_LOCK_H
#define BLOCKDRIVERS_LOCK_H

#include <stdbool.h>

#include "node/node.h"

/* Take the locks for this role on an open file.  They belong to the
 * open file description: they survive fork and end with the last close.
 * Returns -1 with errno EBUSY after a message if the image is in use.
 */
extern int image_lock (int fd, const char *name, enum node_lock lock,
                       bool read_only);

#endif /* BLOCKDRIVERS_LOCK_H */
