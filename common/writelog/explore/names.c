/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Names of states to try, which are those of logreplay. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "utils/cleanup.h"
#include "writelog/explore/plan.h"
#include "writelog/explore/runs.h"

/* The first entries without a set of them, which may be empty. */
static char *
name_of (uint64_t entries, const char *set)
{
  char *name;
  int r;

  if (set[0])
    r = asprintf (&name, "lost/%" PRIu64 "/%s", entries, set);
  else
    r = asprintf (&name, "entry/%" PRIu64, entries);
  return r == -1 ? NULL : name;
}

char *
plan_moment_name (const struct writelog_index *index,
                  const struct writelog_moment *moment)
{
  CLEANUP_FREE struct lost_piece *lost = NULL;
  CLEANUP_FREE char *set = NULL;
  size_t nr;

  if (writelog_moment_losses (index, moment, &lost, &nr) == -1)
    return NULL;
  set = writelog_lost_print (index, lost, nr);
  return set ? name_of (moment->entries, set) : NULL;
}

/* Of a state that has lost all behind a flush but one entry and FUA writes.
 * To ask for what it has lost would take as long as the interval.
 */
static char *
only_name (const struct plan *plan, const struct writelog_moment *moment)
{
  CLEANUP_FREE char *set = runs_print (&plan->runs, moment->certain,
                                       moment->one);

  if (set == NULL)
    return NULL;
  return name_of (moment->entries, set);
}

char *
plan_name (const struct plan *plan, const struct plan_state *state)
{
  struct writelog_moment moment;
  char *name;
  int r;

  switch (state->kind) {
  case PLAN_FLUSH:
  case PLAN_FUA:
    r = asprintf (&name, "%s/%" PRIu32, plan_kind_name (state->kind),
                  state->place);
    return r == -1 ? NULL : name;
  case PLAN_RANDOM:
    r = asprintf (&name, "cut/%" PRIu32 "/%" PRIu32, state->place,
                  state->choice);
    return r == -1 ? NULL : name;
  default:
    if (plan_moment (plan, state, &moment) == -1)
      return NULL;
    name = state->kind == PLAN_ONLY ? only_name (plan, &moment)
      : plan_moment_name (plan->index, &moment);
    writelog_moment_free (&moment);
    return name;
  }
}
