/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The client's end of a control socket. */

#ifndef BLOCKDRIVERS_CLIENT_H
#define BLOCKDRIVERS_CLIENT_H

#include <stdbool.h>

#include <jansson.h>

#include "control/stream.h"

struct client {
  const char *path;             /* borrowed */
  int fd;                       /* -1 if not connected */
  struct stream input;
};

#define CLIENT_NONE ((struct client) { .fd = -1 })

/* Connect, and wait until the server is ready for commands; with a limit
 * in milliseconds for each of its answers, also later.  -1 after a message.
 * client_close must be called in any case.
 */
extern int client_open (struct client *c, const char *path,
                        unsigned milliseconds);
extern void client_close (struct client *c);

/* The same for commands that may take any time: the limit is for being
 * ready only, which servers are at once.
 */
extern int client_open_patiently (struct client *c, const char *path);

/* Only connect, without waiting, now or later.  -1 with errno, without a
 * message.  For who reads with client_read, and what there is to take of the
 * input by himself.
 */
extern int client_connect (struct client *c, const char *path);

/* More of the stream: 0 if the server hung up, -1 after a message.  It waits,
 * if poll does not say that there is something.
 */
extern int client_read (struct client *c);

/* Send a command; arguments (borrowed) may be NULL.  -1 after a message. */
extern int client_send (struct client *c, const char *command,
                        json_t *arguments);

/* Wait for the answer to it.  Returns what the command returned (a new
 * reference), or NULL.  Then *refusal is what the server said against the
 * command, to be freed, or NULL if there was no answer, after a message.
 */
extern json_t *client_receive (struct client *c, char **refusal);

/* Has the server not hung up yet?  For a client that waits for nothing. */
extern bool client_is_connected (const struct client *c);

#endif /* BLOCKDRIVERS_CLIENT_H */
