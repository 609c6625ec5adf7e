/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See sync.h.  What the guest writes meanwhile counts as well: it is copied in
 * the same way, and the end is when nothing is dirty.
 */

#include <config.h>

#include "filters/replication/primary/sync.h"
#include "filters/replication/report.h"
#include "utils/clock.h"
#include "utils/rounding.h"

/* Batches a second, at the least, when there is a limit. */
#define STEPS 4

void
sync_begin (struct mirror *m)
{
  const uint64_t dirty = dirty_bytes (m->dirty);

  if (m->sync.running || dirty == 0)
    return;
  m->sync.begun = m->sync.running = true;
  m->sync.total = dirty;
  m->sync_began = clock_ms ();
  m->sync_sent = m->sent;
  report_sync (m->events, true, dirty);
}

void
sync_sent (struct mirror *m, uint64_t bytes)
{
  const int64_t now = clock_ms ();

  if (m->sync_rate)
    m->rate_at = MAX (now, m->rate_at) + bytes * 1000 / m->sync_rate;
  if (!m->sync.running || dirty_bytes (m->dirty) > 0)
    return;
  m->sync.running = false;
  m->sync.rate = (m->sent - m->sync_sent) * 1000 / (now - m->sync_began + 1);
  report_sync (m->events, false, m->sync.total);
}

static bool
is_limited (const struct mirror *m)
{
  return m->sync_rate && m->sync.running && !m->unlimited;
}

int64_t
sync_send_at (const struct mirror *m)
{
  return is_limited (m) ? m->rate_at : 0;
}

size_t
sync_areas (const struct mirror *m, size_t limit)
{
  return is_limited (m)
    ? MAX (MIN (limit, m->sync_rate / STEPS / DIRTY_AREA), UINT64_C (1))
    : limit;
}

void
sync_query (struct mirror *m, struct replication_progress *progress)
{
  const uint64_t dirty = dirty_bytes (m->dirty);

  *progress = m->sync;
  progress->done = progress->total;
  if (!progress->running)
    return;
  progress->total = MAX (progress->total, dirty);
  progress->done = progress->total - dirty;
  progress->rate = (m->sent - m->sync_sent) * 1000 /
    (clock_ms () - m->sync_began + 1);
}
