/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See holding.h.
 *
 * Notes on the design
 *
 * A checkpoint of several disks at one moment needs three steps: each disk
 * is prepared, which stops its guest; when all are, each commits; and when
 * all have, each is released.  The one who does that is a client of several
 * sockets, and may be killed or stopped in between.  So what is held belongs
 * to the client that asked for it: it ends when that client hangs up, and
 * after HOLD_LIMIT in any case, by the timer's thread.  What was prepared is
 * given up then; of what has committed nobody knows whether others were
 * released, so it stays, in doubt (secondary/checkpoint.c).  Until then
 * commands that would change the stage are refused; but a failover ends it.
 * Its client may prepare it again, which only renews the time: so it can make
 * sure that all of several disks are still held, however long the slowest one
 * took; but not for ever.
 *
 * A failover of several disks to one checkpoint has two steps: first all are
 * taken over from whoever holds them, so that no checkpoint begins or ends
 * any more; then the client looks where they are, and fails them over.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "filters/replication/holding.h"
#include "filters/replication/report.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Milliseconds that a guest may be held by a prepared checkpoint: less than
 * the 30 seconds after which Linux gives up a request to a SCSI disk; and no
 * more than a third of the time after which partners take each other for lost.
 */
#define HOLD_LIMIT 10000u
#define HOLD_PART 3

/* It can be prolonged once it has lasted for less than this part of that. */
#define PROLONG 1.5

static unsigned
hold_limit (const struct holding *h)
{
  return MIN (HOLD_LIMIT, h->side->timeout / HOLD_PART);
}

/* Called with the lock. */
static void
forget_held (struct holding *h)
{
  h->held = NOTHING;
  h->holder = NULL;
}

bool
holding_end (struct holding *h, const struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (h->holder == NULL || (client && h->holder != client))
    return false;
  side_checkpoint_doubt (h->side);
  forget_held (h);
  return true;
}

static int
hold_timer (struct job *job, void *opaque)
{
  struct holding *h = opaque;

  while (job_sleep (job, hold_limit (h)))
    if (job_cancelled (job))
      return 0;
  if (holding_end (h, NULL)) {
    msg_error ("a checkpoint was prepared, but not completed within %.1f "
               "seconds: it is given up", hold_limit (h) / 1000.0);
    report_checkpoint_failed (h->events, "it was prepared, but not completed "
                              "in time");
  }
  return 0;
}

static void
end_timer (struct holding *h)
{
  job_finish (h->timer);
  h->timer = NULL;
}

/* Say what is held, and which command ends that.  Called with the lock. */
static void
refuse_held (const struct holding *h, struct control_client *client)
{
  const char *const whose =
    h->holder == client ? "" : " by another client";

  switch (h->held) {
  case COMMITTED:
    control_fail (client, "a checkpoint has been made%s, and waits for "
                  "replication-checkpoint-release or -abort", whose);
    break;
  case TAKEN_OVER:
    control_fail (client, "this disk has been taken over%s, for a failover",
                  whose);
    break;
  default:
    control_fail (client, "a checkpoint has been prepared%s and waits for "
                  "replication-checkpoint-commit or -abort", whose);
  }
}

bool
holding_refuses (struct holding *h, struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (h->holder == NULL)
    return false;
  refuse_held (h, client);
  return true;
}

static bool
is_held_by_other (struct holding *h, struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (h->holder == NULL || h->holder == client)
    return false;
  refuse_held (h, client);
  return true;
}

/* Let the holder's time begin anew.  With false, after making the command
 * fail, nothing is held.  Called with the lock, and without a timer.
 */
static bool
begin (struct holding *h, struct control_client *client, enum held held)
{
  h->timer = job_start ("hold-timer", hold_timer, h);
  if (h->timer) {
    h->holder = client;
    h->held = held;
    return true;
  }
  control_fail (client, "the timer of the checkpoint: %s", strerror (errno));
  side_checkpoint_doubt (h->side);
  forget_held (h);
  return false;
}

