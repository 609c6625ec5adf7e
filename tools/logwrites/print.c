/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the sub-commands of logwrites read and print in the same way. */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/logwrites/logwrites.h"

uint64_t
logwrites_parse_number (const char *option, const char *arg)
{
  char *end;
  uint64_t n;

  errno = 0;
  n = strtoull (arg, &end, strncmp (arg, "0x", 2) == 0 ? 16 : 10);
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
