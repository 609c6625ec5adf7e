/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites list: the entries of a log, one by one. */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/logwrites/logwrites.h"
#include "tools/logwrites/lost.h"
#include "utils/jsontext.h"
#include "utils/message.h"

enum {
  LIST_FLAGS = TOOL_FIRST_CODE,
  LIST_START,
  LIST_END,
  LIST_LOST,
  LIST_TEAR,
};

static const struct tool_option options[] = {
  { LIST_FLAGS, "flags", "flush|fua|discard|mark|metadata",
    "only entries with one of these flags, separated by commas" },
  { LIST_START, "start", "N", "begin at entry N" },
  { LIST_END, "end", "N", "end before entry N" },
  { LIST_LOST, "lost", "EXPORT",
    "what this state lacks: crash/N/SEED or lost/N/SET" },
  { LIST_TEAR, "tear", "SIZE|entry", "with --lost: logreplay's tear=" },
  TOOL_OPTION_OUTPUT,
  TOOL_OPTION_HELP,
  { 0 }
};

struct list {
  uint64_t flags;               /* 0: any */
  uint64_t start, end;
  bool json;
  bool printed;                 /* was there an entry before? */
};

/* ---- The command line */

static uint64_t
parse_flag (const char *name, size_t len)
{
  for (uint64_t flag = 1; flag & WRITELOG_KNOWN_FLAGS; flag <<= 1) {
    const char *const known = writelog_flag_name (flag);

    if (strlen (known) == len && memcmp (known, name, len) == 0)
      return flag;
  }
  tool_usage_error ("--flags: '%.*s' is none of flush, fua, discard, mark "
                    "and metadata", (int) len, name);
}

static uint64_t
parse_flags (const char *names)
{
  uint64_t flags = 0;

  for (;;) {
    const size_t len = strcspn (names, ",");

    flags |= parse_flag (names, len);
    if (names[len] == '\0')
      return flags;
    names += len + 1;
  }
}

/* ---- Printing */

static json_t *
flags_to_json (uint64_t flags)
{
  json_t *const names = json_array ();

  for (uint64_t flag = 1; flag & WRITELOG_KNOWN_FLAGS; flag <<= 1)
    if (flags & flag)
      json_array_append_new (names, json_string (writelog_flag_name (flag)));
  return names;
}

static int
print_json_value (json_t *value)
{
  return tool_dump_json (value, JSON_ENSURE_ASCII | JSON_ENCODE_ANY);
}

/* The numbers are any 64 bits, of which jansson's integers have 63. */
static int
print_json_entry (struct list *l, const struct writelog_item *item)
{
  const struct writelog_entry *const e = &item->entry;

  printf ("%s\n    {\"entry\": %" PRIu64 ", \"offset\": %" PRIu64
          ", \"sector\": %" PRIu64 ", \"nr-sectors\": %" PRIu64
          ", \"flags\": ", l->printed ? "," : "",
          item->number, item->offset, e->sector, e->nr_sectors);
  if (print_json_value (flags_to_json (e->flags)) == -1)
    return -1;
  printf (", \"data-len\": %" PRIu64 ", \"mark\": ", e->data_len);
  if (print_json_value (item->mark ? json_text (item->mark)
                                   : json_null ()) == -1)
    return -1;
  putchar ('}');
  return 0;
}

static int
print_entry (struct list *l, const struct writelog_item *item)
{
  int r = 0;

  if (l->flags && !(item->entry.flags & l->flags))
    return 0;
  if (l->json)
    r = print_json_entry (l, item);
  else
    logwrites_print_entry (item);
  l->printed = true;
  return r;
}

/* ---- The command */

/* Entries that do not exist are not asked for. */
static int
check_range (const struct writelog_reader *log, struct list *l)
{
  const uint64_t nr = log->super.nr_entries;

  if (l->end == UINT64_MAX)
    l->end = nr;
  if (l->start <= l->end && l->end <= nr)
    return 0;
  msg_error ("%s: there are no entries %" PRIu64 " to %" PRIu64 ": "
             "the log has %" PRIu64, log->node->name, l->start, l->end, nr);
  return -1;
}

static int
print_range (struct writelog_reader *log, struct list *l)
{
  struct writelog_item item;
  int r = 1;

  while (log->next < l->end && r == 1) {
    r = writelog_reader_next (log, &item);
    if (r == 1 && item.number >= l->start && print_entry (l, &item) == -1)
      return -1;
  }
  return r == -1 ? -1 : 0;
}

static int
list (const char *name, struct list *l)
{
  struct writelog_reader *const log = writelog_reader_open (name);
  int r;

  if (log == NULL)
    return -1;
  r = check_range (log, l);
  if (r == 0) {
    if (l->json)
      putchar ('[');
    r = print_range (log, l);
    if (l->json)
      puts (l->printed ? "\n]" : "]");
  }
  writelog_reader_close (log);
  return r;
}

static int
run (int argc, char *argv[])
{
  struct list l = { .end = UINT64_MAX };
  const char *lost = NULL, *tear = NULL, *log;
  int c;

  while ((c = tool_next_option (&logwrites_list_command, argc, argv)) != -1)
    switch (c) {
    case LIST_FLAGS:
      l.flags = parse_flags (optarg);
      break;
    case LIST_START:
      l.start = logwrites_parse_number ("--start", optarg);
      break;
    case LIST_END:
      l.end = logwrites_parse_number ("--end", optarg);
      break;
    case LIST_LOST:
      lost = optarg;
      break;
    case LIST_TEAR:
      tear = optarg;
      break;
    case TOOL_OUTPUT:
      l.json = tool_parse_output (optarg);
      break;
    }
  if (lost && (l.flags || l.start > 0 || l.end < UINT64_MAX))
    tool_usage_error ("--lost does not go with --flags, --start and --end");
  if (tear && !lost)
    tool_usage_error ("--tear is for --lost");
  log = logwrites_one_log (argc, argv);
  return (lost ? logwrites_list_lost (log, lost, tear, l.json)
          : list (log, &l)) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

const struct tool_command logwrites_list_command = {
  "list", "LOG", "List the entries of a log, one a line.", options, run
};
