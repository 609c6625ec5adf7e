/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Some seconds after the last allocation, and on close, the image is
 * settled: everything is made durable, the file is cut behind its last
 * cluster, and NEED_CHECK is cleared.  No allocation is in flight
 * meanwhile, so the header never says that all is well while an update
 * is on its way.  The bit is cleared only if everything written so far
 * is known to be good.
 *
 * The thread sleeps until there is an allocation, and ends in close.
 */

#include <config.h>

#include <inttypes.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "qed/image/image.h"
#include "utils/message.h"

#define SETTLE_AFTER 5000       /* milliseconds */

void
settle_note_allocation (struct qed *s)
{
  atomic_store_explicit (&s->last_allocation, clock_ms (),
                         memory_order_relaxed);
  if (!atomic_load (&s->unsettled) &&
      !atomic_exchange (&s->unsettled, true) && s->settle_job)
    job_wake (s->settle_job);
}

/* Cut the file behind the last cluster. */
static int
cut_file (struct qed *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->space_lock);

  if (s->file->fixed_size || !s->tail_cut || node_size (s->file) == s->end)
    return 0;
  return node_resize (s->file, s->end);
}

static int
clear_need_check (struct qed *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->header_lock);

  if (!(s->header.features & QED_NEED_CHECK) || s->keep_need_check ||
      atomic_load (&s->metadata_failed) || flusher_has_failed (&s->flusher))
    return 0;
  s->header.features &= ~(uint64_t) QED_NEED_CHECK;
  atomic_store (&s->need_check, false);
  return header_write (s);
}

int
settle (struct qed *s)
{
  int r = 0;

  drain_begin (&s->allocations);
  if (atomic_exchange (&s->unsettled, false)) {
    if (cut_file (s) == -1 ||
        flusher_flush (&s->flusher, FLUSH_FOR_METADATA) == -1 ||
        clear_need_check (s) == -1)
      r = -1;
  }
  drain_end (&s->allocations);
  return r;
}

static int
settle_thread (struct job *job, void *opaque)
{
  struct qed *s = opaque;

  while (!job_cancelled (job)) {
    int64_t wait = -1;

    if (atomic_load (&s->unsettled)) {
      wait = atomic_load (&s->last_allocation) + SETTLE_AFTER - clock_ms ();
      if (wait <= 0) {
        settle (s);             /* it has said what failed, if anything */
        continue;
      }
    }
    job_sleep (job, wait);
  }
  return 0;
}

int
settle_start (struct qed *s)
{
  s->settle_job = job_start ("qed-settle", settle_thread, s);
  return s->settle_job ? 0 : -1;
}
