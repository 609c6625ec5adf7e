/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A node served as an export of nbdkit.  These are the callbacks of a
 * plugin whose connections have the node as their handle (for what each
 * does see nbdkit-plugin(3)); a filter hands its own on to them.  It needs
 * nbdkit, so it is among the sources of each module that uses it.
 */

#ifndef BLOCKDRIVERS_EXPORT_H
#define BLOCKDRIVERS_EXPORT_H

#include <stdint.h>

struct nbdkit_extents;

/* -1 is returned with errno after a message.  That is ENOTSUP, without a
 * message, only for zeroes that are to be fast.
 */

extern int64_t export_get_size (void *handle);
extern int export_block_size (void *handle, uint32_t *minimum,
                              uint32_t *preferred, uint32_t *maximum);
extern int export_can_write (void *handle);
extern int export_can_fua (void *handle);
extern int export_can_cache (void *handle);

/* For what every export can do. */
extern int export_yes (void *handle);

extern int export_pread (void *handle, void *buf, uint32_t count,
                         uint64_t offset, uint32_t flags);
extern int export_pwrite (void *handle, const void *buf, uint32_t count,
                          uint64_t offset, uint32_t flags);
extern int export_zero (void *handle, uint32_t count, uint64_t offset,
                        uint32_t flags);
extern int export_trim (void *handle, uint32_t count, uint64_t offset,
                        uint32_t flags);
extern int export_flush (void *handle, uint32_t flags);
extern int export_cache (void *handle, uint32_t count, uint64_t offset,
                         uint32_t flags);
extern int export_extents (void *handle, uint32_t count, uint64_t offset,
                           uint32_t flags, struct nbdkit_extents *extents);

#endif /* BLOCKDRIVERS_EXPORT_H */
