/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Copying a disk from one node to another. */

#ifndef BLOCKDRIVERS_QED_COPY_H
#define BLOCKDRIVERS_QED_COPY_H

#include "qed/qed.h"

struct qed_copy_options {
  bool is_zero;                 /* what is not written reads as zeroes */
  bool above;                   /* both stand on the same: only what the
                                   uppermost layer of from has is copied */
  uint64_t sparse;              /* bytes, a multiple of 512: so long zeroes
                                   that are read are not written as data;
                                   0: all is */
  bool in_order;                /* writes follow each other, as on the disk;
                                   what is allocated then does, too */
  unsigned threads;             /* 0: as many as seem good */
  uint64_t rate;                /* bytes a second, 0: no limit */
  const struct qed_progress *progress; /* may be NULL */
};

/* Copy all of from, into to, which parallel_reaches its end.  Both are open,
 * and are started.  Nothing is flushed.  -1 with errno after a message.
 */
extern int qed_copy (struct node *from, struct node *to,
                     const struct qed_copy_options *options);

#endif /* BLOCKDRIVERS_QED_COPY_H */
