/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See pending.h.  An entry that fails takes all behind it along: they stand
 * behind a gap, and are never counted.
 */

#include <config.h>

#include <stddef.h>

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
}

struct pending *
pending_done (struct pending_list *list, struct pending *p, bool failed)
{
  struct pending *woken = NULL, **end = &woken;

  p->done = true;
  p->failed = failed;
  while (list->first && list->first->done) {
    struct pending *first = list->first;

    take_off (list, first);
    if (first->waited) {
      *end = first;
      end = &first->next;
    }
  }
  *end = NULL;
  if (!p->left) {
    sem_init (&p->turn, 0, 0);
    p->waited = true;
  }
  return woken;
}

void
pending_wake (struct pending *woken)
{
  while (woken) {
    struct pending *next = woken->next;

    /* It may be gone as soon as this returns. */
    sem_post (&woken->turn);
    woken = next;
  }
}

bool
pending_wait (struct pending *p)
{
  if (p->waited) {
    while (sem_wait (&p->turn) == -1)
      ;                         /* a signal */
    sem_destroy (&p->turn);
  }
  return !p->failed;
}
