/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See metrics.h.
 *
 * The format wants the samples of a family together, so all sockets are asked
 * first.  A family is a line of the table below; a socket that does not tell
 * it has no sample of it, and a family without samples is left out.
 */

#include <config.h>

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool/tool.h"
#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/client.h"
#include "tools/blkctl/metrics.h"
#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "utils/message.h"

/* What a scrape may take, for each socket, in milliseconds. */
#define LIMIT 5000

struct scraped {
  const char *socket;
  bool up;
  json_t *replication, *log;    /* what query-replication and query-log
                                   return, or NULL */
};

/* ---- The families */

enum source { REPLICATION, LOG };

static const struct family {
  const char *name;
  const char *type;             /* "gauge" or "counter" */
  const char *help;
  enum source source;
  const char *object, *key;     /* the value, in an object if not NULL */
  const char *states;           /* "a|b": one sample for each, 1 for the one
                                   that the value is.  "": one sample, 1,
                                   with the value as the label "id" */
} families[] = {
  { "nbdkit_replication_stage", "gauge",
    "The stage of the replication: 1 for the one that it is in.",
    REPLICATION, NULL, "stage", "none|running|failover|failover-failed|done" },
  { "nbdkit_replication_role", "gauge",
    "The role of the disk: 1 for the one that it has.",
    REPLICATION, NULL, "role", "none|primary|secondary|promoted" },
  { "nbdkit_replication_link", "gauge",
    "The connection to the other side: 1 for the state that it is in.",
    REPLICATION, NULL, "link", "none|connecting|connected|refused|lost" },
  { "nbdkit_replication_error", "gauge",
    "Whether something has failed that no checkpoint has put right since.",
    REPLICATION, NULL, "error" },
  { "nbdkit_replication_consistent", "gauge",
    "Whether the secondary's disk is the primary's of one moment.",
    REPLICATION, NULL, "consistent" },
  { "nbdkit_replication_checkpoints_total", "counter",
    "Checkpoints since the start of the replication.",
    REPLICATION, NULL, "checkpoints" },
  { "nbdkit_replication_checkpoint_info", "gauge",
    "The checkpoint that the disk is at: its identifier is a label.",
    REPLICATION, NULL, "checkpoint-id", "" },
  { "nbdkit_replication_checkpoint_timestamp_seconds", "gauge",
    "When that was, in seconds since 1970.",
    REPLICATION, NULL, "checkpoint-time" },
  { "nbdkit_replication_last_heard_seconds", "gauge",
    "How long ago the other side was heard of last.",
    REPLICATION, NULL, "last-heard" },
  { "nbdkit_replication_dirty_bytes", "gauge",
    "What the remote lacks.",
    REPLICATION, NULL, "dirty-bytes" },
  { "nbdkit_replication_active_clusters", "gauge",
    "Clusters in the buffer of the guest's writes.",
    REPLICATION, NULL, "active-clusters" },
  { "nbdkit_replication_hidden_clusters", "gauge",
    "Clusters in the buffer of old content.",
    REPLICATION, NULL, "hidden-clusters" },
  { "nbdkit_replication_failover_progress_percent", "gauge",
    "How much of a failover is done.",
    REPLICATION, NULL, "failover-progress" },
  { "nbdkit_replication_sync_running", "gauge",
    "Whether a first copy or a resynchronisation is running.",
    REPLICATION, "sync", "running" },
  { "nbdkit_replication_sync_done_bytes", "gauge",
    "How much of it is done.",
    REPLICATION, "sync", "done" },
  { "nbdkit_replication_sync_total_bytes", "gauge",
    "How much there is to do in all.",
    REPLICATION, "sync", "total" },
  { "nbdkit_replication_sync_bytes_per_second", "gauge",
    "How fast it is.",
    REPLICATION, "sync", "rate" },
  { "nbdkit_replication_sync_left_seconds", "gauge",
    "How long it will take at this speed.",
    REPLICATION, "sync", "seconds-left" },
  { "nbdkit_log_entries", "gauge",
    "Entries of the write log.",
    LOG, NULL, "entries" },
  { "nbdkit_log_bytes", "gauge",
    "Length of the write log.",
    LOG, NULL, "bytes" },
  { "nbdkit_log_error", "gauge",
    "Whether nothing can be logged any more.",
    LOG, NULL, "error" },
};

#define NR_FAMILIES (sizeof families / sizeof families[0])

/* ---- Asking */

/* NULL if the command is refused, or after a message. */
static json_t *
ask (struct client *c, const char *command)
{
  CLEANUP_FREE char *refusal = NULL;

  return client_send (c, command, NULL) == -1 ? NULL
    : client_receive (c, &refusal);
}

