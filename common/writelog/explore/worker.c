/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Processes that try states.  The index is shared with them as it was when
 * they were forked.  The threads of a worker are those of its server
 * (serve.c) and of its nodes; it ends by _exit, and they with it.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/sockets.h"
#include "writelog/explore/children.h"
#include "writelog/explore/disk.h"
#include "writelog/explore/worker.h"

/* ---- What goes to and fro */

/* A text with its length before it; NULL is the same as "". */
static int
put_text (int fd, const char *text, size_t len)
{
  if (send_all (fd, &len, sizeof len, 0) == -1)
    return -1;
  return len > 0 ? send_all (fd, text, len, 0) : 0;
}

/* To be freed, ends with NUL. */
static char *
get_text (int fd, size_t *len)
{
  char *text;

  if (receive_all (fd, len, sizeof *len) == -1)
    return NULL;
  text = malloc (*len + 1);
  if (text && receive_all (fd, text, *len) == -1) {
    free (text);
    text = NULL;
  }
  if (text)
    text[*len] = '\0';
  return text;
}

int
worker_give (struct worker *worker, const struct try_task *task)
{
  const struct writelog_moment *const moment = &task->moment;

  if (send_all (worker->fd, task, sizeof *task, 0) == -1 ||
      send_all (worker->fd, moment->lost,
                moment->nr_lost * sizeof *moment->lost, 0) == -1)
    return -1;
  return put_text (worker->fd, task->export, strlen (task->export));
}

static int
get_task (int fd, struct try_task *task)
{
  struct writelog_moment *const moment = &task->moment;
  size_t len;

  if (receive_all (fd, task, sizeof *task) == -1)
    return -1;
  task->export = NULL;
  moment->lost = calloc (moment->nr_lost + 1, sizeof *moment->lost);
  if (moment->lost == NULL ||
      receive_all (fd, moment->lost,
                   moment->nr_lost * sizeof *moment->lost) == -1)
    return -1;
  task->export = get_text (fd, &len);
  return task->export ? 0 : -1;
}

static int
put_outcome (int fd, const struct try_outcome *outcome)
{
  if (send_all (fd, outcome, sizeof *outcome, 0) == -1 ||
      put_text (fd, outcome->why, outcome->why ? strlen (outcome->why)
                                               : 0) == -1)
    return -1;
  return put_text (fd, outcome->output, outcome->output_len);
}

int
worker_take (struct worker *worker, struct try_outcome *outcome)
{
  size_t len;

  if (receive_all (worker->fd, outcome, sizeof *outcome) == -1)
    goto error;
  outcome->output = NULL;
  outcome->why = get_text (worker->fd, &len);
  if (outcome->why)
    outcome->output = get_text (worker->fd, &outcome->output_len);
  if (outcome->output)
    return 0;
  free (outcome->why);

 error:
  *outcome = (struct try_outcome) { .verdict = TRY_UNTOLD };
  return -1;
}

/* ---- The process */

/* A server that the log or the base is read from has to be asked by a
 * connection of our own.
 */
static struct node *
open_again (const char *name, const struct node_open_options *options)
{
  struct node *n = align_open (name, options);

  if (n && node_start (n) == -1) {
    node_close (n);
    n = NULL;
  }
  return n;
}

static int
open_nodes (struct try_context *context)
{
  const struct node_open_options log = { .read_only = true };
  const struct node_open_options base = {
    .read_only = true, .lock = NODE_LOCK_IMAGE,
  };
  const struct try_setup *const setup = context->setup;

  if (node_is_uri (setup->log)) {
    struct node *const node = open_again (setup->log, &log);

    if (node == NULL)
      return -1;
    writelog_index_set_log (setup->index, node);
  }
  else if (node_start (writelog_index_log (setup->index)) == -1)
    return -1;
  if (setup->base) {
    context->base = open_again (setup->base, &base);
    if (context->base == NULL)
      return -1;
  }
  return 0;
}

/* It has no name, so that it goes with the process. */
static int
open_scratch (const char *dir)
{
  CLEANUP_FREE char *name = NULL;
  int fd;

  if (asprintf (&name, "%s/scratch.XXXXXX", dir) == -1) {
    name = NULL;
    return -1;
  }
  fd = mkostemp (name, O_CLOEXEC);
  if (fd == -1)
    msg_error ("%s: temporary file for what is written: %m", dir);
  else
    unlink (name);
  return fd;
}

static void
work (struct try_context *context)
{
  struct try_outcome outcome;
  struct try_task task;
  int r;

  while (get_task (context->control, &task) == 0) {
    r = try_state (context, &task, &outcome);
    if (r == 0)
      r = put_outcome (context->control, &outcome);
    try_free (&outcome);
    try_free_task (&task);
    if (r == -1)
      return;
  }
}

void
worker_clean (const struct try_setup *setup, unsigned job)
{
  CLEANUP_FREE char *name = NULL;

  if (asprintf (&name, "%s/%u.disk", setup->dir, job) == -1) {
    name = NULL;
    return;
  }
  if (unlink (name) == -1 && errno != ENOENT)
    disk_abandon (name);
  strcpy (strrchr (name, '.'), ".sock");
  unlink (name);
}

static _Noreturn void
run (const struct try_setup *setup, unsigned job, int control, pid_t parent)
{
  struct try_context context = {
    .setup = setup, .job = job, .control = control,
  };

  setpgid (0, 0);               /* ^C is for the parent */
  signal (SIGPIPE, SIG_IGN);
  context.children = children_adopt ();
  if (context.children == -1 || open_nodes (&context) == -1)
    _exit (EXIT_FAILURE);
  context.scratch = open_scratch (setup->dir);
  if (context.scratch == -1)
    _exit (EXIT_FAILURE);
  work (&context);
  worker_clean (setup, job);
  if (getppid () != parent)     /* it was killed, */
    rmdir (setup->dir);         /* and this takes the last of us */
  _exit (EXIT_SUCCESS);
}

int
worker_start (struct worker *workers, size_t nr,
              const struct try_setup *setup, unsigned job)
{
  struct worker *const worker = &workers[job];
  const pid_t parent = getpid ();
  int fds[2];

  *worker = (struct worker) { .fd = -1 };
  if (socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1) {
    msg_error ("socketpair: %m");
    return -1;
  }
  fflush (NULL);
  worker->pid = fork ();
  if (worker->pid == -1) {
    msg_error ("fork: %m");
    close (fds[0]);
    close (fds[1]);
    worker->pid = 0;
    return -1;
  }
  if (worker->pid == 0) {
    /* Or the others would not see our parent's death. */
    for (size_t i = 0; i < nr; ++i)
      if (i != job && workers[i].pid)
        close (workers[i].fd);
    close (fds[0]);
    run (setup, job, fds[1], parent);
  }
  close (fds[1]);
  worker->fd = fds[0];
  return 0;
}

int
worker_end (struct worker *worker, int64_t limit)
{
  int status = 0;

  if (worker->pid == 0)
    return 0;
  close (worker->fd);
  while (waitpid (worker->pid, &status, WNOHANG) == 0) {
    if (clock_ms () > limit)
      kill (worker->pid, SIGKILL);
    clock_sleep_until (clock_ms () + 1);
  }
  *worker = (struct worker) { .fd = -1 };
  return status;
}
