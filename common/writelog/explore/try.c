/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One try of one state. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node/scratch.h"
#include "node/serve.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/explore/children.h"
#include "writelog/explore/disk.h"
#include "writelog/explore/try.h"
#include "writelog/moments/moment.h"
#include "writelog/moments/state.h"

/* Statuses of COMMAND, and of the shell. */
enum { SKIP_STATUS = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

extern char **environ;

struct try {
  struct try_context *context;
  struct try_task *task;
  struct try_outcome *outcome;

  struct node *node;
  int listener;
  struct serve *serve;
  char *socket, *uri;
  char *folder;                 /* where the file of the disk is, */
  char *file;                   /* this */
  pid_t fuse;                   /* or 0 */
  char **variables;             /* of the command; owned, ends with NULL */
  size_t nr_variables;
};

void
try_free (struct try_outcome *outcome)
{
  free (outcome->why);
  free (outcome->output);
  *outcome = (struct try_outcome) { .why = NULL };
}

void
try_free_task (struct try_task *task)
{
  writelog_moment_free (&task->moment);
  free (task->export);
  task->export = NULL;
}

static void
set_why (struct try *t, enum try_verdict verdict, const char *fs, ...)
  __attribute__ ((format (printf, 3, 4)));

static void
set_why (struct try *t, enum try_verdict verdict, const char *fs, ...)
{
  va_list args;

  t->outcome->verdict = verdict;
  free (t->outcome->why);
  va_start (args, fs);
  if (vasprintf (&t->outcome->why, fs, args) == -1)
    t->outcome->why = NULL;
  va_end (args);
}

/* ---- The server */

static int
listen_on (const char *name)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };
  int fd;

  if (strlen (name) >= sizeof addr.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy (addr.sun_path, name);
  unlink (name);
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 && (bind (fd, (struct sockaddr *) &addr, sizeof addr) == -1 ||
                  listen (fd, SOMAXCONN) == -1)) {
    close (fd);
    fd = -1;
  }
  return fd;
}

static void
print_escaped (FILE *fp, const char *text)
{
  for (; *text; ++text)
    if ((*text >= '0' && *text <= '9') ||
        ((*text | 32) >= 'a' && (*text | 32) <= 'z') ||
        strchr ("-._~/:,", *text))
      putc (*text, fp);
    else
      fprintf (fp, "%%%02x", (unsigned char) *text);
}

/* NULL if out of memory. */
static char *
make_uri (const char *export, const char *socket)
{
  char *uri = NULL;
  size_t len;
  FILE *fp = open_memstream (&uri, &len);

  if (fp == NULL)
    return NULL;
  fputs ("nbd+unix:///", fp);
  print_escaped (fp, export);
  fputs ("?socket=", fp);
  print_escaped (fp, socket);
  if (fclose (fp) != 0) {
    free (uri);
    uri = NULL;
  }
  return uri;
}

static int
start_server (struct try *t)
{
  const struct try_context *const c = t->context;
  struct node *state;

  state = writelog_moment_open (c->setup->index, &t->task->moment, c->base,
                                c->setup->size);
  if (state)
    t->node = scratch_open (state, c->scratch);
  if (t->node == NULL)
    goto error;
  if (asprintf (&t->socket, "%s/%u.sock", c->setup->dir, c->job) == -1) {
    t->socket = NULL;
    goto error;
  }
  t->uri = make_uri (t->task->export, t->socket);
  t->listener = t->uri ? listen_on (t->socket) : -1;
  if (t->listener >= 0)
    t->serve = serve_start (t->node, t->listener, t->task->export);
  if (t->serve)
    return 0;

 error:
  set_why (t, TRY_UNTOLD, "it cannot be served: %m");
  return -1;
}

static void
stop_server (struct try *t)
{
  if (t->serve)
    serve_stop (t->serve);
  if (t->listener >= 0)
    close (t->listener);
  if (t->socket)
    unlink (t->socket);
  if (t->node && scratch_error (t->node)) {
    errno = scratch_error (t->node);
    set_why (t, TRY_UNTOLD, "its server had a failure: %m");
  }
  node_close (t->node);
  free (t->socket);
  free (t->uri);
}

/* ---- The file */

