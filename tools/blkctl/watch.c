/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See watch.h.
 *
 * Notes on the design
 *
 * One thread waits for all sockets at once and never for a single one, so
 * that a server which stands still does not keep the events of others back.
 * A socket that has gone away is tried again each second.  A signal ends it
 * when all that has come has been printed.
 */

#include <config.h>

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "tool/tool.h"
#include "tools/blkctl/blkctl.h"
#include "tools/blkctl/client.h"
#include "tools/blkctl/watch.h"
#include "utils/clock.h"
#include "utils/jsontext.h"
#include "utils/message.h"

#define RETRY 1000              /* milliseconds */

/* A server that is alive greets at once. */
#define READY 5000              /* milliseconds */

enum state { AWAY, GREETING, NEGOTIATING, WATCHING };

struct watched {
  struct client client;
  enum state state;
  int64_t when;                 /* AWAY: to be tried; else to have answered */
  bool was_there;               /* since it was last told to be away */
};

/* It is told once that a socket is away, why, and once that it is back. */
static void
drop (struct watched *w, const char *why)
{
  if (w->was_there)
    msg_warning ("%s: %s; trying again until it is back", w->client.path, why);
  w->was_there = false;
  client_close (&w->client);
  w->client.fd = -1;
  w->state = AWAY;
  w->when = clock_ms () + RETRY;
}

static void
try_again (struct watched *w)
{
  if (client_connect (&w->client, w->client.path) == -1) {
    drop (w, "gone");
    return;
  }
  w->state = GREETING;
  w->when = clock_ms () + READY;
}

static int
print_event (const struct watched *w, json_t *event)
{
  json_object_set_new (event, "socket", json_text (w->client.path));
  if (tool_dump_json (json_incref (event), JSON_COMPACT) == -1)
    return -1;
  putchar ('\n');
  tool_flush ();
  return ferror (stdout) ? -1 : 0;
}

/* What a server says.  -1 if it could not be printed; takes the value. */
static int
take_value (struct watched *w, json_t *value)
{
  int r = 0;

  if (w->state == GREETING && json_object_get (value, "QMP")) {
    w->state = NEGOTIATING;
    if (client_send (&w->client, "qmp_capabilities", NULL) == -1)
      drop (w, "hung up");
  }
  else if (w->state == NEGOTIATING && json_object_get (value, "return")) {
    if (!w->was_there)
      msg_warning ("%s: connected again", w->client.path);
    w->was_there = true;
    w->state = WATCHING;
  }
  else if (json_object_get (value, "event"))
    r = print_event (w, value);
  json_decref (value);
  return r;
}

/* What has come already.  -1 if it could not be printed. */
static int
take_values (struct watched *w)
{
  json_t *value;
  char *error;

  while (w->state != AWAY)
    switch (stream_next (&w->client.input, &value, &error)) {
    case STREAM_VALUE:
      if (take_value (w, value) == -1)
        return -1;
      break;
    case STREAM_ERROR:
      free (error);
      drop (w, "the server does not speak QMP");
      break;
    case STREAM_MORE:
      return 0;
    }
  return 0;
}

/* Something comes, or the server has hung up.  The same. */
static int
take (struct watched *w)
{
  const bool more = client_read (&w->client) > 0;

  if (take_values (w) == -1)
    return -1;
  if (!more && w->state != AWAY)
    drop (w, "the server hung up");
  return 0;
}

/* Milliseconds until something is to be done without having come. */
static int
timeout (const struct watched *all, int nr)
{
  int64_t when = INT64_MAX;
  int64_t left;

  for (int i = 0; i < nr; ++i)
    if (all[i].state != WATCHING && all[i].when < when)
      when = all[i].when;
  if (when == INT64_MAX)
    return -1;
  left = when - clock_ms ();
  return left < 0 ? 0 : left;
}

static void
keep_time (struct watched *w)
{
  if (w->state == WATCHING || clock_ms () < w->when)
    return;
  if (w->state == AWAY)
    try_again (w);
  else
    drop (w, "no answer");
}

/* Until a signal comes; -1 if it ends for another reason. */
static int
watch (struct watched *all, int nr, int signals)
{
  struct pollfd polled[nr + 1];

  for (;;) {
    for (int i = 0; i < nr; ++i)
      polled[i] = (struct pollfd) {
        .fd = all[i].client.fd, .events = POLLIN
      };
    polled[nr] = (struct pollfd) { .fd = signals, .events = POLLIN };
    if (poll (polled, nr + 1, timeout (all, nr)) == -1) {
      msg_error ("waiting for events: %m");
      return -1;
    }
    for (int i = 0; i < nr; ++i)
      if (polled[i].revents && take (&all[i]) == -1)
        return -1;
    if (polled[nr].revents)
      return 0;
    for (int i = 0; i < nr; ++i)
      keep_time (&all[i]);
  }
}

static int
catch_signals (void)
{
  sigset_t set;
  int fd;

  sigemptyset (&set);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  sigprocmask (SIG_BLOCK, &set, NULL);
  fd = signalfd (-1, &set, SFD_CLOEXEC);
  if (fd == -1)
    msg_error ("waiting for signals: %m");
  return fd;
}

/* All of them, or the exit status.  What they have told since then counts. */
static int
open_all (struct watched *all, char *sockets[], int nr)
{
  for (int i = 0; i < nr; ++i)
    if (client_open_patiently (&all[i].client, sockets[i]) == -1)
      return STATUS_NOT_SENT;
  for (int i = 0; i < nr; ++i)
    if (take_values (&all[i]) == -1)
      return STATUS_FAILED;
  return EXIT_SUCCESS;
}

int
watch_events (char *sockets[], int nr)
{
  struct watched all[nr];
  int status, signals;

  for (int i = 0; i < nr; ++i)
    all[i] = (struct watched) {
      .client = CLIENT_NONE, .state = WATCHING, .was_there = true
    };
  status = open_all (all, sockets, nr);
  if (status == EXIT_SUCCESS) {
    signals = catch_signals ();
    if (signals == -1 || watch (all, nr, signals) == -1)
      status = STATUS_FAILED;
    if (signals >= 0)
      close (signals);
  }
  for (int i = 0; i < nr; ++i)
    client_close (&all[i].client);
  return status;
}
