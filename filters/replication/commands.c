/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commands on the control socket, under our names and QEMU's.
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
 *
 * The commands run one at a time, from one thread, but for the queries,
 * which never wait.  So besides that thread only the timer and the end of
 * a client change the side.  A failover must not wait for a checkpoint
 * that waits for a remote: it is urgent, and interrupts that.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "filters/replication/commands.h"
#include "filters/replication/status-json.h"
#include "control/control.h"
#include "request/job.h"
#include "filters/replication/report.h"
#include "utils/jsontext.h"
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

enum held { NOTHING, TAKEN_OVER, PREPARED, COMMITTED };

struct commands {
  struct side *side;
  struct events *events;
  struct control *control;
  struct job *timer;            /* for commands only, which take turns */

  /* Protects holder, and is held while a prepared checkpoint ends, so
   * that it does so once.  Taken before any lock of the side.
   */
  pthread_mutex_t lock;
  enum held held;
  struct control_client *holder; /* whoever did that; NULL for nothing */
  int64_t held_since;
};

/* ---- A prepared checkpoint */

static unsigned
hold_limit (const struct commands *c)
{
  return MIN (HOLD_LIMIT, c->side->timeout / HOLD_PART);
}

/* Called with the lock. */
static void
forget_held (struct commands *c)
{
  c->held = NOTHING;
  c->holder = NULL;
}

/* End what this client (NULL: anybody) holds.  Was there something? */
static bool
abort_held (struct commands *c, const struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (c->holder == NULL || (client && c->holder != client))
    return false;
  side_checkpoint_doubt (c->side);
  forget_held (c);
  return true;
}

static int
hold_timer (struct job *job, void *opaque)
{
  struct commands *c = opaque;

  while (job_sleep (job, hold_limit (c)))
    if (job_cancelled (job))
      return 0;
  if (abort_held (c, NULL)) {
    msg_error ("a checkpoint was prepared, but not completed within %.1f "
               "seconds: it is given up", hold_limit (c) / 1000.0);
    report_checkpoint_failed (c->events, "it was prepared, but not completed "
                              "in time");
  }
  return 0;
}

static void
end_timer (struct commands *c)
{
  job_finish (c->timer);
  c->timer = NULL;
}

/* Is a checkpoint held, so that nothing else may be done?  Then the
 * command has failed.
 */
static bool
is_held (struct commands *c, struct control_client *client)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (c->holder == NULL)
    return false;
  control_fail (client, "a checkpoint has been prepared%s and waits for "
                "replication-checkpoint-commit or -abort",
                c->holder == client ? "" : " by another client");
  return true;
}

static bool
is_held_by_other (struct commands *c, struct control_client *client)
{
  bool mine;

  pthread_mutex_lock (&c->lock);
  mine = c->holder == client;
  pthread_mutex_unlock (&c->lock);
  return !mine && is_held (c, client);
}

/* ---- What the commands have in common */

/* The answer of a command that returned r. */
static json_t *
answer (struct control_client *client, int r,
        const struct replication_refusal *refusal)
{
  return r == 0 ? json_object () : control_fail (client, "%s", refusal->desc);
}

static json_t *
do_start (struct commands *c, struct control_client *client, bool full)
{
  struct replication_refusal refusal;

  if (is_held (c, client))
    return NULL;
  return answer (client, side_start (c->side, full, &refusal), &refusal);
}

/* A failover does not wait: whoever holds a checkpoint is late, and nobody
 * does any more while the side ends it.  What was interrupted for it has
 * ended.
 */
static json_t *
do_fail_over (struct commands *c, struct control_client *client, bool force,
              const struct history *at)
{
  struct replication_refusal refusal;
  int r;

  side_interrupt (c->side, false);
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    forget_held (c);
  }
  r = side_fail_over (c->side, force, at, &refusal);
  side_checkpoint_doubt (c->side); /* if it was refused */
  return answer (client, r, &refusal);
}

static json_t *
do_stop (struct commands *c, struct control_client *client)
{
  struct replication_refusal refusal;

  if (is_held (c, client))
    return NULL;
  return answer (client, side_stop (c->side, false, false, &refusal),
                 &refusal);
}

