/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A served disk as a file, for commands that know no NBD. */

#ifndef BLOCKDRIVERS_WRITELOG_DISK_H
#define BLOCKDRIVERS_WRITELOG_DISK_H

#include <stdbool.h>
#include <sys/types.h>

#include "node/node.h"

/* By nbdfuse on a new folder.  The program is a child of ours (children.h),
 * and *file, to be freed, the disk.  *why, to be freed, says what failed if
 * this returns -1.
 */
extern pid_t disk_mount (const char *folder, const char *uri, char **file,
                         char **why);

/* End that.  false if it had ended before. */
extern bool disk_unmount (const char *folder, pid_t pid);

/* Take away what a process left that was killed. */
extern void disk_abandon (const char *folder);

/* Copy the data of a node to a new file, in which zeroes are holes.  -1 with
 * errno.
 */
extern int disk_copy (struct node *node, const char *file);

#endif /* BLOCKDRIVERS_WRITELOG_DISK_H */