static int
make_file (struct try *t)
{
  const struct try_context *const c = t->context;
  CLEANUP_FREE char *why = NULL;

  if (c->setup->disk == TRY_NO_DISK)
    return 0;
  if (asprintf (&t->folder, "%s/%u.disk", c->setup->dir, c->job) == -1) {
    t->folder = NULL;
    set_why (t, TRY_UNTOLD, "%m");
    return -1;
  }
  if (c->setup->disk == TRY_COPY) {
    t->file = strdup (t->folder);
    if (t->file && disk_copy (t->node, t->file) == 0)
      return 0;
    set_why (t, TRY_UNTOLD, "it cannot be copied to %s: %m", t->folder);
    return -1;
  }
  t->fuse = disk_mount (t->folder, t->uri, &t->file, &why);
  if (t->fuse != -1)
    return 0;
  t->fuse = 0;
  set_why (t, TRY_UNTOLD, "nbdfuse: %s", why ? why : "out of memory");
  return -1;
}

static void
remove_file (struct try *t)
{
  if (t->fuse && !disk_unmount (t->folder, t->fuse))
    set_why (t, TRY_UNTOLD, "nbdfuse ended before the command did");
  else if (t->file && !t->fuse)
    unlink (t->file);
  free (t->folder);
  free (t->file);
}

/* ---- The environment */

/* NAME=VALUE in the place of what the environment has for NAME, or at the
 * end.  There is room.
 */
static int
set_variable (struct try *t, const char *name, const char *value)
{
  const size_t len = strlen (name);
  char *text;
  size_t i;

  if (asprintf (&text, "%s=%s", name, value) == -1)
    return -1;
  for (i = 0; i < t->nr_variables; ++i)
    if (strncmp (t->variables[i], name, len) == 0 &&
        t->variables[i][len] == '=')
      break;
  if (i < t->nr_variables)
    free (t->variables[i]);
  else
    t->variables[++t->nr_variables] = NULL;
  t->variables[i] = text;
  return 0;
}

static int
set_number (struct try *t, const char *name, uint64_t value)
{
  char text[32];

  snprintf (text, sizeof text, "%" PRIu64, value);
  return set_variable (t, name, text);
}

static int
copy_environment (struct try *t)
{
  size_t n = 0;

  while (environ[n])
    n++;
  t->variables = calloc (n + 16, sizeof *t->variables);
  if (t->variables == NULL)
    return -1;
  for (; t->nr_variables < n; ++t->nr_variables) {
    t->variables[t->nr_variables] = strdup (environ[t->nr_variables]);
    if (t->variables[t->nr_variables] == NULL)
      return -1;
  }
  return 0;
}

/* The last mark before the moment, to be freed. */
static char *
last_mark (const struct try *t)
{
  const struct writelog_index *const index = t->context->setup->index;

  return writelog_last_mark (index, t->task->moment.entries);
}

static int
set_variables (struct try *t)
{
  const struct writelog_index *const index = t->context->setup->index;
  const struct writelog_moment *const moment = &t->task->moment;
  const struct lost_piece *const piece = &t->task->piece;
  struct writelog_totals totals;
  CLEANUP_FREE char *mark = last_mark (t);

  writelog_index_totals (index, &totals);
  if (mark == NULL || copy_environment (t) == -1 ||
      set_variable (t, "uri", t->uri) == -1 ||
      set_variable (t, "unixsocket", t->socket) == -1 ||
      set_variable (t, "exportname", t->task->export) == -1 ||
      set_number (t, "entry", moment->entries) == -1 ||
      set_number (t, "flush",
                  writelog_count_flushes (index, moment->entries)) == -1 ||
      set_variable (t, "mark", mark) == -1 ||
      set_variable (t, "disk", t->file ? t->file : "") == -1)
    return -1;
  if (!t->task->name)
    return 0;
  if (set_number (t, "sector", piece->start) == -1 ||
      set_number (t, "sectors", piece->end - piece->start) == -1 ||
      set_number (t, "offset", piece->start * totals.sector_size) == -1 ||
      set_number (t, "sector_size", totals.sector_size) == -1)
    return -1;
  return 0;
}

/* ---- The command */

/* Add to what is kept of the output. */
static int
keep (struct try_outcome *o, const char *buf, size_t len)
{
  char *larger;

  if (len > TRY_MAX_OUTPUT) {
    buf += len - TRY_MAX_OUTPUT;
    len = TRY_MAX_OUTPUT;
  }
  if (o->output_len + len > TRY_MAX_OUTPUT) {
    const size_t drop = o->output_len + len - TRY_MAX_OUTPUT;

    memmove (o->output, o->output + drop, o->output_len - drop);
    o->output_len -= drop;
  }
  larger = realloc (o->output, o->output_len + len + 1);
  if (larger == NULL)
    return -1;
  o->output = larger;
  memcpy (o->output + o->output_len, buf, len);
  o->output_len += len;
  o->output[o->output_len] = '\0';
  return 0;
}

