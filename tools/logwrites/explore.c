/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites explore: the command line, and what is to be explored. */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/align.h"
#include "tools/logwrites/explore.h"
#include "tools/logwrites/logwrites.h"
#include "tools/logwrites/lost.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "utils/sizes.h"
#include "writelog/moments/base.h"
#include "writelog/moments/moment.h"

enum { ALL_GOOD = 0, UNTOLD = 1, SOME_BAD = 2 };

enum {
  EXPLORE_BASE = TOOL_FIRST_CODE,
  EXPLORE_SIZE,
  EXPLORE_STATES,
  EXPLORE_FROM,
  EXPLORE_TO,
  EXPLORE_LIMIT,
  EXPLORE_TEAR,
  EXPLORE_JOBS,
  EXPLORE_TIMEOUT,
  EXPLORE_DISK,
  EXPLORE_SHRINK,
  EXPLORE_NAME,
  EXPLORE_REPORT,
  EXPLORE_LIST,
};

static const struct tool_option options[] = {
  { EXPLORE_BASE, "base", "FILE", "the disk before the first entry" },
  { EXPLORE_SIZE, "size", "SIZE", "the size of the disk" },
  { EXPLORE_STATES, "states",
    "flush|mark|fua|entry|single|only|torn|random:N",
    "which states to try, separated by commas (" PLAN_DEFAULT_KINDS ")" },
  { EXPLORE_FROM, "from", "MOMENT",
    "begin at mark/NAME, flush/N, fua/N or entry/N" },
  { EXPLORE_TO, "to", "MOMENT", "end there" },
  { EXPLORE_LIMIT, "limit", "N", "try an even sample of N states" },
  { EXPLORE_TEAR, "tear", "SIZE|entry", "what a power loss takes at least" },
  { EXPLORE_JOBS, "jobs", "N", "try N states at a time (one a processor)" },
  { EXPLORE_TIMEOUT, "timeout", "SECONDS",
    "a command that takes longer makes a state bad" },
  { EXPLORE_DISK, "disk", NULL, "give the command the disk as a file, $disk" },
  { EXPLORE_SHRINK, "shrink", "N",
    "runs of the command to shrink a loss (200)" },
  { EXPLORE_NAME, "name", "COMMAND", "ask what stands at $sector" },
  { EXPLORE_REPORT, "report", "DIR",
    "write a page there, and the output of each finding" },
  { EXPLORE_LIST, "list", NULL, "print the states and run nothing" },
  { TOOL_OUTPUT, "output", "human|json|tap", "how to print the result" },
  TOOL_OPTION_HELP,
  { 0 }
};

/* ---- The command line */

static enum explore_format
parse_format (const char *text)
{
  if (strcmp (text, "human") == 0)
    return EXPLORE_HUMAN;
  if (strcmp (text, "json") == 0)
    return EXPLORE_JSON;
  if (strcmp (text, "tap") == 0)
    return EXPLORE_TAP;
  tool_usage_error ("--output: '%s' is none of human, json and tap", text);
}

static int64_t
parse_seconds (const char *text)
{
  char *end;
  const double seconds = strtod (text, &end);

  if (text[0] < '0' || text[0] > '9' || *end != '\0' ||
      !(seconds > 0 && seconds < 1e9))
    tool_usage_error ("--timeout: '%s' is no number of seconds", text);
  return ceil (seconds * 1000);
}

static unsigned
parse_jobs (const char *text)
{
  const uint64_t jobs = logwrites_parse_number ("--jobs", text);

  if (jobs == 0 || jobs > 1024)
    tool_usage_error ("--jobs: '%s' is not between 1 and 1024", text);
  return jobs;
}

static uint64_t
parse_limit (const char *text)
{
  const uint64_t limit = logwrites_parse_number ("--limit", text);

  if (limit == 0)
    tool_usage_error ("--limit: with 0 nothing would be tried");
  return limit;
}

static int64_t
parse_disk_size (const char *text)
{
  const int64_t size = parse_size (text);

  if (size < 0)
    tool_usage_error ("--size: '%s' is no size", text);
  return size;
}

static void
parse_states (const char *text, struct plan_wish *wish)
{
  if (!plan_parse_kinds (text, wish))
    tool_usage_error ("--states: '%s' is no list of flush, mark, fua, entry, "
                      "single, only, torn and random:N", text);
}

