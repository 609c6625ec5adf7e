/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A forwarder's way to the secondary: a bounded queue of requests to a node
 * that may hang, for which nobody waits without end.  Specification:
 * replication.md, "Stages" and "Beyond QEMU".
 */

#ifndef BLOCKDRIVERS_FORWARD_H
#define BLOCKDRIVERS_FORWARD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "node/node.h"
#include "filters/replication/status.h"

struct forward;

/* Start the threads.  The node is borrowed until forward_close; limit is
 * the time, in milliseconds, without any progress after which it is given
 * up.  What fails is recorded in error.  NULL with errno after a message.
 */
extern struct forward *forward_open (struct node *node, unsigned limit,
                                     struct replication_error *error);

/* Make what is left in the queue, and end the threads, when nobody makes
 * requests any more.  Returns false if the node hangs, the first time after
 * a message: then some threads stay, so that all must be left as it is, but
 * it can be tried again.  NULL is ignored.
 */
extern bool forward_close (struct forward *f);

/* Put a request into the queue, and wait for room there at the most (and,
 * if it is the only one, for a moment in which it may be carried out).  They
 * are carried out side by side, but overlapping ones in order.  The data
 * is copied.  Return 0, or -1 when nothing is forwarded: ETIMEDOUT, after
 * the node was given up, ECANCELED, after forward_cut, or ENOMEM.
 */
extern int forward_pwritev (struct forward *f, const struct iovec *iov,
                            int iovcnt, size_t count, uint64_t offset);
extern int forward_zero (struct forward *f, uint64_t count, uint64_t offset,
                         unsigned flags);
extern int forward_discard (struct forward *f, uint64_t count,
                            uint64_t offset);

/* Wait until all earlier requests have been carried out, and for the flush
 * of the node.  The same errors, or that of the flush.  Zero requests with
 * NODE_FAST wait likewise, since they may fail.
 */
extern int forward_flush (struct forward *f);
extern int forward_drain (struct forward *f); /* without the flush */

/* Is it time to give the node up?  For whoever asks for the status. */
extern void forward_check (struct forward *f);

/* Drop what is in the queue; whoever waits does not any more, and nobody
 * will.  From any thread.
 */
extern void forward_cut (struct forward *f);

/* After that, wait until what had been begun has been carried out, so that
 * nothing arrives at the secondary any more; but only for so many
 * milliseconds.  Returns whether it has.
 */
extern bool forward_settle (struct forward *f, unsigned ms);

#endif /* BLOCKDRIVERS_FORWARD_H */
