/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Stages, the error that stays until it is over, and refusals. */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "filters/replication/status.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/rounding.h"
#include "utils/jsontext.h"

void
replication_error_init (struct replication_error *error,
                        struct events *events)
{
  error->events = events;
  pthread_mutex_init (&error->lock, NULL);
  error->set = false;
  error->desc[0] = error->last[0] = '\0';
}

void
replication_error_destroy (struct replication_error *error)
{
  pthread_mutex_destroy (&error->lock);
}

void
replication_error_clear (struct replication_error *error)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&error->lock);

  error->set = false;
  error->desc[0] = error->last[0] = '\0';
}

void
replication_error_settle (struct replication_error *error)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&error->lock);

  if (!error->set)
    return;
  error->set = false;
  memcpy (error->last, error->desc, sizeof error->last);
  error->desc[0] = '\0';
}

/* Under the lock. */
static void
take (struct replication_error *error, const char *fs, va_list args)
{
  error->set = true;
  vsnprintf (error->desc, sizeof error->desc, fs, args);
  events_raise (error->events, "REPLICATION_ERROR",
                json_pack ("{s:o}", "desc", json_text (error->desc)));
}

void
replication_error_set (struct replication_error *error, const char *fs, ...)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&error->lock);
  va_list args;

  if (error->set)
    return;
  va_start (args, fs);
  take (error, fs, args);
  va_end (args);
}

void
replication_error_replace (struct replication_error *error,
                           const char *fs, ...)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&error->lock);
  va_list args;

  va_start (args, fs);
  take (error, fs, args);
  va_end (args);
}

void
replication_error_get (struct replication_error *error,
                       struct replication_status *status)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&error->lock);

  status->error = error->set;
  memcpy (status->desc, error->desc, sizeof status->desc);
  memcpy (status->last_error, error->last, sizeof status->last_error);
}

/* So many at once. */
#define BURST 20

void
replication_limit_init (struct replication_limit *limit)
{
  *limit = (struct replication_limit) { .since = clock_ms () };
  pthread_mutex_init (&limit->lock, NULL);
}

void
replication_limit_destroy (struct replication_limit *limit)
{
  pthread_mutex_destroy (&limit->lock);
}

bool
replication_may_tell (struct replication_limit *limit, unsigned long *more)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&limit->lock);
  const int64_t seconds = (clock_ms () - limit->since) / 1000;

  limit->since += seconds * 1000;
  limit->told -= MIN ((int64_t) limit->told, seconds);
  if (limit->told >= BURST) {
    limit->more++;
    return false;
  }
  limit->told++;
  *more = limit->more;
  limit->more = 0;
  return true;
}

const char *
replication_stage_name (enum replication_stage stage)
{
  static const char *const names[] = {
    [REPLICATION_NONE] = "none",
    [REPLICATION_RUNNING] = "running",
    [REPLICATION_FAILOVER] = "failover",
    [REPLICATION_FAILOVER_FAILED] = "failover-failed",
    [REPLICATION_DONE] = "done",
  };

  return names[stage];
}

int
replication_refuse (struct replication_refusal *refusal, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vsnprintf (refusal->desc, sizeof refusal->desc, fs, args);
  va_end (args);
  return -1;
}
