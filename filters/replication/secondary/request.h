/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the requests of both exports of a secondary have in common. */

#ifndef BLOCKDRIVERS_REPLICATION_REQUEST_H
#define BLOCKDRIVERS_REPLICATION_REQUEST_H

#include "filters/replication/secondary/state.h"

/* Every request is between these two.  Returns the stage, which stays as long.
 */
extern enum replication_stage request_enter (struct secondary *s);
extern void request_leave (struct secondary *s);

/* EIO after a message: this stage does not allow it. */
extern int request_refuse (struct node *n, const char *what,
                           enum replication_stage stage);

/* A write, zero request or discard. */
struct change {
  enum { WRITE, ZERO, DISCARD } kind;
  const struct iovec *iov;      /* WRITE */
  int iovcnt;
  uint64_t count, offset;
  unsigned flags;               /* ZERO */
};

/* "write", "zero" or "discard". */
extern const char *change_name (const struct change *c);

extern int change_apply (struct node *to, const struct change *c);

/* Make the node of an export that looks like the disk. */
extern void
export_init (struct export *e, struct secondary *s,
             const struct node_ops *ops, const char *name,
             int (*change) (struct node *n, const struct change *c));

/* For the node_ops of both: requests that change something go to the export's
 * change, unless they are empty.
 */
extern int change_pwritev (struct node *n, const struct iovec *iov,
                           int iovcnt, size_t count, uint64_t offset);
extern int change_zero (struct node *n, uint64_t count, uint64_t offset,
                        unsigned flags);
extern int change_discard (struct node *n, uint64_t count, uint64_t offset);

/* A node_ops.close for nodes that go with their owner. */
extern int export_close (struct node *n);

static inline struct export *
export_of (struct node *n)
{
  return (struct export *) n;
}

#endif /* BLOCKDRIVERS_REPLICATION_REQUEST_H */
