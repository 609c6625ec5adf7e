/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Where the next entry of a log goes, and the room behind that: this is
 * the only place that makes a log's file longer or allocates its space.
 */

#ifndef BLOCKDRIVERS_WRITELOG_ROOM_H
#define BLOCKDRIVERS_WRITELOG_ROOM_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"

struct room {
  struct node *log;             /* borrowed */
  uint32_t sector_size;
  bool promises;                /* there may be some; constant from the
                                   first entry on */

  /* Protects what follows: who holds it decides what comes next in the
   * log.  The file is made longer and zeroed under it, so those who want
   * a place wait, and nobody else may: what a query or a flush wants to
   * know is not here.  The log's own lock (writer.c) is taken after it.
   */
  pthread_mutex_t lock;
  uint64_t end;                 /* where the next place is, bytes */
  uint64_t promised;            /* bytes for entries to come */
  uint64_t allocated;           /* if more than end: the space from there
                                   to here is allocated, with zeroes */
};

extern void room_init (struct room *room, struct node *log);
extern void room_destroy (struct room *room);

/* These are called with the lock.  room_make sees that so many sectors fit
 * behind the end besides all that is promised; a hole takes space only for
 * its first one.  Returns -1 with errno if they do not.
 */
extern int room_make (struct room *room, uint64_t nr_sectors, bool hole);

/* Take a place at the end, for which room_make has been called or which
 * is promised.  Returns its offset in bytes.
 */
extern uint64_t room_take (struct room *room, uint64_t nr_sectors,
                           bool promised);

/* Has its file system more than twice so many bytes left?  A guess. */
extern bool room_has_plenty (const struct room *room, uint64_t len);

#endif /* BLOCKDRIVERS_WRITELOG_ROOM_H */
