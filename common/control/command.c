/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See command.h. */

#include <config.h>

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "control/command.h"
#include "control/qmp.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"

/* ---- Answers */

static void
drop_output (struct control_client *client)
{
  free (client->output);
  client->output = NULL;
  client->output_len = 0;
}

void
control_send_output (struct control_client *client)
{
  while (client->output_len > 0) {
    const ssize_t r = send (client->fd, client->output, client->output_len,
                            MSG_NOSIGNAL);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return;
    if (r == -1) {
      /* It may still have sent commands, but waits for no answer. */
      client->output_failed = true;
      shutdown (client->fd, SHUT_WR);
      break;
    }
    client->last_sent = clock_ms ();
    client->output_len -= r;
    memmove (client->output, client->output + r, client->output_len);
  }
  drop_output (client);
}

static int
append_line (struct control_client *client, const char *text, size_t len)
{
  char *const p = realloc (client->output, client->output_len + len + 2);

  if (p == NULL)
    return -1;
  client->output = p;
  memcpy (p + client->output_len, text, len);
  memcpy (p + client->output_len + len, "\r\n", 2);
  if (client->output_len == 0)
    client->last_sent = clock_ms ();
  client->output_len += len + 2;
  return 0;
}

/* For want of memory.  Better no client than one that waits for ever. */
static void
give_up (struct control_client *client)
{
  msg_error ("answering a client of the control socket: out of memory");
  shutdown (client->fd, SHUT_RDWR);
}

void
control_say (struct control_client *client, const char *text, size_t len)
{
  if (!client->output_failed && append_line (client, text, len) == -1)
    give_up (client);
  control_send_output (client);
}

void
control_answer (struct control_client *client, json_t *json)
{
  CLEANUP_FREE char *text = json ? json_dumps (json, CONTROL_JSON) : NULL;

  json_decref (json);
  if (text)
    control_say (client, text, strlen (text));
  else
    give_up (client);
}

/* ---- Commands */

json_t *
control_fail (struct control_client *client, const char *fs, ...)
{
  va_list args;

  free (client->failure);
  va_start (args, fs);
  if (vasprintf (&client->failure, fs, args) == -1)
    client->failure = NULL;
  va_end (args);
  return NULL;
}

static const struct control_command own_commands[];

static json_t *
run_capabilities (void *opaque, struct control_client *client,
                  json_t *arguments)
{
  json_t *const enable = json_object_get (arguments, "enable");

  /* There are none that could be enabled. */
  for (size_t i = 0; i < json_array_size (enable); ++i) {
    const char *name = json_string_value (json_array_get (enable, i));

    if (name == NULL)
      return control_fail (client, "Invalid parameter type for 'enable[%zu]'"
                           ", expected: string", i);
    return control_fail (client, "Parameter 'enable[%zu]' does not accept "
                         "value '%s'", i, name);
  }
  client->negotiated = true;
  return json_object ();
}

static int
add_names (json_t *array, const struct control_command *commands)
{
  for (const struct control_command *c = commands; c->name; ++c)
    if (json_array_append_new (array, json_pack ("{s:s}", "name", c->name))
        == -1)
      return -1;
  return 0;
}

static json_t *
run_query_commands (void *opaque, struct control_client *client,
                    json_t *arguments)
{
  json_t *const array = json_array ();

  if (add_names (array, client->control->callbacks.commands) == -1 ||
      add_names (array, own_commands) == -1) {
    json_decref (array);
    return NULL;
  }
  return array;
}

static const struct control_argument capabilities_arguments[] = {
  { "enable", JSON_ARRAY, true },
  { NULL }
};

static const struct control_command own_commands[] = {
  { "qmp_capabilities", capabilities_arguments, run_capabilities,
    .at_once = true },
  { "query-commands", NULL, run_query_commands, .at_once = true },
  { NULL }
};

static const struct control_command *
find_command (const struct control_command *commands, const char *name)
{
  for (const struct control_command *c = commands; c->name; ++c)
    if (strcmp (c->name, name) == 0)
      return c;
  return NULL;
}

/* The command of this name that the client may use now, or NULL with
 * *desc the reason, to be freed.
 */
const struct control_command *
control_choose_command (struct control_client *client, const char *name,
                        char **desc)
{
  const struct control_callbacks *const cb = &client->control->callbacks;
  const bool negotiates = strcmp (name, "qmp_capabilities") == 0;
  const struct control_command *c;

  if (!client->negotiated && !negotiates) {
    *desc = strdup ("Expecting capabilities negotiation with "
                    "'qmp_capabilities'");
    return NULL;
  }
  if (client->negotiated && negotiates) {
    *desc = strdup ("Capabilities negotiation is already complete, "
                    "command ignored");
    return NULL;
  }
  c = find_command (own_commands, name);
  if (c == NULL)
    c = find_command (cb->commands, name);
  if (c == NULL &&
      asprintf (desc, "The command %s has not been found", name) == -1)
    *desc = NULL;
  return c;
}

/* Run the client's command. */
void
control_run_command (struct control_client *client)
{
  json_t *const value =
    client->command->run (client->control->callbacks.opaque, client,
                          client->arguments);

  if (value)
    client->reply = qmp_return (client->request, value);
  else
    client->reply = qmp_error (client->request, QMP_GENERIC_ERROR,
                               client->failure ? client->failure
                               : "out of memory");
}

void
control_forget_request (struct control_client *client)
{
  json_decref (client->request);
  json_decref (client->arguments);
  free (client->failure);
  client->request = client->arguments = NULL;
  client->failure = NULL;
}

/* Answer the request that has been dealt with. */
void
control_reply (struct control_client *client)
{
  control_answer (client, client->reply);
  client->reply = NULL;
  control_forget_request (client);
}
