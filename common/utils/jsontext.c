/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See jsontext.h. */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/jsontext.h"

/* The bytes of the character at the start of str, or 0 if they are none.
 * jansson knows characters.
 */
static size_t
character_length (const char *str)
{
  for (size_t n = 1; n <= 4; ++n) {
    json_t *const json = json_stringn (str, strnlen (str, n));

    if (json) {
      json_decref (json);
      return n;
    }
  }
  return 0;
}

json_t *
json_text (const char *bytes)
{
  CLEANUP_FREE char *copy = NULL;
  size_t len = 0;
  json_t *json = json_string (bytes);

  if (json)
    return json;

  /* U+FFFD takes three bytes. */
  copy = malloc (3 * strlen (bytes) + 1);
  if (copy == NULL)
    return NULL;
  while (*bytes) {
    const size_t n = character_length (bytes);

    if (n > 0)
      memcpy (copy + len, bytes, n);
    else
      memcpy (copy + len, "\357\277\275", 3);
    len += n > 0 ? n : 3;
    bytes += n > 0 ? n : 1;
  }
  return json_stringn (copy, len);
}
