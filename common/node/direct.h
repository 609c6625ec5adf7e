/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reading and writing past the page cache (O_DIRECT): what the kernel
 * wants aligned is copied where the caller has it otherwise.
 */

#ifndef BLOCKDRIVERS_DIRECT_H
#define BLOCKDRIVERS_DIRECT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

/* As pread and pwritev, which may do less than asked for, on a descriptor
 * with O_DIRECT that wants whole blocks (bytes, a power of two).  offset
 * is a multiple of block; what is behind the last whole block of a
 * request is read and written, too.  Such a write writes the rest of the
 * block back as it was, or zeroes behind the end of the file, which is
 * longer then: the caller cuts it, and lets nobody else write to the
 * block or change the length meanwhile.
 */
extern ssize_t direct_pread (int fd, void *buf, size_t count, uint64_t offset,
                             uint32_t block);

/* Of the vector, that has count bytes, what is behind the first "done"
 * bytes; offset is where these go.
 */
extern ssize_t direct_pwritev (int fd, const struct iovec *iov, int iovcnt,
                               size_t done, size_t count, uint64_t offset,
                               uint32_t block);

#endif /* BLOCKDRIVERS_DIRECT_H */
