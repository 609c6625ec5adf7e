/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Which entries of a log can be lost until a flush, as runs of neighbours: a
 * state that has lost all of a long interval is told by these.
 */

#ifndef BLOCKDRIVERS_WRITELOG_RUNS_H
#define BLOCKDRIVERS_WRITELOG_RUNS_H

#include <stddef.h>
#include <stdint.h>

#include "writelog/moments/index.h"

/* Entries first..last change the disk, and are not FUA. */
struct run {
  uint32_t first, last;
};

struct runs {
  struct run *list;             /* owned; in order, none touches another */
  size_t nr, allocated;
};

/* All of a log, in a struct that is zeroed.  -1 with errno ENOMEM. */
extern int runs_find (struct runs *runs, const struct writelog_index *index);
extern void runs_free (struct runs *runs);

/* Those among entries start..end, as SET of lost/N/SET; "" if there are none.
 * Takes as long as that is.  To be freed; NULL with errno ENOMEM.
 */
extern char *runs_print (const struct runs *runs, uint64_t start,
                         uint64_t end);

#endif /* BLOCKDRIVERS_WRITELOG_RUNS_H */
