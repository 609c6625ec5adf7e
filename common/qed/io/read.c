/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reads of a QED image: a request is cut only where the mapping is not
 * contiguous.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "qed/image/map.h"
#include "qed/io/allocate.h"
#include "qed/io/backing.h"
#include "qed/io/io.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* The mapping of the run that begins at offset, after it has been copied up
 * if that is wanted.  Who cannot copy (no space) can still read.
 */
static int
map_to_read (struct qed *s, uint64_t count, uint64_t offset,
             struct mapping *m)
{
  if (qed_map (s, count, offset, m) == -1)
    return -1;
  if (m->kind != MAP_UNALLOCATED || !s->options.copy_on_read || !s->backing)
    return 0;
  allocate_copy_up (s, m->length, offset);
  return qed_map (s, m->length, offset, m);
}

/* Read the run that begins at offset; returns how far it went or -1: 0
 * if its mapping has changed meanwhile.
 */
static ssize_t
read_run (struct qed *s, void *buf, size_t count, uint64_t offset)
{
  struct mapping m;
  int r = 0;

  if (map_to_read (s, count, offset, &m) == -1)
    return -1;

  switch (m.kind) {
  case MAP_DATA:
    r = node_pread (s->file, buf, m.length, m.file_offset);
    break;
  case MAP_ZERO:
    memset (buf, 0, m.length);
    break;
  case MAP_UNALLOCATED:
    r = node_pread_padded (s->backing, buf, m.length, offset);
    if (r == 0)
      r = backing_unchanged (s, m.length, offset, &m.length);
    break;
  }
  return r == -1 ? -1 : (ssize_t) m.length;
}

int
qed_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  int r = 0;

  TRACE_IO ("qed: read count=%zu offset=%" PRIu64, count, offset);
  qed_request_begin (s);
  while (count > 0) {
    const ssize_t done = read_run (s, buf, count, offset);

    if (done == -1) {
      r = -1;
      break;
    }
    buf = (char *) buf + done;
    count -= done;
    offset += done;
  }
  qed_request_end (s);
  return r;
}

static int
cache_run (struct qed *s, const struct mapping *m, uint64_t offset)
{
  const uint64_t size = s->backing ? node_size (s->backing) : 0;

  if (m->kind == MAP_DATA)
    return node_cache (s->file, m->length, m->file_offset);
  if (m->kind == MAP_UNALLOCATED && offset < size)
    return node_cache (s->backing, MIN (m->length, size - offset), offset);
  return 0;
}

int
qed_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  struct mapping m;
  int r = 0;

  TRACE_IO ("qed: cache count=%" PRIu64 " offset=%" PRIu64, count, offset);
  qed_request_begin (s);
  if (s->options.copy_on_read && s->backing)
    r = allocate_copy_up (s, count, offset);
  while (r == 0 && count > 0) {
    if (qed_map (s, count, offset, &m) == -1 ||
        cache_run (s, &m, offset) == -1)
      r = -1;
    else {
      count -= m.length;
      offset += m.length;
    }
  }
  qed_request_end (s);
  return r;
}
