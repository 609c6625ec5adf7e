/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The way from a primary to its remote in the same process, in place of a
 * server of NBD.
 */

#ifndef BLOCKDRIVERS_CHAOS_WIRE_H
#define BLOCKDRIVERS_CHAOS_WIRE_H

#include "node/node.h"

/* Nothing goes over any wire, as in the beginning; connections that there are
 * are lost.
 */
extern void wire_cut (void);
extern void wire_mend (void);

/* 0 if it is cut; else what wire_open wants. */
extern unsigned wire_try (void);

/* A connection to end, which close_end gets when it is closed; lost if the
 * wire has been cut since wire_try, before which end must not have been
 * opened.  The description is copied, and may be NULL.  NULL, with the cause
 * told, if there is no end.
 */
extern struct node *wire_open (const char *uri,
                               const struct node_open_options *options,
                               unsigned tried, struct node *end,
                               const char *description,
                               void (*close_end) (struct node *end));

#endif /* BLOCKDRIVERS_CHAOS_WIRE_H */
