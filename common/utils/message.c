/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See message.h. */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdarg.h>

#include "utils/message.h"

static void
to_stderr (enum msg_level level, const char *fs, va_list args)
{
  const int err = errno;

  if (level == MSG_DEBUG)
    return;

  /* One message is one line, also when several threads talk. */
  flockfile (stderr);
  fprintf (stderr, "%s: ", program_invocation_short_name);
  if (level == MSG_WARNING)
    fputs ("warning: ", stderr);
  errno = err; /* for %m */
  vfprintf (stderr, fs, args);
  fputc ('\n', stderr);
  funlockfile (stderr);
}

static msg_handler handler = to_stderr;

void
msg_set_handler (msg_handler h)
{
  handler = h ? h : to_stderr;
}

#define SAY(level)                              \
  do {                                          \
    const int saved_errno = errno;              \
    va_list args;                               \
    va_start (args, fs);                        \
    handler ((level), fs, args);                \
    va_end (args);                              \
    errno = saved_errno;                        \
  } while (0)

void
msg_error (const char *fs, ...)
{
  SAY (MSG_ERROR);
}

void
msg_warning (const char *fs, ...)
{
  SAY (MSG_WARNING);
}

void
msg_debug (const char *fs, ...)
{
  SAY (MSG_DEBUG);
}
