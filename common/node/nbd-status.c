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

#if LIBNBD_HAVE_NBD_AIO_BLOCK_STATUS_64

/* Called by libnbd. */
static int
status_received (void *vp, const char *context, uint64_t offset,
                 nbd_extent *entries, size_t nr_entries, int *error)
{
  struct status *s = vp;

  (void) context;               /* there is one only */
  (void) error;
  s->offset = offset;
  s->nr = MIN (nr_entries, s->max);
  for (size_t i = 0; i < s->nr; ++i) {
    s->entries[i].length = entries[i].length;
    s->entries[i].flags = entries[i].flags;
  }
  return 0;
}

int64_t
status_ask (struct nbd_handle *nbd, struct status *s, uint64_t count,
            uint64_t offset, nbd_completion_callback completion,
            uint32_t flags)
{
  const nbd_extent64_callback received = {
    .callback = status_received, .user_data = s,
  };

  return nbd_aio_block_status_64 (nbd, count, offset, received, completion,
                                  flags);
}

#else

/* Called by libnbd. */
static int
status_received (void *vp, const char *context, uint64_t offset,
                 uint32_t *entries, size_t nr_entries, int *error)
{
  struct status *s = vp;

  (void) context;               /* there is one only */
  (void) error;
  s->offset = offset;
  s->nr = MIN (nr_entries / 2, s->max);
  for (size_t i = 0; i < s->nr; ++i) {
    s->entries[i].length = entries[2 * i];
    s->entries[i].flags = entries[2 * i + 1];
  }
  return 0;
}

int64_t
status_ask (struct nbd_handle *nbd, struct status *s, uint64_t count,
            uint64_t offset, nbd_completion_callback completion,
            uint32_t flags)
{
  const nbd_extent_callback received = {
    .callback = status_received, .user_data = s,
  };

  return nbd_aio_block_status (nbd, count, offset, received, completion,
                               flags);
}

#endif

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
