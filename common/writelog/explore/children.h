/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Programs that are started, and all that they start in turn, so that none
 * of it is left behind.  For a process that has no other children.
 */

#ifndef BLOCKDRIVERS_CHILDREN_H
#define BLOCKDRIVERS_CHILDREN_H

#include <stddef.h>
#include <sys/types.h>

/* From now on whoever is left by a child of ours becomes one.  SIGCHLD is
 * blocked; the descriptor that is returned becomes readable when it comes.
 * -1 with errno after a message.
 */
extern int children_adopt (void);

/* Start a program in a session of its own, with this environment.  Its
 * standard input is empty; output and errors go to a descriptor.  -1 with
 * errno, without a message.
 */
extern pid_t children_start (const char *const *argv, char *const *environ,
                             int output);

/* Kill all children, and theirs, but for those that are spared (and theirs),
 * and wait until they are gone.  Whoever cannot be killed within seconds is
 * named in a warning and left.
 */
extern void children_end (const pid_t *spared, size_t nr_spared);

#endif /* BLOCKDRIVERS_CHILDREN_H */
