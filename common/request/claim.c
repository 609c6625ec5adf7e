/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The list holds all claims, granted and waiting, in order of arrival.
 * A claim counts the earlier ones that stand in its way ("blockers");
 * each of these, when it is released, walks down the list from its own
 * place and takes one off the count of every later claim that it
 * conflicts with.  Who comes to zero is granted.  So a waiting claim
 * blocks later ones too, which makes the order fair, and nobody is
 * woken in vain.
 *
 * The walk is linear in the number of claims, which is bounded by the
 * number of server threads.
 */

#include <config.h>

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

#include "request/claim.h"

void
claims_init (struct claims *claims)
{
  pthread_mutex_init (&claims->lock, NULL);
  claims->first = claims->last = NULL;
}

void
claims_destroy (struct claims *claims)
{
  assert (claims->first == NULL);
  pthread_mutex_destroy (&claims->lock);
}

static bool
conflict (const struct claim *a, const struct claim *b)
{
  return a->start < b->end && b->start < a->end &&
    (a->mode == CLAIM_EXCLUSIVE || b->mode == CLAIM_EXCLUSIVE);
}

void
claim_acquire (struct claims *claims, struct claim *claim,
               uint64_t offset, uint64_t count, enum claim_mode mode)
{
  struct claim *c;

  claim->start = offset;
  claim->end = offset + count;
  claim->mode = mode;
  claim->blockers = 0;
  claim->next = NULL;

  pthread_mutex_lock (&claims->lock);
  for (c = claims->first; c; c = c->next)
    if (conflict (c, claim))
      claim->blockers++;

  claim->prev = claims->last;
  if (claims->last)
    claims->last->next = claim;
  else
    claims->first = claim;
  claims->last = claim;

  if (claim->blockers > 0) {
    pthread_cond_init (&claim->granted, NULL);
    while (claim->blockers > 0)
      pthread_cond_wait (&claim->granted, &claims->lock);
    pthread_cond_destroy (&claim->granted);
  }
  pthread_mutex_unlock (&claims->lock);
}

void
claim_release (struct claims *claims, struct claim *claim)
{
  struct claim *c;

  pthread_mutex_lock (&claims->lock);
  assert (claim->blockers == 0);
  for (c = claim->next; c; c = c->next)
    if (conflict (claim, c) && --c->blockers == 0)
      pthread_cond_signal (&c->granted);

  if (claim->prev)
    claim->prev->next = claim->next;
  else
    claims->first = claim->next;
  if (claim->next)
    claim->next->prev = claim->prev;
  else
    claims->last = claim->prev;
  pthread_mutex_unlock (&claims->lock);
}