static void
set_option (struct explore *e, int code, const char *value)
{
  switch (code) {
  case EXPLORE_BASE: e->base = value; break;
  case EXPLORE_SIZE: e->given_size = parse_disk_size (value); break;
  case EXPLORE_STATES: parse_states (value, &e->wish); break;
  case EXPLORE_FROM: e->from = value; break;
  case EXPLORE_TO: e->to = value; break;
  case EXPLORE_LIMIT: e->wish.limit = parse_limit (value); break;
  case EXPLORE_TEAR: e->tear = value; break;
  case EXPLORE_JOBS: e->jobs = parse_jobs (value); break;
  case EXPLORE_TIMEOUT: e->timeout = parse_seconds (value); break;
  case EXPLORE_DISK: e->disk = true; break;
  case EXPLORE_SHRINK:
    e->shrink = logwrites_parse_number ("--shrink", value);
    break;
  case EXPLORE_NAME: e->name_command = value; break;
  case EXPLORE_REPORT: e->report = value; break;
  case EXPLORE_LIST: e->list = true; break;
  case TOOL_OUTPUT: e->format = parse_format (value); break;
  }
}

/* Variables that words of a command may name. */
static size_t
variable_length (const char *text)
{
  static const char *const names[] = {
    "uri", "unixsocket", "exportname", "entry", "flush", "mark", "disk"
  };
  const bool braces = text[1] == '{';
  const char *const name = text + 1 + braces;

  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
    const size_t len = strlen (names[i]);

    if (strncmp (name, names[i], len) != 0)
      continue;
    if (braces && name[len] == '}')
      return len + 3;
    if (!braces && !strchr ("abcdefghijklmnopqrstuvwxyz_0123456789"
                            "ABCDEFGHIJKLMNOPQRSTUVWXYZ", name[len]))
      return len + 1;
    if (!braces && name[len] == '\0')
      return len + 1;
  }
  return 0;
}

/* One word for the shell, that means itself but for our variables. */
static void
print_word (FILE *fp, const char *word)
{
  putc ('\'', fp);
  while (*word) {
    const size_t len = *word == '$' ? variable_length (word) : 0;

    if (len > 0) {
      fprintf (fp, "'\"%.*s\"'", (int) len, word);
      word += len;
    }
    else if (*word == '\'') {
      fputs ("'\\''", fp);
      word++;
    }
    else
      putc (*word++, fp);
  }
  putc ('\'', fp);
}

/* One word is a command for the shell as it is; several are a command's
 * words.  To be freed; does not return if out of memory.
 */
static char *
make_command (int argc, char *argv[])
{
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  if (fp == NULL)
    tool_usage_error ("out of memory");
  for (int i = 0; i < argc; ++i) {
    if (i > 0)
      putc (' ', fp);
    if (argc == 1)
      fputs (argv[i], fp);
    else
      print_word (fp, argv[i]);
  }
  if (fclose (fp) != 0)
    tool_usage_error ("out of memory");
  return text;
}

/* ---- What is explored */

static int
open_log (struct explore *e)
{
  struct writelog_reader *const reader = writelog_reader_open (e->log);

  if (reader == NULL)
    return -1;
  e->index = writelog_index_open (reader);
  if (e->index == NULL)
    return -1;
  writelog_index_totals (e->index, &e->totals);
  return 0;
}

/* The size of the base, or 0, if it can be the base of this log. */
static int
check_base (const struct explore *e, uint64_t *size)
{
  const struct node_open_options base = {
    .read_only = true, .lock = NODE_LOCK_IMAGE,
  };
  struct node *n;
  int r;

  *size = 0;
  if (e->base == NULL)
    return writelog_check_base (e->index, NULL);
  n = align_open (e->base, &base);
  if (n == NULL)
    return -1;
  *size = node_size (n);
  r = writelog_check_base (e->index, n);
  return node_close (n) == -1 ? -1 : r;
}

/* As logreplay does. */
static int
find_size (struct explore *e)
{
  const struct writelog_totals *const t = &e->totals;
  uint64_t base;

  if (check_base (e, &base) == -1)
    return -1;
  if (e->given_size >= 0)
    e->size = e->given_size;
  else if (t->disk_size > 0 && t->disk_size <= INT64_MAX)
    e->size = t->disk_size;
  else if (e->base == NULL) {
    e->size = MIN (t->end, (uint64_t) INT64_MAX);
    msg_warning ("%s: the log does not say how large the disk is, and there "
                 "is no base: it is taken to end with the highest sector "
                 "that was written; --size overrides that", e->log);
  }
  else if (t->end > round_up (base, t->sector_size)) {
    msg_error ("%s: the base has %" PRIu64 " bytes, but entry %" PRIu64
               " of the log reaches up to byte %" PRIu64 "; it is not the "
               "disk that was logged, or give its size by --size",
               e->base, base, t->end_entry, t->end);
    return -1;
  }
  else
    e->size = base;
  return 0;
}

