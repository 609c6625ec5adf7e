/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites explore --report: a folder with the output of each finding, and
 * one page that needs nothing else.
 *
 * Whatever comes from commands, names and marks is text in the page: no
 * character of it has a meaning there.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools/logwrites/explore.h"
#include "tools/logwrites/plot.h"
#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "utils/message.h"
#include "utils/rounding.h"

static const char style[] =
  "body{font:15px/1.45 sans-serif;margin:2em auto;max-width:1250px;"
  "padding:0 1em;color:#222}"
  "table{border-collapse:collapse;width:100%}"
  "th,td{border:1px solid #bbb;padding:.4em .6em;text-align:left;"
  "vertical-align:top}th{background:#eee}"
  "pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}"
  "code,pre{font:13px/1.4 monospace}"
  "svg{width:100%;height:auto}.bad{color:#d40055}";

/* ---- Text */

/* As UTF-8 of which nothing is HTML. */
static void
print_html (FILE *fp, const char *text)
{
  json_t *const clean = json_text (text ? text : "");
  const char *p = clean ? json_string_value (clean) : "?";

  for (; *p; ++p)
    switch (*p) {
    case '&': fputs ("&amp;", fp); break;
    case '<': fputs ("&lt;", fp); break;
    case '>': fputs ("&gt;", fp); break;
    case '"': fputs ("&quot;", fp); break;
    default:
      if ((unsigned char) *p >= ' ' || *p == '\n' || *p == '\t')
        putc (*p, fp);
      else
        fputs ("\357\277\275", fp);
    }
  json_decref (clean);
}

/* ---- The picture */

static int
compare (const void *ap, const void *bp)
{
  const uint64_t a = *(const uint64_t *) ap, b = *(const uint64_t *) bp;

  return a < b ? -1 : a > b;
}

/* The moments of all bad states, in order; to be freed. */
static uint64_t *
bad_moments (const struct explore *e, size_t *nr)
{
  uint64_t *moments = calloc (e->nr[TRY_BAD] + 1, sizeof *moments);

  *nr = 0;
  if (moments == NULL)
    return NULL;
  for (size_t i = 0; i < e->plan.nr; ++i)
    if (e->verdicts[i] == TRY_BAD)
      moments[(*nr)++] = e->plan.states[i].entries;
  qsort (moments, *nr, sizeof *moments, compare);
  return moments;
}

/* A whole file as a text, to be freed. */
static char *
read_file (int fd)
{
  struct stat st;
  char *text;

  if (fstat (fd, &st) == -1)
    return NULL;
  text = calloc (1, st.st_size + 1);
  if (text && pread (fd, text, st.st_size, 0) != st.st_size) {
    free (text);
    text = NULL;
  }
  return text;
}

/* Without it the page is worth having, too. */
static void
print_picture (FILE *fp, const struct explore *e)
{
  size_t nr;
  CLEANUP_FREE uint64_t *moments = bad_moments (e, &nr);
  CLEANUP_CLOSE int picture = moments
    ? logwrites_plot_moments (e->log, moments, nr) : -1;
  CLEANUP_FREE char *text = picture >= 0 ? read_file (picture) : NULL;
  const char *svg = text ? strstr (text, "<svg") : NULL;

  fputs ("<h2>The log</h2>\n<p>To the right the entries, upwards the sectors "
         "of the disk. <span class=\"bad\">Broken red lines</span> are the "
         "moments of bad states.</p>\n", fp);
  fputs (svg ? svg : "<p>There is no picture: gnuplot could not draw it.</p>",
         fp);
}

/* ---- Findings */

static void
print_lost (FILE *fp, const struct explore *e, const struct finding *f)
{
  const struct least *const least = &f->least;

  if (least->nr_lost == 0)
    fprintf (fp, least->proven
             ? "Nothing: entry %" PRIu64 " is the first with which it is bad."
             : "Nothing up to entry %" PRIu64 ".",
             least->proven ? least->entries - 1 : least->entries);
  for (size_t i = 0; i < least->nr_lost; ++i) {
    const struct lost_piece *const p = &least->lost[i];

    fputs ("<div>", fp);
    explore_print_entry (fp, e, p->entry);
    fprintf (fp, ": sectors %" PRIu64 "+%" PRIu64 ", %" PRIu64
             " bytes", p->start, p->end - p->start,
             (p->end - p->start) * e->totals.sector_size);
    if (f->names && f->names[i]) {
      fputs ("<pre>", fp);
      print_html (fp, f->names[i]);
      fputs ("</pre>", fp);
    }
    fputs ("</div>", fp);
  }
}

