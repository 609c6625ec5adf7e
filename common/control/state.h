/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The inside of a control socket; only for the files of this folder. */

#ifndef BLOCKDRIVERS_CONTROL_STATE_H
#define BLOCKDRIVERS_CONTROL_STATE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "control/control.h"
#include "control/socket.h"
#include "control/stream.h"
#include "request/job.h"
#include "utils/jsontext.h"

#define MAX_CLIENTS 256         /* more wait to be accepted */

/* How JSON is written to clients. */
#define CONTROL_JSON (JSON_ENSURE_ASCII | JSON_DIGITS_MEANT)

struct event;

/* Events that clients have not been given yet. */
struct event_queue {
  pthread_mutex_t lock;         /* protects the rest; a leaf lock, under which
                                   nobody waits */
  struct event *first, **end;
  size_t nr;
};

struct control_client {
  struct control *control;
  int fd;
  struct stream input;
  bool input_ended;
  bool has_request;             /* perhaps: the input has not been looked
                                   at to its end */
  char *output;                 /* output_len bytes not sent yet */
  size_t output_len;
  bool output_failed;           /* nobody reads the answers any more */
  int64_t last_sent;            /* when some of it was (clock.h) */
  int64_t last_heard;           /* the same clock */
  bool negotiated;              /* qmp_capabilities was first */

  /* The request that is being dealt with.  While busy it belongs to the
   * worker, with all below.
   */
  bool busy;                    /* known to the first thread only */
  const struct control_command *command;
  json_t *request, *arguments;
  char *failure;                /* of the command that runs */
  json_t *reply;

  /* Protected by control.lock. */
  struct control_client *next;  /* in the queue */
  bool done;                    /* there is a reply */
};

struct control {
  struct control_callbacks callbacks;
  struct listener listener;
  int end;                      /* an eventfd: readable to end the thread */
  int replied;                  /* another one: a client's request is done, or
                                   there is an event */
  struct job *thread, *worker;  /* NULL before control_start */
  struct control_client *clients[MAX_CLIENTS];
  size_t nr_clients;
  bool accept_failed;           /* the last time */
  int64_t accept_again;         /* not before; the same clock */
  struct event_queue events;

  pthread_mutex_t lock;         /* protects the rest; taken before those
                                   that is_urgent takes */
  pthread_cond_t work;          /* there is some, or it is time to end */
  struct control_client *first, *last; /* the queue */
  bool ending;
};

#endif /* BLOCKDRIVERS_CONTROL_STATE_H */
