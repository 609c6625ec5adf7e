/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The control socket of a filter: commands and answers in QMP's
 * framing, over a Unix socket that only its owner may open (mode 0600).
 * It serves many clients, and runs one command at a time, but for those
 * that do not wait for anything.  Events tell clients what they did not ask
 * for.
 * Specification: interfaces.md, "blkctl".
 */

#ifndef BLOCKDRIVERS_CONTROL_H
#define BLOCKDRIVERS_CONTROL_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <jansson.h>

struct control;

/* One connected client, valid until the disconnected callback. */
struct control_client;

/* An argument of a command.  The control socket refuses arguments that
 * are unknown, missing or of another type, so a command need not look.
 */
struct control_argument {
  const char *name;             /* NULL ends a list of them */
  json_type type;               /* JSON_STRING, JSON_INTEGER, JSON_TRUE
                                   for a boolean */
  bool optional;
};

struct control_command {
  const char *name;             /* NULL ends a list of them */
  const struct control_argument *arguments; /* NULL for none */

  /* Run it.  arguments is an object, borrowed.  Returns what the command
   * returns (a new reference; json_object () if nothing), or NULL after
   * control_fail (without it: if out of memory).  It may block: other
   * commands are run afterwards, one at a time, all from one thread.
   */
  json_t *(*run) (void *opaque, struct control_client *client,
                  json_t *arguments);

  /* It never waits, and is run at once, while another command may be
   * running: from a thread of its own, which is that of is_urgent and
   * disconnected.
   */
  bool at_once;

  /* The command has come, and its arguments are right: is it urgent?  Then
   * it overtakes those that wait; this function has made the one that runs
   * (if one does) come to its end soon, and run takes that back.  It is not
   * run only if the socket is closed before.  It must not wait; no other
   * command begins meanwhile.  NULL: it is not.
   */
  bool (*is_urgent) (void *opaque, json_t *arguments);
};

struct control_callbacks {
  const struct control_command *commands; /* besides those that every
                                             socket knows */
  /* A client is gone, so what it began and has not ended is to be undone.
   * Called once for each client, when none of its commands runs, at the
   * latest in control_close; a command of another one may be running.  May
   * be NULL.
   */
  void (*disconnected) (void *opaque, struct control_client *client);
  void *opaque;
};

/* Make the socket.  A stale one is replaced; one that still answers, or
 * a file that is no socket, is not.  Commands are not answered before
 * control_start.  The callbacks are copied, the list of commands is not.
 * Returns NULL with errno after a message.
 */
extern struct control *
control_open (const char *path, const struct control_callbacks *callbacks);

/* Start the threads; once, after the last fork.  They end in
 * control_close.
 */
extern int control_start (struct control *control);

/* End the threads after the command that runs (call what makes that one
 * end before; those that wait are not run), hang up, and remove the
 * socket if it is still ours.  NULL is ignored.
 */
extern void control_close (struct control *control);

/* Tell all clients that something has happened: an event of this name with
 * data, an object, whose reference is taken over (NULL, if there was no memory
 * for it, is ignored).  From any thread and under any lock: it never waits.  A
 * client that does not read loses events.  Only after control_open, and before
 * control_close.
 */
extern void control_event (struct control *control, const char *name,
                           json_t *data);

/* Where the parts of a module raise their events, as long as it has a control
 * socket; before and after that, and with NULL for events, they are dropped.
 */
struct events {
  pthread_mutex_t lock;         /* protects the rest; taken before the locks of
                                   the control socket's events only */
  struct control *control;      /* or NULL */
};

#define EVENTS_INITIALIZER { .lock = PTHREAD_MUTEX_INITIALIZER }

/* NULL before the control socket is closed. */
extern void events_connect (struct events *events, struct control *control);
extern void events_raise (struct events *events, const char *name,
                          json_t *data);

/* The command fails with this description (of class GenericError).
 * Returns NULL, for "return control_fail (...)".
 */
extern json_t *control_fail (struct control_client *client,
                             const char *fs, ...)
  __attribute__ ((format (printf, 2, 3)));

#endif /* BLOCKDRIVERS_CONTROL_H */