static void
print_finding (FILE *fp, const struct explore *e, size_t i)
{
  const struct finding *const f = &e->findings[i];
  const struct plan_state *const state = &e->plan.states[f->state];
  CLEANUP_FREE char *first = plan_name (&e->plan, state);
  CLEANUP_FREE char *repeat = explore_repeat (e, f);

  fprintf (fp, "<tr><td>%zu</td><td>%zu</td><td><code>", i + 1, f->count);
  print_html (fp, first);
  fprintf (fp, "</code> (%s)</td><td>", plan_kind_name (state->kind));
  print_lost (fp, e, f);
  fputs ("</td><td>", fp);
  print_html (fp, f->why);
  fputs ("<pre>", fp);
  print_html (fp, f->tail);
  fprintf (fp, "</pre><a href=\"finding-%zu.txt\">all of it</a></td></tr>\n"
           "<tr><td colspan=\"5\"><pre>", i + 1);
  print_html (fp, repeat ? repeat : "The set of what is lost is too long for "
              "the name of an export.");
  fputs ("</pre></td></tr>\n", fp);
}

static void
print_page (FILE *fp, const struct explore *e)
{
  CLEANUP_FREE char *summary = explore_summary (e);

  fputs ("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
         "<title>logwrites explore ", fp);
  print_html (fp, e->log);
  fprintf (fp, "</title><style>%s</style></head><body>\n<h1>", style);
  print_html (fp, e->log);
  fputs ("</h1>\n<p>", fp);
  print_html (fp, summary);
  fputs (".</p>\n<pre>", fp);
  print_html (fp, e->command);
  fputs ("</pre>\n<h2>Findings</h2>\n", fp);
  if (e->nr_findings > 0)
    fputs ("<table><tr><th></th><th>bad states</th><th>the first</th>"
           "<th>what has to be lost</th><th>what was said</th></tr>\n", fp);
  for (size_t i = 0; i < e->nr_findings; ++i)
    print_finding (fp, e, i);
  fputs (e->nr_findings > 0 ? "</table>\n" : "<p>None.</p>\n", fp);
  print_picture (fp, e);
  fputs ("</body></html>\n", fp);
}

/* ---- The folder */

/* A file that is there only when it is complete.  NULL after a message; name
 * and the stream are ended by end_file.
 */
static FILE *
begin_file (const char *dir, const char *file, char **name)
{
  FILE *fp = NULL;

  if (asprintf (name, "%s/%s.new", dir, file) == -1)
    *name = NULL;
  else
    fp = fopen (*name, "we");
  if (fp == NULL) {
    msg_error ("%s/%s: create: %m", dir, file);
    free (*name);
  }
  return fp;
}

static int
end_file (FILE *fp, char *name)
{
  CLEANUP_FREE char *final = strndup (name, strlen (name) - strlen (".new"));
  int r = ferror (fp) ? -1 : 0;

  if (fclose (fp) != 0)
    r = -1;
  if (r == 0)
    r = final ? rename (name, final) : -1;
  if (r == -1) {
    msg_error ("%s: write: %m", final ? final : name);
    unlink (name);
  }
  free (name);
  return r;
}

static int
write_output (const struct explore *e, size_t i)
{
  const struct finding *const f = &e->findings[i];
  char file[64], *name;
  FILE *fp;

  snprintf (file, sizeof file, "finding-%zu.txt", i + 1);
  fp = begin_file (e->report, file, &name);
  if (fp == NULL)
    return -1;
  if (f->output)
    fwrite (f->output, 1, f->output_len, fp);
  else
    fputs (f->tail, fp);
  return end_file (fp, name);
}

int
explore_report_begin (const struct explore *e)
{
  if (mkdir (e->report, 0777) == -1 && errno != EEXIST) {
    msg_error ("%s: create: %m", e->report);
    return -1;
  }
  if (access (e->report, W_OK | X_OK) == 0)
    return 0;
  msg_error ("%s: %m", e->report);
  return -1;
}

int
explore_report (const struct explore *e)
{
  char *name;
  FILE *fp;

  for (size_t i = 0; i < e->nr_findings; ++i)
    if (write_output (e, i) == -1)
      return -1;
  fp = begin_file (e->report, "index.html", &name);
  if (fp == NULL)
    return -1;
  print_page (fp, e);
  return end_file (fp, name);
}
