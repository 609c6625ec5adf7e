/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What an NBD server has said about block status. */

#ifndef BLOCKDRIVERS_NBD_STATUS_H
#define BLOCKDRIVERS_NBD_STATUS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <libnbd.h>

#include "node/node.h"

/* A reply to a block status command: extents one behind the other. */
struct status {
  uint64_t offset;
  size_t nr, max;
  struct { uint32_t length, flags; } entries[];
};

/* Room for a reply, of several extents or one; NULL with errno.  free it
 * unless it is kept.
 */
extern struct status *status_new (bool several);

/* The callback of the command, which fills it. */
extern nbd_extent_callback status_callback (struct status *s);

/* Look an offset up.  Returns false if it is not there, or sets length
 * and adds flags.
 */
extern bool status_find (const struct status *s, uint64_t offset,
                         struct extent *ret);

/* The last reply, while nobody can change what it says. */
struct kept_status {
  pthread_mutex_t lock;         /* protects status; nothing else is done
                                   under it than to look it up */
  struct status *status;        /* or NULL */
};

extern void kept_status_init (struct kept_status *k);
extern void kept_status_destroy (struct kept_status *k);

/* Keep this one, which is taken over, in place of the last. */
extern void status_keep (struct kept_status *k, struct status *s);

/* status_find in what is kept. */
extern bool status_kept (struct kept_status *k, uint64_t offset,
                         struct extent *ret);

#endif /* BLOCKDRIVERS_NBD_STATUS_H */
