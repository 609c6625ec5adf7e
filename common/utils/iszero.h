/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Is all of a buffer zero? */

#ifndef BLOCKDRIVERS_ISZERO_H
#define BLOCKDRIVERS_ISZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* Compares the first bytes by hand and the rest with itself shifted,
 * which hands the work to the C library's vectorized memcmp.
 */
static inline bool
is_zero (const void *buffer, size_t size)
{
  const unsigned char *p = buffer;
  const size_t limit = size < 16 ? size : 16;
  size_t i;

  for (i = 0; i < limit; ++i)
    if (p[i])
      return false;
  return size == limit || memcmp (p, p + 16, size - 16) == 0;
}

#endif /* BLOCKDRIVERS_ISZERO_H */
