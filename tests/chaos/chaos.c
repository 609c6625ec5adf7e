/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Runs of chaos: a few with fixed seeds as a test, or for CHAOS_SECONDS with
 * new ones.
 *
 *     chaos [--subject=NAME] [--seed=N [--only=STEPS]] [--runs=N]
 *           [--threads=N] [--trace] [--quick]
 *
 * Each run is a process of its own.  One that fails, crashes or hangs is
 * repeated with steps left out for as long as it still fails, and what is
 * left is printed.  Threads make a run differ from its repetition, so each
 * is tried some times.
 */

#include <config.h>

#include <fcntl.h>
#include <getopt.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/chaos/chaos.h"

/* Seconds of a run, after which it hangs; and those that shrinking takes. */
#define RUN_SECONDS 120
#define SHRINK_SECONDS 60
#define TRIES 6

static const struct subject *const subjects[] = {
  &chaos_qed, &chaos_log, &chaos_primary, &chaos_secondary,
};
#define NR_SUBJECTS (sizeof subjects / sizeof subjects[0])

struct chaos_figures *chaos_figures;
static unsigned all_threads;    /* of each run, or 0 */
static bool trace;
static bool quick;              /* do not shrink what failed */
static char dir[] = "/tmp/chaos-XXXXXX";

void
chaos_trace (const char *fs, ...)
{
  char text[200];
  va_list args;

  if (!trace)
    return;
  va_start (args, fs);
  vsnprintf (text, sizeof text, fs, args);
  va_end (args);
  fprintf (stderr, "%4" PRIu64 " %s\n", chaos_op - 1, text);
}

char *
chaos_in_dir (const char *name)
{
  char *path;

  CHECK (asprintf (&path, "%s/%s", dir, name) != -1);
  return path;
}

void
chaos_write_file (const char *path, const void *buf, size_t size)
{
  CLEANUP_CLOSE int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  CHECK (fd >= 0 && write (fd, buf, size) == (ssize_t) size);
}

uint8_t *
chaos_read_file (const char *path, uint64_t *size)
{
  CLEANUP_CLOSE int fd = open (path, O_RDONLY);
  struct stat st;
  uint8_t *data;

  CHECK (fd >= 0 && fstat (fd, &st) == 0);
  data = malloc (st.st_size + 1);
  CHECK (data && read (fd, data, st.st_size) == st.st_size);
  *size = st.st_size;
  return data;
}

/* ---- Plans */

uint64_t
plan_chance (const struct plan *plan, unsigned step, unsigned nr)
{
  return chaos_mix (plan->seed, step, nr) >> 8;
}

static void
make_plan (struct plan *plan, const struct subject *subject, uint64_t seed)
{
  *plan = (struct plan) { .subject = subject, .seed = seed };
  plan->nr_phases = 1 + plan_chance (plan, THE_RUN, 0) % MAX_PHASES;
  plan->nr_threads = all_threads
    ? all_threads : 1 + plan_chance (plan, THE_RUN, 1) % 6;
}

struct phase {
  const struct plan *plan;
  unsigned phase;
  void (*run) (void *opaque, unsigned step);
  void *opaque;
};

static void
run_part (struct unit_thread *t)
{
  const struct phase *p = t->opaque;

  for (unsigned i = t->nr; i < PHASE_OPS; i += p->plan->nr_threads) {
    const unsigned step = p->phase * PHASE_STEPS + i;

    if (p->plan->left_out[step])
      continue;
    chaos_begin_op (step + 1);
    p->run (p->opaque, step);
    atomic_fetch_add (&chaos_figures->ops, 1);
  }
}

void
plan_run_phase (const struct plan *plan, unsigned phase,
                void (*run) (void *opaque, unsigned step), void *opaque)
{
  struct phase p = {
    .plan = plan, .phase = phase, .run = run, .opaque = opaque
  };

  run_threads (plan->nr_threads, run_part, &p);
}

bool
plan_quiet_step (const struct plan *plan, unsigned phase, unsigned *step)
{
  *step = phase * PHASE_STEPS + PHASE_OPS;
  chaos_begin_op (*step + 1);
  return !plan->left_out[*step];
}

