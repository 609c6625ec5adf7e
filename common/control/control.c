/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See control.h.
 *
 * Notes on the design
 *
 * Two threads, started by control_start and ended by control_close.  The
 * first one waits for all clients at once, takes one request of each
 * client that has one, and goes round.  So a client that floods the
 * socket gets its turn like the others.  It runs the commands that do not
 * wait for anything.  All others it puts into a queue, from which the
 * second thread, the worker, runs one at a time; so these need no lock
 * against each other.  An urgent one is put before the others, after it
 * has made the one that runs end.
 *
 * Of a client no request is looked at while one of its is in the queue,
 * so it gets its answers in order, and the queue holds one request of a
 * client at most.  Until that is answered the client stays, even if it
 * has hung up.
 *
 * No client can make it wait or eat memory: sockets are non-blocking;
 * what comes is bounded by the stream, as nothing is read from a client
 * while a request of it waits; and while more than MAX_UNREAD bytes of
 * answers have not been read by a client, none of its requests is looked
 * at.  A client that then reads nothing for a while is hung up on.
 *
 * Events (event.c) go to all clients that have negotiated, from the first
 * thread, between the answers.
 *
 * Requests that came before the client hung up are run, whether or not
 * it can be told the result.
 */

#include <config.h>

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "control/command.h"
#include "control/control.h"
#include "control/event.h"
#include "request/job.h"
#include "utils/message.h"
#include "control/qmp.h"
#include "control/socket.h"
#include "control/stream.h"

#define MAX_REQUEST 1048576     /* bytes */
#define MAX_UNREAD 65536        /* bytes */
#define MAX_STALLED 10000       /* milliseconds */
#define READ_SIZE 16384         /* bytes */

/* Milliseconds of silence after which a client gives way to a new one, if
 * there are MAX_CLIENTS: if it has never said a word, and otherwise, since
 * who makes a checkpoint of several disks may have to wait for another.
 */
#define SILENT_STRANGER 3000
#define SILENT_CLIENT 60000

/* ---- The worker */

static int
worker_thread (struct job *job, void *opaque)
{
  struct control *const control = opaque;

  (void) job;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&control->lock);
  for (;;) {
    struct control_client *client;

    while (control->first == NULL && !control->ending)
      pthread_cond_wait (&control->work, &control->lock);
    if (control->ending)
      return 0;
    client = control->first;
    control->first = client->next;

    pthread_mutex_unlock (&control->lock);
    control_run_command (client);
    pthread_mutex_lock (&control->lock);
    client->done = true;
    eventfd_write (control->replied, 1);
  }
}

/* Leave the client's command to the worker. */
static void
enqueue (struct control_client *client)
{
  struct control *const control = client->control;
  const struct control_command *const command = client->command;

  client->busy = true;

  /* Asked with the lock, or the worker might take another one when an
   * urgent one has made the one that runs end.
   */
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&control->lock);
  const bool urgent = command->is_urgent &&
    command->is_urgent (control->callbacks.opaque, client->arguments);

  client->done = false;
  client->next = urgent ? control->first : NULL;
  if (urgent || control->first == NULL)
    control->first = client;
  else
    control->last->next = client;
  if (client->next == NULL)
    control->last = client;
  pthread_cond_signal (&control->work);
}

/* Is the worker done with this client?  Then answer it. */
static void
look_for_reply (struct control_client *client)
{
  struct control *const control = client->control;

  pthread_mutex_lock (&control->lock);
  client->busy = !client->done;
  pthread_mutex_unlock (&control->lock);
  if (!client->busy)
    control_reply (client);
}

/* ---- Requests */

/* May the request be carried out?  Otherwise *class and *desc, to be
 * freed, say why not.
 */
static bool
check_request (struct control_client *client, const char **class,
               char **desc)
{
  const char *name = qmp_command (client->request, desc);

  *class = QMP_GENERIC_ERROR;
  if (name == NULL)
    return false;
  *class = QMP_COMMAND_NOT_FOUND;
  client->command = control_choose_command (client, name, desc);
  if (client->command == NULL)
    return false;
  *class = QMP_GENERIC_ERROR;
  client->arguments = qmp_arguments (client->request);
  return client->arguments &&
    qmp_check_arguments (client->command, client->arguments, desc) == 0;
}

/* Takes over the reference of the request. */
static void
handle_request (struct control_client *client, json_t *request)
{
  CLEANUP_FREE char *desc = NULL;
  const char *class;

  client->request = request;
  if (!check_request (client, &class, &desc)) {
    client->reply = qmp_error (request, class, desc ? desc
                               : "out of memory");
    control_reply (client);
  }
  else if (client->command->at_once) {
    control_run_command (client);
    control_reply (client);
  }
  else
    enqueue (client);
}

