/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The commands of the filter's control socket (interfaces.md).  They run
 * in the socket's thread and touch the log only, never the disk, so they
 * need not care for the plugin's thread model.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "utils/cleanup.h"
#include "filters/blklogwrites/commands.h"
#include "writelog/format.h"
#include "utils/jsontext.h"

/* Returns when the mark is on the log's medium and counted. */
static json_t *
log_mark (void *opaque, struct control_client *client, json_t *arguments)
{
  struct writelog *log = opaque;
  const json_t *name = json_object_get (arguments, "name");
  const size_t max = writelog_max_mark (writelog_sector_size (log));
  const char *text = json_string_value (name);
  const size_t len = json_string_length (name);

  if (len == 0)
    return control_fail (client, "the name of a mark is empty");
  if (strlen (text) != len)
    return control_fail (client, "the name of a mark has a NUL in it");
  if (len > max)
    return control_fail (client, "the name of a mark is %zu bytes long; in "
                         "this log it can have at most %zu", len, max);
  if (writelog_mark (log, text) == -1)
    return control_fail (client, "the mark could not be logged: %s",
                         strerror (errno));
  return json_object ();
}

static json_t *
text_or_null (const char *text)
{
  return text ? json_text (text) : json_null ();
}

static json_t *
query_log (void *opaque, struct control_client *client, json_t *arguments)
{
  struct writelog_status status;
  CLEANUP_FREE char *last_mark = NULL;
  CLEANUP_FREE char *error = NULL;

  writelog_query (opaque, &status);
  last_mark = status.last_mark;
  error = status.error;
  return json_pack ("{sI sI sI sI so so}",
                    "entries", (json_int_t) status.entries,
                    "sectors", (json_int_t) status.sectors,
                    "sector-size", (json_int_t) status.sector_size,
                    "bytes",
                    (json_int_t) (status.sectors * status.sector_size),
                    "last-mark", text_or_null (last_mark),
                    "error", text_or_null (error));
}

static const struct control_argument log_mark_arguments[] = {
  { .name = "name", .type = JSON_STRING },
  { NULL }
};

static const struct control_command commands[] = {
  { .name = "log-mark", .arguments = log_mark_arguments, .run = log_mark },
  { .name = "query-log", .run = query_log, .at_once = true },
  { NULL }
};

struct control *
commands_open (const char *path, struct writelog *log)
{
  const struct control_callbacks callbacks = {
    .commands = commands, .opaque = log,
  };

  return control_open (path, &callbacks);
}
