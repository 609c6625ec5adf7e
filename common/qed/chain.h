/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chains of backing images: what is public of it is in qed.h. */

#ifndef BLOCKDRIVERS_QED_CHAIN_H
#define BLOCKDRIVERS_QED_CHAIN_H

#include "node/node.h"
#include "qed/qed.h"

/* The images above one that is being opened, from there upwards. */
struct chain_link {
  const struct chain_link *above;
  const struct node *node;      /* the file or export */
};

/* Is this the same file as one above?  Then -1 after a message. */
extern int chain_find_loop (const struct chain_link *link);

#endif /* BLOCKDRIVERS_QED_CHAIN_H */
