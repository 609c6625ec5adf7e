/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* NBD URIs: which names are URIs, and what files they name.
 *
 * Of such a file, a socket above all, a URI may give a relative path,
 * which is relative to the current directory.  nbdkit leaves that when
 * it goes into the background, and connections are made after that, too:
 * further ones to the same server, and the next one to a server that was
 * gone.
 */

#include <config.h>

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "node/node.h"
#include "utils/rounding.h"

bool
node_is_uri (const char *name)
{
  static const char *const schemes[] = {
    "nbd://", "nbds://", "nbd+unix://", "nbds+unix://",
    "nbd+vsock://", "nbds+vsock://",
  };

  for (size_t i = 0; i < sizeof schemes / sizeof schemes[0]; ++i)
    if (strncasecmp (name, schemes[i], strlen (schemes[i])) == 0)
      return true;
  return false;
}

/* The parameters of a URI that name files. */
static const char *const file_keys[] = {
  "socket=", "tls-certificates=", "tls-psk-file=", NULL,
};

/* The length of the path that a value means. */
static size_t
path_length (const char *value)
{
  const size_t len = strcspn (value, "&;#");
  size_t escapes = 0;

  for (size_t i = 0; i < len; ++i)
    escapes += value[i] == '%';
  return len - MIN (2 * escapes, len);
}

/* A path for a socket must fit into its address.  A name that would not
 * is better left as it is: it is of use for the first connection.
 */
static bool
shall_be_absolute (const char *key, const char *value, const char *cwd)
{
  struct sockaddr_un address;
  const size_t len = path_length (value);

  return len > 0 && *value != '/' && strncasecmp (value, "%2f", 3) != 0 &&
    (strcmp (key, "socket=") != 0 ||
     strlen (cwd) + 1 + len < sizeof address.sun_path);
}

/* If this parameter of a URI names a file by a path that shall become
 * absolute, return where that begins, else NULL.
 */
static const char *
find_relative (const char *param, const char *cwd)
{
  for (const char *const *key = file_keys; *key; ++key) {
    const char *value = param + strlen (*key);

    if (strncasecmp (param, *key, strlen (*key)) == 0)
      return shall_be_absolute (*key, value, cwd) ? value : NULL;
  }
  return NULL;
}

static void
print_escaped (FILE *fp, const char *path)
{
  for (const char *p = path; *p; ++p)
    fprintf (fp, isalnum ((unsigned char) *p) || strchr ("/-._~", *p) ?
             "%c" : "%%%02X", (unsigned char) *p);
}

/* Print the URI, and before each relative path the directory. */
static void
print_absolute (FILE *fp, const char *uri, const char *cwd)
{
  const char *param = strchr (uri, '?');

  for (; param; param = strpbrk (param + 1, "&;")) {
    const char *value = find_relative (param + 1, cwd);

    if (value) {
      fwrite (uri, 1, value - uri, fp);
      print_escaped (fp, cwd);
      fputc ('/', fp);
      uri = value;
    }
  }
  fputs (uri, fp);
}

char *
node_absolute_uri (const char *uri)
{
  CLEANUP_FREE char *cwd = getcwd (NULL, 0);
  char *text = NULL;
  size_t len;
  FILE *fp;

  if (cwd == NULL)              /* relative paths lead nowhere */
    return strdup (uri);
  fp = open_memstream (&text, &len);
  if (fp == NULL)
    return NULL;
  print_absolute (fp, uri, cwd);
  if (fclose (fp) != 0) {
    free (text);
    text = NULL;
  }
  return text;
}
