/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The callbacks of a connection: what an export can do, and its
 * requests.  Their handle is the node of the export.
 */

#ifndef BLOCKDRIVERS_REPLICATION_REQUESTS_H
#define BLOCKDRIVERS_REPLICATION_REQUESTS_H

#include <nbdkit-filter.h>

extern int64_t request_get_size (nbdkit_next *next, void *handle);
extern int request_block_size (nbdkit_next *next, void *handle,
                               uint32_t *minimum, uint32_t *preferred,
                               uint32_t *maximum);
extern int request_can_write (nbdkit_next *next, void *handle);
extern int request_can_zero (nbdkit_next *next, void *handle);
extern int request_can_fua (nbdkit_next *next, void *handle);
extern int request_can_cache (nbdkit_next *next, void *handle);
extern int request_yes (nbdkit_next *next, void *handle);
extern int request_no (nbdkit_next *next, void *handle);

extern int request_pread (nbdkit_next *next, void *handle, void *buf,
                          uint32_t count, uint64_t offset, uint32_t flags,
                          int *err);
extern int request_pwrite (nbdkit_next *next, void *handle, const void *buf,
                           uint32_t count, uint64_t offset, uint32_t flags,
                           int *err);
extern int request_flush (nbdkit_next *next, void *handle, uint32_t flags,
                          int *err);
extern int request_trim (nbdkit_next *next, void *handle, uint32_t count,
                         uint64_t offset, uint32_t flags, int *err);
extern int request_zero (nbdkit_next *next, void *handle, uint32_t count,
                         uint64_t offset, uint32_t flags, int *err);
extern int request_extents (nbdkit_next *next, void *handle, uint32_t count,
                            uint64_t offset, uint32_t flags,
                            struct nbdkit_extents *extents, int *err);
extern int request_cache (nbdkit_next *next, void *handle, uint32_t count,
                          uint64_t offset, uint32_t flags, int *err);

#endif /* BLOCKDRIVERS_REPLICATION_REQUESTS_H */
