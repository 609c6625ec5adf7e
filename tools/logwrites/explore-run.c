/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites explore: trying all states, and what is made of the bad ones. */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/logwrites/explore.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/explore/children.h"

/* The last lines of an output, by which findings are compared. */
#define TAIL_LINES 5
#define TAIL_BYTES 1000

/* A socket's name has to fit. */
#define MAX_DIR 80

/* The longest name of an NBD export. */
#define MAX_EXPORT 4096

/* How many states that could not be tried are told at once. */
#define MAX_WARNINGS 10

/* One run, over all states or over the findings. */
struct session {
  struct explore *e;
  struct try_setup setup;
  struct pool *pool;
  char *dir;
  int64_t started;
  uint64_t done;
};

/* ---- Output of commands */

/* Does a name of ours stand here: DIR/N and an end?  Its length or 0. */
static size_t
match_name (const char *p, const char *dir, size_t dir_len, const char *end)
{
  size_t len = dir_len;

  if (strncmp (p, dir, dir_len) != 0 || p[len] != '/' ||
      !isdigit ((unsigned char) p[len + 1]))
    return 0;
  for (++len; isdigit ((unsigned char) p[len]); ++len)
    ;
  return strncmp (p + len, end, strlen (end)) == 0 ? len + strlen (end) : 0;
}

/* Names that change from run to run become those of their variables, so
 * that the same output stays the same.  Works in place, since the variables
 * are shorter.
 */
static void
settle_names (struct try_outcome *o, const char *dir)
{
  static const struct { const char *end, *variable; } names[] = {
    { ".sock", "$unixsocket" }, { ".disk/disk", "$disk" },
    { ".disk", "$disk" },
  };
  const size_t dir_len = strlen (dir);
  char *to = o->output;

  for (size_t from = 0; from < o->output_len;) {
    size_t len = 0;

    for (size_t i = 0; i < 3 && len == 0; ++i) {
      len = match_name (o->output + from, dir, dir_len, names[i].end);
      if (len > 0)
        to = stpcpy (to, names[i].variable);
    }
    if (len == 0) {
      *to++ = o->output[from];
      len = 1;
    }
    from += len;
  }
  if (o->output) {
    *to = '\0';
    o->output_len = to - o->output;
  }
}

/* The last lines; to be freed. */
static char *
tail_of (const char *output, size_t len)
{
  unsigned lines = 0;
  size_t start;

  while (len > 0 && isspace ((unsigned char) output[len - 1]))
    len--;
  for (start = len; start > 0 && len - start < TAIL_BYTES; --start)
    if (output[start - 1] == '\n' && ++lines == TAIL_LINES)
      break;
  return strndup (output ? output + start : "", len - start);
}

/* ---- All states */

static int
next_state (void *opaque, size_t number, struct try_task *task)
{
  const struct session *const s = opaque;
  const struct plan *const plan = &s->e->plan;

  if (number >= plan->nr)
    return 0;
  if (plan_moment (plan, &plan->states[number], &task->moment) == -1)
    return -1;
  task->export = plan_name (plan, &plan->states[number]);
  if (task->export == NULL) {
    writelog_moment_free (&task->moment);
    return -1;
  }
  if (strlen (task->export) > MAX_EXPORT)
    task->export[0] = '\0';
  return 1;
}

static void
warn_untold (const struct explore *e, size_t number, const char *why)
{
  CLEANUP_FREE char *name = NULL;

  if (e->nr[TRY_UNTOLD] > MAX_WARNINGS)
    return;
  name = plan_name (&e->plan, &e->plan.states[number]);
  explore_clear_progress ();
  msg_warning ("%s could not be tried: %s%s", name ? name : "a state",
               why ? why : "out of memory",
               e->nr[TRY_UNTOLD] == MAX_WARNINGS
               ? " (more like this is not told)" : "");
}

/* What a command says that cannot be run, in one line. */
static void
tell_cannot_run (struct explore *e, const struct try_outcome *o)
{
  CLEANUP_FREE char *tail = tail_of (o->output, o->output_len);

  explore_clear_progress ();
  msg_error ("%s%s%s", o->why ? o->why : "the command cannot be run",
             tail && tail[0] ? ": " : "", tail ? tail : "");
  e->cannot_run = e->broken = true;
}

