/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The parameters: one table of them all. */

#include <config.h>

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "module/module.h"
#include "node/node.h"
#include "filters/replication/params.h"

/* All of our parameters begin like this. */
#define PREFIX "replication-"

/* The longest export name of the protocol. */
#define MAX_EXPORT_NAME 4096

/* A day. */
#define MAX_SECONDS 86400

enum kind { KIND_MODE, KIND_FILE, KIND_SOCKET, KIND_URI, KIND_EXPORT,
            KIND_BOOL, KIND_RECOVER, KIND_SECONDS, KIND_RATE };

static const struct parameter {
  const char *key;
  enum kind kind;
  enum replication_mode only;   /* the mode that has it; MISSING: both */
  bool required;                /* in that mode */
  size_t offset;                /* in struct params */
} table[] = {
  { "replication-mode", KIND_MODE, MODE_MISSING, false,
    offsetof (struct params, mode) },
  { "replication-remote", KIND_URI, MODE_PRIMARY, false,
    offsetof (struct params, remote) },
  { "replication-bitmap", KIND_FILE, MODE_MISSING, false,
    offsetof (struct params, bitmap) },
  { "replication-active", KIND_FILE, MODE_SECONDARY, true,
    offsetof (struct params, active) },
  { "replication-hidden", KIND_FILE, MODE_SECONDARY, true,
    offsetof (struct params, hidden) },
  { "replication-top-id", KIND_EXPORT, MODE_SECONDARY, true,
    offsetof (struct params, top_id) },
  { "replication-export", KIND_EXPORT, MODE_SECONDARY, false,
    offsetof (struct params, export) },
  { "replication-recover", KIND_RECOVER, MODE_SECONDARY, false,
    offsetof (struct params, recover) },
  { "replication-control", KIND_SOCKET, MODE_MISSING, false,
    offsetof (struct params, control) },
  { "replication-start", KIND_BOOL, MODE_MISSING, false,
    offsetof (struct params, start) },
  { "replication-sync-rate", KIND_RATE, MODE_PRIMARY, false,
    offsetof (struct params, sync_rate) },
  { "replication-timeout", KIND_SECONDS, MODE_MISSING, false,
    offsetof (struct params, timeout) },
};

#define NR_PARAMETERS (sizeof table / sizeof table[0])

static const struct parameter *
find (const char *key)
{
  for (size_t i = 0; i < NR_PARAMETERS; ++i)
    if (strcmp (key, table[i].key) == 0)
      return &table[i];
  return NULL;
}

static bool
is_given (const struct params *params, const struct parameter *p)
{
  return params->given & (1u << (p - table));
}

const char *
mode_name (enum replication_mode mode)
{
  return mode == MODE_PRIMARY ? "primary" : "secondary";
}

static int
set_mode (enum replication_mode *mode, const char *key, const char *value)
{
  static const char *const modes[] = { "primary", "secondary", NULL };
  const int r = module_choose (key, value, modes);

  *mode = r == 0 ? MODE_PRIMARY : MODE_SECONDARY;
  return r == -1 ? -1 : 0;
}

static int
set_recover (enum secondary_recover *recover, const char *key,
             const char *value)
{
  static const char *const words[] = {
    [RECOVER_FAIL] = "fail",
    [RECOVER_ROLLBACK] = "rollback",
    [RECOVER_DISCARD] = "discard",
    [RECOVER_RESET] = "reset",
    NULL
  };
  const int r = module_choose (key, value, words);

  *recover = r;
  return r == -1 ? -1 : 0;
}

static int
set_string (char **string, const char *key, const char *value)
{
  *string = strdup (value);
  if (*string)
    return 0;
  nbdkit_error ("%s: %m", key);
  return -1;
}

static int
set_uri (char **uri, const char *key, const char *value)
{
  if (!node_is_uri (value)) {
    nbdkit_error ("%s=%s: not an NBD URI such as nbd://HOST/EXPORT or "
                  "nbd+unix:///EXPORT?socket=PATH", key, value);
    return -1;
  }
  return module_set_image (uri, key, value);
}

