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

/* The format that an image is taken for by what is in it, in the bytes up
 * to CHAIN_MAGIC_LEN at its beginning and at its end: CHAIN_QED, another
 * one, or NULL for raw.
 */
#define CHAIN_QED "QED"
#define CHAIN_MAGIC_LEN 512
extern int chain_name_format (struct node *n, const char **name);

#endif /* BLOCKDRIVERS_QED_CHAIN_H */
