/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Copying a disk.
 *
 * Notes on the design
 *
 * The extents of the source say what need not be read.  What is read is
 * looked through for zeroes, in units of the size that the user named; if
 * the target allocates larger pieces anyway, the caller names these.
 *
 * Pieces are read side by side.  If writes shall be in order, each piece
 * has a number and waits, when it was read, for the one before it to be
 * written: so a new image has its clusters in the order of the disk.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>

#include "qed/copy.h"
#include "qed/parallel.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/rounding.h"

/* Zeroes that are not read are written in pieces of this size. */
#define ZERO_PIECE (UINT64_C (64) << 20)

struct copy {
  const struct qed_copy_options *o;
  struct node *from, *to;

  pthread_mutex_t lock;         /* protects turn; no I/O under it */
  uint64_t turn;                /* number of the piece that may write */

  /* Where a piece waits, by its number modulo this.  Pieces are handed out
   * in order, and end in order, so no two that are at work share one: when
   * a turn ends, the one whose turn it is wakes up, and nobody else.
   */
  pthread_cond_t is_next[PARALLEL_MAX_THREADS];
};

/* ---- What is to be copied */

enum kind { SKIP, ZERO, DATA };

static enum kind
kind_of (const struct copy *c, const struct extent *e)
{
  if (c->o->above && (e->depth > 0 || e->flags & EXTENT_UNALLOCATED))
    return SKIP;
  if (c->o->sparse == 0 || !(e->flags & EXTENT_ZERO))
    return DATA;
  return c->o->is_zero ? SKIP : ZERO;
}

static int
next_piece (void *opaque, uint64_t offset, struct piece *piece)
{
  const struct copy *c = opaque;
  const uint64_t size = node_size (c->from);

  while (offset < size) {
    struct extent e;
    enum kind kind;

    if (node_extents (c->from, size - offset, offset, &e) == -1)
      return -1;
    kind = kind_of (c, &e);
    if (kind != SKIP) {
      piece->offset = offset;
      piece->from = kind == DATA ? c->from : NULL;
      /* Pieces end where those of a whole disk of data would. */
      piece->length =
        MIN (e.length, kind == ZERO ? ZERO_PIECE
             : (uint64_t) PARALLEL_BUFFER - offset % PARALLEL_BUFFER);
      return 0;
    }
    offset += e.length;
  }
  return 0;
}

/* ---- Writing */

static int
write_zeroes (struct copy *c, uint64_t count, uint64_t offset)
{
  return c->o->is_zero ? 0 : parallel_zero (c->to, count, offset);
}

/* How long are the zeroes, or the data, at the beginning of this? */
static uint64_t
run_length (const struct copy *c, const uint8_t *buf, uint64_t count,
            uint64_t offset, bool *zero)
{
  const uint64_t unit = c->o->sparse;
  uint64_t length = 0;

  while (length < count) {
    const uint64_t n = MIN (unit - (offset + length) % unit, count - length);
    const bool unit_is_zero = is_zero (buf + length, n);

    if (length == 0)
      *zero = unit_is_zero;
    else if (*zero != unit_is_zero)
      break;
    length += n;
  }
  return length;
}

static int
write_data (struct copy *c, const uint8_t *buf, uint64_t count,
            uint64_t offset)
{
  if (c->o->sparse == 0)
    return parallel_write (c->to, buf, count, offset);
  while (count > 0) {
    bool zero = false;
    const uint64_t length = run_length (c, buf, count, offset, &zero);

    if ((zero ? write_zeroes (c, length, offset)
         : parallel_write (c->to, buf, length, offset)) == -1)
      return -1;
    buf += length;
    count -= length;
    offset += length;
  }
  return 0;
}

static int
write_piece (struct copy *c, const struct piece *piece, const uint8_t *buf)
{
  return piece->from
    ? write_data (c, buf, piece->length, piece->offset)
    : write_zeroes (c, piece->length, piece->offset);
}

/* ---- Order */

static void
wait_for_turn (struct copy *c, uint64_t number)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  while (c->turn != number)
    pthread_cond_wait (&c->is_next[number % PARALLEL_MAX_THREADS], &c->lock);
}

static void
end_turn (struct copy *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  c->turn++;
  pthread_cond_signal (&c->is_next[c->turn % PARALLEL_MAX_THREADS]);
}

/* Also what could not be read has its turn, for those behind it. */
static int
copy_piece (void *opaque, const struct piece *piece, uint8_t *buf,
            uint8_t *unused)
{
  struct copy *c = opaque;
  int r = 0, err;

  if (piece->from)
    r = node_pread (c->from, buf, piece->length, piece->offset);
  if (!c->o->in_order)
    return r == -1 ? -1 : write_piece (c, piece, buf);

  err = errno;
  wait_for_turn (c, piece->number);
  if (r == 0) {
    r = write_piece (c, piece, buf);
    err = errno;
  }
  end_turn (c);
  errno = err;
  return r;
}

int
qed_copy (struct node *from, struct node *to,
          const struct qed_copy_options *options)
{
  struct copy c = { .o = options, .from = from, .to = to };
  const struct parallel p = {
    .size = node_size (from), .next = next_piece, .work = copy_piece,
    .opaque = &c, .progress = options->progress, .rate = options->rate,
    .threads = options->threads
  };
  int r, err;

  if (node_start (from) == -1 || node_start (to) == -1)
    return -1;
  pthread_mutex_init (&c.lock, NULL);
  for (unsigned i = 0; i < PARALLEL_MAX_THREADS; ++i)
    pthread_cond_init (&c.is_next[i], NULL);
  r = parallel_run (&p);
  err = errno;
  for (unsigned i = 0; i < PARALLEL_MAX_THREADS; ++i)
    pthread_cond_destroy (&c.is_next[i]);
  pthread_mutex_destroy (&c.lock);
  errno = err;
  return r;
}