static bool
knows (json_t *commands, const char *name)
{
  json_t *command;
  size_t i;

  json_array_foreach (commands, i, command) {
    const char *known = json_string_value (json_object_get (command, "name"));

    if (known && strcmp (known, name) == 0)
      return true;
  }
  return false;
}

static void
scrape (struct scraped *s)
{
  struct client client = CLIENT_NONE;
  json_t *commands = NULL;

  if (client_open (&client, s->socket, LIMIT) == 0)
    commands = ask (&client, "query-commands");
  s->up = commands != NULL;
  if (s->up && knows (commands, "query-replication"))
    s->up = (s->replication = ask (&client, "query-replication")) != NULL;
  if (s->up && knows (commands, "query-log"))
    s->up = (s->log = ask (&client, "query-log")) != NULL;
  json_decref (commands);
  client_close (&client);
}

/* ---- Printing */

/* The format takes UTF-8 only, and has three escapes. */
static void
print_quoted (const char *text)
{
  json_t *const utf8 = json_text (text);

  putchar ('"');
  for (const char *p = utf8 ? json_string_value (utf8) : ""; *p; ++p)
    switch (*p) {
    case '\n': fputs ("\\n", stdout); break;
    case '\\': fputs ("\\\\", stdout); break;
    case '"': fputs ("\\\"", stdout); break;
    default: putchar (*p);
    }
  putchar ('"');
  json_decref (utf8);
}

static void
print_head (const char *name, const char *type, const char *help)
{
  printf ("# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void
print_socket (const struct scraped *s, const char *name)
{
  printf ("%s{socket=", name);
  print_quoted (s->socket);
}

static void
print_labels (const struct scraped *s, const char *name)
{
  const char *const mode =
    json_string_value (json_object_get (s->replication, "mode"));

  print_socket (s, name);
  if (mode) {
    fputs (",mode=", stdout);
    print_quoted (mode);
  }
}

static const json_t *
value_of (const struct family *f, const struct scraped *s)
{
  const json_t *object = f->source == LOG ? s->log : s->replication;

  if (f->object)
    object = json_object_get (object, f->object);
  return json_object_get (object, f->key);
}

/* What is no number is a label. */
static void
print_info (const struct family *f, const struct scraped *s,
            const char *value)
{
  print_labels (s, f->name);
  fputs (",id=", stdout);
  print_quoted (value);
  puts ("} 1");
}

/* A sample for each state, whose name is a label. */
static void
print_states (const struct family *f, const struct scraped *s,
              const char *value)
{
  const char *const label = f->key;

  for (const char *p = f->states, *end; p; p = *end ? end + 1 : NULL) {
    const int len = (end = strchrnul (p, '|')) - p;

    print_labels (s, f->name);
    printf (",%s=\"%.*s\"} %d\n", label, len, p,
            strlen (value) == (size_t) len && strncmp (value, p, len) == 0);
  }
}

/* A text, such as an error, is there, or null. */
static void
print_value (const struct family *f, const struct scraped *s,
             const json_t *value)
{
  print_labels (s, f->name);
  if (json_is_integer (value))
    printf ("} %" JSON_INTEGER_FORMAT "\n", json_integer_value (value));
  else if (json_is_real (value))
    printf ("} %.17g\n", json_real_value (value));
  else
    printf ("} %d\n", json_is_true (value) || json_is_string (value));
}

static void
print_family (const struct family *f, const struct scraped *all, int nr)
{
  bool begun = false;

  for (int i = 0; i < nr; ++i) {
    const json_t *const value = value_of (f, &all[i]);

    if (value == NULL || (f->states && !json_is_string (value)))
      continue;
    if (!begun)
      print_head (f->name, f->type, f->help);
    begun = true;
    if (f->states && f->states[0] == '\0')
      print_info (f, &all[i], json_string_value (value));
    else if (f->states)
      print_states (f, &all[i], json_string_value (value));
    else
      print_value (f, &all[i], value);
  }
}

int
print_metrics (char *sockets[], int nr)
{
  struct scraped all[nr];
  int status = EXIT_SUCCESS;

  for (int i = 0; i < nr; ++i) {
    all[i] = (struct scraped) { .socket = sockets[i] };
    scrape (&all[i]);
    if (!all[i].up)
      status = STATUS_NOT_SENT;
  }
  print_head ("nbdkit_control_up", "gauge",
              "Whether the control socket answers.");
  for (int i = 0; i < nr; ++i) {
    print_socket (&all[i], "nbdkit_control_up");
    printf ("} %d\n", all[i].up);
  }
  for (size_t i = 0; i < NR_FAMILIES; ++i)
    print_family (&families[i], all, nr);
  for (int i = 0; i < nr; ++i) {
    json_decref (all[i].replication);
    json_decref (all[i].log);
  }
  return status;
}