/* ---- Clients */

static void
receive (struct control_client *client)
{
  char buffer[READ_SIZE];
  const ssize_t r = recv (client->fd, buffer, sizeof buffer, 0);

  if (r > 0 && stream_append (&client->input, buffer, r) == 0) {
    client->has_request = true;
    client->last_heard = clock_ms ();
  }
  else if (r >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK &&
                      errno != EINTR))
    client->input_ended = true;
}

static void
take_request (struct control_client *client)
{
  json_t *request;
  char *error;

  switch (stream_next (&client->input, &request, &error)) {
  case STREAM_MORE:
    client->has_request = false;
    break;
  case STREAM_VALUE:
    handle_request (client, request);
    break;
  case STREAM_ERROR:
    control_answer (client, qmp_error (NULL, QMP_GENERIC_ERROR,
                                  error ? error : "out of memory"));
    free (error);
    break;
  }
}

/* It has to read before anything else is done for it. */
static bool
must_read (const struct control_client *client)
{
  return client->output_len > MAX_UNREAD;
}

static bool
has_stalled (const struct control_client *client)
{
  return must_read (client) && clock_ms () - client->last_sent > MAX_STALLED;
}

static bool
may_take_request (const struct control_client *client)
{
  return client->has_request && !client->busy && !must_read (client);
}

static short
wanted_events (const struct control_client *client)
{
  short events = 0;

  if (!client->has_request && !client->busy && !client->input_ended &&
      !must_read (client))
    events |= POLLIN;
  if (client->output_len > 0)
    events |= POLLOUT;
  return events;
}

/* Do what can be done for a client without waiting.  False when it is
 * done with.
 */
static bool
serve_client (struct control_client *client, short events)
{
  if (client->busy)
    look_for_reply (client);
  if (events & (POLLOUT | POLLERR | POLLHUP))
    control_send_output (client);
  if (wanted_events (client) & POLLIN &&
      events & (POLLIN | POLLERR | POLLHUP))
    receive (client);
  if (may_take_request (client))
    take_request (client);
  if (client->busy)
    return true;
  if (has_stalled (client))
    return false;
  return client->has_request || client->output_len > 0 ||
    !client->input_ended;
}

static void
hang_up (struct control_client *client)
{
  const struct control_callbacks *const cb = &client->control->callbacks;

  if (cb->disconnected)
    cb->disconnected (cb->opaque, client);
  close (client->fd);
  stream_free (&client->input);
  free (client->output);
  control_forget_request (client);
  free (client);
}

static void
add_client (struct control *control, int fd)
{
  struct control_client *const client = calloc (1, sizeof *client);

  if (client == NULL) {
    msg_error ("accepting a client of the control socket: %m");
    close (fd);
    return;
  }
  client->control = control;
  client->fd = fd;
  client->last_heard = clock_ms ();
  stream_init (&client->input, MAX_REQUEST);
  control->clients[control->nr_clients++] = client;
  control_answer (client, qmp_greeting ());
}

/* When may this one be sent away? */
static int64_t
patience_ends (const struct control_client *client)
{
  return client->last_heard +
    (client->negotiated ? SILENT_CLIENT : SILENT_STRANGER);
}

/* The number of a client that gives way to a new one, or nr_clients. */
static size_t
find_silent (const struct control *control)
{
  size_t found = control->nr_clients;
  int64_t earliest = clock_ms ();

  for (size_t i = 0; i < control->nr_clients; ++i) {
    const struct control_client *const client = control->clients[i];

    if (!client->busy && patience_ends (client) < earliest) {
      earliest = patience_ends (client);
      found = i;
    }
  }
  return found;
}

static void
send_away_silent (struct control *control)
{
  const size_t i = find_silent (control);

  if (i < control->nr_clients) {
    hang_up (control->clients[i]);
    control->clients[i] = control->clients[--control->nr_clients];
  }
}

static bool
is_full (const struct control *control)
{
  return control->nr_clients == MAX_CLIENTS;
}

static bool
may_accept (const struct control *control)
{
  if (is_full (control) && find_silent (control) == control->nr_clients)
    return false;
  return !control->accept_failed || clock_ms () >= control->accept_again;
}

/* For want of resources, most likely.  Said once, and tried again a
 * second or two later.
 */
static void
accept_failed (struct control *control)
{
  if (!control->accept_failed)
    msg_error ("accepting a client of the control socket: %m");
  control->accept_failed = true;
  control->accept_again = clock_ms () + 2000;
}

