/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A control socket with a few sample commands, for the tests of the
 * socket and of blkctl.
 *
 *     control-server SOCKET [RECORD [refuse|die|hold COMMAND]]
 *
 * serves until SIGTERM.  RECORD is a file to which each step of a
 * checkpoint, and the end of each client that has prepared one, is
 * appended as "SOCKET STEP".  This COMMAND, a step of a checkpoint, fails,
 * ends the program at once, or waits until there is a file "go".
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "control/control.h"
#include "utils/message.h"

static const char *path, *record = "/dev/null", *how = "", *which = "";
static struct control_client *prepared_by;

static void
write_record (const char *step)
{
  char line[256];
  const int fd = open (record, O_WRONLY | O_CREAT | O_APPEND, 0600);
  const int len = snprintf (line, sizeof line, "%s %s\n", path, step);

  if (fd == -1 || write (fd, line, len) != len) {
    msg_error ("%s: %m", record);
    exit (EXIT_FAILURE);
  }
  close (fd);
}

static json_t *
echo (void *opaque, struct control_client *client, json_t *arguments)
{
  return json_incref (arguments);
}

static json_t *
fail (void *opaque, struct control_client *client, json_t *arguments)
{
  return control_fail (client, "%s",
                       json_string_value (json_object_get (arguments,
                                                           "desc")));
}

/* Fails with bytes that are no UTF-8. */
static json_t *
fail_badly (void *opaque, struct control_client *client, json_t *arguments)
{
  return control_fail (client, "caf\xe9: no such file");
}

/* Returns as many bytes. */
static json_t *
large (void *opaque, struct control_client *client, json_t *arguments)
{
  const size_t bytes =
    json_integer_value (json_object_get (arguments, "bytes"));
  char *const text = malloc (bytes);
  json_t *json;

  if (text == NULL)
    return NULL;
  memset (text, 'x', bytes);
  json = json_stringn (text, bytes);
  free (text);
  return json;
}

static json_t *
take_step (struct control_client *client, const char *step)
{
  const bool chosen = strcmp (step, which) == 0;

  if (chosen && strcmp (how, "die") == 0)
    _exit (EXIT_FAILURE);
  while (chosen && strcmp (how, "hold") == 0 && access ("go", F_OK) == -1)
    usleep (10000);
  if (chosen && strcmp (how, "refuse") == 0) {
    char text[64];

    snprintf (text, sizeof text, "refused %s", step);
    write_record (text);
    return control_fail (client, "the disk is full");
  }
  write_record (step);
  return json_object ();
}

static json_t *
prepare (void *opaque, struct control_client *client, json_t *arguments)
{
  json_t *const r = take_step (client, "replication-checkpoint-prepare");

  if (r)
    prepared_by = client;
  return r;
}

static json_t *
commit (void *opaque, struct control_client *client, json_t *arguments)
{
  if (!json_is_false (json_object_get (arguments, "release")))
    prepared_by = NULL;
  return take_step (client, "replication-checkpoint-commit");
}

static json_t *
release (void *opaque, struct control_client *client, json_t *arguments)
{
  prepared_by = NULL;
  return take_step (client, "replication-checkpoint-release");
}

static json_t *
abort_checkpoint (void *opaque, struct control_client *client,
                  json_t *arguments)
{
  prepared_by = NULL;
  return take_step (client, "replication-checkpoint-abort");
}

static json_t *
checkpoint (void *opaque, struct control_client *client, json_t *arguments)
{
  return take_step (client, "replication-checkpoint");
}

static void
disconnected (void *opaque, struct control_client *client)
{
  if (client == prepared_by)
    write_record ("disconnected");
  if (client == prepared_by)
    prepared_by = NULL;
}

static const struct control_argument echo_arguments[] = {
  { "text", JSON_STRING, true },
  { "number", JSON_INTEGER, true },
  { "real", JSON_REAL, true },
  { "flag", JSON_TRUE, true },
  { "list", JSON_ARRAY, true },
  { "object", JSON_OBJECT, true },
  { NULL }
};

static const struct control_argument fail_arguments[] = {
  { "desc", JSON_STRING, false },
  { NULL }
};

static const struct control_argument large_arguments[] = {
  { "bytes", JSON_INTEGER, false },
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

static const struct control_command commands[] = {
  { "echo", echo_arguments, .run = echo },
  { "fail", fail_arguments, .run = fail },
  { "fail-badly", NULL, .run = fail_badly },
  { "large", large_arguments, .run = large },
  { "replication-checkpoint", NULL, .run = checkpoint },
  { "replication-checkpoint-prepare", prepare_arguments, .run = prepare },
  { "replication-checkpoint-commit", commit_arguments, .run = commit },
  { "replication-checkpoint-release", NULL, .run = release },
  { "replication-checkpoint-abort", NULL, .run = abort_checkpoint },
  { NULL }
};

static const struct control_callbacks callbacks = {
  .commands = commands,
  .disconnected = disconnected
};

int
main (int argc, char *argv[])
{
  struct control *control;
  sigset_t set;
  int signal;

  if (argc < 2 || argc == 4 || argc > 5) {
    msg_error ("usage: %s SOCKET [RECORD [refuse|die|hold COMMAND]]",
               argv[0]);
    return EXIT_FAILURE;
  }
  path = argv[1];
  if (argc > 2)
    record = argv[2];
  if (argc > 3) {
    how = argv[3];
    which = argv[4];
  }

  sigemptyset (&set);
  sigaddset (&set, SIGTERM);
  sigprocmask (SIG_BLOCK, &set, NULL);
  control = control_open (path, &callbacks);
  if (control == NULL || control_start (control) == -1)
    return EXIT_FAILURE;
  sigwait (&set, &signal);
  control_close (control);
  return EXIT_SUCCESS;
}
