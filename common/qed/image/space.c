/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Space.  The next cluster goes to "end".  The file's length runs ahead
 * of it in steps, so that most reservations are an addition under a
 * lock, and the last cluster is always whole.  What stands behind "end"
 * when an image is opened (left by a process that was killed) is cut
 * off before the first reservation, so that new space reads as zeroes.
 * A block device or NBD export has neither end nor zeroes: there
 * clusters are filled in by whoever reserves them.
 *
 * Order.  There are two ways to survive power loss at any point:
 *
 * - ordered (over a backing image, or on storage of fixed size): what a
 *   table entry refers to is durable before the entry is written, so
 *   the tables in the file are good whichever of the writes after the
 *   last flush have reached the medium.  At worst clusters are reserved
 *   that nothing refers to.
 *
 * - not ordered (a file without backing image): NEED_CHECK is durable
 *   in the header before the first entry is written.  An entry may then
 *   be on the medium while what it refers to is not; that is either a
 *   hole in the file, which reads as the zeroes that were there before,
 *   or lies behind the end of the file, and is removed by the repair
 *   that NEED_CHECK asks for.  Nothing that a flush has covered is
 *   concerned, since that flush covered the file's length as well.
 *
 * The death of the process alone loses nothing that was written, so the
 * order of the writes is enough for it: data, then the L2 entry; the
 * new table, then the L1 entry.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "qed/image/file.h"
#include "qed/image/space.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* The file grows by at least this many bytes. */
#define GROW_STEP ((uint64_t) 4 * 1024 * 1024)

/* At most this many clusters are remembered after failed writes. */
#define MAX_FREED 4096

void
space_begin (struct qed *s, uint64_t end, bool cut)
{
  s->end = end;
  s->tail_cut = cut;
  s->nr_freed = 0;
}

void
space_set_stale (struct qed *s, uint64_t end)
{
  atomic_store (&s->stale_end, end);
}

/* What is kept free on storage of fixed size, in bytes. */
static uint64_t
kept_room (const struct qed_header *h)
{
  return qed_table_bytes (h);
}

uint64_t
space_needed (const struct qed_header *h, uint64_t tables, uint64_t clusters)
{
  return h->l1_table_offset + (1 + tables) * qed_table_bytes (h) +
    clusters * h->cluster_size + kept_room (h);
}

void
space_keep_table (struct qed *s)
{
  s->kept_free = s->file->fixed_size ? kept_room (&s->header) : 0;
}

/* Under space_lock. */
static int
set_length (struct qed *s, uint64_t length)
{
  int r;

  /* Cut, and made longer again, it may be found short. */
  s->durable_length = MIN (s->durable_length, length);
  r = node_resize (s->file, length);
  flusher_written (&s->flusher);

  /* It may have been done all the same. */
  s->length_unknown = r == -1;
  return r;
}

/* A step ahead; once a limit does not let the file have so much, just
 * what is needed.  Under space_lock.
 */
static int
grow_file (struct qed *s, uint64_t end)
{
  const uint64_t ahead =
    node_size (s->file) + round_up (GROW_STEP, s->cluster_size);

  if (ahead > end && !s->grow_exactly) {
    if (set_length (s, ahead) == 0)
      return 0;
    if (errno != EFBIG && errno != ENOSPC)
      return -1;
    msg_warning ("%s: the file grows only by what is needed from here on",
                 s->node.name);
    s->grow_exactly = true;
  }
  return set_length (s, end);
}

int
space_reach (struct qed *s, uint64_t end)
{
  if (s->file->fixed_size) {
    if (end + s->kept_free <= node_size (s->file))
      return 0;
    errno = ENOSPC;
    msg_error ("%s: no room for another cluster: the storage under the "
               "image ends at %" PRIu64 ", of which %" PRIu64 " bytes are "
               "kept for emptying it", s->node.name, node_size (s->file),
               s->kept_free);
    return -1;
  }

  if (!s->tail_cut) {
    if (node_size (s->file) != s->end && set_length (s, s->end) == -1)
      return -1;
    s->tail_cut = true;
  }
  if (s->length_unknown && set_length (s, node_size (s->file)) == -1)
    return -1;
  if (end <= node_size (s->file))
    return 0;
  if (end > INT64_MAX - GROW_STEP) {
    errno = EFBIG;
    msg_error ("%s: the image file cannot grow any more", s->node.name);
    return -1;
  }
  return grow_file (s, end);
}

int
space_reserve (struct qed *s, uint64_t n, uint64_t *offset)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);

  if (n == 1 && s->nr_freed > 0) {
    *offset = s->freed[--s->nr_freed];
    return 0;
  }
  if (s->hooks)                 /* it may let go of the lock, and wait */
    s->end = s->hooks->reserve (s, n);
  if (space_reach (s, s->end + (n << s->cluster_bits)) == -1)
    return -1;
  *offset = s->end;
  s->end += n << s->cluster_bits;
  return 0;
}

/* Let the end come back over clusters that were given back: what stands
 * behind it is used again in runs of any length, and cut off on close.
 * Under space_lock.
 */
static void
draw_end_back (struct qed *s)
{
  for (size_t i = 0; i < s->nr_freed;) {
    if (s->freed[i] + s->cluster_size == s->end) {
      s->end = s->freed[i];
      s->freed[i] = s->freed[--s->nr_freed];
      i = 0;
    }
    else
      i++;
  }
}

/* Make clusters that were given back read as zeroes again.  Where an entry
 * can be on the medium before what it refers to, what was written to them
 * must not be found there by the next one who uses them; who flushes
 * before the entry makes this durable too.
 */
static int
make_new (struct qed *s, uint64_t count, uint64_t offset)
{
  if (s->file->fixed_size)
    return 0;
  if (file_zero (s, count, offset, NODE_MAY_TRIM | NODE_FAST) == -1)
    return -1;
  return s->ordered || s->is_volatile ? 0 : image_flush (s);
}

static void
give_back (struct qed *s, uint64_t n, uint64_t offset)
{
  /* Otherwise it is lost until a check. */
  if (make_new (s, n << s->cluster_bits, offset) == -1)
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);
  /* A buffer counts on what it has taken up to its end. */
  if (s->hooks == NULL && offset + (n << s->cluster_bits) == s->end) {
    s->end = offset;
    draw_end_back (s);
    return;
  }
  if (s->freed == NULL)
    s->freed = malloc (MAX_FREED * sizeof *s->freed);
  while (s->freed && n > 0 && s->nr_freed < MAX_FREED)
    s->freed[s->nr_freed++] = offset + (--n << s->cluster_bits);
}

void
space_give_back (struct qed *s, uint64_t n, uint64_t offset)
{
  const int err = errno;

  give_back (s, n, offset);
  errno = err;
}

int
space_cut (struct qed *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);

  if (s->file->fixed_size || !s->tail_cut ||
      (node_size (s->file) == s->end && !s->length_unknown))
    return 0;
  return set_length (s, s->end);
}
