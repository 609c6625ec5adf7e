/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * An image must be opened, locked and, if need be, repaired before
 * nbdkit begins to serve, so that errors appear on the command line.
 * But whether to open it for writing is known only later: nbdkit tells
 * plugins of -r when a client connects.  A reader must not lock others
 * out as a writer does, and must not repair anything.  So the answer is
 * read from the server's own command line, by its own rules.
 *
 * There is no better way as long as nbdkit (1.48 is the newest that was
 * looked at) has no function that tells a plugin of -r before .open.  To
 * open for writing when the first client comes would tell that client, and
 * not the user who started the server, that the image is locked, damaged
 * or not writable.  To open for writing always, and fall back, would lock
 * out other readers, and repair what -r promises to leave alone.  A
 * parameter would have to be given besides -r, with the same result where
 * it is forgotten.
 *
 * The table of options need not be complete.  The argument of one that
 * is not there counts as a word of its own, which means something here
 * only if it begins with a dash.
 */

#include <config.h>

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-plugin.h>

#include "utils/cleanup.h"
#include "plugins/qed/server.h"

enum { FILTER = 256 };

/* Options of nbdkit 1.32 to 1.48 that take an argument, and those we look for;
 * the others need no entry, since unknown ones are skipped.  As there,
 * options may stand behind the plugin's name, too.
 */
static const char short_options[] = ":D:e:g:i:P:p:rt:U:u:";
static const struct option long_options[] = {
  { "debug", required_argument, NULL, 0 },
  { "export", required_argument, NULL, 0 },
  { "export-name", required_argument, NULL, 0 },
  { "exportname", required_argument, NULL, 0 },
  { "filter", required_argument, NULL, FILTER },
  { "group", required_argument, NULL, 0 },
  { "ip-addr", required_argument, NULL, 0 },
  { "ipaddr", required_argument, NULL, 0 },
  { "log", required_argument, NULL, 0 },
  { "mask-handshake", required_argument, NULL, 0 },
  { "name", required_argument, NULL, 0 },
  { "pid-file", required_argument, NULL, 0 },
  { "pidfile", required_argument, NULL, 0 },
  { "port", required_argument, NULL, 0 },
  { "read-only", no_argument, NULL, 'r' },
  { "readonly", no_argument, NULL, 'r' },
  { "run", required_argument, NULL, 0 },
  { "selinux-label", required_argument, NULL, 0 },
  { "threads", required_argument, NULL, 0 },
  { "time-out", required_argument, NULL, 0 },
  { "timeout", required_argument, NULL, 0 },
  { "tls", required_argument, NULL, 0 },
  { "tls-certificates", required_argument, NULL, 0 },
  { "tls-priority", required_argument, NULL, 0 },
  { "tls-psk", required_argument, NULL, 0 },
  { "unix", required_argument, NULL, 0 },
  { "user", required_argument, NULL, 0 },
  { NULL }
};

/* The cow filter, by its short or its file name. */
static bool
is_cow (const char *filter)
{
  const char *slash = strrchr (filter, '/');

  if (slash)
    filter = slash + 1;
  return strcmp (filter, "cow") == 0 ||
    strcmp (filter, "nbdkit-cow-filter.so") == 0;
}

/* Does this command line make the plugin read-only?  Changes argv. */
static bool
parse (int argc, char *argv[])
{
  int c;

  opterr = 0;
  optind = 0;                   /* start anew */
  while ((c = getopt_long (argc, argv, short_options, long_options, NULL))
         != -1)
    if (c == 'r' || (c == FILTER && is_cow (optarg)))
      return true;
  return false;
}

/* Read /proc/self/cmdline into memory; its length is returned. */
static size_t
read_command_line (char **line)
{
  FILE *fp = fopen ("/proc/self/cmdline", "r");
  size_t size = 0;
  ssize_t len = -1;

  *line = NULL;
  if (fp) {
    /* No byte of it is 255, so this reads all. */
    len = getdelim (line, &size, 255, fp);
    fclose (fp);
  }
  return len > 0 ? len : 0;
}

bool
server_is_read_only (void)
{
  CLEANUP_FREE char *line = NULL;
  CLEANUP_FREE char **argv = NULL;
  const size_t len = read_command_line (&line);
  int argc = 0;

  argv = calloc (len + 1, sizeof *argv);
  if (argv == NULL)
    return false;
  for (size_t i = 0; i < len; i += strlen (line + i) + 1)
    argv[argc++] = line + i;
  return argc > 0 && parse (argc, argv);
}
