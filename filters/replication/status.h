/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What both sides of a replication say about themselves.
 * Specification: replication.md, "Stages"; interfaces.md,
 * "nbdkit-replication-filter".
 */

#ifndef BLOCKDRIVERS_REPLICATION_STATUS_H
#define BLOCKDRIVERS_REPLICATION_STATUS_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/control.h"
#include "filters/replication/history.h"

enum replication_stage {
  REPLICATION_NONE,
  REPLICATION_RUNNING,
  REPLICATION_FAILOVER,
  REPLICATION_FAILOVER_FAILED,
  REPLICATION_DONE
};

#define REPLICATION_DESC_LEN 512

/* Milliseconds after which a partner that has not been heard of is lost, if
 * nothing else is said.
 */
#define REPLICATION_TIMEOUT 30000

/* How far something in the background is; bytes. */
struct replication_progress {
  bool begun;                   /* ever, since the server was started */
  bool running;
  uint64_t done, total;
  uint64_t rate;                /* bytes a second */
  uint64_t different;           /* of a comparison */
  char desc[REPLICATION_DESC_LEN]; /* of one that failed: why */
};

/* A snapshot, for query-replication. */
struct replication_status {
  enum replication_stage stage;
  bool error;                   /* stays until the next start, or until a
                                   checkpoint shows that all is well */
  char desc[REPLICATION_DESC_LEN]; /* what happened, "" if nothing did */
  char last_error[REPLICATION_DESC_LEN]; /* what has happened since the start
                                   and is over, "" if nothing did */
  uint64_t checkpoints;         /* since the start */
  uint64_t active_clusters;     /* in the buffers (secondary) */
  uint64_t hidden_clusters;
  unsigned failover_progress;   /* 0 to 100 (secondary) */
  bool remote_connected;        /* (primary) */
  uint64_t dirty_bytes;         /* that the remote lacks (primary) */
  struct replication_progress sync; /* first copy, resynchronisation */
  struct replication_progress verify;
  const char *link;             /* "none", "connecting", "connected",
                                   "refused" or "lost" */
  char link_desc[REPLICATION_DESC_LEN]; /* why it is not connected, "" if
                                   there is nothing to say */
  int64_t last_heard;           /* milliseconds ago, -1 for never */
  const char *role;             /* "none" before a start, "primary",
                                   "secondary" or "promoted" */
  bool consistent;              /* the guest's disk is no mixture of two
                                   moments (secondary) */
  char disk_desc[REPLICATION_DESC_LEN]; /* what is known of it besides, "" if
                                   there is nothing to say (secondary) */
  struct history history;       /* of the disk (secondary), of the primary's
                                   identifier (primary); "" if not known */
  struct history partner;       /* what is known of the other side */
  struct moment checkpoint;     /* at which the guest's disk stands
                                   (secondary), or the last one (primary) */
  struct history checkpoint_before; /* to which a failover can go back
                                   instead, or "" */
};

/* The first error since the start, or a worse one, which stays.  Each is an
 * event, too.
 */
struct replication_error {
  struct events *events;        /* or NULL */
  pthread_mutex_t lock;         /* protects the rest; under it only events
                                   are raised */
  bool set;
  char desc[REPLICATION_DESC_LEN];
  char last[REPLICATION_DESC_LEN]; /* that is over, or "" */
};

/* events (NULL for none) is borrowed. */
extern void replication_error_init (struct replication_error *error,
                                    struct events *events);
extern void replication_error_destroy (struct replication_error *error);
extern void replication_error_clear (struct replication_error *error);

/* What has failed is over: both disks were equal since. */
extern void replication_error_settle (struct replication_error *error);

/* Remember this one unless there is one already. */
extern void replication_error_set (struct replication_error *error,
                                   const char *fs, ...)
  __attribute__ ((format (printf, 2, 3)));

/* Remember this one in any case: it says more than those before. */
extern void replication_error_replace (struct replication_error *error,
                                       const char *fs, ...)
  __attribute__ ((format (printf, 2, 3)));

/* Copy it into a snapshot. */
extern void replication_error_get (struct replication_error *error,
                                   struct replication_status *status);

/* Requests that the stage refuses may come thousands of times a second, from
 * a guest that polls; so they are not all told.
 */
struct replication_limit {
  pthread_mutex_t lock;         /* protects the rest; a leaf lock */
  unsigned told;                /* of late: one less each second */
  int64_t since;                /* clock_ms */
  unsigned long more;           /* that were not told */
};

extern void replication_limit_init (struct replication_limit *limit);
extern void replication_limit_destroy (struct replication_limit *limit);

/* May it be told?  Then *more are those that were not since the last one. */
extern bool replication_may_tell (struct replication_limit *limit,
                                  unsigned long *more);

/* "none", "running", "failover", "failover-failed", "done". */
extern const char *replication_stage_name (enum replication_stage stage);

/* A command refuses with a reason, for whoever sent it: functions that
 * take one return -1 after filling it in.
 */
struct replication_refusal {
  char desc[REPLICATION_DESC_LEN];
};

extern int replication_refuse (struct replication_refusal *refusal,
                               const char *fs, ...)
  __attribute__ ((format (printf, 2, 3)));

#endif /* BLOCKDRIVERS_REPLICATION_STATUS_H */
