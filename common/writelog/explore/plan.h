/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Which states of the disk of a log are worth trying: those that a crash may
 * leave, each content once.  Specification: interfaces.md, "logwrites",
 * explore.
 */

#ifndef BLOCKDRIVERS_WRITELOG_PLAN_H
#define BLOCKDRIVERS_WRITELOG_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/explore/runs.h"
#include "writelog/moments/index.h"
#include "writelog/moments/loss.h"

enum plan_kind {
  PLAN_FLUSH, PLAN_MARK, PLAN_FUA, PLAN_ENTRY, /* all up to a moment */
  PLAN_SINGLE, PLAN_ONLY, PLAN_TORN, PLAN_RANDOM,
  PLAN_KINDS
};

extern const char *plan_kind_name (enum plan_kind kind);

struct plan_wish {
  bool kinds[PLAN_KINDS];
  uint64_t seeds;               /* of RANDOM, for each interval */
  uint64_t from, to;            /* moments, in entries */
  uint64_t tear;                /* sectors of the log, or TEAR_ENTRY */
  uint64_t limit;               /* an even sample of so many; 0: all */
  bool zero_base;               /* the disk was zeroes before */
};

/* A state: which one, not what is in it. */
struct plan_state {
  uint32_t entries;             /* the moment */
  uint32_t place;               /* of SINGLE the entry that is lost, of RANDOM
                                   and ONLY the flush before, of FLUSH and
                                   FUA which one */
  uint32_t choice;              /* of TORN which end is there, of RANDOM
                                   the seed */
  enum plan_kind kind;
};

struct plan {
  const struct writelog_index *index;
  struct plan_wish wish;
  struct plan_state *states;    /* in the order of their moments, nearly */
  size_t nr;
  struct runs runs;             /* for names of ONLY */
  uint64_t found;               /* before equal ones were left out */
  uint64_t distinct;            /* before the sample */
};

/* "flush,only,random:4" sets kinds and seeds.  false if it is no such list.
 */
extern bool plan_parse_kinds (const char *list, struct plan_wish *wish);
#define PLAN_DEFAULT_KINDS "flush,only,torn,single,random:4"

/* Two states are equal if each sector comes from the same entry.  Of equal
 * ones the one with the most marks before its moment is kept, since more was
 * promised there, and of these one that has lost nothing.  The index is
 * borrowed.  -1 with errno ENOMEM.
 */
extern int plan_make (struct plan *plan, const struct writelog_index *index,
                      const struct plan_wish *wish);
extern void plan_free (struct plan *plan);

/* The moment of a state; to be freed.  -1 with errno ENOMEM. */
extern int plan_moment (const struct plan *plan,
                        const struct plan_state *state,
                        struct writelog_moment *moment);

/* Is all there that is before its moment? */
extern bool plan_is_prefix (const struct plan_state *state);

/* The export name of logreplay for a state; to be freed.  It may be longer
 * than such names can be.  NULL with errno ENOMEM.
 */
extern char *plan_name (const struct plan *plan,
                        const struct plan_state *state);

/* The same for any moment. */
extern char *plan_moment_name (const struct writelog_index *index,
                               const struct writelog_moment *moment);

#endif /* BLOCKDRIVERS_WRITELOG_PLAN_H */