static bool
note_state (void *opaque, size_t number, struct try_outcome *outcome)
{
  struct session *const s = opaque;
  struct explore *const e = s->e;
  struct explore_note *note;

  settle_names (outcome, s->dir);
  e->verdicts[number] = outcome->verdict;
  e->nr[outcome->verdict]++;
  s->done++;
  if (outcome->verdict != TRY_GOOD) {
    note = calloc (1, sizeof *note);
    if (note) {
      note->why = outcome->why;
      outcome->why = NULL;
      note->tail = tail_of (outcome->output, outcome->output_len);
      e->notes[number] = note;
    }
  }
  if (outcome->verdict == TRY_UNTOLD) {
    if (outcome->cannot_run && e->cannot_run)
      return false;
    if (outcome->cannot_run) {
      outcome->why = note && note->why ? strdup (note->why) : NULL;
      tell_cannot_run (e, outcome);
      return false;
    }
    warn_untold (e, number, note ? note->why : NULL);
  }
  explore_print_states (e, false);
  return true;
}

static void
show_progress (void *opaque)
{
  const struct session *const s = opaque;

  explore_print_progress (s->e, "states", s->done, s->e->plan.nr,
                          s->started);
}

static int
try_all (struct session *s)
{
  struct explore *const e = s->e;

  e->verdicts = malloc (e->plan.nr + 1);
  e->notes = calloc (e->plan.nr + 1, sizeof *e->notes);
  if (e->verdicts == NULL || e->notes == NULL) {
    msg_error ("%zu states: %m", e->plan.nr);
    return -1;
  }
  memset (e->verdicts, EXPLORE_NOT_TRIED, e->plan.nr + 1);
  explore_print_start (e);
  s->started = clock_ms ();
  if (pool_run (s->pool, next_state, note_state, show_progress, s) == -1) {
    if (pool_interrupted (s->pool))
      e->interrupted = true;
    else
      e->broken = true;
  }
  explore_clear_progress ();
  explore_print_states (e, true);
  return 0;
}

/* ---- Findings */

static struct finding *
add_finding (struct explore *e)
{
  if (e->nr_findings == e->allocated) {
    const size_t wanted = 2 * e->allocated + 8;
    struct finding *larger = reallocarray (e->findings, wanted,
                                           sizeof *larger);

    if (larger == NULL)
      return NULL;
    e->findings = larger;
    e->allocated = wanted;
  }
  e->findings[e->nr_findings] = (struct finding) { .count = 1 };
  return &e->findings[e->nr_findings++];
}

static bool
same_set (const struct least *a, const struct least *b)
{
  if (a->nr_lost != b->nr_lost)
    return false;
  return a->nr_lost > 0 ? memcmp (a->lost, b->lost,
                                  a->nr_lost * sizeof *a->lost) == 0
    : a->entries == b->entries;
}

/* The finding with the same set and last lines, or NULL. */
static struct finding *
find_same (struct explore *e, const struct least *least, const char *tail)
{
  for (size_t i = 0; i < e->nr_findings; ++i)
    if (same_set (&e->findings[i].least, least) &&
        strcmp (e->findings[i].tail, tail) == 0)
      return &e->findings[i];
  return NULL;
}

/* The name of what is left, or of the state itself if that has none. */
static char *
name_of (const struct explore *e, size_t state, const struct least *least)
{
  struct writelog_moment moment;
  char *name;

  if (writelog_moment_lost (e->index, least->entries, least->lost,
                            least->nr_lost, &moment, NULL) == -1)
    return NULL;
  name = plan_moment_name (e->index, &moment);
  writelog_moment_free (&moment);
  if (name && strlen (name) > MAX_EXPORT &&
      e->plan.states[state].kind == PLAN_RANDOM) {
    free (name);
    name = plan_name (&e->plan, &e->plan.states[state]);
  }
  return name;
}

