/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See nbd-status.h. */

#include <config.h>

#include <stdlib.h>

#include "node/nbd-status.h"
#include "utils/cleanup.h"
#include "utils/rounding.h"

/* So many extents of a reply are kept. */
#define MAX_ENTRIES 4096

struct status *
status_new (bool several)
{
  const size_t max = several ? MAX_ENTRIES : 1;
  struct status *s = malloc (sizeof *s + max * sizeof s->entries[0]);

  if (s)
    *s = (struct status) { .max = max };
  return s;
}

/* What libnbd gives for an extent: a struct, or since it is an older one two
 * numbers of 32 bits.
 */
#if LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64
typedef nbd_extent received_part;
typedef nbd_extent64_callback received_callback;
#define PARTS 1
#define LENGTH(parts) ((parts)[0].length)
#define FLAGS(parts) ((parts)[0].flags)
#define BLOCK_STATUS nbd_aio_block_status_64
#else
typedef uint32_t received_part;
typedef nbd_extent_callback received_callback;
#define PARTS 2
#define LENGTH(parts) ((parts)[0])
#define FLAGS(parts) ((parts)[1])
#define BLOCK_STATUS nbd_aio_block_status
#endif

/* Called by libnbd. */
static int
status_received (void *vp, const char *context, uint64_t offset,
                 received_part *parts, size_t nr_parts, int *error)
{
  struct status *s = vp;

  (void) context;               /* there is one only */
  (void) error;
  s->offset = offset;
  s->nr = MIN (nr_parts / PARTS, s->max);
  for (size_t i = 0; i < s->nr; ++i) {
    s->entries[i].length = LENGTH (parts + i * PARTS);
    s->entries[i].flags = FLAGS (parts + i * PARTS);
  }
  return 0;
}

int64_t
status_ask (struct nbd_handle *nbd, struct status *s, uint64_t count,
            uint64_t offset, nbd_completion_callback completion,
            uint32_t flags)
{
  const received_callback received = {
    .callback = status_received, .user_data = s,
  };

  return BLOCK_STATUS (nbd, count, offset, received, completion, flags);
}

uint64_t
longest_range (struct nbd_handle *nbd)
{
#if LIBNBD_HAVE_NBD_GET_EXTENDED_HEADERS_NEGOTIATED
  if (nbd_get_extended_headers_negotiated (nbd) == 1)
    return UINT64_C (1) << 62;
#endif
  return SHORT_RANGE;
}

bool
status_find (const struct status *s, uint64_t offset, struct extent *ret)
{
  uint64_t end = s->offset;

  if (offset < s->offset)
    return false;
  for (size_t i = 0; i < s->nr; ++i) {
    end += s->entries[i].length;
    if (offset < end) {
      ret->length = end - offset;
      if (s->entries[i].flags & LIBNBD_STATE_HOLE)
        ret->flags |= EXTENT_HOLE;
      if (s->entries[i].flags & LIBNBD_STATE_ZERO)
        ret->flags |= EXTENT_ZERO;
      return true;
    }
  }
  return false;
}

void
kept_status_init (struct kept_status *k)
{
  pthread_mutex_init (&k->lock, NULL);
  k->status = NULL;
  known_data_init (&k->known);
}

void
kept_status_destroy (struct kept_status *k)
{
  free (k->status);
  known_data_destroy (&k->known);
  pthread_mutex_destroy (&k->lock);
}

static void
keep_all (struct kept_status *k, struct status *s)
{
  struct status *old;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
    old = k->status;
    k->status = s;
  }
  free (old);
}

void
status_keep (struct kept_status *k, struct status *s, bool read_only)
{
  if (read_only) {
    keep_all (k, s);
    return;
  }
  if (!(s->entries[0].flags & LIBNBD_STATE_ZERO))
    known_data_add (&k->known, s->offset, s->offset + s->entries[0].length);
  free (s);
}

void
status_change (struct kept_status *k, uint64_t count, uint64_t offset)
{
  known_data_cut (&k->known, offset, offset + count);
}

bool
status_kept (struct kept_status *k, uint64_t offset, struct extent *ret)
{
  const uint64_t data = known_data_at (&k->known, offset);

  if (data > 0) {
    ret->length = data;
    return true;
  }
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
  return k->status && status_find (k->status, offset, ret);
}

uint64_t
status_zeroes (struct kept_status *k, uint64_t count, uint64_t offset)
{
  struct extent e = { .length = 0 };

  return status_kept (k, offset, &e) && e.flags & EXTENT_ZERO
    ? MIN (count, e.length) : 0;
}
