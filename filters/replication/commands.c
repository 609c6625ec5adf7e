/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commands on the control socket, under our names and QEMU's.
 *
 * Notes on the design
 *
 * The commands run one at a time, from one thread, but for the queries,
 * which never wait.  So besides that thread only the timer and the end of
 * a client (holding.c) change the side.  A failover must not wait for a
 * checkpoint that waits for a remote: it is urgent, and interrupts that.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "filters/replication/commands.h"
#include "filters/replication/holding.h"
#include "filters/replication/status-json.h"
#include "control/control.h"
#include "utils/jsontext.h"
#include "utils/message.h"

struct commands {
  struct side *side;
  struct events *events;
  struct control *control;
  struct holding holding;
};

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

  if (holding_refuses (&c->holding, client))
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
  holding_drop (&c->holding);
  r = side_fail_over (c->side, force, at, &refusal);
  side_checkpoint_doubt (c->side); /* if it was refused */
  return answer (client, r, &refusal);
}

static json_t *
do_stop (struct commands *c, struct control_client *client)
{
  struct replication_refusal refusal;

  if (holding_refuses (&c->holding, client))
    return NULL;
  return answer (client, side_stop (c->side, &refusal), &refusal);
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

  if (holding_refuses (&c->holding, client))
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

  if (holding_refuses (&c->holding, client))
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

static json_t *
prepare (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;
  struct moment m;

  return get_id (&m, arguments, "id") == -1 ? refuse_id (client, "id")
    : holding_prepare (&c->holding, client, &m);
}

static json_t *
commit (void *opaque, struct control_client *client, json_t *arguments)
{
  struct commands *c = opaque;

  return holding_commit (&c->holding, client, json_is_false (
                        json_object_get (arguments, "release")));
}

static json_t *
release (void *opaque, struct control_client *client, json_t *arguments)
{
  return holding_release (&((struct commands *) opaque)->holding, client);
}

static json_t *
abort_prepared (void *opaque, struct control_client *client,
                json_t *arguments)
{
  return holding_abort (&((struct commands *) opaque)->holding, client);
}

static json_t *
take_over (void *opaque, struct control_client *client, json_t *arguments)
{
  return holding_take_over (&((struct commands *) opaque)->holding, client);
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

  if (holding_refuses (&c->holding, client))
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
  holding_end (&((struct commands *) opaque)->holding, client);
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
  holding_init (&c->holding, side, events);
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
  holding_destroy (&c->holding);
  free (c);
  errno = err;
}
