/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites info: what a log holds, in numbers. */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/logwrites/logwrites.h"
#include "utils/jsontext.h"
#include "utils/rounding.h"
#include "utils/sizes.h"

static const struct tool_option options[] = {
  TOOL_OPTION_OUTPUT,
  TOOL_OPTION_HELP,
  { 0 }
};

static void
add_entry (struct logwrites_totals *t, const struct writelog_entry *e)
{
  t->entries++;
  t->writes += writelog_data_sectors (e) > 0;
  t->flushes += (e->flags & WRITELOG_FLUSH) != 0;
  t->fuas += (e->flags & WRITELOG_FUA) != 0;
  t->discards += (e->flags & WRITELOG_DISCARD) != 0;
  t->marks += (e->flags & WRITELOG_MARK) != 0;
  if (e->nr_sectors > 0) {
    t->start = t->end ? MIN (t->start, e->sector) : e->sector;
    t->end = MAX (t->end, e->sector + e->nr_sectors);
  }
}

int
logwrites_count (struct writelog_reader *log, struct logwrites_totals *t)
{
  struct writelog_item item;
  int r;

  *t = (struct logwrites_totals) { 0 };
  while ((r = writelog_reader_next (log, &item)) == 1)
    add_entry (t, &item.entry);
  t->bytes = log->offset;
  writelog_reader_rewind (log);
  return r;
}

/* ---- Human */

static int
print_marks (struct writelog_reader *log)
{
  struct writelog_item item;
  int r;

  while ((r = writelog_reader_next (log, &item)) == 1)
    if (item.mark) {
      printf ("    %8" PRIu64 "  ", item.number);
      logwrites_print_text (item.mark);
      putchar ('\n');
    }
  return r;
}

static int
print_info (struct writelog_reader *log, const struct logwrites_totals *t)
{
  char size[HUMAN_SIZE_LEN];

  printf ("log: %s\n"
          "sector size: %" PRIu32 "\n"
          "length: %s (%" PRIu64 " bytes)\n"
          "entries: %" PRIu64 "\n"
          "writes: %" PRIu64 "\n"
          "flushes: %" PRIu64 "\n"
          "fuas: %" PRIu64 "\n"
          "discards: %" PRIu64 "\n",
          log->node->name, log->super.sector_size,
          human_size (size, t->bytes), t->bytes,
          t->entries, t->writes, t->flushes, t->fuas, t->discards);
  if (t->end)
    printf ("highest sector: %" PRIu64 " (disk of at least %s)\n",
            t->end - 1, human_size (size, t->end * log->super.sector_size));
  printf ("marks: %" PRIu64 "\n", t->marks);
  return t->marks ? print_marks (log) : 0;
}

/* ---- JSON */

/* One by one, as there may be millions. */
static int
print_json_marks (struct writelog_reader *log)
{
  struct writelog_item item;
  bool printed = false;
  int r;

  while ((r = writelog_reader_next (log, &item)) == 1) {
    if (item.mark == NULL)
      continue;
    printf ("%s\n        {\"entry\": %" PRIu64 ", \"name\": ",
            printed ? "," : "", item.number);
    if (tool_dump_json (json_text (item.mark),
                        JSON_ENSURE_ASCII | JSON_ENCODE_ANY) == -1)
      return -1;
    putchar ('}');
    printed = true;
  }
  if (printed)
    fputs ("\n    ", stdout);
  return r;
}

static int
print_json (struct writelog_reader *log, const struct logwrites_totals *t)
{
  printf ("{\n"
          "    \"entries\": %" PRIu64 ",\n"
          "    \"sector-size\": %" PRIu32 ",\n"
          "    \"bytes\": %" PRIu64 ",\n",
          t->entries, log->super.sector_size, t->bytes);
  if (t->end)
    printf ("    \"highest-sector\": %" PRIu64 ",\n", t->end - 1);
  else
    puts ("    \"highest-sector\": null,");
  printf ("    \"writes\": %" PRIu64 ",\n"
          "    \"flushes\": %" PRIu64 ",\n"
          "    \"fuas\": %" PRIu64 ",\n"
          "    \"discards\": %" PRIu64 ",\n"
          "    \"marks\": [",
          t->writes, t->flushes, t->fuas, t->discards);
  if (t->marks && print_json_marks (log) == -1)
    return -1;
  puts ("]\n}");
  return 0;
}

/* ---- The command */

static int
info (const char *name, bool json)
{
  struct writelog_reader *const log = writelog_reader_open (name);
  struct logwrites_totals totals;
  int r;

  if (log == NULL)
    return -1;
  r = logwrites_count (log, &totals);
  if (r == 0)
    r = json ? print_json (log, &totals) : print_info (log, &totals);
  writelog_reader_close (log);
  return r;
}

static int
run (int argc, char *argv[])
{
  bool json = false;
  int c;

  while ((c = tool_next_option (&logwrites_info_command, argc, argv)) != -1)
    if (c == TOOL_OUTPUT)
      json = tool_parse_output (optarg);
  return info (logwrites_one_log (argc, argv), json) == 0 ?
    EXIT_SUCCESS : EXIT_FAILURE;
}

const struct tool_command logwrites_info_command = {
  "info", "LOG", "Tell what a log holds, in numbers, and its marks.",
  options, run
};