/* ---- Our names */

static json_t *
start (void *opaque, struct control_client *client, json_t *arguments)
{
  const char *sync = json_string_value (json_object_get (arguments, "sync"));

  if (sync && strcmp (sync, "none") != 0 && strcmp (sync, "full") != 0)
    return control_fail (client, "Parameter 'sync' does not accept value "
                         "'%s': it can be none or full", sync);
  return do_start (opaque, client, sync && strcmp (sync, "full") == 0);
}

static json_t *
checkpoint (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  struct replication_refusal refusal;

  if (is_held (c, client))
    return NULL;
  if (side_can_checkpoint (c->side, &refusal) == -1)
    return answer (client, -1, &refusal);
  return answer (client, side_checkpoint (c->side, &refusal), &refusal);
}

static json_t *
reset (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  struct replication_refusal refusal;

  if (is_held (c, client))
    return NULL;
  return answer (client, side_reset (c->side, &refusal), &refusal);
}

/* An identifier of a checkpoint, or "" without one.  -1 if it is none. */
static int
get_id (struct moment *m, json_t *arguments, const char *key)
{
  const char *text = json_string_value (json_object_get (arguments, key));

  moment_set (m, text ? text : "");
  return text && m->id.text[0] == '\0' ? -1 : 0;
}

static json_t *
refuse_id (struct control_client *client, const char *key)
{
  return control_fail (client, "Parameter '%s' is the identifier of a "
                       "checkpoint: %d hexadecimal digits, of lower case",
                       key, HISTORY_LEN);
}

static json_t *
stop (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  const bool failover =
    json_is_true (json_object_get (arguments, "failover"));
  const bool force = json_is_true (json_object_get (arguments, "force"));
  struct moment at;
  const bool bad_id = get_id (&at, arguments, "checkpoint") == -1;

  if (!failover && (force || at.id.text[0] || bad_id))
    return control_fail (client, "Parameter '%s' is only for a failover",
                         force ? "force" : "checkpoint");
  if (!failover)
    return do_stop (c, client);
  if (!bad_id)
    return do_fail_over (c, client, force, &at.id);
  side_interrupt (c->side, false);
  return refuse_id (client, "checkpoint");
}

static bool
stop_is_urgent (void *opaque, json_t *arguments)
{
  struct commands *c = opaque;
  const bool failover =
    json_is_true (json_object_get (arguments, "failover"));

  if (failover) {
    side_interrupt (c->side, true);
    side_expect_failover (c->side);
  }
  return failover;
}

/* Let the holder's time begin anew.  With false, after making the command
 * fail, nothing is held.  Called with the lock, and without a timer.
 */
static bool
hold (struct commands *c, struct control_client *client, enum held held)
{
  c->timer = job_start ("hold-timer", hold_timer, c);
  if (c->timer) {
    c->holder = client;
    c->held = held;
    return true;
  }
  control_fail (client, "the timer of the checkpoint: %s", strerror (errno));
  side_checkpoint_doubt (c->side);
  forget_held (c);
  return false;
}

/* For its holder, without a timer, so nobody else changes what is held. */
static int
prepare_again (struct commands *c, struct control_client *client)
{
  const int64_t held_for = clock_ms () - c->held_since;

  if (held_for < hold_limit (c) * PROLONG)
    return 0;
  side_checkpoint_doubt (c->side);
  forget_held (c);
  control_fail (client, "the checkpoint has been prepared for %.1f seconds, "
                "and is given up", held_for / 1000.0);
  return -1;
}

/* The same when nothing is prepared.  It may take long, so the lock is not
 * held.
 */
static int
prepare_first (struct commands *c, struct control_client *client,
               const struct moment *m)
{
  struct replication_refusal refusal;

  if (side_can_checkpoint (c->side, &refusal) == -1 ||
      side_checkpoint_prepare (c->side, m->id.text[0] ? m : NULL, &refusal)
      == -1) {
    answer (client, -1, &refusal);
    return -1;
  }
  c->held_since = clock_ms ();
  return 0;
}

