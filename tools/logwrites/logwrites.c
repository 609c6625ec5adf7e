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
  NULL
};

static const struct tool logwrites = {
  .name = "logwrites",
  .arguments = "LOG ...",
  .help = "Look at write logs, replay them and check disks by them.\n"
    "LOG, DISK and IMAGE are a file, a block device or an NBD URI.",
  .commands = commands,
};

uint64_t
logwrites_parse_number (const char *option, const char *arg)
{
  char *end;
  uint64_t n;

  errno = 0;
  n = strtoull (arg, &end, 10);
  /* strtoull would take signs and blanks. */
  if (arg[0] < '0' || arg[0] > '9' || *end != '\0' || errno != 0)
    tool_usage_error ("%s: '%s' is not a number", option, arg);
  return n;
}

const char *
logwrites_one_log (int argc, char *argv[])
{
  if (optind != argc - 1)
    tool_usage_error ("Expecting one log");
  return argv[optind];
}

void
logwrites_print_text (const char *text)
{
  for (; *text; ++text) {
    const unsigned char c = *text;

    if (c < ' ' || c == 0x7f || c == '\\')
      printf ("\\x%02x", c);
    else
      putchar (c);
  }
}

static void
print_flags (uint64_t flags)
{
  if (flags == 0)
    putchar ('-');
  for (uint64_t flag = 1; flag & WRITELOG_KNOWN_FLAGS; flag <<= 1)
    if (flags & flag) {
      flags &= ~flag;
      printf ("%s%s", writelog_flag_name (flag), flags ? "," : "");
    }
}

void
logwrites_print_entry (const struct writelog_item *item)
{
  const struct writelog_entry *const e = &item->entry;

  printf ("%8" PRIu64 " @%-12" PRIu64 " %12" PRIu64 " +%-8" PRIu64 " ",
          item->number, item->offset, e->sector, e->nr_sectors);
  print_flags (e->flags);
  if (item->mark) {
    putchar (' ');
    logwrites_print_text (item->mark);
  }
  putchar ('\n');
}

int
main (int argc, char *argv[])
{
  return tool_main (&logwrites, argc, argv);
}
