/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* An entry's own sector and its data go out in one vectored write.  Long
 * zeroes cut it: in a local file they are there already (room.c makes it
 * longer by zeroes), elsewhere they are a request of their own.
 */

#include <config.h>

#include "utils/rounding.h"
#include "writelog/record/store.h"

/* From this length on zeroes are left out (in a local file) or written
 * by a request of their own, shorter ones go with the data.
 */
#define LONG_ZEROES ((uint64_t) 32 * 1024)
static const uint8_t zeroes[LONG_ZEROES];

bool
store_is_hole (const struct store_entry *e)
{
  uint64_t longest = 0;

  for (unsigned i = 0; i < e->n; ++i) {
    if (e->pieces[i].data && e->pieces[i].len > 0)
      return false;
    longest = MAX (longest, e->pieces[i].len);
  }
  return longest >= LONG_ZEROES;
}

/* A run of pieces, to be written together. */
struct run {
  struct node *log;
  bool allocated;
  struct iovec iov[WRITELOG_MAX_PIECES + 3];
  int n;
  uint64_t offset, len;
};

static int
write_run (struct run *run)
{
  int r = 0;

  if (run->n > 0)
    r = node_pwritev (run->log, run->iov, run->n, run->offset);
  run->offset += run->len;
  run->n = run->len = 0;
  return r;
}

/* Have long zeroes at an offset without writing them out. */
static int
leave_zeroes (const struct run *run, uint64_t len, uint64_t offset)
{
  if (run->log->fixed_size)
    return node_zero (run->log, len, offset, NODE_MAY_TRIM);
  /* They are there.  If their space cannot be given back, so be it. */
  if (run->allocated)
    (void) !node_discard (run->log, len, offset);
  return 0;
}

static int
add_piece (struct run *run, const void *data, uint64_t len)
{
  if (len == 0)
    return 0;
  if (data == NULL && len >= LONG_ZEROES) {
    if (write_run (run) == -1)
      return -1;
    if (leave_zeroes (run, len, run->offset) == -1)
      return -1;
    run->offset += len;
    return 0;
  }
  run->iov[run->n++] = (struct iovec) {
    .iov_base = (void *) (data ? : zeroes), .iov_len = len,
  };
  run->len += len;
  return 0;
}

int
store_write (struct node *log, uint32_t sector_size, bool allocated,
             uint64_t offset, const struct store_entry *e)
{
  const uint64_t mark_len = e->mark ? e->entry->data_len : 0;
  struct run run = { .log = log, .allocated = allocated, .offset = offset };
  uint8_t header[WRITELOG_ENTRY_LEN];

  writelog_entry_encode (e->entry, header);
  if (add_piece (&run, header, sizeof header) == -1 ||
      add_piece (&run, e->mark, mark_len) == -1 ||
      add_piece (&run, NULL, sector_size - sizeof header - mark_len) == -1)
    return -1;
  for (unsigned i = 0; i < e->n; ++i)
    if (add_piece (&run, e->pieces[i].data, e->pieces[i].len) == -1)
      return -1;
  return write_run (&run);
}
