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

nbd_extent_callback
status_callback (struct status *s)
{
  return (nbd_extent_callback) {
    .callback = status_received, .user_data = s,
  };
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
}

void
kept_status_destroy (struct kept_status *k)
{
  free (k->status);
  pthread_mutex_destroy (&k->lock);
}

void
status_keep (struct kept_status *k, struct status *s)
{
  struct status *old;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);
    old = k->status;
    k->status = s;
  }
  free (old);
}

bool
status_kept (struct kept_status *k, uint64_t offset, struct extent *ret)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&k->lock);

  return k->status && status_find (k->status, offset, ret);
}