static json_t *
prepare (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  struct moment m;
  int r;

  if (is_held_by_other (c, client))
    return NULL;
  if (get_id (&m, arguments, "id") == -1)
    return refuse_id (client, "id");
  end_timer (c);
  if (c->held == COMMITTED)
    r = 0;
  else if (c->held == PREPARED)
    r = prepare_again (c, client);
  else
    r = prepare_first (c, client, &m);
  if (r == -1)
    return NULL;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  return hold (c, client, c->held == COMMITTED ? COMMITTED : PREPARED)
    ? json_object () : NULL;
}

static json_t *
fail_unprepared (struct commands *c, struct control_client *client,
                 const char *what)
{
  return control_fail (client, "this client has not %s a checkpoint (one that "
                       "is not completed within %.1f seconds is given up)",
                       what, hold_limit (c) / 1000.0);
}

/* Called with the lock. */
static json_t *
end_held (struct commands *c)
{
  side_checkpoint_release (c->side);
  forget_held (c);
  return json_object ();
}

static json_t *
commit (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  const bool wait = json_is_false (json_object_get (arguments, "release"));
  struct replication_refusal refusal;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
    if (c->holder != client || c->held != PREPARED)
      return fail_unprepared (c, client, "prepared");
    if (side_checkpoint_commit (c->side, &refusal) == -1) {
      side_checkpoint_abort (c->side);
      forget_held (c);
      return answer (client, -1, &refusal);
    }
    if (!wait)
      return end_held (c);
    c->held = COMMITTED;
  }
  end_timer (c);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  if (c->holder != client)
    return fail_unprepared (c, client, "committed");
  return hold (c, client, COMMITTED) ? json_object () : NULL;
}

static json_t *
release (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (c->holder != client || c->held != COMMITTED)
    return fail_unprepared (c, client, "committed");
  return end_held (c);
}

static json_t *
abort_prepared (void *opaque, struct control_client *client,
                json_t *arguments)
{
  struct commands *c = opaque;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);

  if (c->holder != client)
    return fail_unprepared (c, client, "prepared");
  side_checkpoint_abort (c->side);
  forget_held (c);
  return json_object ();
}

/* From here on no checkpoint begins or ends, but by this client. */
static json_t *
take_over (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;

  end_timer (c);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->lock);
  if (c->held != COMMITTED)
    side_checkpoint_abort (c->side);
  return hold (c, client, c->held == COMMITTED ? COMMITTED : TAKEN_OVER)
    ? json_object () : NULL;
}

static json_t *
query (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  struct replication_status s;

  side_query (c->side, &s);
  return status_json (&s, mode_name (c->side->mode),
                      c->side->mode == MODE_SECONDARY);
}

static json_t *
verify (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  struct replication_refusal refusal;

  return answer (client, side_verify (c->side, &refusal), &refusal);
}

/* ---- QEMU's names */

/* QEMU's tools send their commands also to a secondary that has been promoted,
 * and to one that is done: these accept and ignore them.
 */
static bool
is_done (struct commands *c)
{
  struct replication_status s;

  side_query (c->side, &s);
  return s.stage == REPLICATION_DONE || s.stage == REPLICATION_FAILOVER;
}

static json_t *
xen_set_replication (void *opaque, struct control_client *client,
                     json_t *arguments)
{
  struct commands *c = opaque;
  const bool enable = json_is_true (json_object_get (arguments, "enable"));
  const bool primary = json_is_true (json_object_get (arguments, "primary"));
  const json_t *failover = json_object_get (arguments, "failover");

  if (enable && failover)
    return control_fail (client, "Parameter 'failover' is only for stopping "
                         "replication");
  if ((enable || primary != (c->side->mode == MODE_PRIMARY)) && is_done (c))
    return json_object ();
  if (primary != (c->side->mode == MODE_PRIMARY))
    return control_fail (client, "Parameter 'primary' is %s, but "
                         "replication-mode is %s",
                         primary ? "true" : "false",
                         mode_name (c->side->mode));
  return enable ? do_start (c, client, false)
    : json_is_true (failover)
    ? do_fail_over (c, client, false, &(struct history) { "" })
    : do_stop (c, client);
}