/* For its holder, without a timer, so nobody else changes what is held. */
static int
prepare_again (struct holding *h, struct control_client *client)
{
  const int64_t held_for = clock_ms () - h->since;

  if (held_for < hold_limit (h) * PROLONG)
    return 0;
  side_checkpoint_doubt (h->side);
  forget_held (h);
  control_fail (client, "the checkpoint has been prepared for %.1f seconds, "
                "and is given up", held_for / 1000.0);
  return -1;
}

/* The same when nothing is prepared.  It may take long, so the lock is not
 * held.
 */
static int
prepare_first (struct holding *h, struct control_client *client,
               const struct moment *m)
{
  struct replication_refusal refusal;

  if (side_can_checkpoint (h->side, &refusal) == -1 ||
      side_checkpoint_prepare (h->side, m->id.text[0] ? m : NULL, &refusal)
      == -1) {
    control_fail (client, "%s", refusal.desc);
    return -1;
  }
  h->since = clock_ms ();
  return 0;
}

json_t *
holding_prepare (struct holding *h, struct control_client *client,
                 const struct moment *m)
{
  int r;

  if (is_held_by_other (h, client))
    return NULL;
  end_timer (h);
  if (h->held == COMMITTED)
    r = 0;
  else if (h->held == PREPARED)
    r = prepare_again (h, client);
  else
    r = prepare_first (h, client, m);
  if (r == -1)
    return NULL;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  return begin (h, client, h->held == COMMITTED ? COMMITTED : PREPARED)
    ? json_object () : NULL;
}

static json_t *
fail_unprepared (struct holding *h, struct control_client *client,
                 const char *what)
{
  return control_fail (client, "this client has not %s a checkpoint (one that "
                       "is not completed within %.1f seconds is given up)",
                       what, hold_limit (h) / 1000.0);
}

/* Called with the lock. */
static json_t *
end_held (struct holding *h)
{
  side_checkpoint_release (h->side);
  forget_held (h);
  return json_object ();
}

json_t *
holding_commit (struct holding *h, struct control_client *client, bool wait)
{
  struct replication_refusal refusal;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
    if (h->holder != client || h->held != PREPARED)
      return fail_unprepared (h, client, "prepared");
    if (side_checkpoint_commit (h->side, &refusal) == -1) {
      side_checkpoint_abort (h->side);
      forget_held (h);
      return control_fail (client, "%s", refusal.desc);
    }
    if (!wait)
      return end_held (h);
    h->held = COMMITTED;
  }
  end_timer (h);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  if (h->holder != client)
    return fail_unprepared (h, client, "committed");
  return begin (h, client, COMMITTED) ? json_object () : NULL;
}

json_t *
holding_release (struct holding *h, struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (h->holder != client || h->held != COMMITTED)
    return fail_unprepared (h, client, "committed");
  return end_held (h);
}

json_t *
holding_abort (struct holding *h, struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  if (h->holder != client)
    return fail_unprepared (h, client, "prepared");
  side_checkpoint_abort (h->side);
  forget_held (h);
  return json_object ();
}

json_t *
holding_take_over (struct holding *h, struct control_client *client)
{
  end_timer (h);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);
  if (h->held != COMMITTED)
    side_checkpoint_abort (h->side);
  return begin (h, client, h->held == COMMITTED ? COMMITTED : TAKEN_OVER)
    ? json_object () : NULL;
}

/* ---- The state */

void
holding_init (struct holding *h, struct side *side, struct events *events)
{
  *h = (struct holding) { .side = side, .events = events };
  pthread_mutex_init (&h->lock, NULL);
}

void
holding_destroy (struct holding *h)
{
  end_timer (h);
  holding_end (h, NULL);
  pthread_mutex_destroy (&h->lock);
}

void
holding_drop (struct holding *h)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&h->lock);

  forget_held (h);
}
