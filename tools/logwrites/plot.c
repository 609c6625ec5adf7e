/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites plot: a picture of a log, drawn by gnuplot.
 *
 * Notes on the design
 *
 * Time, which is the number of the entry, goes to the right, and the
 * sectors of the disk go up.  A short log is drawn stroke by stroke.  Of
 * a long one there is a grid of cells: each has the colour of most
 * entries that touch it, the stronger the more they are.  Few flushes
 * are lines; many are a strip of their own below, which tells how many
 * there are.  So the picture is readable, and its file small, whatever
 * the log's length.  Memory does not grow with the log either.
 */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tools/logwrites/gnuplot.h"
#include "tools/logwrites/logwrites.h"
#include "tools/logwrites/plot.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

static const struct tool_option options[] = {
  { 'o', NULL, "FILE", "the picture: its name ends in .svg or .png" },
  TOOL_OPTION_HELP,
  { 0 }
};

/* Logs with more entries are drawn as a grid. */
#define MAX_STROKES 2000
#define COLUMNS ((size_t) 800)
#define ROWS ((size_t) 400)

/* Less would repeat numbers along the axis. */
#define LEAST_SECTORS 8

/* More flushes get a strip. */
#define MAX_FLUSH_LINES 100

/* Up to so many marks are all named; of more, those that leave room for
 * each other.  Long names are cut.
 */
#define MAX_ALL_NAMED 50
#define MAX_SOME_NAMED 25
#define MAX_MARK_TICKS 400
#define MAX_MARK_CHARS 22

/* What an entry is drawn as. */
enum kind { WRITE, METADATA, FUA, DISCARD, NR_KINDS };

static const struct {
  const char *title;
  uint32_t colour;              /* 0xRRGGBB */
} kinds[NR_KINDS] = {
  [WRITE] = { "write", 0x1f77b4 },
  [METADATA] = { "metadata", 0x2ca02c },
  [FUA] = { "FUA", 0xd62728 },
  [DISCARD] = { "discard", 0xff9f1c },
};

#define FLUSH_COLOUR 0xb0b0b0
#define MARK_COLOUR 0x303030
#define MOMENT_COLOUR 0xd40055

/* One cell of the grid. */
struct cell {
  uint32_t nr;                  /* entries */
  enum kind kind;               /* of most of them */
};

struct plot {
  struct writelog_reader *log;
  struct logwrites_totals totals;
  FILE *gnuplot;
  uint64_t low, high;           /* the sectors shown, high exclusive */
  uint64_t nr[NR_KINDS];        /* entries of each kind that are drawn */
  const uint64_t *moments;      /* that get a line, borrowed */
  size_t nr_moments;

  struct cell (*cells)[COLUMNS]; /* the grid: ROWS of them, from below */
  uint64_t flushes[COLUMNS];    /* for the strip */
};

static enum kind
kind_of (const struct writelog_entry *e)
{
  if (e->flags & WRITELOG_DISCARD)
    return DISCARD;
  if (e->flags & WRITELOG_FUA)
    return FUA;
  return e->flags & WRITELOG_METADATA ? METADATA : WRITE;
}

static bool
as_grid (const struct plot *p)
{
  return p->totals.entries > MAX_STROKES;
}

static bool
has_strip (const struct plot *p)
{
  return p->totals.flushes > MAX_FLUSH_LINES;
}

/* Are flushes drawn as lines? */
static bool
has_lines (const struct plot *p)
{
  return p->totals.flushes > 0 && !has_strip (p);
}

static size_t
column_of (const struct plot *p, uint64_t entry)
{
  const size_t column = (double) entry * COLUMNS / p->totals.entries;

  return MIN (column, COLUMNS - 1);
}

static size_t
row_of (const struct plot *p, uint64_t sector)
{
  const size_t row = (double) (sector - p->low) * ROWS / (p->high - p->low);

  return MIN (row, ROWS - 1);
}

/* ---- Marks */

/* The marks that get a line and a name. */
struct names {
  size_t nr;
  struct {
    uint64_t entry;
    double place;               /* of the name, on the axis of entries */
    char *text;
  } name[MAX_ALL_NAMED];
};

static void
free_names (struct names *n)
{
  for (size_t i = 0; i < n->nr; ++i)
    free (n->name[i].text);
}

