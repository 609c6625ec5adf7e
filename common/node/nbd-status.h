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

#include "node/known-data.h"
#include "node/node.h"

/* A reply to a block status command: extents one behind the other. */
struct status {
  uint64_t offset;
  size_t nr, max;
  struct { uint64_t length, flags; } entries[];
};

/* Room for a reply, of several extents or one; NULL with errno.  free it
 * unless it is kept.
 */
extern struct status *status_new (bool several);

/* Issue the command that fills it: nbd_aio_block_status, of which later
 * versions of libnbd have one with 64-bit lengths.
 */
extern int64_t status_ask (struct nbd_handle *nbd, struct status *s,
                           uint64_t count, uint64_t offset,
                           nbd_completion_callback completion, uint32_t flags);

/* The longest command without data: a length has 32 bits, unless both the
 * server and this libnbd know extended headers.
 */
#define SHORT_RANGE (UINT32_MAX - UINT32_C (65535))
extern uint64_t longest_range (struct nbd_handle *nbd);

/* Look an offset up.  Returns false if it is not there, or sets length
 * and adds flags.
 */
extern bool status_find (const struct status *s, uint64_t offset,
                         struct extent *ret);

/* Of a node that is read-only the last reply is kept, since nobody can
 * change what it says; of others, where they are known to have data.
 */
struct kept_status {
  pthread_mutex_t lock;         /* protects status; nothing else is done
                                   under it than to look it up */
  struct status *status;        /* or NULL */
  struct known_data known;
};

extern void kept_status_init (struct kept_status *k);
extern void kept_status_destroy (struct kept_status *k);

/* Keep of this one, which is taken over, what may be kept. */
extern void status_keep (struct kept_status *k, struct status *s,
                         bool read_only);

/* This range has been zeroed or discarded, or that was tried. */
extern void status_change (struct kept_status *k, uint64_t count,
                           uint64_t offset);

/* status_find in what is kept. */
extern bool status_kept (struct kept_status *k, uint64_t offset,
                         struct extent *ret);

/* How many bytes from offset on, at most count, does it say are zero? */
extern uint64_t status_zeroes (struct kept_status *k, uint64_t count,
                               uint64_t offset);

#endif /* BLOCKDRIVERS_NBD_STATUS_H */
