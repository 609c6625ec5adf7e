/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See nbd-vector.h. */

#include <config.h>

#include "node/nbd-vector.h"
#include "utils/rounding.h"

/* Parts from this size on are sent from where they are. */
#define DIRECT_SIZE (64U * 1024)

/* How much can be sent from here without copying?  0 if it is too little
 * to be worth it.  The longest command always is.
 */
static size_t
direct_length (struct vector *v, size_t left)
{
  const size_t len =
    round_down (MIN (iov_here (&v->at), v->longest), v->align);

  return len >= MIN (DIRECT_SIZE, v->longest) || len == left ? len : 0;
}

bool
vector_is_full (struct vector *v)
{
  return v->used == v->size && direct_length (v, v->left) == 0;
}

/* Collect what is too little to be sent directly.  Returns the length,
 * a multiple of the alignment.
 */
static size_t
collect (struct vector *v)
{
  const size_t size = MIN (v->size - v->used, v->left);
  char *const buf = v->buf + v->used;
  size_t fill = 0;

  while (fill < size) {
    size_t len;

    if (fill > 0 && is_aligned (fill, v->align) &&
        direct_length (v, v->left - fill) > 0)
      break;
    len = MIN (iov_here (&v->at), size - fill);
    /* Of a long element take what aligns the rest of it. */
    if (!is_aligned (fill, v->align) && iov_here (&v->at) >= DIRECT_SIZE)
      len = MIN (len, v->align - (fill & (v->align - 1)));
    iov_copy (&v->at, buf + fill, len);
    fill += len;
  }
  return fill;
}

const char *
vector_next (struct vector *v, size_t *len)
{
  const char *from;

  *len = direct_length (v, v->left);
  if (*len > 0)
    from = iov_take (&v->at, *len);
  else {
    from = v->buf + v->used;
    *len = collect (v);
    v->used += *len;
  }
  v->left -= *len;
  return from;
}
