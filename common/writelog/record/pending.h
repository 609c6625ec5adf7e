/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Entries that are being written, in the order of their places, and how
 * many are complete before the first of these: an entry counts only when
 * all before it do.
 */

#ifndef BLOCKDRIVERS_WRITELOG_PENDING_H
#define BLOCKDRIVERS_WRITELOG_PENDING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

/* An entry that is being written, on its writer's stack. */
struct pending {
  uint64_t number;              /* from 0 */
  uint64_t offset, end;         /* bytes in the log; end is exclusive */

  /* Guarded by the lock of the list. */
  struct pending *next;
  bool done;                    /* written, or failed */
  bool failed;
  bool left;                    /* taken off the list: failed is final */
  bool waited;                  /* its writer waits on turn */
  pthread_cond_t turn;
};

/* Guarded by a lock of its owner, with which all of these are called. */
struct pending_list {
  struct pending *first, *last; /* in order */
  bool broken;                  /* an entry is missing: no more is counted */
  uint64_t complete;            /* entries */
  uint64_t complete_end;        /* where the last of these ends, bytes */
};

/* Put an entry that has its place at the end. */
extern void pending_add (struct pending_list *list, struct pending *p);

/* An entry is done: take what is done off the head of the list, and wake
 * who waits for that.
 */
extern void pending_done (struct pending_list *list, struct pending *p,
                          bool failed);

/* Wait until all entries before this one have ended, and itself.  p->failed
 * then says whether it counts.
 */
extern void pending_wait (struct pending *p, pthread_mutex_t *lock);

#endif /* BLOCKDRIVERS_WRITELOG_PENDING_H */
