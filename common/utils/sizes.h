/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Sizes as people write and read them, for the tools (modules have
 * nbdkit_parse_size).
 */

#ifndef BLOCKDRIVERS_SIZES_H
#define BLOCKDRIVERS_SIZES_H

#include <stdint.h>

/* Enough for every result of human_size. */
#define HUMAN_SIZE_LEN 32

/* Parse a number of bytes with an optional suffix: b, k, M, G, T, P, E
 * in either case (powers of 1024), a decimal fraction being allowed
 * before a suffix other than b; or a hexadecimal number without one; as
 * qemu-img has it, from 8.0 on.  Returns the size,
 * or -1 with errno EINVAL (no number, trailing text, negative) or
 * ERANGE (more than INT64_MAX).  Prints nothing: the caller knows what
 * the size was for.
 */
extern int64_t parse_size (const char *str);

/* "1.5 GiB", "260 KiB", "0 B": three significant digits, the largest
 * binary unit that leaves a number of at least one, as qemu-img prints
 * it.  Returns buf.
 */
extern char *human_size (char buf[HUMAN_SIZE_LEN], uint64_t size);

#endif /* BLOCKDRIVERS_SIZES_H */
