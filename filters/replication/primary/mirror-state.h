/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The inside of a mirror; only for its files, of which each uses those before
 * it:
 *
 *   sync.c     how far the copying is, and its limit
 *   link.c     the connection: calls, connecting, losing it
 *   send.c     the threads that copy and flush
 *   verify.c   comparing both disks
 *   mirror.c   opening and closing, and who waits for the copying
 */

#ifndef BLOCKDRIVERS_MIRROR_STATE_H
#define BLOCKDRIVERS_MIRROR_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "filters/replication/meeting.h"
#include "filters/replication/primary/mirror.h"
#include "request/job.h"

/* One sender reads while the other waits for the remote. */
#define NR_SENDERS 2

/* Areas in a batch: 4 MiB of data at the most, and less when the remote
 * takes so many milliseconds for it.
 */
#define BATCH 64
#define SLOW_BATCH 2000

/* Milliseconds between attempts to connect, or to send again what the
 * remote refused: doubled from one to the next.
 */
#define FIRST_DELAY 250
#define LAST_DELAY 16000

/* Milliseconds for which something may be unsure, and bytes: a flush
 * must not take so long that the remote seems to hang.
 */
#define FLUSH_AFTER 5000
#define FLUSH_BYTES (UINT64_C (256) * 1024 * 1024)

#define CAUSE_LEN MEETING_WHY

/* A request to the remote that is under way, on its caller's stack. */
struct call {
  int64_t since;
  struct call *prev, *next;
};

/* What a sender is about to send. */
struct batch {
  uint64_t areas[BATCH];
  uint16_t blocks[BATCH];       /* of each area */
  bool failed[BATCH];           /* could not be read */
  bool zero[BATCH];             /* the whole area is zero */
  size_t nr;
  struct node_write writes[BATCH * DIRTY_AREA / DIRTY_BLOCK / 2];
  size_t nr_writes;
  char *buf;                    /* BATCH areas */
  size_t limit;                 /* areas to take */
  uint64_t data, data_end;      /* here the disk is known to have data */
  char cause[CAUSE_LEN];        /* why it could not be copied */
};

struct sender {
  struct mirror *mirror;
  struct job *job;
  struct batch batch;
};

struct mirror {
  char *uri;
  struct history self;          /* who we are */
  char *own_uri, *synced_uri;   /* the same for a remote that wants to know
                                   who we are */
  char *map_uri;                /* its map, if it was a primary */
  unsigned timeout;
  uint64_t sync_rate;           /* bytes a second, 0: no limit */
  struct node *disk;
  struct dirty *dirty;
  struct claims *claims;
  struct replication_error *error;
  struct events *events;        /* or NULL */
  int cancel;                   /* eventfd: give up connecting */
  struct job *link;
  struct sender senders[NR_SENDERS];

  atomic_uint idle;             /* senders that found nothing dirty, or are
                                   looking for it */

  pthread_mutex_t lock;         /* protects the rest; never held while the
                                   remote is used.  Taken before the locks
                                   of dirty, of error and of nodes */
  pthread_cond_t changed;       /* for commands: anything below, or what
                                   is dirty */
  pthread_cond_t work;          /* for senders */
  pthread_cond_t link_work;     /* for the link */
  bool wanted;                  /* we are to be connected */
  int64_t cut_at;               /* if we are not, what is under way has its
                                   time until then */
  bool unanswered;              /* since then a call has ended without an
                                   answer */
  bool all_dirty;               /* when we are, everything will be dirty */
  bool made_dirty;              /* everything was, when we last were */
  bool equal;                   /* but for the map, somebody says of a remote
                                   that was not met; and of one that was */
  bool ending;
  unsigned interrupted;         /* so many want nobody to wait */
  struct node *remote;          /* set and unset by the link only */
  bool broken;                  /* the link shall drop remote */
  bool identified;              /* remote knows who we are */
  bool look_again;              /* remote is alive, but has refused what a
                                   secondary takes: what is it now? */
  int64_t heard_at;             /* when it has last answered */
  bool asking;                  /* a sender asks whether it is there */
  bool refused;                 /* the last meeting was */
  bool met;                     /* there was a remote since wanted */
  struct call *calls;           /* that use remote */
  bool watched;                 /* the link looks at them from time to
                                   time */
  bool flushing;
  int64_t flush_at;             /* if something is unsure */
  uint64_t flushed;             /* sent when the last flush began */
  uint64_t flushes;             /* that succeeded, so far */
  int64_t connect_at, connect_delay;
  int64_t send_at, send_delay;
  bool in_pass;
  int64_t pass_began;
  int64_t rest_until;           /* before the next pass */
  unsigned waiters;             /* commands that wait for the copying */
  uint64_t failures;            /* attempts to connect, copy or flush */
  uint64_t attempts;            /* to connect, begun so far */
  uint64_t failed_attempt;      /* the last of these that failed */
  char cause[CAUSE_LEN];        /* of the last one */
  const char *reported;         /* the link's state in the last event */
  char reported_cause[CAUSE_LEN];
  uint64_t batches, sent;       /* so far: their number and bytes */

  struct replication_progress sync; /* rate is that of the last one */
  int64_t sync_began;
  uint64_t sync_sent;           /* sent, when it began */
  int64_t rate_at;              /* with a limit: when more may be sent */
  bool unlimited;               /* the guest waits */

  struct replication_progress verify;
  struct job *verify_job;       /* changed by commands, which take turns */
};

#endif /* BLOCKDRIVERS_MIRROR_STATE_H */
