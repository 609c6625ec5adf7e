/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites explore: what is printed, for people, as JSON or as TAP. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tool/tool.h"
#include "tools/logwrites/explore.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/jsontext.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/moments/moment.h"

static const char *const verdicts[] = {
  [TRY_GOOD] = "good", [TRY_BAD] = "bad", [TRY_SKIPPED] = "skipped",
  [TRY_UNTOLD] = "untold",
};

/* ---- Progress */

static bool progress_shown;
static int64_t progress_next;

void
explore_clear_progress (void)
{
  if (progress_shown)
    fputs ("\r\033[K", stderr);
  progress_shown = false;
}

void
explore_print_progress (const struct explore *e, const char *what,
                        uint64_t done, uint64_t total, int64_t started)
{
  const int64_t now = clock_ms ();
  const int64_t left = done > 0
    ? (double) (now - started) * (total - done) / done / 1000 : 0;

  if (now < progress_next || !isatty (STDERR_FILENO))
    return;
  progress_next = now + 200;
  fprintf (stderr, "\r%" PRIu64 " of %" PRIu64 " %s, %" PRIu64 " bad",
           done, total, what, e->nr[TRY_BAD]);
  if (done > 0)
    fprintf (stderr, ", %" PRIi64 ":%02" PRIi64 ":%02" PRIi64 " to go",
             left / 3600, left / 60 % 60, left % 60);
  fputs ("\033[K", stderr);
  fflush (stderr);
  progress_shown = true;
}

/* ---- Shell */

/* What has more than one line: it is put together by the shell again. */
static void
print_joined (FILE *fp, const char *word)
{
  fputs ("\"$(printf %b '", fp);
  for (; *word; ++word)
    switch (*word) {
    case '\n': fputs ("\\n", fp); break;
    case '\r': fputs ("\\r", fp); break;
    case '\\': fputs ("\\\\", fp); break;
    case '\'': fputs ("'\\''", fp); break;
    default: putc (*word, fp);
    }
  fputs ("')\"", fp);
}

/* One word on one line. */
static void
print_quoted (FILE *fp, const char *word)
{
  if (strpbrk (word, "\n\r")) {
    print_joined (fp, word);
    return;
  }
  if (word[0] && word[strspn (word, "abcdefghijklmnopqrstuvwxyz"
                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                              "-_./:,=+@%")] == '\0') {
    fputs (word, fp);
    return;
  }
  putc ('\'', fp);
  for (; *word; ++word)
    if (*word == '\'')
      fputs ("'\\''", fp);
    else
      putc (*word, fp);
  putc ('\'', fp);
}

/* What the command would be run with, as text for the shell. */
static char *
repeat_command (const struct explore *e, const struct finding *f)
{
  CLEANUP_FREE char *mark = writelog_last_mark (e->index, f->least.entries);
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  if (fp == NULL)
    return NULL;
  fprintf (fp, "export uri unixsocket exportname entry=%" PRIu64
           " flush=%" PRIu64 " mark=", f->least.entries,
           writelog_count_flushes (e->index, f->least.entries));
  print_quoted (fp, mark ? mark : "");
  fputs ("; ", fp);
  if (e->disk)
    fputs ("export disk=$(mktemp); trap 'rm \"$disk\"' EXIT; "
           "nbdcopy \"$uri\" \"$disk\"; ", fp);
  fputs (e->command, fp);
  if (fclose (fp) != 0) {
    free (text);
    text = NULL;
  }
  return text;
}

/* With the parameters that the log and the state need. */
static void
print_server (FILE *fp, const struct explore *e, const struct finding *f)
{
  fputs ("nbdkit -U - -e ", fp);
  print_quoted (fp, f->name);
  fputs (" --filter=cow logreplay ", fp);
  if (strchr (e->log, '=') || e->log[0] == '-')
    fputs ("log=", fp);
  print_quoted (fp, e->log);
  if (e->base) {
    fputs (" base=", fp);
    print_quoted (fp, e->base);
  }
  if (e->given_size >= 0)
    fprintf (fp, " size=%" PRIi64, e->given_size);
  if (e->tear) {
    fputs (" tear=", fp);
    print_quoted (fp, e->tear);
  }
}

char *
explore_repeat (const struct explore *e, const struct finding *f)
{
  CLEANUP_FREE char *command = repeat_command (e, f);
  char *text = NULL;
  size_t len;
  FILE *fp;

  if (command == NULL || f->name == NULL)
    return NULL;
  fp = open_memstream (&text, &len);
  if (fp == NULL)
    return NULL;
  print_server (fp, e, f);
  fputs (" --run ", fp);
  print_quoted (fp, command);
  if (fclose (fp) != 0) {
    free (text);
    text = NULL;
  }
  return text;
}