static int
add_name (struct names *n, const struct writelog_item *item)
{
  char *const text = strdup (item->mark);

  if (text == NULL) {
    msg_error ("entry %" PRIu64 ": %m", item->number);
    return -1;
  }
  n->name[n->nr].entry = n->name[n->nr].place = item->number;
  n->name[n->nr++].text = text;
  return 0;
}

/* Every mark is a tick, or many a share of them. */
static void
draw_tick (const struct plot *p, uint64_t entry)
{
  fprintf (p->gnuplot, "set arrow from %" PRIu64 ", graph 0.985 to "
           "%" PRIu64 ", graph 1 nohead front lw 1 lc rgb '#%06x'\n",
           entry, entry, MARK_COLOUR);
}

static int
choose_names (struct plot *p, struct names *n)
{
  const bool all = p->totals.marks <= MAX_ALL_NAMED;
  const double room = (double) p->totals.entries / MAX_SOME_NAMED;
  const uint64_t every = div_round_up (p->totals.marks, MAX_MARK_TICKS);
  struct writelog_item item;
  double last = -room;
  uint64_t nr = 0;
  int r;

  while ((r = writelog_reader_next (p->log, &item)) == 1) {
    if (item.mark == NULL)
      continue;
    if (nr++ % every == 0)
      draw_tick (p, item.number);
    if (n->nr < MAX_ALL_NAMED && (all || item.number >= last + room)) {
      if (add_name (n, &item) == -1)
        return -1;
      last = item.number;
    }
  }
  writelog_reader_rewind (p->log);
  return r;
}

/* Names of marks that are close to each other make room: to the right,
 * and at the end of the picture to the left.
 */
static void
place_names (const struct plot *p, struct names *n)
{
  const double room = (double) p->totals.entries / MAX_ALL_NAMED;
  double limit = -room;

  for (size_t i = 0; i < n->nr; ++i) {
    n->name[i].place = MAX (n->name[i].place, limit);
    limit = n->name[i].place + room;
  }
  limit = p->totals.entries;
  for (size_t i = n->nr; i-- > 0;) {
    n->name[i].place = MIN (n->name[i].place, limit);
    limit = n->name[i].place - room;
  }
}

static void
draw_names (const struct plot *p, const struct names *n)
{
  for (size_t i = 0; i < n->nr; ++i) {
    const uint64_t entry = n->name[i].entry;
    const double place = n->name[i].place;

    fprintf (p->gnuplot, "set arrow from %" PRIu64 ", graph 0 to "
             "%" PRIu64 ", graph 1 nohead front lw 1 dt 3 lc rgb '#%06x'\n"
             "set arrow from %" PRIu64 ", graph 1 to %.17g, graph 1.015 "
             "nohead front lw 1 lc rgb '#%06x'\n"
             "set label ",
             entry, entry, MARK_COLOUR, entry, place, MARK_COLOUR);
    gnuplot_print_text (p->gnuplot, n->name[i].text, MAX_MARK_CHARS);
    fprintf (p->gnuplot, " at %.17g, graph 1.03 rotate by 35 left "
             "noenhanced front font ',9'\n", place);
  }
}

static int
draw_marks (struct plot *p)
{
  struct names n = { 0 };
  int r;

  r = choose_names (p, &n);
  if (r == 0) {
    place_names (p, &n);
    draw_names (p, &n);
  }
  free_names (&n);
  return r;
}

/* Of those in one column a single one. */
static void
draw_moments (const struct plot *p)
{
  for (size_t i = 0; i < p->nr_moments; ++i)
    if (i == 0 || column_of (p, p->moments[i]) !=
        column_of (p, p->moments[i - 1]))
      fprintf (p->gnuplot, "set arrow from %" PRIu64 ", graph 0 to %" PRIu64
               ", graph 1 nohead front lw 1.5 dt 2 lc rgb '#%06x'\n",
               p->moments[i], p->moments[i], MOMENT_COLOUR);
}

/* ---- Stroke by stroke */

static void
begin_block (const struct plot *p, const char *name, unsigned nr)
{
  fprintf (p->gnuplot, "$%s%u << EOD\n", name, nr);
}

static void
end_block (const struct plot *p)
{
  fputs ("EOD\n", p->gnuplot);
}

/* Make each stroke long enough to be seen. */
static void
print_stroke (const struct plot *p, const struct writelog_item *item)
{
  const uint64_t least = div_round_up (p->high - p->low, 120);

  fprintf (p->gnuplot, "%" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
           item->number, item->entry.sector,
           MAX (item->entry.nr_sectors, least));
}

