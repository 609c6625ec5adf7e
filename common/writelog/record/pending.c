/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See pending.h.  An entry that fails takes all behind it along: they stand
 * behind a gap, and are never counted.
 */

#include <config.h>

#include "writelog/record/pending.h"

void
pending_add (struct pending_list *list, struct pending *p)
{
  if (list->first == NULL)
    list->first = p;
  else
    list->last->next = p;
  list->last = p;
}

/* The first one has ended. */
static void
take_off (struct pending_list *list, struct pending *p)
{
  list->first = p->next;
  list->broken |= p->failed;
  p->failed = list->broken;
  if (!p->failed) {
    list->complete = p->number + 1;
    list->complete_end = p->end;
  }
  p->left = true;
  if (p->waited)
    pthread_cond_signal (&p->turn);
}

void
pending_done (struct pending_list *list, struct pending *p, bool failed)
{
  p->done = true;
  p->failed = failed;
  while (list->first && list->first->done)
    take_off (list, list->first);
}

void
pending_wait (struct pending *p, pthread_mutex_t *lock)
{
  if (p->left)
    return;
  pthread_cond_init (&p->turn, NULL);
  p->waited = true;
  while (!p->left)
    pthread_cond_wait (&p->turn, lock);
  pthread_cond_destroy (&p->turn);
}
