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

#include <semaphore.h>
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
  bool waited;                  /* its writer waits, or will */
  sem_t turn;                   /* if waited: posted when it has left */
};

/* Guarded by a lock of its owner. */
struct pending_list {
  struct pending *first, *last; /* in order */
  bool broken;                  /* an entry is missing: no more is counted */
  uint64_t complete;            /* entries */
  uint64_t complete_end;        /* where the last of these ends, bytes */
};

/* Put an entry that has its place at the end.  Called with the lock. */
extern void pending_add (struct pending_list *list, struct pending *p);

/* An entry is done: take what is done off the head of the list.  Returns
 * those among these whose writers wait, for pending_wake.  Called with the
 * lock.
 */
extern struct pending *pending_done (struct pending_list *list,
                                     struct pending *p, bool failed);

/* Wake the writers of what pending_done returned, or NULL.  Called without
 * the lock, for which they would wait again.
 */
extern void pending_wake (struct pending *woken);

/* Wait, after pending_done, until all entries before this one have ended,
 * and itself.  Returns whether it counts.  Called without the lock, by its
 * writer.
 */
extern bool pending_wait (struct pending *p);

#endif /* BLOCKDRIVERS_WRITELOG_PENDING_H */
