/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The inside of a primary; only for primary.c and requests.c. */

#ifndef BLOCKDRIVERS_PRIMARY_STATE_H
#define BLOCKDRIVERS_PRIMARY_STATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "filters/replication/history.h"
#include "filters/replication/dirty.h"
#include "filters/replication/primary/forward.h"
#include "filters/replication/primary/mirror.h"
#include "filters/replication/status.h"
#include "node/node.h"
#include "request/claim.h"
#include "request/drain.h"

struct primary {
  struct node node;             /* the export */
  char *remote;                 /* or NULL: a forwarder */
  unsigned timeout;
  uint64_t sync_rate;
  struct events *events;        /* or NULL */
  struct node *disk;            /* NULL until primary_begin */
  struct forward *forward;      /* to it, from primary_begin on; NULL with a
                                   remote */

  struct dirty_file *file;      /* or NULL */
  struct dirty dirty;           /* with a remote; it and the mirror exist */
  struct history self;          /* who we are, for the remote */
  struct mirror *mirror;        /* from primary_begin on */
  struct claims claims;         /* writes and copies, taken inside a
                                   request, before all locks */
  struct drain drain;           /* writes of the guest */
  struct replication_error error;
  struct replication_limit refusals; /* of requests */

  /* Changed by commands only; to RUNNING while drained. */
  _Atomic enum replication_stage stage;
  _Atomic bool tracking;        /* with a remote: what is written is noted in
                                   the map, from before the first connection
                                   on.  Changed while drained. */

  pthread_mutex_t command_lock; /* commands take turns; taken before all
                                   other locks; protects the rest */
  bool prepared;                /* a checkpoint is */
  bool held;                    /* drained for it */
  bool failed_over;             /* stopped so: the other side took over */

  struct moment pending;        /* the one that is prepared */

  _Atomic uint64_t checkpoints; /* since the start */
  pthread_mutex_t moment_lock;  /* protects last; a leaf lock */
  struct moment last;           /* checkpoint, "" before the first */
};

static inline enum replication_stage
stage_of (struct primary *p)
{
  return atomic_load (&p->stage);
}

#endif /* BLOCKDRIVERS_PRIMARY_STATE_H */
