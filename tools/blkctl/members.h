/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Several servers that take steps together.  Each step is sent to all before
 * the first answer is waited for, as guests stand still meanwhile.
 */

#ifndef BLOCKDRIVERS_MEMBERS_H
#define BLOCKDRIVERS_MEMBERS_H

#include <stdbool.h>

#include <jansson.h>

#include "tools/blkctl/client.h"

struct member {
  struct client client;
  bool is_primary;              /* of a replication; as the user finds */
  bool sent;                    /* the step, which waits for its answer */
  bool done;                    /* the step */
};

/* The same socket twice is a mistake: a disk would wait for itself.  Does
 * not return then.
 */
extern void refuse_twins (char *sockets[], int nr);

/* Connect to all; exits when two are the same.  -1 after a message.
 * members_close must be called in any case.
 */
extern int members_open (struct member *all, char *sockets[], int nr);
extern void members_close (struct member *all, int nr);

/* Who is to take a step; willing is who has done the last one. */
enum whom { PRIMARIES, OTHERS, WILLING };

/* Let some of them take a step.  Returns how many of all have now done
 * the last one that they were to take; the others have been told of.
 * arguments (borrowed) may be NULL.
 */
extern int members_step (struct member *all, int nr, enum whom whom,
                         const char *step, json_t *arguments);

/* What one says of itself (a new reference), NULL if it is no replication.
 * -1 after a message if it does not answer.
 */
extern int members_query (struct member *m, json_t **status);

/* From here on signals that would end us wait. */
extern void members_block_interruptions (void);

#endif /* BLOCKDRIVERS_MEMBERS_H */
