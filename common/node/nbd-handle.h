/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a new handle of libnbd is told before it connects. */

#ifndef BLOCKDRIVERS_NODE_NBD_HANDLE_H
#define BLOCKDRIVERS_NODE_NBD_HANDLE_H

#include <libnbd.h>
#include <stdbool.h>

/* The caller closes it.  On failure returns NULL, and libnbd says why.
 * from_file: the URI comes out of a file, not from whoever runs us.
 */
extern struct nbd_handle *nbd_handle_new (bool from_file);

#endif /* BLOCKDRIVERS_NODE_NBD_HANDLE_H */
