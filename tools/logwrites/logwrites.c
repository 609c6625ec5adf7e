/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites: look at write logs, replay them and check disks by them.
 *
 * replay takes the options of the kernel project's replay-log, so that
 * a script changes only the name of the program.  Where that is careless
 * this is not: a whole walk over the entries comes before the first byte
 * is written.
 *
 * No command keeps the log in memory, whatever its size.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/logwrites/logwrites.h"

static const struct tool_command *const commands[] = {
  &logwrites_info_command,
  &logwrites_list_command,
  &logwrites_replay_command,
  &logwrites_verify_command,
  &logwrites_plot_command,
  &logwrites_explore_command,
  NULL
};

static const struct tool logwrites = {
  .name = "logwrites",
  .arguments = "LOG ...",
  .help = "Look at write logs, replay them and check disks by them.\n"
    "LOG, DISK and IMAGE are a file, a block device or an NBD URI.",
  .commands = commands,
};

int
main (int argc, char *argv[])
{
  return tool_main (&logwrites, argc, argv);
}
