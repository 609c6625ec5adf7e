/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What one client holds: a checkpoint in steps, or a failover that is going to
 * follow.  Functions that take a client fail its command with a reason, and
 * then return NULL.
 */

#ifndef BLOCKDRIVERS_REPLICATION_HOLDING_H
#define BLOCKDRIVERS_REPLICATION_HOLDING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/control.h"
#include "filters/replication/side.h"
#include "request/job.h"

enum held { NOTHING, TAKEN_OVER, PREPARED, COMMITTED };

struct holding {
  struct side *side;
  struct events *events;
  struct job *timer;            /* for commands only, which take turns */

  /* Protects holder, and is held while a prepared checkpoint ends, so
   * that it does so once.  Taken before any lock of the side.
   */
  pthread_mutex_t lock;
  enum held held;
  struct control_client *holder; /* whoever did that; NULL for nothing */
  int64_t since;
};

extern void holding_init (struct holding *h, struct side *side,
                       struct events *events);
extern void holding_destroy (struct holding *h);

/* Is something held, so that nothing else may be done?  Then the command has
 * failed.
 */
extern bool holding_refuses (struct holding *h, struct control_client *client);

/* End what this client (NULL: anybody) holds.  Was there something? */
extern bool holding_end (struct holding *h,
                         const struct control_client *client);

/* Nobody holds anything any more, for a failover that ends it. */
extern void holding_drop (struct holding *h);

/* The steps of a checkpoint.  m: its name, with an empty identifier for one of
 * this disk alone.  wait: requests wait until the release.
 */
extern json_t *holding_prepare (struct holding *h,
                                struct control_client *client,
                                const struct moment *m);
extern json_t *holding_commit (struct holding *h,
                               struct control_client *client, bool wait);
extern json_t *holding_release (struct holding *h,
                                struct control_client *client);
extern json_t *holding_abort (struct holding *h,
                              struct control_client *client);

/* From here on no checkpoint begins or ends, but by this client. */
extern json_t *holding_take_over (struct holding *h,
                                  struct control_client *client);

#endif /* BLOCKDRIVERS_REPLICATION_HOLDING_H */
