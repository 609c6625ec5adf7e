/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See heard.h.
 *
 * A primary of ours asks something when it has been idle for a third of its
 * time, so one that is silent for longer than ours does not get through: its
 * host is gone, or the network, which a connection alone may not notice for
 * hours.  Others (QEMU) are silent when their guest does not write.
 *
 * The thread ends in heard_end.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "filters/replication/report.h"
#include "filters/replication/secondary/heard.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Times to look within the time. */
#define LOOKS 4

/* Milliseconds by which a pause is longer only if the process stood still. */
#define STANDSTILL 1000

static int64_t
silence (struct secondary *s)
{
  return clock_ms () - atomic_load (&s->heard_at);
}

static bool
is_expected (struct secondary *s)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->meet_lock);

  return atomic_load (&s->nr_primaries) > 0 && s->primary.text[0];
}

static void
report (struct secondary *s)
{
  struct replication_status status;

  heard_query (s, &status);
  report_link (s->events, status.link, status.link_desc);
  if (atomic_load (&s->silent))
    msg_warning ("replication: %s", status.link_desc);
}

/* A process that was stopped, or whose machine was, finds what has come
 * meanwhile, and takes that for new.
 */
static void
note_standstill (struct secondary *s, int64_t ms)
{
  if (ms < STANDSTILL)
    return;
  atomic_store (&s->stood_for, ms);
  atomic_store (&s->stood_until, clock_ms ());
}

/* Was it heard of last only in what was found then? */
static bool
was_found (struct secondary *s, int64_t heard_at)
{
  const int64_t until = atomic_load (&s->stood_until);

  return until && heard_at <= until + STANDSTILL &&
    heard_at >= until - STANDSTILL;
}

static int
watch (struct job *job, void *opaque)
{
  struct secondary *s = opaque;
  const unsigned pause = MAX (s->timeout / LOOKS, 1U);

  while (!job_cancelled (job)) {
    const int64_t begin = clock_ms ();

    job_sleep (job, pause);
    note_standstill (s, clock_ms () - begin - pause);
    if (silence (s) >= s->timeout && is_expected (s) &&
        !atomic_exchange (&s->silent, true))
      report (s);
  }
  return 0;
}

int
heard_begin (struct secondary *s)
{
  s->watch = job_start ("primary-watch", watch, s);
  return s->watch ? 0 : -1;
}

void
heard_end (struct secondary *s)
{
  job_finish (s->watch);
  s->watch = NULL;
}

void
heard_now (struct secondary *s)
{
  atomic_store (&s->heard_at, clock_ms ());
  if (atomic_load (&s->silent) && atomic_exchange (&s->silent, false))
    report (s);
}

void
heard_the_end (struct secondary *s)
{
  atomic_store (&s->silent, false);
  report (s);
}

void
heard_query (struct secondary *s, struct replication_status *status)
{
  const int64_t heard_at = atomic_load (&s->heard_at);
  const bool is_there = atomic_load (&s->nr_primaries) > 0;
  const bool is_wanted =
    is_there || atomic_load (&s->stage) == REPLICATION_RUNNING;
  bool lost;

  status->last_heard = heard_at ? clock_ms () - heard_at : -1;
  lost = is_there ? atomic_load (&s->silent) : is_wanted && heard_at;
  status->link = lost ? "lost" : is_there ? "connected" : "none";
  status->link_desc[0] = '\0';
  if (lost && !is_there && was_found (s, heard_at))
    snprintf (status->link_desc, sizeof status->link_desc,
              "the primary has gone while this server stood still, for %.1f "
              "seconds", atomic_load (&s->stood_for) / 1000.0);
  else if (lost)
    snprintf (status->link_desc, sizeof status->link_desc,
              is_there ? "the primary is connected, but was not heard of for "
              "%.1f seconds" : "the primary has gone; it was heard of last "
              "%.1f seconds ago", status->last_heard / 1000.0);
}
