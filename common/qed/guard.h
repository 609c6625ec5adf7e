/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Raw images whose format was guessed. */

#ifndef BLOCKDRIVERS_QED_GUARD_H
#define BLOCKDRIVERS_QED_GUARD_H

#include "node/node.h"

/* A node over an image that was taken for raw by what is in it, and is to
 * be written: a write that would make it look like an image of another
 * format fails with EPERM after a message.  Owns file, also when it fails;
 * returns NULL after a message.
 */
extern struct node *guard_raw (struct node *file);

#endif /* BLOCKDRIVERS_QED_GUARD_H */
