/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Children and what they leave. */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "writelog/explore/children.h"

#define PATIENCE 10000          /* milliseconds */

int
children_adopt (void)
{
  sigset_t set;
  int fd;

  sigemptyset (&set);
  sigaddset (&set, SIGCHLD);
  if (prctl (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == -1 ||
      sigprocmask (SIG_BLOCK, &set, NULL) == -1 ||
      (fd = signalfd (-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) == -1) {
    msg_error ("cannot watch over child processes: %m");
    return -1;
  }
  return fd;
}

pid_t
children_start (const char *const *argv, char *const *environ, int output)
{
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attr;
  sigset_t all, none;
  pid_t pid;
  int err;

  sigfillset (&all);
  sigemptyset (&none);
  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_addopen (&actions, STDIN_FILENO, "/dev/null",
                                    O_RDONLY, 0);
  posix_spawn_file_actions_adddup2 (&actions, output, STDOUT_FILENO);
  posix_spawn_file_actions_adddup2 (&actions, output, STDERR_FILENO);
  posix_spawnattr_init (&attr);
  posix_spawnattr_setsigdefault (&attr, &all);
  posix_spawnattr_setsigmask (&attr, &none);
  posix_spawnattr_setflags (&attr, POSIX_SPAWN_SETSIGDEF |
                            POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
  err = posix_spawnp (&pid, argv[0], &actions, &attr, (char *const *) argv,
                      environ);
  posix_spawnattr_destroy (&attr);
  posix_spawn_file_actions_destroy (&actions);
  if (err == 0)
    return pid;
  errno = err;
  return -1;
}

struct spared {
  const pid_t *pids;
  size_t nr;
};

static bool
is_spared (const struct spared *spared, pid_t pid)
{
  for (size_t i = 0; i < spared->nr; ++i)
    if (spared->pids[i] == pid)
      return true;
  return false;
}

/* Call it for each child that a thread of ours has. */
static unsigned
each_child (void (*call) (pid_t pid), const struct spared *spared)
{
  DIR *const tasks = opendir ("/proc/self/task");
  const struct dirent *task;
  unsigned nr = 0;

  while (tasks && (task = readdir (tasks))) {
    CLEANUP_FREE char *name = NULL;
    FILE *fp;
    int pid;

    if (task->d_name[0] == '.')
      continue;
    if (asprintf (&name, "/proc/self/task/%s/children", task->d_name) == -1) {
      name = NULL;
      break;
    }
    fp = fopen (name, "re");
    while (fp && fscanf (fp, "%d", &pid) == 1)
      if (!is_spared (spared, pid)) {
        call (pid);
        nr++;
      }
    if (fp)
      fclose (fp);
  }
  if (tasks)
    closedir (tasks);
  return nr;
}

static void
kill_child (pid_t pid)
{
  kill (-pid, SIGKILL);         /* if it leads a group */
  kill (pid, SIGKILL);
}

static void
name_child (pid_t pid)
{
  msg_warning ("process %d cannot be killed, and is left behind",
               (int) pid);
}

/* Whoever is killed leaves its children to us, so look again until there are
 * none.
 */
void
children_end (const pid_t *pids, size_t nr)
{
  const struct spared spared = { pids, nr };
  const int64_t limit = clock_ms () + PATIENCE;

  for (;;) {
    const pid_t pid = waitpid (-1, NULL, WNOHANG);

    if (pid > 0 || (pid == -1 && errno == EINTR))
      continue;
    if (pid == -1 || each_child (kill_child, &spared) == 0)
      return;
    if (clock_ms () > limit) {
      each_child (name_child, &spared);
      return;
    }
    clock_sleep_until (clock_ms () + 1);
  }
}
