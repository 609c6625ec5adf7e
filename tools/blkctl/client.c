/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See client.h.  The framing is QMP's, so QEMU's own monitor sockets work
 * as well.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "tools/blkctl/client.h"
#include "utils/message.h"
#include "utils/sockets.h"
#include "control/socket.h"

#define MAX_ANSWER 67108864     /* bytes */

/* A server that is alive greets at once, whatever else it does. */
#define READY_MILLISECONDS 5000

/* Limit the time to wait for an answer, or for room to send; 0 for no
 * limit.  -1 with errno.
 */
static int
set_limit (struct client *c, unsigned milliseconds)
{
  const struct timeval limit = {
    milliseconds / 1000, milliseconds % 1000 * 1000
  };

  if (setsockopt (c->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit)
      == -1)
    return -1;
  return setsockopt (c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

static int
connect_to (struct client *c, unsigned milliseconds)
{
  struct sockaddr_un address;

  if (socket_address (&address, c->path) == -1)
    return -1;
  c->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (c->fd == -1 || set_limit (c, milliseconds) == -1 ||
      connect (c->fd, (const struct sockaddr *) &address, sizeof address)
      == -1) {
    if (errno == EAGAIN)
      errno = ETIMEDOUT;
    msg_error ("%s: connecting to the control socket: %m", c->path);
    return -1;
  }
  return 0;
}

int
client_read (struct client *c)
{
  char buffer[65536];
  ssize_t r;

  do
    r = recv (c->fd, buffer, sizeof buffer, 0);
  while (r == -1 && errno == EINTR);
  if (r == -1 && errno == ECONNRESET)
    return 0;
  if (r == -1 && errno == EAGAIN)
    errno = ETIMEDOUT;
  if (r == -1 || (r > 0 && stream_append (&c->input, buffer, r) == -1)) {
    msg_error ("%s: waiting for an answer: %m", c->path);
    return -1;
  }
  return r > 0;
}

/* The next object that has one of these members.  Others, such as the
 * events of QEMU, are passed over.  NULL after a message.
 */
static json_t *
read_object (struct client *c, const char *member, const char *other)
{
  for (;;) {
    json_t *value;
    char *error;

    switch (stream_next (&c->input, &value, &error)) {
    case STREAM_VALUE:
      if (json_object_get (value, member) || json_object_get (value, other))
        return value;
      json_decref (value);
      break;
    case STREAM_ERROR:
      msg_error ("%s: the server does not speak QMP: %s", c->path,
                 error ? error : "out of memory");
      free (error);
      return NULL;
    case STREAM_MORE:
      switch (client_read (c)) {
      case 0:
        msg_error ("%s: the server hung up before it answered", c->path);
        return NULL;
      case -1:
        return NULL;
      }
    }
  }
}

static void
init (struct client *c, const char *path)
{
  *c = CLIENT_NONE;
  c->path = path;
  stream_init (&c->input, MAX_ANSWER);
}

/* A server that is alive but does not accept now counts as absent, too. */
int
client_connect (struct client *c, const char *path)
{
  struct sockaddr_un address;

  init (c, path);
  if (socket_address (&address, path) == -1)
    return -1;
  c->fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  return c->fd == -1 ? -1
    : connect (c->fd, (const struct sockaddr *) &address, sizeof address);
}

int
client_open (struct client *c, const char *path, unsigned milliseconds)
{
  CLEANUP_FREE char *refusal = NULL;
  json_t *r;

  init (c, path);
  if (connect_to (c, milliseconds) == -1)
    return -1;
  r = read_object (c, "QMP", "QMP");
  if (r == NULL)
    return -1;
  json_decref (r);

  if (client_send (c, "qmp_capabilities", NULL) == -1)
    return -1;
  r = client_receive (c, &refusal);
  if (refusal)
    msg_error ("%s: %s", path, refusal);
  if (r == NULL)
    return -1;
  json_decref (r);
  return 0;
}

int
client_open_patiently (struct client *c, const char *path)
{
  if (client_open (c, path, READY_MILLISECONDS) == -1)
    return -1;
  if (set_limit (c, 0) == 0)
    return 0;
  msg_error ("%s: lifting the time limit: %m", path);
  return -1;
}

void
client_close (struct client *c)
{
  if (c->fd >= 0)
    close (c->fd);
  stream_free (&c->input);
}

int
client_send (struct client *c, const char *command, json_t *arguments)
{
  CLEANUP_FREE char *text = NULL;
  json_t *const request =
    arguments
    ? json_pack ("{s:s, s:O}", "execute", command, "arguments", arguments)
    : json_pack ("{s:s}", "execute", command);

  if (request)
    text = json_dumps (request, JSON_COMPACT);
  json_decref (request);
  if (text == NULL) {
    msg_error ("%s: sending a command: out of memory", c->path);
    return -1;
  }
  if (send_all (c->fd, text, strlen (text), 0) == 0)
    return 0;
  msg_error ("%s: sending a command: %m", c->path);
  return -1;
}

json_t *
client_receive (struct client *c, char **refusal)
{
  json_t *const answer = read_object (c, "return", "error");
  json_t *value = NULL;
  const char *desc;

  *refusal = NULL;
  if (answer) {
    value = json_incref (json_object_get (answer, "return"));
    desc = json_string_value (json_object_get (json_object_get (answer,
                                                                "error"),
                                               "desc"));
    if (value == NULL)
      *refusal = strdup (desc ? desc : "the server does not say why");
    json_decref (answer);
  }
  return value;
}

bool
client_is_connected (const struct client *c)
{
  char byte;
  const ssize_t r = recv (c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

  return r == 1 || (r == -1 && errno == EAGAIN);
}