/* ---- Runs */

static void
empty_dir (void)
{
  CLEANUP_FREE char *command = NULL;

  CHECK (asprintf (&command, "rm -rf %s/*", dir) != -1);
  CHECK (system (command) == 0);
}

/* Did it fail? */
static bool
run_fails (const struct plan *plan, bool quiet)
{
  pid_t pid;
  int status;

  fflush (stdout);
  pid = fork ();
  CHECK (pid != -1);
  if (pid == 0) {
    if (quiet)
      CHECK (freopen ("/dev/null", "w", stderr));
    alarm (RUN_SECONDS);
    plan->subject->run (plan);
    exit (0);
  }
  CHECK (waitpid (pid, &status, 0) == pid);
  if (WIFSIGNALED (status) && !quiet)
    fprintf (stderr, "%s\n", WTERMSIG (status) == SIGALRM
             ? "the run hangs" : strsignal (WTERMSIG (status)));
  atomic_fetch_add (&chaos_figures->runs, 1);
  return status != 0;
}

static bool
ever_fails (const struct plan *plan)
{
  for (unsigned i = 0; i < TRIES; ++i)
    if (run_fails (plan, true))
      return true;
  return false;
}

/* Leave out n steps from this one on, if it fails without them as well. */
static void
try_without (struct plan *plan, unsigned from, unsigned n)
{
  struct plan less = *plan;
  bool changed = false;

  for (unsigned i = from; i < MAX_STEPS && i < from + n; ++i) {
    changed |= !less.left_out[i] && i < plan->nr_phases * PHASE_STEPS;
    less.left_out[i] = true;
  }
  if (changed && ever_fails (&less))
    *plan = less;
}

static void
shrink (struct plan *plan)
{
  const time_t until = time (NULL) + SHRINK_SECONDS;
  struct plan one = *plan;

  one.nr_threads = 1;
  if (ever_fails (&one))
    *plan = one;
  for (unsigned n = PHASE_STEPS * 4; n > 0; n /= 2)
    for (unsigned i = 0; i < plan->nr_phases * PHASE_STEPS; i += n)
      if (time (NULL) < until)
        try_without (plan, i, n);
}

static void
print_plan (const struct plan *plan)
{
  printf ("# least steps found, of %u threads:\n", plan->nr_threads);
  for (unsigned i = 0; i < plan->nr_phases * PHASE_STEPS; ++i)
    if (!plan->left_out[i]) {
      char what[200];

      plan->subject->describe (plan, i, what, sizeof what);
      printf ("#   %u: %s\n", i, what);
    }
  printf ("# again: tests/chaos/chaos --subject=%s --threads=%u --seed=%"
          PRIu64 " --only=", plan->subject->name, plan->nr_threads,
          plan->seed);
  for (unsigned i = 0, n = 0; i < plan->nr_phases * PHASE_STEPS; ++i)
    if (!plan->left_out[i])
      printf ("%s%u", n++ ? "," : "", i);
  printf ("\n");
}

/* Returns whether all went well. */
static bool
run_seed (const struct subject *subject, uint64_t seed, const char *only)
{
  struct plan plan;

  make_plan (&plan, subject, seed);
  if (only) {
    memset (plan.left_out, 1, sizeof plan.left_out);
    for (const char *p = only; *p; p += strspn (p, ",")) {
      const unsigned long step = strtoul (p, (char **) &p, 10);

      CHECK (step < MAX_STEPS && (*p == ',' || *p == '\0'));
      plan.left_out[step] = false;
    }
  }
  if (!run_fails (&plan, false))
    return true;
  printf ("# %s: seed %" PRIu64 " failed\n", subject->name, seed);
  if (!only && !quick)
    shrink (&plan);
  print_plan (&plan);
  return false;
}

/* ---- Campaigns */

