/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Preloaded by bench/status.sh: no file says where it has holes, as on a file
 * system that cannot, so that everything is read.
 */

#include <config.h>

#include <errno.h>
#include <unistd.h>

#include "tests/lib/next.h"

off_t lseek (int fd, off_t offset, int whence) LINKED_AS ("lseek");

off_t
lseek (int fd, off_t offset, int whence)
{
  if (whence == SEEK_DATA || whence == SEEK_HOLE) {
    errno = EINVAL;
    return -1;
  }
  return NEXT_OFF (lseek) (fd, offset, whence);
}

#ifndef _FILE_OFFSET_BITS
extern __typeof__ (lseek) lseek64 __attribute__ ((__alias__ ("lseek")));
#endif