/* One that is going to be refused is not. */
static bool
xen_is_urgent (void *opaque, json_t *arguments)
{
  struct commands *c = opaque;
  const bool primary = json_is_true (json_object_get (arguments, "primary"));

  return !json_is_true (json_object_get (arguments, "enable")) &&
    primary == (c->side->mode == MODE_PRIMARY) &&
    stop_is_urgent (c, arguments);
}

static json_t *
xen_do_checkpoint (void *opaque, struct control_client *client,
                   json_t *arguments)
{
  struct commands *c = opaque;
  struct replication_refusal refusal;

  if (is_held (c, client))
    return NULL;
  return answer (client, side_checkpoint (c->side, &refusal), &refusal);
}

static json_t *
query_xen_replication_status (void *opaque, struct control_client *client,
                              json_t *arguments)
{
  struct commands *c = opaque;
  struct replication_status s;
  json_t *ret;

  side_query (c->side, &s);
  ret = json_pack ("{s:b}", "error",
                   (int) (s.error || s.stage == REPLICATION_NONE));
  status_set_text (ret, "desc", s.desc);
  return ret;
}

/* ---- The socket */

static const struct control_argument start_arguments[] = {
  { "sync", JSON_STRING, true },
  { NULL }
};

static const struct control_argument stop_arguments[] = {
  { "failover", JSON_TRUE, true },
  { "force", JSON_TRUE, true },
  { "checkpoint", JSON_STRING, true },
  { NULL }
};

static const struct control_argument prepare_arguments[] = {
  { "id", JSON_STRING, true },
  { NULL }
};

static const struct control_argument commit_arguments[] = {
  { "release", JSON_TRUE, true },
  { NULL }
};

static const struct control_argument xen_arguments[] = {
  { "enable", JSON_TRUE, false },
  { "primary", JSON_TRUE, false },
  { "failover", JSON_TRUE, true },
  { NULL }
};

static const struct control_command table[] = {
  { "replication-start", start_arguments, .run = start },
  { "replication-checkpoint", NULL, .run = checkpoint },
  { "replication-checkpoint-prepare", prepare_arguments, .run = prepare },
  { "replication-checkpoint-commit", commit_arguments, .run = commit },
  { "replication-checkpoint-release", NULL, .run = release },
  { "replication-checkpoint-abort", NULL, .run = abort_prepared },
  { "replication-take-over", NULL, .run = take_over },
  { "replication-stop", stop_arguments, .run = stop,
    .is_urgent = stop_is_urgent },
  { "replication-reset", NULL, .run = reset },
  { "replication-verify", NULL, .run = verify },
  { "query-replication", NULL, .run = query, .at_once = true },
  { "xen-set-replication", xen_arguments, .run = xen_set_replication,
    .is_urgent = xen_is_urgent },
  { "xen-colo-do-checkpoint", NULL, .run = xen_do_checkpoint },
  { "query-xen-replication-status", NULL,
    .run = query_xen_replication_status, .at_once = true },
  { NULL }
};

static void
disconnected (void *opaque, struct control_client *client)
{
  abort_held (opaque, client);
}

struct commands *
commands_open (const char *socket, struct side *side, struct events *events)
{
  struct commands *c = calloc (1, sizeof *c);
  struct control_callbacks callbacks = {
    .commands = table, .disconnected = disconnected, .opaque = c,
  };

  if (c == NULL) {
    msg_error ("%s: %m", socket);
    return NULL;
  }
  c->side = side;
  c->events = events;
  pthread_mutex_init (&c->lock, NULL);
  c->control = control_open (socket, &callbacks);
  if (c->control == NULL) {
    commands_close (c);
    return NULL;
  }
  events_connect (events, c->control);
  return c;
}

int
commands_start (struct commands *c)
{
  return control_start (c->control);
}

void
commands_close (struct commands *c)
{
  const int err = errno;

  if (c == NULL)
    return;
  side_interrupt (c->side, true);
  events_connect (c->events, NULL);
  control_close (c->control);
  side_interrupt (c->side, false);
  end_timer (c);
  abort_held (c, NULL);
  pthread_mutex_destroy (&c->lock);
  free (c);
  errno = err;
}
