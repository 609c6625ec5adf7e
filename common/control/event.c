/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See event.h and control.h.
 *
 * Notes on the design
 *
 * Whoever raises an event may hold locks, and be in the middle of a request:
 * he puts its text into a queue under a leaf lock, wakes the first thread,
 * and goes on.  That thread, which alone knows the clients, appends it to the
 * output of each.  Both places are bounded: the queue by a number of events,
 * which is only reached when they are raised faster than a thread can copy
 * them, and a client's output by bytes.  Beyond that the newest are dropped,
 * and nobody waits.  The bound of a client lies below that of unread answers,
 * so events alone never make a client one that is to be hung up on.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>

#include "control/command.h"
#include "control/event.h"
#include "utils/cleanup.h"

#define MAX_QUEUED 1024         /* events */
#define MAX_EVENTS 32768        /* bytes that a client has not read */

struct event {
  struct event *next;
  size_t len;
  char text[];
};

void
event_queue_init (struct event_queue *queue)
{
  *queue = (struct event_queue) { .end = &queue->first };
  pthread_mutex_init (&queue->lock, NULL);
}

static void
free_events (struct event *e)
{
  while (e) {
    struct event *const next = e->next;

    free (e);
    e = next;
  }
}

void
event_queue_destroy (struct event_queue *queue)
{
  free_events (queue->first);
  pthread_mutex_destroy (&queue->lock);
}

/* As it is sent; NULL if out of memory.  Takes over the reference of data. */
static struct event *
make_event (const char *name, json_t *data)
{
  struct timespec now;
  CLEANUP_FREE char *text = NULL;
  struct event *e;
  json_t *json;
  size_t len;

  clock_gettime (CLOCK_REALTIME, &now);
  json = json_pack ("{s:s, s:o, s:{s:I, s:I}}", "event", name, "data", data,
                    "timestamp", "seconds", (json_int_t) now.tv_sec,
                    "microseconds", (json_int_t) now.tv_nsec / 1000);
  text = json ? json_dumps (json, CONTROL_JSON) : NULL;
  json_decref (json);
  if (text == NULL)
    return NULL;
  len = strlen (text);
  e = malloc (sizeof *e + len);
  if (e == NULL)
    return NULL;
  e->next = NULL;
  e->len = len;
  memcpy (e->text, text, len);
  return e;
}

void
control_event (struct control *control, const char *name, json_t *data)
{
  struct event_queue *const queue = &control->events;
  struct event *e = make_event (name, data);

  if (e == NULL)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&queue->lock);
    if (queue->nr < MAX_QUEUED) {
      queue->nr++;
      *queue->end = e;
      queue->end = &e->next;
      e = NULL;
    }
  }
  free (e);
  eventfd_write (control->replied, 1);
}

static struct event *
take_all (struct event_queue *queue)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&queue->lock);
  struct event *const first = queue->first;

  queue->first = NULL;
  queue->end = &queue->first;
  queue->nr = 0;
  return first;
}

void
event_deliver (struct control *control)
{
  struct event *const events = take_all (&control->events);

  for (const struct event *e = events; e; e = e->next)
    for (size_t i = 0; i < control->nr_clients; ++i) {
      struct control_client *const client = control->clients[i];

      if (client->negotiated && client->output_len + e->len <= MAX_EVENTS)
        control_say (client, e->text, e->len);
    }
  free_events (events);
}

/* ---- Events of a module */

void
events_connect (struct events *events, struct control *control)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&events->lock);

  events->control = control;
}

void
events_raise (struct events *events, const char *name, json_t *data)
{
  if (events == NULL) {
    json_decref (data);
    return;
  }

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&events->lock);
  if (events->control)
    control_event (events->control, name, data);
  else
    json_decref (data);
}
