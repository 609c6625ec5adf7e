/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See names.h.
 *
 * The JSON of a name is made flat first, so that {"file": {"filename": X}}
 * and {"file.filename": X} are the same.  Then each option is taken out
 * that is understood, and if one remains the name is refused: what we do
 * not know may be what makes the image another one.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "node/node.h"
#include "qed/names.h"
#include "utils/cleanup.h"
#include "utils/message.h"

static int __attribute__ ((format (printf, 3, 4)))
refuse (const char *name, const char *hint, const char *fs, ...)
{
  char why[512];
  va_list args;

  va_start (args, fs);
  vsnprintf (why, sizeof why, fs, args);
  va_end (args);
  errno = EINVAL;
  msg_error ("Could not open '%s': %s%s%s", name, why, hint ? "; " : "",
             hint ? : "");
  return -1;
}

static int
no_memory (const char *name)
{
  errno = ENOMEM;
  msg_error ("Could not open '%s': %m", name);
  return -1;
}

/* ---- Protocols
 *
 * QEMU takes PROTOCOL: before the first slash for a block driver.
 */

static bool
has_protocol (const char *name)
{
  const char *colon = strchr (name, ':');
  const char *slash = strchr (name, '/');

  return colon && (slash == NULL || colon < slash);
}

/* Who serves what over NBD. */
static const struct { const char *protocol, *server; } servers[] = {
  { "http", "nbdkit curl" }, { "https", "nbdkit curl" },
  { "ftp", "nbdkit curl" }, { "ftps", "nbdkit curl" },
  { "ssh", "nbdkit ssh" }, { "sftp", "nbdkit ssh" },
  { "iscsi", "qemu-nbd" }, { "nfs", "qemu-nbd" }, { "rbd", "qemu-nbd" },
  { "gluster", "qemu-nbd" }, { "gluster+tcp", "qemu-nbd" },
  { "gluster+unix", "qemu-nbd" }, { "vhdx", "qemu-nbd" },
  { "fat", "nbdkit floppy" }, { "s3", "nbdkit S3" },
};

/* nbd:HOST:PORT and nbd:unix:PATH, both with :exportname=NAME, were QEMU's
 * before there were URIs.
 */
static int
refuse_old_nbd (const char *name, const char *hint)
{
  static const char key[] = ":exportname=";
  const char *const export = strstr (name, key);
  const char *const rest = name + strlen ("nbd:");
  const int len = export ? (int) (export - rest) : (int) strlen (rest);
  const char *const export_name = export ? export + strlen (key) : "";

  if (strncmp (rest, "unix:", 5) == 0)
    return refuse (name, hint, "write nbd+unix:///%s?socket=%.*s",
                   export_name, len - 5, rest + 5);
  return refuse (name, hint, "write nbd://%.*s/%s", len, rest, export_name);
}

static int
refuse_protocol (const char *name, const char *hint)
{
  const int len = strchr (name, ':') - name;

  if (strncmp (name, "nbd:", 4) == 0)
    return refuse_old_nbd (name, hint);
  for (size_t i = 0; i < sizeof servers / sizeof servers[0]; ++i)
    if (strlen (servers[i].protocol) == (size_t) len &&
        strncmp (name, servers[i].protocol, len) == 0)
      return refuse (name, hint, "Unknown protocol '%.*s'; serve it with "
                     "\"%s\" and give that server's NBD URI", len, name,
                     servers[i].server);
  return refuse (name, hint, "Unknown protocol '%.*s'; if this is a file, "
                 "write ./%s", len, name, name);
}

/* ---- JSON */