/* A block of data for each kind. */
static int
print_strokes (struct plot *p)
{
  struct writelog_item item;
  int r = 0;

  for (unsigned kind = 0; kind < NR_KINDS && r == 0; ++kind) {
    begin_block (p, "kind", kind);
    while ((r = writelog_reader_next (p->log, &item)) == 1)
      if (item.entry.nr_sectors > 0 && kind_of (&item.entry) == kind) {
        print_stroke (p, &item);
        p->nr[kind]++;
      }
    end_block (p);
    writelog_reader_rewind (p->log);
  }
  return r;
}

static int
print_flushes (struct plot *p)
{
  struct writelog_item item;
  int r;

  begin_block (p, "flush", 0);
  while ((r = writelog_reader_next (p->log, &item)) == 1)
    if (item.entry.flags & WRITELOG_FLUSH)
      fprintf (p->gnuplot, "%" PRIu64 " %" PRIu64 " %" PRIu64 "\n",
               item.number, p->low, p->high - p->low);
  end_block (p);
  writelog_reader_rewind (p->log);
  return r;
}

/* ---- As a grid */

/* One column while it is filled: differences from row to row of the
 * number of entries.
 */
struct column {
  int64_t change[NR_KINDS][ROWS + 1];
};

static void
finish_column (struct plot *p, size_t column, struct column *c)
{
  int64_t nr[NR_KINDS] = { 0 };

  for (size_t row = 0; row < ROWS; ++row) {
    struct cell *const cell = &p->cells[row][column];
    int64_t most = 0, all = 0;

    for (unsigned kind = 0; kind < NR_KINDS; ++kind) {
      nr[kind] += c->change[kind][row];
      all += nr[kind];
      if (nr[kind] > most) {
        most = nr[kind];
        cell->kind = kind;
      }
    }
    cell->nr = MIN (all, UINT32_MAX);
  }
  memset (c, 0, sizeof *c);
}

static void
add_to_column (struct plot *p, struct column *c,
               const struct writelog_entry *e)
{
  if (e->nr_sectors > 0) {
    p->nr[kind_of (e)]++;
    c->change[kind_of (e)][row_of (p, e->sector)]++;
    c->change[kind_of (e)][row_of (p, e->sector + e->nr_sectors - 1) + 1]--;
  }
}

static int
fill_grid (struct plot *p)
{
  CLEANUP_FREE struct column *c = calloc (1, sizeof *c);
  struct writelog_item item;
  size_t column = 0;
  int r;

  if (c == NULL) {
    msg_error ("%s: %m", p->log->node->name);
    return -1;
  }
  while ((r = writelog_reader_next (p->log, &item)) == 1) {
    for (; column < column_of (p, item.number); ++column)
      finish_column (p, column, c);
    add_to_column (p, c, &item.entry);
  }
  for (; column < COLUMNS; ++column)
    finish_column (p, column, c);
  writelog_reader_rewind (p->log);
  return r;
}

static uint32_t
fullest_cell (const struct plot *p)
{
  uint32_t most = 0;

  for (size_t row = 0; row < ROWS; ++row)
    for (size_t column = 0; column < COLUMNS; ++column)
      most = MAX (most, p->cells[row][column].nr);
  return most;
}

/* Red, green, blue, alpha: also a single entry can be seen. */
static void
print_cells (const struct plot *p)
{
  const double scale = log1p (fullest_cell (p));

  for (size_t row = 0; row < ROWS; ++row)
    for (size_t column = 0; column < COLUMNS; ++column) {
      const struct cell *const cell = &p->cells[row][column];
      const uint32_t colour = kinds[cell->kind].colour;
      const unsigned alpha = cell->nr == 0 ? 0 :
        255 * (0.35 + 0.65 * log1p (cell->nr) / scale);

      putc (colour >> 16, p->gnuplot);
      putc (colour >> 8 & 0xff, p->gnuplot);
      putc (colour & 0xff, p->gnuplot);
      putc (alpha, p->gnuplot);
    }
}

/* ---- The strip of flushes */

static int
count_flushes (struct plot *p)
{
  struct writelog_item item;
  int r;

  while ((r = writelog_reader_next (p->log, &item)) == 1)
    p->flushes[column_of (p, item.number)] +=
      (item.entry.flags & WRITELOG_FLUSH) != 0;
  writelog_reader_rewind (p->log);
  return r;
}