/* In entries.  A mark itself counts as met, so that $mark is that one from
 * there on.
 */
static int
find_moment (const struct explore *e, const char *option, const char *name,
             uint64_t *entries)
{
  struct writelog_moment moment;
  bool lossy;

  if (name == NULL)
    return 0;
  if (writelog_moment_parse (e->index, name, TEAR_SECTOR, &moment) == -1)
    return -1;
  *entries = moment.entries + (strncmp (name, "mark/", 5) == 0);
  lossy = moment.seeded || moment.nr_lost > 0;
  writelog_moment_free (&moment);
  if (!lossy)
    return 0;
  msg_error ("%s: '%s' is not a moment with all that is before it", option,
             name);
  return -1;
}

static int
make_plan (struct explore *e)
{
  e->wish.to = e->totals.entries;
  if (logwrites_parse_tear (e->index, e->tear, &e->wish.tear) == -1 ||
      find_moment (e, "--from", e->from, &e->wish.from) == -1 ||
      find_moment (e, "--to", e->to, &e->wish.to) == -1)
    return -1;
  if (e->wish.from > e->wish.to) {
    msg_error ("%s is behind %s", e->from, e->to ? e->to : "the end");
    return -1;
  }
  e->wish.zero_base = e->base == NULL;
  if (plan_make (&e->plan, e->index, &e->wish) == 0)
    return 0;
  msg_error ("%s: states to try: %m", e->log);
  return -1;
}

static int
exit_status (const struct explore *e)
{
  if (e->nr[TRY_BAD] > 0)
    return SOME_BAD;
  if (e->interrupted || e->broken || e->nr[TRY_UNTOLD] > 0 ||
      e->nr[TRY_GOOD] == 0)
    return UNTOLD;
  return ALL_GOOD;
}

static int
explore (struct explore *e)
{
  int r;

  if (open_log (e) == -1 || find_size (e) == -1 || make_plan (e) == -1)
    return UNTOLD;
  if (e->list)
    return explore_print_list (e) == -1 ? UNTOLD : ALL_GOOD;
  if ((e->report && explore_report_begin (e) == -1) ||
      explore_run (e) == -1)
    return UNTOLD;
  r = explore_print_end (e);
  if (e->report && explore_report (e) == -1)
    r = -1;
  return r == -1 && e->nr[TRY_BAD] == 0 ? UNTOLD : exit_status (e);
}

static void
free_explore (struct explore *e)
{
  for (size_t i = 0; e->notes && i < e->plan.nr; ++i)
    if (e->notes[i]) {
      free (e->notes[i]->why);
      free (e->notes[i]->tail);
      free (e->notes[i]);
    }
  free (e->notes);
  free (e->verdicts);
  for (size_t i = 0; i < e->nr_findings; ++i) {
    struct finding *const f = &e->findings[i];

    for (size_t j = 0; f->names && j < f->least.nr_lost; ++j)
      free (f->names[j]);
    free (f->names);
    free (f->why);
    free (f->tail);
    free (f->output);
    free (f->name);
    least_free (&f->least);
  }
  free (e->findings);
  plan_free (&e->plan);
  writelog_index_close (e->index);
  free (e->command);
}

static int
run (int argc, char *argv[])
{
  struct explore e = {
    .given_size = -1, .shrink = 200,
    .jobs = MAX (sysconf (_SC_NPROCESSORS_ONLN), 1L),
  };
  int c, r;

  plan_parse_kinds (PLAN_DEFAULT_KINDS, &e.wish);
  while ((c = tool_next_option (&logwrites_explore_command, argc,
                                argv)) != -1)
    set_option (&e, c, optarg);
  if (optind == argc)
    tool_usage_error ("Expecting a log, and a command after --");
  if (!e.list && optind + 1 == argc)
    tool_usage_error ("Expecting a command after the log and --");
  if (e.list && e.report)
    tool_usage_error ("--list does not go with --report");
  if (e.list && e.format == EXPLORE_TAP)
    tool_usage_error ("--list does not go with --output=tap");
  e.log = argv[optind];
  e.command = make_command (argc - optind - 1, argv + optind + 1);
  r = explore (&e);
  free_explore (&e);
  return r;
}

const struct tool_command logwrites_explore_command = {
  "explore", "LOG -- COMMAND...",
  "Run a command on the disk as crashes may leave it.", options, run
};