/* ---- The end, in words */

char *
explore_summary (const struct explore *e)
{
  const uint64_t *const nr = e->nr;
  const uint64_t tried = nr[TRY_GOOD] + nr[TRY_BAD] + nr[TRY_SKIPPED] +
    nr[TRY_UNTOLD];
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  if (fp == NULL)
    return NULL;
  fprintf (fp, "%" PRIu64 " states", e->plan.found);
  fprintf (fp, ", %" PRIu64 " distinct", e->plan.distinct);
  if (e->plan.nr < e->plan.distinct)
    fprintf (fp, " of which %zu were to be tried", e->plan.nr);
  if (tried < e->plan.nr)
    fprintf (fp, ", %" PRIu64 " tried before it was %s", tried,
             e->interrupted ? "interrupted" : "ended");
  fprintf (fp, ": %" PRIu64 " good, %" PRIu64 " bad", nr[TRY_GOOD],
           nr[TRY_BAD]);
  if (nr[TRY_SKIPPED] > 0)
    fprintf (fp, ", %" PRIu64 " skipped", nr[TRY_SKIPPED]);
  if (nr[TRY_UNTOLD] > 0)
    fprintf (fp, ", %" PRIu64 " could not be tried", nr[TRY_UNTOLD]);
  if (e->shrink_runs > 0)
    fprintf (fp, "; %" PRIu64 " runs to shrink losses", e->shrink_runs);
  if (nr[TRY_SKIPPED] > 0 && nr[TRY_SKIPPED] == tried)
    fputs ("; so nothing was checked", fp);
  if (e->interrupted && tried == e->plan.nr)
    fputs ("; interrupted", fp);
  if (fclose (fp) != 0) {
    free (text);
    text = NULL;
  }
  return text;
}

/* ---- For people */

void
explore_print_entry (FILE *fp, const struct explore *e, uint64_t entry)
{
  const unsigned flags = writelog_index_entry (e->index, entry).flags;
  const char *sign = " (";

  fprintf (fp, "entry %" PRIu64 ", a %s", entry,
           flags & WRITELOG_DISCARD ? "discard" : "write");
  for (uint64_t flag = 1; flag & WRITELOG_KNOWN_FLAGS; flag <<= 1)
    if (flags & flag & ~WRITELOG_DISCARD) {
      fprintf (fp, "%s%s", sign, writelog_flag_name (flag));
      sign = ",";
    }
  if (*sign == ',')
    putc (')', fp);
}

/* Lines of a text, each behind a sign. */
static void
print_lines (const char *text, const char *before)
{
  while (*text) {
    const size_t len = strcspn (text, "\n");

    printf ("%s%.*s\n", before, (int) len, text);
    text += len + (text[len] == '\n');
  }
}

static void
print_piece (const struct explore *e, const struct finding *f, size_t i,
             const char *before)
{
  const struct lost_piece *const p = &f->least.lost[i];
  const struct writelog_index_entry entry =
    writelog_index_entry (e->index, p->entry);
  const uint64_t nr = p->end - p->start;

  printf ("%slost: ", before);
  explore_print_entry (stdout, e, p->entry);
  fputs (": ", stdout);
  if (nr < entry.nr_sectors)
    printf ("of its sectors %" PRIu64 "+%" PRIu64 " ", entry.sector,
            entry.nr_sectors);
  else
    printf ("sectors ");
  printf ("%" PRIu64 "+%" PRIu64 ", %" PRIu64 " bytes\n", p->start, nr,
          nr * e->totals.sector_size);
  if (f->names && f->names[i]) {
    CLEANUP_FREE char *indented = NULL;

    if (asprintf (&indented, "%s      ", before) == -1)
      indented = NULL;
    print_lines (f->names[i], indented ? indented : before);
  }
}

static void
print_least (const struct explore *e, const struct finding *f,
             const char *before)
{
  const struct least *const least = &f->least;

  for (size_t i = 0; i < least->nr_lost; ++i)
    print_piece (e, f, i, before);
  if (least->nr_lost == 0 && least->proven)
    printf ("%sentry %" PRIu64 " is the first with which it is bad, with all "
            "before it there\n", before, least->entries - 1);
  else if (least->nr_lost == 0)
    printf ("%sbad with all there up to entry %" PRIu64 "%s\n", before,
            least->entries,
            least->good == UINT64_MAX ? ", and no earlier moment is good"
            : "");
  else if (!least->proven)
    printf ("%s(perhaps not the least: --shrink=%" PRIu64 " ended it)\n",
            before, e->shrink);
}

