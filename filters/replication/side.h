/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One side of a replication, primary or secondary: who only hands
 * commands on need not ask which.
 */

#ifndef BLOCKDRIVERS_REPLICATION_SIDE_H
#define BLOCKDRIVERS_REPLICATION_SIDE_H

#include "filters/replication/params.h"
#include "filters/replication/primary/primary.h"
#include "filters/replication/secondary/secondary.h"

struct side {
  enum replication_mode mode;
  bool has_remote;              /* a primary that is no forwarder */
  unsigned timeout;             /* milliseconds */
  struct primary *primary;      /* one of the two is set */
  struct secondary *secondary;
  struct events *events;        /* a checkpoint that fails is one */
};

/* For each of these see the functions of the same name in
 * common/replication.
 */
extern int side_open (struct side *side, const struct params *params,
                      struct events *events);
extern int side_begin (struct side *side, struct node *disk,
                       const struct below *below);
extern void side_interrupt (struct side *side, bool interrupted);
extern void side_expect_failover (struct side *side);
extern bool side_close (struct side *side);

/* full: copy the whole disk; refused where that is not possible. */
extern int side_start (struct side *side, bool full,
                       struct replication_refusal *refusal);

/* The same at the launch of the server: a primary goes on trying. */
extern int side_launch (struct side *side,
                        struct replication_refusal *refusal);

/* Has this secondary been promoted by a failover? */
extern bool side_is_promoted (struct side *side);
extern int side_reset (struct side *side,
                       struct replication_refusal *refusal);

/* A checkpoint of a primary that does not replicate means nothing; QEMU's
 * command is ignored then, ours is refused.
 */
extern int side_can_checkpoint (struct side *side,
                                struct replication_refusal *refusal);
extern int side_checkpoint (struct side *side,
                            struct replication_refusal *refusal);
extern int side_stop (struct side *side, struct replication_refusal *refusal);
extern void side_query (struct side *side,
                        struct replication_status *status);
extern int side_verify (struct side *side,
                        struct replication_refusal *refusal);
extern int side_fail_over (struct side *side, bool force,
                           const struct history *at,
                           struct replication_refusal *refusal);
extern int side_checkpoint_prepare (struct side *side,
                                    const struct moment *moment,
                                    struct replication_refusal *refusal);
extern int side_checkpoint_commit (struct side *side,
                                   struct replication_refusal *refusal);
extern void side_checkpoint_release (struct side *side);
extern void side_checkpoint_abort (struct side *side);
extern void side_checkpoint_doubt (struct side *side);

#endif /* BLOCKDRIVERS_REPLICATION_SIDE_H */
