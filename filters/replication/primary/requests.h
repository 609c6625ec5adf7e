/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The requests of a primary's guest. */

#ifndef BLOCKDRIVERS_PRIMARY_REQUESTS_H
#define BLOCKDRIVERS_PRIMARY_REQUESTS_H

#include "node/node.h"

/* Of the export, which is a struct primary. */
extern const struct node_ops primary_ops;

#endif /* BLOCKDRIVERS_PRIMARY_REQUESTS_H */