static void
print_figures (void)
{
  const struct chaos_figures *f = chaos_figures;

  printf ("# %" PRIu64 " runs, %" PRIu64 " operations (%" PRIu64 " failed), "
          "%" PRIu64 " faults, states judged: %" PRIu64 " of a power loss, "
          "%" PRIu64 " of a death; %" PRIu64 " power losses gone on from\n",
          f->runs, f->ops, f->failed_ops, f->faults, f->states, f->deaths,
          f->losses);
  fflush (stdout);
}

struct options {
  const struct subject *subject; /* or NULL for all */
  uint64_t seed;                /* 0: none given */
  const char *only;
  unsigned runs;
  time_t seconds;
};

/* Returns how many subjects failed. */
static unsigned
campaign (const struct options *o)
{
  const time_t until = time (NULL) + o->seconds;
  uint64_t seed = o->seed ? o->seed : (uint64_t) time (NULL) * 1000003;

  printf ("# the first seed is %" PRIu64 "\n", seed);
  for (time_t next = time (NULL) + 60; time (NULL) < until; ++seed) {
    for (unsigned i = 0; i < NR_SUBJECTS; ++i)
      if ((!o->subject || o->subject == subjects[i]) &&
          !run_seed (subjects[i], seed, NULL))
        return 1;
    if (time (NULL) >= next) {
      print_figures ();
      next += 60;
    }
  }
  return 0;
}

/* The test: each subject with a few seeds. */
static unsigned
test (const struct options *o)
{
  unsigned nr = 0, failed = 0;

  for (unsigned i = 0; i < NR_SUBJECTS; ++i) {
    bool good = true;

    if (o->subject && o->subject != subjects[i])
      continue;
    for (unsigned run = 0; good && run < o->runs; ++run)
      good = run_seed (subjects[i], (o->seed ? o->seed : 1) + run, o->only);
    printf ("%sok %u - chaos of %s\n", good ? "" : "not ", ++nr,
            subjects[i]->name);
    failed += !good;
  }
  printf ("1..%u\n", nr);
  return failed;
}

static void
parse_options (int argc, char **argv, struct options *o)
{
  static const struct option longs[] = {
    { "subject", required_argument, NULL, 's' },
    { "seed", required_argument, NULL, 'n' },
    { "only", required_argument, NULL, 'o' },
    { "runs", required_argument, NULL, 'r' },
    { "threads", required_argument, NULL, 't' },
    { "trace", no_argument, NULL, 'v' },
    { "quick", no_argument, NULL, 'q' },
    { 0 }
  };
  const char *seconds = getenv ("CHAOS_SECONDS");
  int c;

  *o = (struct options) { .seconds = seconds ? atoi (seconds) : 0 };
  while ((c = getopt_long (argc, argv, "", longs, NULL)) != -1)
    switch (c) {
    case 's':
      for (unsigned i = 0; i < NR_SUBJECTS; ++i)
        if (strcmp (optarg, subjects[i]->name) == 0)
          o->subject = subjects[i];
      CHECK (o->subject);
      break;
    case 'n': o->seed = strtoull (optarg, NULL, 0); break;
    case 'o': o->only = optarg; break;
    case 'r': o->runs = atoi (optarg); break;
    case 't': all_threads = atoi (optarg); break;
    case 'v': trace = true; break;
    case 'q': quick = true; break;
    default: exit (2);
    }
  if (o->runs == 0)
    o->runs = o->seed ? 1 : 60 / ONE_IN;
}

int
main (int argc, char **argv)
{
  struct options o;
  unsigned failed;

  parse_options (argc, argv, &o);
  /* Copies of media come and go: do not give their memory back each time. */
  mallopt (M_MMAP_THRESHOLD, 1 << 25);
  mallopt (M_TRIM_THRESHOLD, 1 << 28);
  CHECK (mkdtemp (dir));
  chaos_figures = mmap (NULL, sizeof *chaos_figures, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK (chaos_figures != MAP_FAILED);
  msg_set_handler (collect_message);
  failed = o.seconds > 0 ? campaign (&o) : test (&o);
  print_figures ();
  empty_dir ();
  rmdir (dir);
  return failed > 0;
}
