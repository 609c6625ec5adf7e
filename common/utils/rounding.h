/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Powers of two and what is rounded to them. */

#ifndef BLOCKDRIVERS_ROUNDING_H
#define BLOCKDRIVERS_ROUNDING_H

#include <stdbool.h>
#include <stdint.h>

#define MIN(x, y)                               \
  ({ typeof (x) min_x_ = (x);                   \
     typeof (y) min_y_ = (y);                   \
     min_x_ < min_y_ ? min_x_ : min_y_; })
#define MAX(x, y)                               \
  ({ typeof (x) max_x_ = (x);                   \
     typeof (y) max_y_ = (y);                   \
     max_x_ > max_y_ ? max_x_ : max_y_; })

static inline bool
is_power_of_2 (uint64_t v)
{
  return v != 0 && (v & (v - 1)) == 0;
}

/* n must be a power of two in all of these.  round_up wraps for values
 * above UINT64_MAX - n, so check those first.
 */
static inline bool
is_aligned (uint64_t v, uint64_t n)
{
  return (v & (n - 1)) == 0;
}

static inline uint64_t
round_down (uint64_t v, uint64_t n)
{
  return v & ~(n - 1);
}

static inline uint64_t
round_up (uint64_t v, uint64_t n)
{
  return (v + n - 1) & ~(n - 1);
}

/* Any n but 0. */
static inline uint64_t
div_round_up (uint64_t v, uint64_t n)
{
  return v / n + (v % n != 0);
}

/* Where the part i of n parts of a total begins, which are as equal as can be:
 * i * total / n, whose product may not fit.  i <= n < 2^32, which a number of
 * things in memory is.
 */
static inline uint64_t
part_begins (uint64_t i, uint64_t n, uint64_t total)
{
  return i * (total / n) + i * (total % n) / n;
}

/* The exponent of a power of two. */
static inline unsigned
log_2 (uint64_t v)
{
  return 63 - __builtin_clzll (v);
}

#endif /* BLOCKDRIVERS_ROUNDING_H */
