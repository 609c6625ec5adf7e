/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Writes to a QED image.  Those to data clusters go straight into them;
 * others are allocated, and zeroes that are found in the data may become
 * zero requests.
 */

#include <config.h>

#include <inttypes.h>

#include "qed/image/file.h"
#include "qed/image/map.h"
#include "qed/io/allocate.h"
#include "qed/io/io.h"
#include "qed/io/zero.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

static ssize_t
write_run (struct qed *s, const void *buf, size_t count, uint64_t offset)
{
  struct mapping m;

  if (qed_map (s, count, offset, &m) == -1)
    return -1;
  if (m.kind == MAP_DATA) {
    if (file_pwrite (s, buf, m.length, m.file_offset) == -1)
      return -1;
  }
  else if (allocate (s, ALLOCATE_DATA, buf, m.length, offset, &m.length)
           == -1)
    return -1;
  return m.length;
}

static int
write_plain (struct qed *s, const char *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    const ssize_t done = write_run (s, buf, count, offset);

    if (done == -1)
      return -1;
    buf += done;
    count -= done;
    offset += done;
  }
  return 0;
}

/* Is this whole cluster (or what the disk has of its last one) written,
 * with zeroes?
 */
static bool
is_zero_cluster (const struct qed *s, const char *buf, size_t count,
                 uint64_t offset)
{
  const uint64_t end =
    MIN (round_down (offset, s->cluster_size) + s->cluster_size,
         node_size (&s->node));

  return is_aligned (offset, s->cluster_size) && end - offset <= count &&
    is_zero (buf, end - offset);
}

/* Cut a write into runs of whole clusters of zeroes and of others. */
static int
write_detecting_zeroes (struct qed *s, const char *buf, size_t count,
                        uint64_t offset)
{
  const unsigned flags =
    s->options.detect_zeroes == QED_DETECT_UNMAP ? NODE_MAY_TRIM : 0;

  while (count > 0) {
    const bool zero = is_zero_cluster (s, buf, count, offset);
    uint64_t len = 0;
    int r;

    do
      len = MIN (round_up (offset + len + 1, s->cluster_size) - offset,
                 (uint64_t) count);
    while (len < count &&
           is_zero_cluster (s, buf + len, count - len, offset + len)
           == zero);

    r = zero ? zero_range (s, len, offset, flags)
      : write_plain (s, buf, len, offset);
    if (r == -1)
      return -1;
    buf += len;
    count -= len;
    offset += len;
  }
  return 0;
}

int
qed_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
             size_t count, uint64_t offset)
{
  struct qed *s = qed_of_node (n);
  int r;

  TRACE_IO ("qed: write count=%zu offset=%" PRIu64, count, offset);
  request_begin (&s->requests);
  r = header_known (s);
  for (int i = 0; r == 0 && i < iovcnt; ++i) {
    if (s->options.detect_zeroes != QED_DETECT_OFF)
      r = write_detecting_zeroes (s, iov[i].iov_base, iov[i].iov_len,
                                  offset);
    else
      r = write_plain (s, iov[i].iov_base, iov[i].iov_len, offset);
    offset += iov[i].iov_len;
  }
  request_end (&s->requests);
  return r;
}
