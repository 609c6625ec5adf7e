/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * NEED_CHECK is set, and made durable, before the first update of metadata
 * that could leave the image inconsistent.
 *
 * Some seconds after the last update, and on close, everything is made
 * durable, the file is cut behind its last cluster, and NEED_CHECK is
 * cleared.  No update is in flight meanwhile, so the header never says
 * that all is well while one is on its way.  The bit is cleared only if
 * everything written so far is known to be good.
 *
 * The thread sleeps until there is an update, and ends in close.
 */

#include <config.h>

#include <inttypes.h>

#include "qed/image/need-check.h"
#include "qed/image/space.h"
#include "utils/clock.h"

#define CLEAR_AFTER 5000        /* milliseconds */

static int
set_need_check (struct qed *s)
{
  /* A buffer is not to survive power loss, so its header need not come
   * first.
   */
  const struct header_edit edit = {
    .set = QED_NEED_CHECK, .flush = !s->is_volatile
  };

  if (s->ordered || atomic_load (&s->need_check))
    return 0;
  /* Of several that come at once each may write it. */
  if (header_change (s, &edit) == -1)
    return -1;
  atomic_store (&s->need_check, true);
  return 0;
}

static void
note_update (struct qed *s)
{
  atomic_store_explicit (&s->last_update, clock_ms (), memory_order_relaxed);
  if (!atomic_load (&s->updated) && !atomic_exchange (&s->updated, true) &&
      s->need_check_job)
    job_wake (s->need_check_job);
}

int
need_check_begin (struct qed *s)
{
  request_begin (&s->updates);
  if (set_need_check (s) == -1) {
    request_end (&s->updates);
    return -1;
  }
  note_update (s);
  return 0;
}

void
need_check_end (struct qed *s)
{
  request_end (&s->updates);
}

void
need_check_forget (struct qed *s)
{
  s->keep_need_check = false;
  atomic_store (&s->need_check, s->header.features & QED_NEED_CHECK);
  atomic_store (&s->updated, false);
}

void
need_check_keep (struct qed *s)
{
  s->keep_need_check = s->header.features & QED_NEED_CHECK;
  atomic_store (&s->need_check, s->keep_need_check);
}

int
need_check_clear (struct qed *s, bool flush)
{
  const struct header_edit edit = {
    .clear = QED_NEED_CHECK, .flush = flush
  };

  if (!(s->header.features & QED_NEED_CHECK))
    return 0;
  atomic_store (&s->need_check, false);
  return header_change (s, &edit);
}

/* Is everything that was written known to be good? */
static bool
is_good (struct qed *s)
{
  return !s->keep_need_check && !atomic_load (&s->metadata_failed) &&
    !flusher_has_failed (&s->flusher);
}

int
need_check_rest (struct qed *s)
{
  int r = 0;

  drain_begin (&s->updates);
  if (header_known (s) == -1)
    r = -1;
  else if (atomic_exchange (&s->updated, false) &&
           (space_cut (s) == -1 ||
            flusher_flush (&s->flusher) == -1 ||
            (is_good (s) && need_check_clear (s, false) == -1)))
    r = -1;
  drain_end (&s->updates);
  return r;
}

static int
need_check_thread (struct job *job, void *opaque)
{
  struct qed *s = opaque;

  while (!job_cancelled (job)) {
    int64_t wait = -1;

    if (atomic_load (&s->updated)) {
      wait = atomic_load (&s->last_update) + CLEAR_AFTER - clock_ms ();
      if (wait <= 0) {
        need_check_rest (s);    /* it has said what failed, if anything */
        continue;
      }
    }
    job_sleep (job, wait);
  }
  return 0;
}

int
need_check_start (struct qed *s)
{
  s->need_check_job = job_start ("qed-need-check", need_check_thread, s);
  return s->need_check_job ? 0 : -1;
}

void
need_check_stop (struct qed *s)
{
  job_finish (s->need_check_job);
  s->need_check_job = NULL;
}