/* What is in the pipe now.  False at its end. */
static bool
read_output (struct try *t, int fd)
{
  char buf[16384];
  ssize_t n;

  while ((n = read (fd, buf, sizeof buf)) > 0)
    if (keep (t->outcome, buf, n) == -1)
      return true;
  return n == -1 && (errno == EAGAIN || errno == EINTR);
}

enum end { ENDED, TIMEOUT, GIVEN_UP };

/* Wait until a child has ended. */
static enum end
watch (struct try *t, pid_t pid, int output, int *status)
{
  const int64_t timeout = t->context->setup->timeout;
  const int64_t limit = timeout > 0 ? clock_ms () + timeout : INT64_MAX;
  struct pollfd fds[3] = {
    { .fd = t->context->children, .events = POLLIN },
    { .fd = t->context->control, .events = 0 },
    { .fd = output, .events = POLLIN },
  };
  struct signalfd_siginfo info;

  for (;;) {
    const int64_t left = limit - clock_ms ();

    if (waitpid (pid, status, WNOHANG) == pid)
      return ENDED;
    if (left <= 0)
      return TIMEOUT;
    poll (fds, 3, limit == INT64_MAX ? -1 : (int) MIN (left, INT64_C (60000)));
    while (read (fds[0].fd, &info, sizeof info) > 0)
      ;
    if (fds[1].revents)
      return GIVEN_UP;
    if (fds[2].revents && !read_output (t, output))
      fds[2].fd = -1;
  }
}

static void
judge (struct try *t, int status)
{
  if (WIFSIGNALED (status))
    set_why (t, TRY_BAD, "killed by signal %d (%s)", WTERMSIG (status),
             strsignal (WTERMSIG (status)));
  else if (WEXITSTATUS (status) == 0)
    t->outcome->verdict = TRY_GOOD;
  else if (WEXITSTATUS (status) == SKIP_STATUS)
    t->outcome->verdict = TRY_SKIPPED;
  else if (WEXITSTATUS (status) == NOT_FOUND ||
           WEXITSTATUS (status) == NOT_EXECUTABLE) {
    set_why (t, TRY_UNTOLD, "the command cannot be run: exit status %d",
             WEXITSTATUS (status));
    t->outcome->cannot_run = true;
  }
  else
    set_why (t, TRY_BAD, "exit status %d", WEXITSTATUS (status));
}

/* A command that had no room for its own files has found nothing out. */
static void
check_room (struct try *t)
{
  struct statvfs s;

  if (t->outcome->verdict == TRY_BAD &&
      statvfs (t->context->setup->dir, &s) == 0 && s.f_blocks > 0 &&
      s.f_bavail == 0)
    set_why (t, TRY_UNTOLD, "the temporary folder %s is full",
             t->context->setup->dir);
}

/* -1 if it was given up. */
static int
run_command (struct try *t)
{
  const struct try_setup *const setup = t->context->setup;
  const char *const argv[] = {
    "/bin/sh", "-c", t->task->name ? setup->name_command : setup->command,
    NULL
  };
  int fds[2], status = 0;
  enum end end;
  pid_t pid;

  if (set_variables (t) == -1 || pipe2 (fds, O_CLOEXEC) == -1) {
    set_why (t, TRY_UNTOLD, "the command cannot be started: %m");
    return 0;
  }
  fcntl (fds[0], F_SETFL, O_NONBLOCK);
  pid = children_start (argv, t->variables, fds[1]);
  if (pid == -1)
    set_why (t, TRY_UNTOLD, "the command cannot be started: %m");
  close (fds[1]);
  end = pid == -1 ? ENDED : watch (t, pid, fds[0], &status);
  if (pid != -1)
    kill (-pid, SIGKILL);       /* its group, and then all the others */
  children_end (&t->fuse, t->fuse ? 1 : 0);
  read_output (t, fds[0]);
  close (fds[0]);
  if (pid == -1)
    return 0;
  if (end == TIMEOUT)
    set_why (t, TRY_BAD, "not done after %g seconds",
             setup->timeout / 1000.0);
  else
    judge (t, status);
  check_room (t);
  return end == GIVEN_UP ? -1 : 0;
}

int
try_state (struct try_context *context, struct try_task *task,
           struct try_outcome *outcome)
{
  struct try t = {
    .context = context, .task = task, .outcome = outcome, .listener = -1,
  };
  int r = 0;

  *outcome = (struct try_outcome) { .why = NULL };
  if (start_server (&t) == 0 && make_file (&t) == 0)
    r = run_command (&t);
  remove_file (&t);
  stop_server (&t);
  for (size_t i = 0; i < t.nr_variables; ++i)
    free (t.variables[i]);
  free (t.variables);
  return r;
}
