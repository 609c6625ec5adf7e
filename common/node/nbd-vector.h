/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* How a vector is cut into NBD commands: long parts are sent from where
 * they are, short ones are collected in a buffer, since up to there copying
 * costs less than another command.
 */

#ifndef BLOCKDRIVERS_NBD_VECTOR_H
#define BLOCKDRIVERS_NBD_VECTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "utils/iovec.h"

/* A buffer need not be longer than this.  A vector of one part needs
 * none.
 */
#define VECTOR_BUFFER (UINT64_C (1024) * 1024)

struct vector {
  struct iov_cursor at;
  size_t left;                  /* bytes from there, a multiple of align */
  uint32_t align;               /* of each command */
  uint32_t longest;             /* command, a multiple of align */
  char *buf;                    /* borrowed */
  size_t size, used;            /* of it, multiples of align */
};

/* Must all commands before have been done, and used be set to 0, before
 * the next one can be collected?
 */
extern bool vector_is_full (struct vector *v);

/* The next command of a vector that has something left: its data, which
 * stays where it is until the buffer is used again, and its length.
 */
extern const char *vector_next (struct vector *v, size_t *len);

#endif /* BLOCKDRIVERS_NBD_VECTOR_H */
