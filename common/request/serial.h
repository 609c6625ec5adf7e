/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A serial queue: pieces of work of which one at a time is done, in the
 * order in which they come.  It is for work that the kernel does one after
 * the other in any case, and that takes long, as writes to one file.
 * Threads that wait for that in the kernel spin, or must be woken while
 * the file lies idle.  Here whoever finds the queue empty does his work
 * himself, and as long as there are others behind him a thread of the
 * queue does theirs without a gap.
 */

#ifndef BLOCKDRIVERS_SERIAL_H
#define BLOCKDRIVERS_SERIAL_H

#include <pthread.h>
#include <stdbool.h>

struct job;
struct serial_work;

struct serial_queue {
  struct job *job;
  pthread_mutex_t lock;         /* protects the rest; a leaf lock */
  struct serial_work *first, *last; /* who waits, in order */
  bool busy;                    /* somebody is at work */
  bool handed_on;               /* it is the thread */
};

extern void serial_queue_init (struct serial_queue *q);

/* Start the queue's thread.  Once, after the last fork, before
 * serial_queue_run.  -1 with errno after a message.
 */
extern int serial_queue_start (struct serial_queue *q);

/* Nobody uses it any more; it need not have been started. */
extern void serial_queue_destroy (struct serial_queue *q);

/* Do some work, here or in the queue's thread, and wait for it.  Returns
 * what work returned, with its errno.
 */
extern int serial_queue_run (struct serial_queue *q,
                             int (*work) (void *opaque), void *opaque);

#endif /* BLOCKDRIVERS_SERIAL_H */
