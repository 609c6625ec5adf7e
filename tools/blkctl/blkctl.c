/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* blkctl: send a command to a control socket, and print what it returns.
 * Specification: interfaces.md, "blkctl".
 *
 * Several sockets are for a checkpoint of several disks at one moment;
 * see checkpoint.c.
 */

#include <config.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/blkctl/blkctl.h"
#include "utils/cleanup.h"
#include "tools/blkctl/checkpoint.h"
#include "tools/blkctl/client.h"
#include "tools/blkctl/every.h"
#include "tools/blkctl/failover.h"
#include "tools/blkctl/members.h"
#include "tools/blkctl/metrics.h"
#include "tools/blkctl/watch.h"
#include "utils/message.h"
#include "tool/tool.h"

/* How long the shell waits for a server that is busy. */
#define COMPLETION_MILLISECONDS 500

/* ---- The command line */

/* Sockets stand first; the first argument always is one. */
static int
count_sockets (int argc, char *argv[])
{
  struct stat st;
  int n = 1;

  while (n < argc &&
         (strchr (argv[n], '/') ||
          (stat (argv[n], &st) == 0 && S_ISSOCK (st.st_mode))))
    n++;
  return n;
}

static bool
looks_like_number (const char *text)
{
  const size_t len = strlen (text);

  return len > 0 && strspn (text, "-+.0123456789eE") == len;
}

static bool
looks_quoted (const char *text)
{
  const size_t len = strlen (text);

  return len >= 2 && text[0] == '"' && text[len - 1] == '"';
}

/* true, false, a number or a quoted string as JSON has them, else the
 * text as it is; NULL if that is no text.
 */
static json_t *
parse_value (const char *text)
{
  json_t *value = NULL;

  if (strcmp (text, "true") == 0 || strcmp (text, "false") == 0)
    return json_boolean (text[0] == 't');
  if (looks_like_number (text) || looks_quoted (text))
    value = json_loads (text, JSON_DECODE_ANY, NULL);
  return value ? value : json_string (text);
}

static void
add_argument (json_t *arguments, const char *arg)
{
  const char *const equals = strchr (arg, '=');
  CLEANUP_FREE char *key = NULL;

  if (equals == NULL || equals == arg)
    tool_usage_error ("Expecting KEY=VALUE instead of '%s'", arg);
  key = strndup (arg, equals - arg);
  if (key && json_object_get (arguments, key))
    tool_usage_error ("'%s' is given twice", key);
  if (key == NULL ||
      json_object_set_new (arguments, key, parse_value (equals + 1)) == -1)
    tool_usage_error ("'%s' is not UTF-8 text", arg);
}

static json_t *
parse_arguments (int argc, char *argv[])
{
  json_t *const arguments = json_object ();

  for (int i = 0; i < argc; ++i)
    add_argument (arguments, argv[i]);
  return arguments;
}

/* ---- One socket */

static int
send_command (const char *socket, const char *command, json_t *arguments)
{
  CLEANUP_FREE char *refusal = NULL;
  struct client client = CLIENT_NONE;
  int status = STATUS_NOT_SENT;
  json_t *value;

  if (client_open_patiently (&client, socket) == 0 &&
      client_send (&client, command, arguments) == 0) {
    value = client_receive (&client, &refusal);
    if (refusal)
      msg_error ("%s", refusal);
    status = value && tool_print_json (value) == 0 ? EXIT_SUCCESS
      : STATUS_FAILED;
  }
  client_close (&client);
  return status;
}

/* ---- Several */

static bool
is_failover (const char *command, const json_t *arguments)
{
  return strcmp (command, "replication-stop") == 0 &&
    json_is_true (json_object_get (arguments, "failover"));
}

static int
run_failover (char *sockets[], int nr, const json_t *arguments)
{
  const json_t *const force = json_object_get (arguments, "force");
  const size_t nr_known = 1 + (force != NULL);
  int status;

  if (json_object_size (arguments) != nr_known ||
      (force && !json_is_boolean (force)))
    tool_usage_error ("a failover of several sockets has no arguments but "
                      "force=true");
  status = failover_together (sockets, nr, json_is_true (force));
  if (status == EXIT_SUCCESS && tool_print_json (json_object ()) == -1)
    status = STATUS_FAILED;
  return status;
}

enum { OPTION_EVERY = TOOL_FIRST_CODE, OPTION_WATCH, OPTION_METRICS };