static void
accept_clients (struct control *control)
{
  if (is_full (control))
    send_away_silent (control);
  while (!is_full (control)) {
    const int fd = accept4 (control->listener.fd, NULL, NULL,
                            SOCK_CLOEXEC | SOCK_NONBLOCK);

    if (fd == -1 && (errno == EINTR || errno == ECONNABORTED))
      continue;
    if (fd == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return;
    if (fd == -1) {
      accept_failed (control);
      return;
    }
    control->accept_failed = false;
    add_client (control, fd);
  }
}

/* ---- The first thread */

enum { END, REPLIED, LISTENER, CLIENTS, NR_POLLED = CLIENTS + MAX_CLIENTS };

static int
poll_timeout (const struct control *control)
{
  bool waits = control->accept_failed || is_full (control);

  for (size_t i = 0; i < control->nr_clients; ++i) {
    if (may_take_request (control->clients[i]))
      return 0;
    waits |= must_read (control->clients[i]);
  }
  return waits ? 1000 : -1;
}

/* One of whom nothing is wanted is left out, as poll would tell us all the
 * time that it has hung up.
 */
static struct pollfd
poll_client (const struct control_client *client)
{
  const short events = wanted_events (client);

  return (struct pollfd) {
    .fd = events == 0 && client->busy ? -1 : client->fd, .events = events
  };
}

/* Sets what has happened to whom.  False when it is time to end. */
static bool
wait_for_events (struct control *control, struct pollfd polled[NR_POLLED])
{
  int r;

  polled[END] = (struct pollfd) { .fd = control->end, .events = POLLIN };
  polled[REPLIED] = (struct pollfd) {
    .fd = control->replied, .events = POLLIN
  };
  polled[LISTENER] = (struct pollfd) {
    .fd = may_accept (control) ? control->listener.fd : -1,
    .events = POLLIN
  };
  for (size_t i = 0; i < control->nr_clients; ++i)
    polled[CLIENTS + i] = poll_client (control->clients[i]);

  do
    r = poll (polled, CLIENTS + control->nr_clients, poll_timeout (control));
  while (r == -1 && errno == EINTR);
  if (r == -1) {
    msg_error ("waiting for clients of the control socket: %m");
    return false;
  }
  return polled[END].revents == 0;
}

static void
serve_clients (struct control *control, const struct pollfd *polled)
{
  size_t nr = 0;

  for (size_t i = 0; i < control->nr_clients; ++i) {
    struct control_client *const client = control->clients[i];

    if (serve_client (client, polled[CLIENTS + i].revents))
      control->clients[nr++] = client;
    else
      hang_up (client);
  }
  control->nr_clients = nr;
}

static int
control_thread (struct job *job, void *opaque)
{
  struct control *const control = opaque;
  struct pollfd polled[NR_POLLED];
  eventfd_t ignored;

  while (wait_for_events (control, polled)) {
    if (polled[REPLIED].revents)
      eventfd_read (control->replied, &ignored);
    event_deliver (control);
    serve_clients (control, polled);
    if (polled[LISTENER].revents)
      accept_clients (control);
  }
  /* The worker has ended. */
  for (size_t i = 0; i < control->nr_clients; ++i) {
    if (control->clients[i]->busy)
      look_for_reply (control->clients[i]);
    hang_up (control->clients[i]);
  }
  return 0;
}

/* ---- Open and close */

static void
free_control (struct control *control)
{
  const int err = errno;

  if (control->end >= 0)
    close (control->end);
  if (control->replied >= 0)
    close (control->replied);
  event_queue_destroy (&control->events);
  pthread_cond_destroy (&control->work);
  pthread_mutex_destroy (&control->lock);
  free (control);
  errno = err;
}

struct control *
control_open (const char *path, const struct control_callbacks *callbacks)
{
  struct control *const control = calloc (1, sizeof *control);

  if (control == NULL) {
    msg_error ("%s: making a control socket: %m", path);
    return NULL;
  }
  control->callbacks = *callbacks;
  pthread_mutex_init (&control->lock, NULL);
  pthread_cond_init (&control->work, NULL);
  event_queue_init (&control->events);
  control->end = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  control->replied = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (control->end == -1 || control->replied == -1) {
    msg_error ("%s: making a control socket: %m", path);
    free_control (control);
    return NULL;
  }
  if (listener_open (&control->listener, path) == -1) {
    free_control (control);
    return NULL;
  }
  return control;
}

int
control_start (struct control *control)
{
  control->worker = job_start ("control-worker", worker_thread, control);
  if (control->worker == NULL)
    return -1;
  control->thread = job_start ("control", control_thread, control);
  return control->thread ? 0 : -1;
}

void
control_close (struct control *control)
{
  if (control == NULL)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&control->lock);
    control->ending = true;
    pthread_cond_signal (&control->work);
  }
  job_wait (control->worker);
  eventfd_write (control->end, 1);
  job_wait (control->thread);
  listener_close (&control->listener);
  free_control (control);
}