static void
print_finding (const struct explore *e, size_t i, const char *before)
{
  const struct finding *const f = &e->findings[i];
  CLEANUP_FREE char *first = plan_name (&e->plan, &e->plan.states[f->state]);
  CLEANUP_FREE char *repeat = explore_repeat (e, f);
  CLEANUP_FREE char *inner = NULL;

  if (asprintf (&inner, "%s    | ", before) == -1)
    inner = NULL;
  printf ("%sfinding %zu: %zu bad state%s, the first is %s (%s)\n", before,
          i + 1, f->count, f->count == 1 ? "" : "s", first ? first : "?",
          plan_kind_name (e->plan.states[f->state].kind));
  print_least (e, f, before);
  printf ("%s%s\n", before, f->why ? f->why : "");
  print_lines (f->tail, inner ? inner : before);
  printf ("%srepeat: %s\n", before, repeat ? repeat
          : "its set is too long for the name of an export");
}

static int
print_end_human (const struct explore *e)
{
  CLEANUP_FREE char *summary = explore_summary (e);

  for (size_t i = 0; i < e->nr_findings; ++i) {
    print_finding (e, i, "");
    putchar ('\n');
  }
  printf ("%s\n", summary ? summary : "");
  return 0;
}

/* ---- JSON */

static json_t *
text_or_null (const char *text)
{
  return text ? json_text (text) : json_null ();
}

static json_t *
state_to_json (const struct explore *e, size_t i)
{
  const struct plan_state *const state = &e->plan.states[i];
  CLEANUP_FREE char *name = plan_name (&e->plan, state);
  json_t *object = json_pack (
    "{s:o, s:s, s:I, s:I}", "state", text_or_null (name),
    "kind", plan_kind_name (state->kind),
    "entry", (json_int_t) state->entries,
    "flush", (json_int_t) writelog_count_flushes (e->index, state->entries));

  if (e->verdicts)
    json_object_set_new (object, "result",
                         json_string (verdicts[e->verdicts[i]]));
  if (e->notes && e->notes[i] && e->notes[i]->why)
    json_object_set_new (object, "why", json_text (e->notes[i]->why));
  return object;
}

static int
print_state_json (const struct explore *e, size_t i, bool first)
{
  fputs (first ? "\n        " : ",\n        ", stdout);
  return tool_dump_json (state_to_json (e, i), JSON_ENSURE_ASCII);
}

static json_t *
piece_to_json (const struct explore *e, const struct finding *f, size_t i)
{
  const struct lost_piece *const p = &f->least.lost[i];
  const struct writelog_index_entry entry =
    writelog_index_entry (e->index, p->entry);
  json_t *const flags = json_array ();

  for (uint64_t flag = 1; flag & WRITELOG_KNOWN_FLAGS; flag <<= 1)
    if (entry.flags & flag)
      json_array_append_new (flags, json_string (writelog_flag_name (flag)));
  return json_pack (
    "{s:I, s:o, s:I, s:I, s:I, s:o}", "entry", (json_int_t) p->entry,
    "flags", flags, "sector", (json_int_t) p->start,
    "nr-sectors", (json_int_t) (p->end - p->start),
    "bytes", (json_int_t) ((p->end - p->start) * e->totals.sector_size),
    "name", text_or_null (f->names ? f->names[i] : NULL));
}

static json_t *
finding_to_json (const struct explore *e, const struct finding *f)
{
  CLEANUP_FREE char *first = plan_name (&e->plan, &e->plan.states[f->state]);
  CLEANUP_FREE char *repeat = explore_repeat (e, f);
  const struct least *const least = &f->least;
  json_t *const lost = json_array ();
  json_t *object;

  for (size_t i = 0; i < least->nr_lost; ++i)
    json_array_append_new (lost, piece_to_json (e, f, i));
  object = json_pack (
    "{s:I, s:o, s:o, s:I, s:o, s:b, s:o, s:o, s:o}",
    "count", (json_int_t) f->count, "first", text_or_null (first),
    "state", text_or_null (f->name), "entry", (json_int_t) least->entries,
    "lost", lost, "least", (int) least->proven,
    "why", text_or_null (f->why), "output", json_text (f->tail),
    "repeat", text_or_null (repeat));
  if (least->nr_lost == 0 && least->proven)
    json_object_set_new (object, "first-bad-entry",
                         json_integer (least->entries - 1));
  return object;
}