/* Add what an object has to flat, with the prefix before its keys. */
static int
flatten (json_t *flat, const char *prefix, json_t *object)
{
  const char *key;
  json_t *value;

  json_object_foreach (object, key, value) {
    CLEANUP_FREE char *name = NULL;

    if (asprintf (&name, "%s%s", prefix, key) == -1) {
      name = NULL;
      return -1;
    }
    if (json_is_object (value)) {
      CLEANUP_FREE char *longer = NULL;

      if (asprintf (&longer, "%s.", name) == -1) {
        longer = NULL;
        return -1;
      }
      if (flatten (flat, longer, value) == -1)
        return -1;
    }
    else if (json_object_set (flat, name, value) == -1)
      return -1;
  }
  return 0;
}

/* Take out an option that is a string.  Returns NULL if there is none, or
 * it is none; result is to be freed.
 */
static char *
take (json_t *o, const char *key)
{
  const char *const text = json_string_value (json_object_get (o, key));
  char *const copy = text ? strdup (text) : NULL;

  if (copy)
    json_object_del (o, key);
  return copy;
}

static int
parse_format (const char *name, const char *hint, const char *driver,
              enum qed_format *format)
{
  *format = QED_FORMAT_PROBE;
  if (driver == NULL)
    return 0;
  if (strcmp (driver, "qed") == 0)
    *format = QED_FORMAT_QED;
  else if (strcmp (driver, "raw") == 0)
    *format = QED_FORMAT_RAW;
  else
    return refuse (name, hint, "the driver '%s' is not supported, only qed "
                   "and raw over file and nbd", driver);
  return 0;
}

/* A text for a place in a URI, where it must not become more than that; to
 * be freed.
 */
static char *
escape (const char *text)
{
  char *const result = malloc (3 * strlen (text) + 1);
  char *p = result;

  for (; result && *text; ++text)
    p += sprintf (p, isalnum ((unsigned char) *text) ||
                  strchr ("/-._~", *text) ? "%c" : "%%%02X",
                  (unsigned char) *text);
  if (result)
    *p = '\0';
  return result;
}

/* The same of an option, as take has it. */
static char *
take_escaped (json_t *o, const char *key)
{
  CLEANUP_FREE char *text = take (o, key);

  return text ? escape (text) : NULL;
}

/* The options of an NBD server: a URI of them, NULL if they are not
 * complete.
 */
static char *
take_nbd (json_t *o)
{
  CLEANUP_FREE char *type = take (o, "file.server.type");
  CLEANUP_FREE char *export = take_escaped (o, "file.export");
  CLEANUP_FREE char *path = take_escaped (o, "file.path");
  CLEANUP_FREE char *host = take (o, "file.host");
  CLEANUP_FREE char *port = take (o, "file.port");
  char *uri = NULL;
  int r = -1;

  if (path == NULL)
    path = take_escaped (o, "file.server.path");
  if (host == NULL)
    host = take (o, "file.server.host");
  if (port == NULL)
    port = take (o, "file.server.port");
  if (path)
    r = asprintf (&uri, "nbd+unix:///%s?socket=%s", export ? : "", path);
  else if (host)
    r = asprintf (&uri, strchr (host, ':') ? "nbd://[%s]:%s/%s"
                  : "nbd://%s:%s/%s", host, port ? : "10809", export ? : "");
  return r == -1 ? NULL : uri;
}

/* The file, or NULL. */
static char *
take_file (json_t *o, const char *driver)
{
  if (driver && strcmp (driver, "nbd") == 0)
    return take_nbd (o);
  return take (o, "file.filename");
}

static int
parse_locking (const char *name, const char *hint, json_t *o, bool *no_lock)
{
  CLEANUP_FREE char *locking = take (o, "file.locking");

  *no_lock = locking && strcmp (locking, "off") == 0;
  if (locking && !*no_lock && strcmp (locking, "on") != 0 &&
      strcmp (locking, "auto") != 0)
    return refuse (name, hint, "Invalid parameter '%s' of 'locking'",
                   locking);
  return 0;
}

static bool
is_file_driver (const char *driver)
{
  return driver == NULL || strcmp (driver, "file") == 0 ||
    strcmp (driver, "host_device") == 0 || strcmp (driver, "nbd") == 0;
}