static const struct tool_option options[] = {
  { OPTION_EVERY, "every", "SECONDS",
    "make checkpoints until SIGTERM or SIGINT" },
  { OPTION_WATCH, "watch", NULL,
    "print events until SIGTERM or SIGINT" },
  { OPTION_METRICS, "metrics", NULL,
    "print what Prometheus wants to know" },
  { 0 }
};

static int every;               /* milliseconds, or 0 */

/* What is done with sockets alone, or NULL. */
static int (*use_sockets) (char *sockets[], int nr);

static void
set_option (int code, const char *value)
{
  switch (code) {
  case OPTION_EVERY: every = every_parse (value); break;
  case OPTION_WATCH: use_sockets = watch_events; break;
  case OPTION_METRICS: use_sockets = print_metrics; break;
  }
}

static int
run_sockets (int argc, char *argv[])
{
  if (every)
    tool_usage_error ("--every is for " CHECKPOINT " only");
  refuse_twins (argv, argc);
  return use_sockets (argv, argc);
}

static int
run (int argc, char *argv[])
{
  const int nr_sockets = count_sockets (argc, argv);
  const char *command;
  json_t *arguments;
  int status;

  if (use_sockets)
    return run_sockets (argc, argv);
  if (nr_sockets == argc)
    tool_usage_error ("Expecting the name of a command");
  command = argv[nr_sockets];
  arguments = parse_arguments (argc - nr_sockets - 1, argv + nr_sockets + 1);

  if (every && strcmp (command, CHECKPOINT) != 0)
    tool_usage_error ("--every is for " CHECKPOINT " only, not for '%s'",
                      command);
  else if (nr_sockets == 1 && !every)
    status = send_command (argv[0], command, arguments);
  else if (is_failover (command, arguments))
    status = run_failover (argv, nr_sockets, arguments);
  else if (strcmp (command, CHECKPOINT) != 0)
    tool_usage_error ("'%s' is for one socket; only %s and a replication-stop "
                      "with failover=true take several", command, CHECKPOINT);
  else if (json_object_size (arguments) > 0)
    tool_usage_error (CHECKPOINT " has no arguments");
  else if (every)
    status = every_checkpoint (every, argv, nr_sockets);
  else {
    status = checkpoint_together (argv, nr_sockets);
    if (status == EXIT_SUCCESS && tool_print_json (json_object ()) == -1)
      status = STATUS_FAILED;
  }
  json_decref (arguments);
  return status;
}

/* ---- What the shell completes */

static void
drop_message (enum msg_level level, const char *fs, va_list args)
{
}

/* After a socket come its commands, if it answers at once. */
static void
print_completions (int argc, char *argv[])
{
  CLEANUP_FREE char *refusal = NULL;
  struct client client = CLIENT_NONE;
  json_t *commands = NULL, *command;
  size_t i;

  printf ("\t\tSOCKET\n");
  if (argc == 0 || count_sockets (argc, argv) < argc)
    return;
  msg_set_handler (drop_message);
  if (client_open (&client, argv[0], COMPLETION_MILLISECONDS) == 0 &&
      client_send (&client, "query-commands", NULL) == 0)
    commands = client_receive (&client, &refusal);
  json_array_foreach (commands, i, command) {
    const char *name = json_string_value (json_object_get (command, "name"));

    if (name && strcmp (name, "qmp_capabilities") != 0)
      printf ("%s\t\tKEY=VALUE\n", name);
  }
  json_decref (commands);
  client_close (&client);
}

static const struct tool blkctl = {
  .name = "blkctl",
  .arguments = "SOCKET COMMAND [KEY=VALUE...]\n"
    "       blkctl [--every=SECONDS] SOCKET SOCKET... " CHECKPOINT "\n"
    "       blkctl --watch SOCKET...\n"
    "       blkctl --metrics SOCKET...\n"
    "       blkctl SOCKET SOCKET... replication-stop failover=true",
  .help = "Send a command to the control socket of a filter, and print what "
    "it returns as\nJSON.  'query-commands' lists the commands of a socket.",
  .run = run, .options = options, .set_option = set_option,
  .print_completions = print_completions,
  .usage_status = STATUS_NOT_SENT
};

int
main (int argc, char *argv[])
{
  return tool_main (&blkctl, argc, argv);
}
