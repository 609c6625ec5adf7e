/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See status-json.h. */

#include <config.h>

#include "filters/replication/status-json.h"
#include "utils/jsontext.h"
#include "utils/rounding.h"

void
status_set_text (json_t *object, const char *key, const char *text)
{
  if (text[0])
    json_object_set_new (object, key, json_text (text));
}

static void
set_moment (json_t *object, const struct moment *m)
{
  status_set_text (object, "checkpoint-id", m->id.text);
  if (m->id.text[0] && m->time)
    json_object_set_new (object, "checkpoint-time",
                         json_real (m->time / 1000.0));
}

static json_t *
progress_json (const struct replication_progress *p)
{
  return json_pack ("{s:b, s:I, s:I}", "running", (int) p->running,
                    "done", (json_int_t) p->done,
                    "total", (json_int_t) p->total);
}

static void
set_sync (json_t *object, const struct replication_progress *p)
{
  json_t *const sync = progress_json (p);

  json_object_set_new (sync, "rate", json_integer (p->rate));
  if (p->running && p->rate > 0)
    json_object_set_new (sync, "seconds-left", json_integer (
                           div_round_up (p->total - p->done, p->rate)));
  json_object_set_new (object, "sync", sync);
}

static void
set_verify (json_t *object, const struct replication_progress *p)
{
  json_t *verify;

  if (!p->begun)
    return;
  verify = progress_json (p);
  json_object_set_new (verify, "different-bytes",
                       json_integer (p->different));
  status_set_text (verify, "desc", p->desc);
  json_object_set_new (object, "verify", verify);
}

json_t *
status_json (const struct replication_status *s, const char *mode,
             bool is_secondary)
{
  json_t *const ret =
    json_pack ("{s:s, s:s, s:b, s:I, s:I, s:I, s:i, s:b, s:I, s:s, s:s}",
               "mode", mode,
               "stage", replication_stage_name (s->stage),
               "error", (int) s->error,
               "checkpoints", (json_int_t) s->checkpoints,
               "active-clusters", (json_int_t) s->active_clusters,
               "hidden-clusters", (json_int_t) s->hidden_clusters,
               "failover-progress", (int) s->failover_progress,
               "remote-connected", (int) s->remote_connected,
               "dirty-bytes", (json_int_t) s->dirty_bytes,
               "link", s->link, "role", s->role);

  if (is_secondary)
    json_object_set_new (ret, "consistent", json_boolean (s->consistent));
  else
    set_sync (ret, &s->sync);
  set_verify (ret, &s->verify);
  if (s->last_heard >= 0)
    json_object_set_new (ret, "last-heard",
                         json_real (s->last_heard / 1000.0));
  set_moment (ret, &s->checkpoint);
  status_set_text (ret, "checkpoint-before", s->checkpoint_before.text);
  status_set_text (ret, "desc", s->desc);
  status_set_text (ret, "last-error", s->last_error);
  status_set_text (ret, "disk-desc", s->disk_desc);
  status_set_text (ret, "link-desc", s->link_desc);
  status_set_text (ret, "history", s->history.text);
  status_set_text (ret, "partner-history", s->partner.text);
  return ret;
}