static void
draw_strip (struct plot *p)
{
  const double width = (double) p->totals.entries / COLUMNS;
  uint64_t most = 1;

  begin_block (p, "strip", 0);
  for (size_t column = 0; column < COLUMNS; ++column) {
    fprintf (p->gnuplot, "%.17g %" PRIu64 "\n", (column + 0.5) * width,
             p->flushes[column]);
    most = MAX (most, p->flushes[column]);
  }
  end_block (p);
  fprintf (p->gnuplot,
           "unset arrow\nunset label\nunset title\n"
           "set tmargin at screen 0.23\nset bmargin at screen 0.13\n"
           "set xlabel 'entry'\nset format x '%%.0f'\n"
           "set ylabel 'flushes'\nunset key\n"
           "set yrange [0:%" PRIu64 "]\nset ytics (0, %" PRIu64 ")\n"
           "plot $strip0 using 1:2 with impulses lw 1.5 lc rgb '#%06x'\n",
           most, most, FLUSH_COLOUR);
}

/* ---- The picture */

static void
set_up (const struct plot *p)
{
  const struct logwrites_totals *const t = &p->totals;

  fputs ("set encoding utf8\nset multiplot\n"
         "set lmargin at screen 0.1\nset rmargin at screen 0.9\n"
         "set tmargin at screen 0.82\n"
         "set tics out nomirror\nset key outside bottom center horizontal\n"
         "set ylabel 'sector'\nset format y '%.0f'\n", p->gnuplot);
  fprintf (p->gnuplot, "set bmargin at screen %s\n",
           has_strip (p) ? "0.27" : "0.16");
  fputs (has_strip (p) ? "set format x ''\n" :
         "set xlabel 'entry'\nset format x '%.0f'\n", p->gnuplot);
  fprintf (p->gnuplot, "set xrange [%g:%g]\nset yrange [%g:%g]\n",
           -0.005 * t->entries, MAX (1.005 * t->entries, 1.0),
           p->low - 0.01 * (p->high - p->low),
           p->high + 0.01 * (p->high - p->low));

  fputs ("set label ", p->gnuplot);
  gnuplot_print_text (p->gnuplot, p->log->node->name, 100);
  fputs (" at screen 0.1, screen 0.975 left noenhanced font ',12'\n",
         p->gnuplot);
  fprintf (p->gnuplot, "set label '%" PRIu64 " entries, %" PRIu64
           " flushes, %" PRIu64 " marks, sectors of %" PRIu32 " bytes' "
           "at screen 0.9, screen 0.975 right font ',10'\n",
           t->entries, t->flushes, t->marks, p->log->super.sector_size);
}

/* What stands for a kind in the key, where the data do not. */
static void
print_key (const struct plot *p, const char *title, uint32_t colour)
{
  fprintf (p->gnuplot, ", NaN with lines lw 6 lc rgb '#%06x' title '%s'",
           colour, title);
}

static void
print_keys (const struct plot *p)
{
  for (unsigned kind = 0; kind < NR_KINDS; ++kind)
    if (p->nr[kind])
      print_key (p, kinds[kind].title, kinds[kind].colour);
  if (has_lines (p))
    print_key (p, "flush", FLUSH_COLOUR);
}

static void
draw_flush_lines (const struct plot *p)
{
  fprintf (p->gnuplot, ", $flush0 using 1:2:(0):3 with vectors nohead lw 1 "
           "lc rgb '#%06x' notitle", FLUSH_COLOUR);
}

static int
draw_strokes (struct plot *p)
{
  /* As wide as an entry is, in about a thousand pixels. */
  const double width = 800.0 / MAX (p->totals.entries, UINT64_C (1));

  if (print_strokes (p) == -1)
    return -1;
  fputs ("plot NaN notitle", p->gnuplot);
  if (has_lines (p))
    draw_flush_lines (p);
  for (unsigned kind = 0; kind < NR_KINDS; ++kind)
    if (p->nr[kind])
      fprintf (p->gnuplot,
               ", $kind%u using 1:2:(0):3 with vectors nohead lw %.1f "
               "lc rgb '#%06x' notitle", kind,
               MIN (MAX (width, 2.5), 8.0), kinds[kind].colour);
  print_keys (p);
  putc ('\n', p->gnuplot);
  return 0;
}

