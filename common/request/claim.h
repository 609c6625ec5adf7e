/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Claims on ranges: a request that must not meet another one on the
 * same bytes claims its range.  Overlapping claims, unless all are
 * shared, wait for each other in order of arrival; others do not.
 * Specification: block-layer.md, "The request core", serialising.
 */

#ifndef BLOCKDRIVERS_CLAIM_H
#define BLOCKDRIVERS_CLAIM_H

#include <pthread.h>
#include <stdint.h>

enum claim_mode { CLAIM_SHARED, CLAIM_EXCLUSIVE };

/* One claim, on its owner's stack. */
struct claim {
  uint64_t start, end;          /* end is exclusive */
  enum claim_mode mode;
  unsigned blockers;            /* earlier claims that it waits for */
  struct claim *prev, *next;
  pthread_cond_t granted;
};

/* The claims on one image.  A thread may hold claims of several sets,
 * but of one set only one at a time, or two of them could wait for each
 * other.
 */
struct claims {
  pthread_mutex_t lock;         /* protects all below and each claim's
                                   blockers, prev and next; a leaf lock */
  struct claim *first, *last;   /* in order of arrival */
};

extern void claims_init (struct claims *claims);
extern void claims_destroy (struct claims *claims); /* none may be left */

/* Wait until the claim on offset..offset+count is granted. */
extern void claim_acquire (struct claims *claims, struct claim *claim,
                           uint64_t offset, uint64_t count,
                           enum claim_mode mode);
extern void claim_release (struct claims *claims, struct claim *claim);

/* claim_release at the end of the scope:
 *   CLEANUP_CLAIM struct claim_holder holder = { &claims, &claim };
 */
struct claim_holder {
  struct claims *claims;
  struct claim *claim;
};

static inline void
cleanup_claim (struct claim_holder *h)
{
  claim_release (h->claims, h->claim);
}
#define CLEANUP_CLAIM __attribute__ ((cleanup (cleanup_claim), unused))

#endif /* BLOCKDRIVERS_CLAIM_H */