static int
set_export (char **name, const char *key, const char *value)
{
  if (strlen (value) > MAX_EXPORT_NAME) {
    nbdkit_error ("%s: an export name has at most %d bytes", key,
                  MAX_EXPORT_NAME);
    return -1;
  }
  return set_string (name, key, value);
}

static int
set_rate (uint64_t *rate, const char *key, const char *value)
{
  const int64_t size = nbdkit_parse_size (value);

  if (size == -1)
    return -1;
  if (size == 0) {
    nbdkit_error ("%s=%s: must be at least one byte a second", key, value);
    return -1;
  }
  *rate = size;
  return 0;
}

/* Into milliseconds. */
static int
set_seconds (unsigned *ms, const char *key, const char *value)
{
  unsigned seconds;

  if (nbdkit_parse_unsigned (key, value, &seconds) == -1)
    return -1;
  if (seconds < 1 || seconds > MAX_SECONDS) {
    nbdkit_error ("%s=%s: must be from 1 to %d seconds", key, value,
                  MAX_SECONDS);
    return -1;
  }
  *ms = seconds * 1000;
  return 0;
}

int
params_set (struct params *params, const char *key, const char *value)
{
  const struct parameter *p = find (key);
  void *field;

  if (p == NULL) {
    if (strncmp (key, PREFIX, strlen (PREFIX)) != 0)
      return 1;
    nbdkit_error ("unknown parameter '%s'", key);
    return -1;
  }
  if (is_given (params, p)) {
    nbdkit_error ("%s was given twice", key);
    return -1;
  }
  params->given |= 1u << (p - table);

  field = (char *) params + p->offset;
  switch (p->kind) {
  case KIND_MODE: return set_mode (field, key, value);
  case KIND_FILE: return module_set_path (field, key, value);
  case KIND_SOCKET: return module_set_socket (field, key, value);
  case KIND_URI: return set_uri (field, key, value);
  case KIND_EXPORT: return set_export (field, key, value);
  case KIND_BOOL: return module_set_bool (field, key, value);
  case KIND_RECOVER: return set_recover (field, key, value);
  case KIND_RATE: return set_rate (field, key, value);
  case KIND_SECONDS: return set_seconds (field, key, value);
  }
  abort ();
}

/* Is each parameter one of this mode, and are those there that it
 * needs?
 */
static int
check_mode (const struct params *params)
{
  const char *mode = mode_name (params->mode);

  for (size_t i = 0; i < NR_PARAMETERS; ++i) {
    const struct parameter *p = &table[i];
    const bool given = is_given (params, p);

    if (given && p->only != MODE_MISSING && p->only != params->mode) {
      nbdkit_error ("%s is a parameter of a %s, not of replication-mode=%s",
                    p->key, mode_name (p->only), mode);
      return -1;
    }
    if (!given && p->required && p->only == params->mode) {
      nbdkit_error ("%s is missing: replication-mode=%s needs it", p->key,
                    mode);
      return -1;
    }
  }
  return 0;
}

static int
check_exports (struct params *params)
{
  if (params->export == NULL &&
      set_string (&params->export, "replication-export", "") == -1)
    return -1;
  if (strcmp (params->top_id, params->export) != 0)
    return 0;
  nbdkit_error ("replication-top-id and replication-export are both \"%s\": "
                "the two exports need different names", params->export);
  return -1;
}

int
params_check (struct params *params)
{
  if (params->mode == MODE_MISSING) {
    nbdkit_error ("replication-mode is missing; it can be primary or "
                  "secondary");
    return -1;
  }
  if (check_mode (params) == -1)
    return -1;
  if (params->mode == MODE_PRIMARY && params->bitmap &&
      params->remote == NULL) {
    nbdkit_error ("replication-bitmap needs replication-remote: without it "
                  "the primary only forwards, and there is nothing to "
                  "remember");
    return -1;
  }
  if (params->sync_rate && params->remote == NULL) {
    nbdkit_error ("replication-sync-rate needs replication-remote: a primary "
                  "that forwards copies nothing");
    return -1;
  }
  return params->mode == MODE_SECONDARY ? check_exports (params) : 0;
}

void
params_free (struct params *params)
{
  free (params->remote);
  free (params->bitmap);
  free (params->active);
  free (params->hidden);
  free (params->top_id);
  free (params->export);
  free (params->control);
}
