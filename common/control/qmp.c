/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See qmp.h. */

#include <config.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "utils/jsontext.h"
#include "control/qmp.h"

static int __attribute__ ((format (printf, 2, 3)))
set_error (char **error, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  if (vasprintf (error, fs, args) == -1)
    *error = NULL;
  va_end (args);
  return -1;
}

/* ---- Requests */

static int
check_members (json_t *request, char **error)
{
  const char *key;
  json_t *value;

  json_object_foreach (request, key, value) {
    if (strcmp (key, "execute") == 0) {
      if (!json_is_string (value))
        return set_error (error,
                          "QMP input member 'execute' must be a string");
    }
    else if (strcmp (key, "arguments") == 0) {
      if (!json_is_object (value))
        return set_error (error,
                          "QMP input member 'arguments' must be an object");
    }
    else if (strcmp (key, "id") != 0)
      return set_error (error, "QMP input member '%s' is unexpected", key);
  }
  return 0;
}

const char *
qmp_command (json_t *request, char **error)
{
  const char *name;

  if (!json_is_object (request)) {
    set_error (error, "QMP input must be a JSON object");
    return NULL;
  }
  if (check_members (request, error) == -1)
    return NULL;
  name = json_string_value (json_object_get (request, "execute"));
  if (name == NULL)
    set_error (error, "QMP input lacks member 'execute'");
  return name;
}

json_t *
qmp_arguments (json_t *request)
{
  json_t *const arguments = json_object_get (request, "arguments");

  return arguments ? json_incref (arguments) : json_object ();
}

/* ---- Arguments */

static const char *
type_name (json_type type)
{
  switch (type) {
  case JSON_OBJECT: return "object";
  case JSON_ARRAY: return "array";
  case JSON_STRING: return "string";
  case JSON_INTEGER: return "integer";
  case JSON_REAL: return "number";
  case JSON_TRUE: case JSON_FALSE: return "boolean";
  case JSON_NULL: return "null";
  }
  return "value";
}

static bool
has_type (const json_t *value, json_type type)
{
  switch (type) {
  case JSON_TRUE: case JSON_FALSE: return json_is_boolean (value);
  case JSON_REAL: return json_is_number (value);
  default: return json_typeof (value) == type;
  }
}

static int
check_argument (const struct control_argument *a, json_t *arguments,
                char **error)
{
  const json_t *const value = json_object_get (arguments, a->name);

  if (value == NULL && !a->optional)
    return set_error (error, "Parameter '%s' is missing", a->name);
  if (value && !has_type (value, a->type))
    return set_error (error,
                      "Invalid parameter type for '%s', expected: %s",
                      a->name, type_name (a->type));
  return 0;
}

static bool
knows_argument (const struct control_command *command, const char *name)
{
  const struct control_argument *a = command->arguments;

  for (; a && a->name; ++a)
    if (strcmp (a->name, name) == 0)
      return true;
  return false;
}

int
qmp_check_arguments (const struct control_command *command,
                         json_t *arguments, char **error)
{
  const struct control_argument *a = command->arguments;
  const char *key;
  json_t *value;

  for (; a && a->name; ++a)
    if (check_argument (a, arguments, error) == -1)
      return -1;
  json_object_foreach (arguments, key, value) {
    if (!knows_argument (command, key))
      return set_error (error, "Parameter '%s' is unexpected", key);
  }
  return 0;
}

/* ---- Answers */

static json_t *
add_id (json_t *answer, json_t *request)
{
  json_t *const id = json_object_get (request, "id");

  if (answer && id && json_object_set (answer, "id", id) == -1) {
    json_decref (answer);
    return NULL;
  }
  return answer;
}

json_t *
qmp_return (json_t *request, json_t *value)
{
  return add_id (json_pack ("{s:o}", "return", value), request);
}

json_t *
qmp_error (json_t *request, const char *class, const char *desc)
{
  return add_id (json_pack ("{s:{s:s, s:o}}", "error", "class", class,
                            "desc", json_text (desc)),
                 request);
}

json_t *
qmp_greeting (void)
{
  int major = 0, minor = 0, micro = 0;

  /* Clients of QEMU look for its version in this place. */
  sscanf (PACKAGE_VERSION, "%d.%d.%d", &major, &minor, &micro);
  return json_pack ("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}",
                    "QMP", "version", "qemu", "micro", micro, "minor", minor,
                    "major", major, "package", PACKAGE_STRING,
                    "capabilities");
}