static int
parse_options (const char *name, const char *hint, json_t *o,
               struct qed_name *result)
{
  CLEANUP_FREE char *driver = take (o, "driver");
  CLEANUP_FREE char *file_driver = take (o, "file.driver");

  if (parse_format (name, hint, driver, &result->format) == -1 ||
      parse_locking (name, hint, o, &result->no_lock) == -1)
    return -1;
  if (!is_file_driver (file_driver))
    return refuse (name, hint, "the driver '%s' is not supported, only file "
                   "and nbd", file_driver);
  result->file = take_file (o, file_driver);
  if (result->file == NULL)
    return refuse (name, hint, "A block device must be specified for "
                   "\"file\", by file.filename or as an NBD server");
  if (json_object_size (o) == 0)
    return 0;
  free (result->file);
  result->file = NULL;
  return refuse (name, hint, "the option '%s' is not supported",
                 json_object_iter_key (json_object_iter (o)));
}

static int
parse_json (const char *name, const char *hint, struct qed_name *result)
{
  json_error_t error;
  json_t *const options = json_loads (name + strlen ("json:"),
                                      JSON_REJECT_DUPLICATES, &error);
  json_t *const flat = json_object ();
  int r;

  if (options == NULL)
    r = refuse (name, hint, "Could not parse the JSON options: %s",
                error.text);
  else if (!json_is_object (options))
    r = refuse (name, hint, "Invalid JSON object given");
  else if (flat == NULL || flatten (flat, "", options) == -1)
    r = no_memory (name);
  else
    r = parse_options (name, hint, flat, result);
  json_decref (options);
  json_decref (flat);
  return r;
}

/* ---- Names */

int
qed_parse_name (const char *name, const char *hint, struct qed_name *result)
{
  const char *path = name;

  *result = (struct qed_name) { .format = QED_FORMAT_PROBE };
  if (!node_is_uri (name) && has_protocol (name)) {
    if (strncmp (name, "json:", 5) == 0)
      return parse_json (name, hint, result);
    path = qed_without_protocol (name);
    if (path == name)
      return refuse_protocol (name, hint);
  }
  result->file = strdup (path);
  return result->file ? 0 : no_memory (name);
}

int
qed_backing_full_name (const char *image, const char *backing, char **name)
{
  const char *slash = strrchr (image, '/');
  int r;

  *name = NULL;
  if (backing[0] == '/' || has_protocol (backing) ||
      (slash == NULL && !node_is_uri (image)))
    r = asprintf (name, "%s", backing);
  else if (node_is_uri (image))
    return 0;
  else
    r = asprintf (name, "%.*s/%s", (int) (slash - image), image, backing);
  if (r == -1) {
    *name = NULL;
    msg_error ("%s: backing name: %m", image);
    return -1;
  }
  return 0;
}

const char *
qed_without_protocol (const char *name)
{
  return strncmp (name, "file:", 5) == 0 ? name + 5 : name;
}

char *
qed_backing_path (const char *image, const char *backing, bool in_header,
                  enum qed_format *format)
{
  const char *const hint = in_header ? QED_OTHER_BACKING : NULL;
  CLEANUP_FREE char *name = NULL;
  struct qed_name parsed;

  if (qed_backing_full_name (image, backing, &name) == -1)
    return NULL;
  if (name == NULL) {
    refuse (backing, hint, "it is relative to %s, which is no local file",
            image);
    return NULL;
  }
  if (qed_parse_name (name, hint, &parsed) == -1)
    return NULL;
  if (parsed.no_lock) {
    free (parsed.file);
    refuse (backing, hint, "locking=off is not possible in the name of a "
            "backing image, use -U, --no-lock or lock=false");
    return NULL;
  }
  if (*format == QED_FORMAT_PROBE)
    *format = parsed.format;
  return parsed.file;
}
