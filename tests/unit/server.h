/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* An nbdkit server that a unit test starts, stops and kills. */

#ifndef BLOCKDRIVERS_SERVER_H
#define BLOCKDRIVERS_SERVER_H

#include <signal.h>
#include <stdbool.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/unit/unit.h"

struct server {
  char sock[96], uri[128], pidfile[96];
  pid_t pid;                    /* 0: not running */
};

static inline void
pause_a_moment (void)
{
  nanosleep (&(struct timespec) { .tv_nsec = 10 * 1000 * 1000 }, NULL);
}

/* Its socket and pid file will be in dir. */
static inline void
server_init (struct server *s, const char *dir)
{
  s->pid = 0;
  snprintf (s->sock, sizeof s->sock, "%s/sock", dir);
  snprintf (s->uri, sizeof s->uri, "nbd+unix:///?socket=%s", s->sock);
  snprintf (s->pidfile, sizeof s->pidfile, "%s/pid", dir);
}

/* Start nbdkit with these arguments, up to a NULL, and wait until it
 * serves the socket.
 */
static inline void
server_start (struct server *s, const char *first, ...)
{
  const char *argv[32] = {
    "nbdkit", "--exit-with-parent", "-U", s->sock, "-P", s->pidfile, first
  };
  size_t n = 7;
  va_list args;

  va_start (args, first);
  do
    CHECK (n < 32);
  while ((argv[n++] = va_arg (args, const char *)));
  va_end (args);

  unlink (s->sock);
  unlink (s->pidfile);
  s->pid = fork ();
  CHECK (s->pid >= 0);
  if (s->pid == 0) {
    execvp (argv[0], (char **) argv);
    perror ("nbdkit");
    _exit (127);
  }
  while (access (s->pidfile, F_OK) == -1) {
    CHECK (waitpid (s->pid, NULL, WNOHANG) == 0);
    pause_a_moment ();
  }
}

/* Hold it with its connections open.  The signal takes effect some time
 * after kill returns, and until then requests may still be answered.
 */
static inline void
server_hold (struct server *s)
{
  int status;

  kill (s->pid, SIGSTOP);
  CHECK (waitpid (s->pid, &status, WUNTRACED) == s->pid);
  CHECK (WIFSTOPPED (status));
}

/* And let it go on. */
static inline void
server_go_on (struct server *s)
{
  kill (s->pid, SIGCONT);
}

static inline void
server_end (struct server *s, int sig)
{
  if (s->pid > 0) {
    kill (s->pid, sig);
    waitpid (s->pid, NULL, 0);
  }
  s->pid = 0;
  unlink (s->sock);
  unlink (s->pidfile);
}

/* How many requests of this kind are in the log that nbdkit's log filter has
 * written to this file?
 */
static inline unsigned
server_nr_requests (const char *log, const char *kind)
{
  char line[1024], begin[64];
  unsigned nr = 0;
  FILE *fp = fopen (log, "r");

  assert_non_null (fp);
  snprintf (begin, sizeof begin, " %s ", kind);
  while (fgets (line, sizeof line, fp))
    nr += strstr (line, begin) != NULL;
  fclose (fp);
  return nr;
}

#endif /* BLOCKDRIVERS_SERVER_H */
