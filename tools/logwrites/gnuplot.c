/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Running gnuplot.
 *
 * gnuplot reads commands and data from a pipe and writes the picture to
 * its standard output, so no name of a file decides what it does.  Names
 * of marks come into its commands, but none of their characters that
 * could have a meaning there.  The picture gets its name when it is
 * complete.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/logwrites/gnuplot.h"
#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "utils/message.h"

extern char **environ;

/* ---- Text */

/* Print a text in double quotes, in which all but letters and what is
 * not ASCII is written as its code: gnuplot gives a meaning to many
 * other characters, even there, and digits would continue a code.  The
 * text is UTF-8.  What XML may not hold becomes a question mark.
 */
static void
print_quoted (FILE *gnuplot, const char *text, unsigned max_chars)
{
  unsigned nr = 0;

  putc ('"', gnuplot);
  for (; *text; ++text) {
    const unsigned char c = *text;

    if ((c & 0xc0) != 0x80 && nr++ == max_chars) {
      fputs ("...", gnuplot);
      break;
    }
    if (strncmp (text, "\357\277\276", 3) == 0 ||
        strncmp (text, "\357\277\277", 3) == 0) {
      putc ('?', gnuplot);
      text += 2;
    }
    else if (c < ' ' || c == 0x7f)
      putc ('?', gnuplot);
    else if (c < 0x80 && !isalpha (c))
      fprintf (gnuplot, "\\%03o", c);
    else
      putc (c, gnuplot);
  }
  putc ('"', gnuplot);
}

void
gnuplot_print_text (FILE *gnuplot, const char *name, unsigned max_chars)
{
  json_t *const text = json_text (name);

  print_quoted (gnuplot, text ? json_string_value (text) : "?", max_chars);
  json_decref (text);
}

/* ---- The program */

FILE *
gnuplot_start (int output, pid_t *pid)
{
  char *const argv[] = { "gnuplot", "-d", "-", NULL };
  posix_spawn_file_actions_t actions;
  int fds[2], err;
  FILE *fp;

  if (pipe2 (fds, O_CLOEXEC) == -1) {
    msg_error ("pipe: %m");
    return NULL;
  }
  posix_spawn_file_actions_init (&actions);
  posix_spawn_file_actions_adddup2 (&actions, fds[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2 (&actions, output, STDOUT_FILENO);
  err = posix_spawnp (pid, argv[0], &actions, NULL, argv, environ);
  posix_spawn_file_actions_destroy (&actions);
  close (fds[0]);
  fp = err ? NULL : fdopen (fds[1], "w");
  if (fp == NULL) {
    if (err)
      errno = err;
    msg_error ("cannot run gnuplot, which draws the picture: %m");
    close (fds[1]);
  }
  return fp;
}

int
gnuplot_end (FILE *fp, pid_t pid)
{
  int status;

  fclose (fp);
  if (waitpid (pid, &status, 0) == -1) {
    msg_error ("waitpid: %m");
    return -1;
  }
  if (status != 0) {
    msg_error ("gnuplot could not draw the picture");
    return -1;
  }
  return 0;
}

/* ---- The picture */

void
gnuplot_set_terminal (FILE *gnuplot, bool png)
{
  static const char options[] = "size 1200,750 noenhanced";

  if (png)
    fprintf (gnuplot,
             "if (strstrt (GPVAL_TERMINALS, ' pngcairo ')) "
             "{ set terminal pngcairo %s } else { set terminal png %s }\n",
             options, options);
  else
    fprintf (gnuplot,
             "set terminal svg %s background rgb 'white'\n", options);
}

static int
copy_picture (int picture, int fd, const char *name)
{
  off_t offset = 0;
  ssize_t r;

  do
    r = sendfile (fd, picture, &offset, 1024 * 1024);
  while (r > 0);
  if (r == -1)
    msg_error ("%s: write: %m", name);
  return r;
}

/* A new file beside it takes its name when it is complete. */
int
gnuplot_save (int picture, const char *name)
{
  CLEANUP_FREE char *new_name = NULL;
  CLEANUP_CLOSE int fd = -1;
  mode_t mask;

  if (asprintf (&new_name, "%s.XXXXXX", name) == -1) {
    new_name = NULL;
    msg_error ("%s: %m", name);
    return -1;
  }
  fd = mkostemp (new_name, O_CLOEXEC);
  if (fd == -1) {
    msg_error ("%s: create: %m", name);
    return -1;
  }
  mask = umask (0);
  umask (mask);
  if (copy_picture (picture, fd, name) == 0) {
    if (fchmod (fd, 0666 & ~mask) == 0 && rename (new_name, name) == 0)
      return 0;
    msg_error ("%s: %m", name);
  }
  unlink (new_name);
  return -1;
}

