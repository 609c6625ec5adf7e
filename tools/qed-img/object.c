/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* --object, which defines an object of QEMU's.
 *
 * A QED image has no use for any: it is not encrypted, and its requests are
 * not throttled.  So what is well formed is ignored, as qemu-img does with
 * an object to which nothing refers.  Only TLS credentials would be missed,
 * of a server that shall be trusted, so they are refused.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "tools/qed-img/qed-img.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define TYPES                                                           \
  "authz-list|authz-list-file|authz-pam|authz-simple|main-loop|"        \
  "pr-manager-helper|secret|secret_keyring|thread-context|"             \
  "throttle-group|tls-cipher-suites"

#define REFUSE(...)                                                     \
  do {                                                                  \
    msg_error (__VA_ARGS__);                                            \
    exit (EXIT_FAILURE);                                                \
  } while (0)

static void
check (const char *type, bool has_id)
{
  if (strncmp (type, "tls-creds-", 10) == 0)
    REFUSE ("--object %s is not supported: an NBD URI names the files with "
            "keys, as tls-certificates= or tls-psk-file=", type);
  if (!tool_is_word_of (TYPES, type))
    REFUSE ("Parameter 'qom-type' does not accept value '%s'", type);
  if (!has_id)
    REFUSE ("Parameter 'id' is missing");
}

static void
check_json (const char *text)
{
  json_error_t error;
  json_t *const o = json_loads (text, 0, &error);
  const char *const type =
    json_string_value (json_object_get (o, "qom-type"));

  if (o == NULL)
    REFUSE ("JSON parse error, %s", error.text);
  if (type == NULL)
    REFUSE ("Parameter 'qom-type' is missing");
  check (type, json_is_string (json_object_get (o, "id")));
  json_decref (o);
}

void
img_check_object (const char *text)
{
  const size_t len = strcspn (text, ",");
  CLEANUP_FREE char *type = NULL;

  if (*text == '{') {
    check_json (text);
    return;
  }
  if (strncmp (text, "qom-type=", 9) == 0)
    type = strndup (text + 9, MAX (len, (size_t) 9) - 9);
  else
    type = strndup (text, len);
  if (type == NULL)
    REFUSE ("out of memory");
  check (type, strstr (text, ",id=") != NULL);
}
