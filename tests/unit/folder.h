/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A folder of its own, in which a test program works: set-up and tear-down of
 * a group of tests.  FOLDER_IN may be defined before it is included.
 */

#ifndef BLOCKDRIVERS_FOLDER_H
#define BLOCKDRIVERS_FOLDER_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#ifndef FOLDER_IN
#define FOLDER_IN "/tmp"
#endif

static char folder[64];

static inline int
make_folder (void **state)
{
  (void) state;
  snprintf (folder, sizeof folder, FOLDER_IN "/%.32s-XXXXXX",
            program_invocation_short_name);
  return mkdtemp (folder) && chdir (folder) == 0 ? 0 : -1;
}

/* With all that the tests have left in it. */
static inline int
remove_folder (void **state)
{
  char command[sizeof folder + 16];

  (void) state;
  snprintf (command, sizeof command, "rm -r '%s'", folder);
  return chdir ("/") == 0 ? system (command) : -1;
}

#endif /* BLOCKDRIVERS_FOLDER_H */