/* Of a bad state, which comes down to this.  least is taken. */
static int
note_finding (struct session *s, size_t state, struct least *least)
{
  struct explore *const e = s->e;
  const struct explore_note *const note = e->notes[state];
  struct try_outcome *const o = &least->outcome;
  struct finding *f;
  char *tail;

  settle_names (o, s->dir);
  tail = least->tried ? tail_of (o->output, o->output_len)
    : strdup (note && note->tail ? note->tail : "");
  f = tail ? find_same (e, least, tail) : NULL;
  if (f) {
    f->count++;
    free (tail);
    least_free (least);
    return 0;
  }
  f = tail ? add_finding (e) : NULL;
  if (f == NULL) {
    free (tail);
    least_free (least);
    return -1;
  }
  f->state = state;
  f->tail = tail;
  f->why = least->tried ? o->why
    : note && note->why ? strdup (note->why) : NULL;
  f->output = o->output;
  f->output_len = o->output_len;
  f->name = name_of (e, state, least);
  f->least = *least;
  f->least.outcome = (struct try_outcome) { .why = NULL };
  return 0;
}

/* The least sets of what has been found so far.  NULL if out of memory. */
static const struct least **
all_least (const struct explore *e)
{
  const struct least **guesses = calloc (e->nr_findings + 1,
                                         sizeof *guesses);

  for (size_t i = 0; guesses && i < e->nr_findings; ++i)
    guesses[i] = &e->findings[i].least;
  return guesses;
}

static int
least_of (struct session *s, struct shrink *shrink, size_t state,
          struct least *least)
{
  struct explore *const e = s->e;
  CLEANUP_FREE const struct least **guesses = all_least (e);
  struct writelog_moment moment;
  int r;

  if (guesses == NULL ||
      plan_moment (&e->plan, &e->plan.states[state], &moment) == -1) {
    msg_error ("findings: %m");
    return -1;
  }
  r = shrink_moment (shrink, &moment, guesses, e->nr_findings, least);
  writelog_moment_free (&moment);
  return r;
}

/* What is known of states that have lost nothing. */
static int
note_prefixes (const struct explore *e, struct shrink *shrink)
{
  for (size_t i = 0; i < e->plan.nr; ++i)
    if (plan_is_prefix (&e->plan.states[i]) &&
        e->verdicts[i] <= TRY_BAD &&
        shrink_note (shrink, e->plan.states[i].entries,
                     e->verdicts[i]) == -1)
      return -1;
  return 0;
}

static int
find_all (struct session *s, struct shrink *shrink)
{
  struct explore *const e = s->e;
  uint64_t nr = 0;

  for (size_t i = 0; i < e->plan.nr; ++i) {
    struct least least;

    if (e->verdicts[i] != TRY_BAD)
      continue;
    if (!e->interrupted && pool_interrupted (s->pool))
      e->interrupted = true;
    if (e->interrupted)
      shrink->most = 0;         /* tell of the others as they are */
    explore_print_progress (e, "bad states shrunk", nr++, e->nr[TRY_BAD],
                            s->started);
    if (least_of (s, shrink, i, &least) == -1) {
      least_free (&least);
      if (e->interrupted || !pool_interrupted (s->pool))
        return -1;
      i--;                      /* once more, without runs */
      continue;
    }
    if (note_finding (s, i, &least) == -1) {
      msg_error ("findings: %m");
      return -1;
    }
  }
  return 0;
}

static void
shrink_all (struct session *s)
{
  struct explore *const e = s->e;
  struct shrink shrink = {
    .pool = s->pool, .index = e->index, .from = e->wish.from,
    .most = e->interrupted || e->broken ? 0 : e->shrink,
  };

  s->started = clock_ms ();
  if (note_prefixes (e, &shrink) == -1 || find_all (s, &shrink) == -1)
    e->broken = true;
  e->shrink_runs = shrink.runs;
  shrink_free (&shrink);
  explore_clear_progress ();
}

/* ---- What stands in the sectors of findings */

static int
next_piece (void *opaque, size_t number, struct try_task *task)
{
  struct session *const s = opaque;

  for (size_t i = 0; i < s->e->nr_findings; ++i) {
    const struct least *const least = &s->e->findings[i].least;

    if (number >= least->nr_lost) {
      number -= least->nr_lost;
      continue;
    }
    if (writelog_moment_lost (s->e->index, least->entries, NULL, 0,
                              &task->moment, NULL) == -1)
      return -1;
    task->export = plan_moment_name (s->e->index, &task->moment);
    task->name = true;
    task->piece = least->lost[number];
    return task->export ? 1 : -1;
  }
  return 0;
}