static int
print_end_json (const struct explore *e)
{
  fputs ("\n    ],\n    \"findings\": [", stdout);
  for (size_t i = 0; i < e->nr_findings; ++i) {
    fputs (i > 0 ? ",\n        " : "\n        ", stdout);
    if (tool_dump_json (finding_to_json (e, &e->findings[i]),
                        JSON_ENSURE_ASCII) == -1)
      return -1;
  }
  printf ("\n    ],\n    \"summary\": {\"states\": %" PRIu64
          ", \"distinct\": %" PRIu64 ", \"chosen\": %zu, \"good\": %" PRIu64
          ", \"bad\": %" PRIu64 ", \"skipped\": %" PRIu64 ", \"untold\": %"
          PRIu64 ", \"shrink-runs\": %" PRIu64, e->plan.found,
          e->plan.distinct, e->plan.nr, e->nr[TRY_GOOD], e->nr[TRY_BAD],
          e->nr[TRY_SKIPPED], e->nr[TRY_UNTOLD], e->shrink_runs);
  printf (", \"disk\": %s, \"complete\": %s}\n}\n",
          e->disk_kind == TRY_NO_DISK ? "null"
          : e->disk_kind == TRY_FUSE ? "\"nbdfuse\"" : "\"copy\"",
          e->interrupted || e->broken ? "false" : "true");
  return 0;
}

/* ---- TAP */

/* What has no line's end nor a sign that TAP knows. */
static void
print_tap_text (const char *text)
{
  for (; *text; ++text)
    putchar (*text == '\n' || *text == '\r' ? ' ' : *text == '#' ? '%'
             : *text);
}

static void
print_state_tap (const struct explore *e, size_t i)
{
  const struct plan_state *const state = &e->plan.states[i];
  const struct explore_note *const note = e->notes[i];
  CLEANUP_FREE char *name = plan_name (&e->plan, state);
  const enum try_verdict verdict = e->verdicts[i];

  printf ("%s %zu - %s (%s)",
          verdict == TRY_BAD || verdict == TRY_UNTOLD ? "not ok" : "ok",
          i + 1, name ? name : "?", plan_kind_name (state->kind));
  if (verdict == TRY_SKIPPED)
    fputs (" # SKIP", stdout);
  putchar ('\n');
  if (verdict == TRY_GOOD || note == NULL)
    return;
  if (note->why) {
    fputs (verdict == TRY_UNTOLD ? "# could not be tried: " : "# ", stdout);
    print_tap_text (note->why);
    putchar ('\n');
  }
  if (note->tail && verdict != TRY_SKIPPED)
    print_lines (note->tail, "#     | ");
}

static int
print_end_tap (const struct explore *e)
{
  CLEANUP_FREE char *summary = explore_summary (e);

  for (size_t i = 0; i < e->nr_findings; ++i)
    print_finding (e, i, "# ");
  printf ("# %s\n", summary ? summary : "");
  if (e->interrupted || e->broken)
    printf ("Bail out! %s\n", e->interrupted ? "interrupted"
            : "it could not go on");
  return 0;
}

/* ---- In the order of the states */

void
explore_print_start (const struct explore *e)
{
  if (e->format == EXPLORE_JSON) {
    fputs ("{\n    \"log\": ", stdout);
    tool_dump_json (json_text (e->log),
                    JSON_ENSURE_ASCII | JSON_ENCODE_ANY);
    fputs (",\n    \"states\": [", stdout);
  }
  else if (e->format == EXPLORE_TAP)
    printf ("TAP version 13\n1..%zu\n", e->plan.nr);
}

static void
print_state (struct explore *e, size_t i)
{
  if (e->format == EXPLORE_JSON)
    print_state_json (e, i, e->nr_printed == 0);
  else
    print_state_tap (e, i);
  e->nr_printed++;
}

void
explore_print_states (struct explore *e, bool all)
{
  if (e->format == EXPLORE_HUMAN)
    return;
  for (; e->passed < e->plan.nr; ++e->passed)
    if (e->verdicts[e->passed] != EXPLORE_NOT_TRIED)
      print_state (e, e->passed);
    else if (!all)
      break;
  tool_flush ();
}

int
explore_print_end (struct explore *e)
{
  switch (e->format) {
  case EXPLORE_JSON: return print_end_json (e);
  case EXPLORE_TAP: return print_end_tap (e);
  default: return print_end_human (e);
  }
}

int
explore_print_list (const struct explore *e)
{
  if (e->plan.nr < e->plan.distinct)
    fprintf (stderr, "%zu of %" PRIu64 " states\n", e->plan.nr,
             e->plan.distinct);
  if (e->format == EXPLORE_JSON)
    putchar ('[');
  for (size_t i = 0; i < e->plan.nr; ++i) {
    CLEANUP_FREE char *name = NULL;

    if (e->format == EXPLORE_JSON) {
      if (print_state_json (e, i, i == 0) == -1)
        return -1;
      continue;
    }
    name = plan_name (&e->plan, &e->plan.states[i]);
    if (name == NULL) {
      msg_error ("list of states: %m");
      return -1;
    }
    printf ("%s %s\n", name, plan_kind_name (e->plan.states[i].kind));
  }
  if (e->format == EXPLORE_JSON)
    puts ("\n]");
  return 0;
}
