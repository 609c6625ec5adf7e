/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The connections of an NBD node: opened, driven, opened again when they
 * have died, cut.  What is sent over them is nbd.c's matter.
 *
 * Errors are -1 and errno without a message, and say why in "cause",
 * where there is one; nbd.c makes messages of them.
 */

#ifndef BLOCKDRIVERS_NBD_CONN_H
#define BLOCKDRIVERS_NBD_CONN_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <libnbd.h>

#include "node/node.h"

/* Connections, if the server allows several. */
#define MAX_CONNS 4

#define CAUSE_LEN 256

enum conn_state {
  CONN_OPEN,
  CONN_DEAD,
  CONN_CONNECTING,              /* somebody connects again */
  CONN_STARTING,                /* connected, and its driver is started */
};

struct conn {
  struct conns *conns;

  /* Constant while it is open; changed only while it is opened again,
   * without users and without a driver.
   */
  struct nbd_handle *nbd;       /* NULL only while dead */
  int wake;                     /* eventfd for the driver, or -1 */
  bool has_driver;
  pthread_t driver;

  atomic_bool stop;             /* the driver shall end */
  atomic_bool cut;              /* the driver shall find that nothing can
                                   be sent any more */

  /* Guarded by conns->lock. */
  enum conn_state state;
  unsigned users;               /* requests that use nbd */
  int fd;                       /* the socket, a descriptor of our own, or
                                   -1: libnbd closes its own as soon as the
                                   connection dies, in any thread.  Those
                                   who use nbd may read it without the
                                   lock */
  uint64_t number;              /* in the order in which they were opened */
  bool ending;                  /* our direction is shut down, since the
                                   server ends */
  char cause[CAUSE_LEN];        /* why it is dead */
};

struct conns {
  /* Constant. */
  const struct node *node;      /* whose connections they are */
  char *uri;                    /* to connect to; owned */
  bool from_file;               /* as in struct node_open_options */
  unsigned timeout;
  int cancel;
  void (*lost_callback) (void *opaque);
  void *lost_opaque;

  /* Constant from conns_start on. */
  bool started;                 /* there are drivers */
  unsigned nr;

  struct conn conn[MAX_CONNS];
  atomic_uint turn;             /* of the connections */

  /* Protects the state of connections and what follows.  No other lock is
   * taken under it, and nothing done that waits: no call of libnbd, no
   * thread started.  Sockets are shut down under it, so that they are not
   * closed meanwhile.
   */
  pthread_mutex_t lock;
  pthread_cond_t changed;       /* state or users of a connection */
  bool lost;                    /* a connection of a writable node died */
  bool was_cut;                 /* by conns_cut */
  int64_t retry_after;          /* when to try to connect again (clock.h) */
  uint64_t last_number;         /* of a connection */
  uint64_t hung_up;             /* connections up to this one have ended */
  int64_t restart_began;        /* when the first of them did */

  /* Read without the lock, too. */
  _Atomic int64_t restart_until; /* so long a server that has said that it
                                   ends, or has hung up, is waited for */
  atomic_bool restarting;       /* it has not answered again yet */
};

/* Open the first connection of a node whose name and read_only are set.
 * To be closed also when -1 is returned.
 */
extern int conns_open (struct conns *cs, const struct node *node,
                       const struct node_open_options *options,
                       char cause[CAUSE_LEN]);

/* End all of them.  There are no requests. */
extern void conns_close (struct conns *cs);

/* Start the drivers, and open the other connections if there may be
 * several.
 */
extern int conns_start (struct conns *cs, bool several);

/* A connection for a request, in turn, to be given back.  Opens one of a
 * read-only node again that has died.  NULL if it is dead.
 */
extern struct conn *conn_get (struct conns *cs, char cause[CAUSE_LEN]);
extern void conn_put (struct conn *c);

/* Is there nothing left that could move it? */
extern bool conn_is_finished (struct conn *c);

/* Wake the driver, if libnbd now waits for more than before. */
extern void conn_kick (struct conn *c);

/* Be the driver for a moment, while there are none. */
extern void conn_drive (struct conn *c);

/* Why has it died?  Waits for who has seen it to say so. */
extern void conn_cause (struct conn *c, char cause[CAUSE_LEN]);

/* On this one the server has said that it is about to end: end it and all
 * that were opened before, as the server waits for that and answers nothing
 * else until then.  The drivers find their end, and the next requests
 * connect again.
 */
extern void conn_hang_up (struct conn *c);

/* May the server still come back, after it has ended?  A
 * request that nobody has answered for this is worth another attempt, on a
 * new connection, before which this waits a moment.  Read-only nodes only.
 */
extern bool conns_await_restart (struct conns *cs);

/* A request has been answered as it should be. */
extern void conn_answered (struct conn *c);

/* Give up a server that does not answer.  half: shut down our direction
 * only, and let the driver find that by trying to send a flush.
 */
extern void conns_cut (struct conns *cs, bool half);

/* As node_is_lost. */
extern bool conns_are_lost (struct conns *cs, char *cause, size_t size);

/* libnbd's last error in this thread. */
extern int libnbd_errno (void);
extern const char *libnbd_cause (void);

#endif /* BLOCKDRIVERS_NBD_CONN_H */