static bool
note_name (void *opaque, size_t number, struct try_outcome *outcome)
{
  struct session *const s = opaque;

  settle_names (outcome, s->dir);
  for (size_t i = 0; i < s->e->nr_findings; ++i) {
    struct finding *const f = &s->e->findings[i];

    if (number >= f->least.nr_lost) {
      number -= f->least.nr_lost;
      continue;
    }
    if (f->names == NULL)
      f->names = calloc (f->least.nr_lost, sizeof *f->names);
    if (f->names && outcome->verdict == TRY_GOOD)
      f->names[number] = tail_of (outcome->output, outcome->output_len);
    break;
  }
  return true;
}

/* ---- The whole */

/* By its full name, since commands may go elsewhere. */
static int
make_dir (struct session *s)
{
  const char *const tmp = getenv ("TMPDIR");
  CLEANUP_FREE char *full = tmp && tmp[0] ? realpath (tmp, NULL) : NULL;

  if (tmp && tmp[0] && full == NULL) {
    msg_error ("%s: temporary folder: %m", tmp);
    return -1;
  }
  if (asprintf (&s->dir, "%s/logwrites.XXXXXX",
                full && strlen (full) <= MAX_DIR ? full : "/tmp") == -1)
    s->dir = NULL;
  if (s->dir && mkdtemp (s->dir))
    return 0;
  msg_error ("%s: temporary folder: %m", s->dir ? s->dir : "");
  free (s->dir);
  s->dir = NULL;
  return -1;
}

static int
next_probe (void *opaque, size_t number, struct try_task *task)
{
  if (number > 0)
    return 0;
  task->export = strdup ("");
  return task->export ? 1 : -1;
}

static bool
note_probe (void *opaque, size_t number, struct try_outcome *outcome)
{
  struct session *const s = opaque;

  if (outcome->verdict != TRY_UNTOLD)
    return true;
  s->setup.disk = TRY_COPY;
  msg_warning ("$disk is a copy of each state, since it cannot be shown as "
               "a file: %s", outcome->why ? outcome->why : "out of memory");
  return true;
}

/* Does FUSE work here? */
static int
probe_disk (struct session *s)
{
  struct pool *pool;
  int r;

  if (!s->e->disk)
    return 0;
  s->setup.disk = TRY_FUSE;
  s->setup.command = ":";
  pool = pool_start (&s->setup, 1);
  if (pool == NULL)
    return -1;
  r = pool_run (pool, next_probe, note_probe, NULL, s);
  pool_end (pool);
  s->setup.command = s->e->command;
  s->e->disk_kind = s->setup.disk;
  if (r == 0 && s->setup.disk == TRY_FUSE && s->e->format == EXPLORE_HUMAN)
    fputs ("$disk is a file of nbdfuse\n", stderr);
  return r;
}

static int
run_session (struct session *s)
{
  struct explore *const e = s->e;
  int r;

  if (probe_disk (s) == -1)
    return -1;
  s->pool = pool_start (&s->setup,
                        MAX (MIN (e->jobs, e->plan.nr), (size_t) 1));
  if (s->pool == NULL)
    return -1;
  r = try_all (s);
  if (r == 0 && e->nr[TRY_BAD] > 0)
    shrink_all (s);
  if (r == 0 && e->name_command && !e->interrupted && !e->broken)
    pool_run (s->pool, next_piece, note_name, NULL, s);
  pool_end (s->pool);
  return r;
}

int
explore_run (struct explore *e)
{
  struct session s = { .e = e };
  int r;

  if (e->plan.nr == 0) {
    msg_error ("%s: there are no such states, so nothing was tried", e->log);
    return -1;
  }
  if (make_dir (&s) == -1)
    return -1;
  s.setup = (struct try_setup) {
    .index = e->index, .log = e->log, .base = e->base, .size = e->size,
    .command = e->command, .name_command = e->name_command,
    .timeout = e->timeout, .dir = s.dir,
  };
  r = run_session (&s);
  rmdir (s.dir);
  free (s.dir);
  return r;
}