static int
draw_grid (struct plot *p)
{
  const double dx = (double) p->totals.entries / COLUMNS;
  const double dy = (double) (p->high - p->low) / ROWS;
  CLEANUP_FREE struct cell (*cells)[COLUMNS] = calloc (ROWS, sizeof *cells);

  if (cells == NULL) {
    msg_error ("%s: %m", p->log->node->name);
    return -1;
  }
  p->cells = cells;
  if (fill_grid (p) == -1)
    return -1;

  fputs ("plot NaN notitle", p->gnuplot);
  if (has_lines (p))
    draw_flush_lines (p);
  fprintf (p->gnuplot,
           ", '-' binary array=(%zu,%zu) format='%%uchar' dx=%.17g dy=%.17g "
           "origin=(%.17g,%.17g) with rgbalpha notitle", COLUMNS, ROWS,
           dx, dy, dx / 2, p->low + dy / 2);
  print_keys (p);
  putc ('\n', p->gnuplot);
  print_cells (p);
  return 0;
}

static int
draw (struct plot *p, bool png)
{
  gnuplot_set_terminal (p->gnuplot, png);
  set_up (p);
  if (p->totals.marks && draw_marks (p) == -1)
    return -1;
  draw_moments (p);
  if (has_lines (p) && print_flushes (p) == -1)
    return -1;
  if ((as_grid (p) ? draw_grid (p) : draw_strokes (p)) == -1)
    return -1;
  if (has_strip (p)) {
    if (count_flushes (p) == -1)
      return -1;
    draw_strip (p);
  }
  fputs ("unset multiplot\n", p->gnuplot);
  return 0;
}

/* ---- gnuplot */

static int
plot_to (struct plot *p, int fd, bool png)
{
  pid_t pid;
  int r;

  p->gnuplot = gnuplot_start (fd, &pid);
  if (p->gnuplot == NULL)
    return -1;
  r = draw (p, png);
  return gnuplot_end (p->gnuplot, pid) == -1 ? -1 : r;
}

/* ---- The command */

/* Drawn in memory, since gnuplot does not notice when a disk is full. */
static int
plot_in_memory (struct plot *p, const char *name, bool png)
{
  CLEANUP_CLOSE int picture = memfd_create ("picture", MFD_CLOEXEC);
  int r;

  if (picture == -1) {
    msg_error ("%s: memory for a picture: %m", name);
    return -1;
  }
  if (plot_to (p, picture, png) == -1)
    return -1;
  r = picture;
  picture = -1;
  return r;
}

/* Opens and closes the log.  name is for messages. */
static int
plot (const char *log, struct plot *p, const char *name, bool png)
{
  int r;

  p->log = writelog_reader_open (log);
  if (p->log == NULL)
    return -1;
  r = logwrites_count (p->log, &p->totals);
  if (r == 0) {
    p->low = p->totals.start;
    p->high = MAX (p->totals.end, p->low + LEAST_SECTORS);
    signal (SIGPIPE, SIG_IGN);  /* gnuplot's exit status tells more */
    r = plot_in_memory (p, name, png);
  }
  writelog_reader_close (p->log);
  return r;
}

int
logwrites_plot_moments (const char *log, const uint64_t *moments, size_t nr)
{
  struct plot p = { .moments = moments, .nr_moments = nr };

  return plot (log, &p, log, false);
}

static int
plot_file (const char *log, const char *name, bool png)
{
  struct plot p = { .log = NULL };
  CLEANUP_CLOSE int picture = plot (log, &p, name, png);

  return picture == -1 ? -1 : gnuplot_save (picture, name);
}

static bool
ends_with (const char *name, const char *end)
{
  const size_t len1 = strlen (name), len2 = strlen (end);

  return len1 >= len2 && strcmp (name + len1 - len2, end) == 0;
}

static int
run (int argc, char *argv[])
{
  const char *name = NULL;
  int c;

  while ((c = tool_next_option (&logwrites_plot_command, argc, argv)) != -1)
    if (c == 'o')
      name = optarg;
  if (name == NULL)
    tool_usage_error ("Expecting -o and the name of the picture");
  if (!ends_with (name, ".svg") && !ends_with (name, ".png"))
    tool_usage_error ("%s: the name of a picture ends in .svg or .png", name);
  return plot_file (logwrites_one_log (argc, argv), name,
                    ends_with (name, ".png")) == 0 ? EXIT_SUCCESS
                                                   : EXIT_FAILURE;
}

const struct tool_command logwrites_plot_command = {
  "plot", "LOG", "Draw a picture of a log.", options, run
};
