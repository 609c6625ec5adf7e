/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fuzzing the bytes of a control socket: values are found and answered the
 * same however the bytes are cut, and all that is answered is JSON.
 */

#include <config.h>

#include "control/qmp.h"
#include "control/stream.h"
#include "tests/fuzz/fuzz.h"

#define MAX_VALUE 4096

static const struct control_argument arguments[] = {
  { "sync", JSON_STRING, true }, { "failover", JSON_TRUE, true },
  { "count", JSON_INTEGER, true }, { NULL }
};
static const struct control_command command = {
  .name = "replication-start", .arguments = arguments
};

/* Answer as the server does; the text is to be freed. */
static char *
answer (json_t *value, char *error)
{
  CLEANUP_FREE char *wrong = error;
  json_t *reply;
  char *text;

  if (value && qmp_command (value, &wrong)) {
    json_t *given = qmp_arguments (value);

    WANT (given);
    reply = qmp_check_arguments (&command, given, &wrong) == 0
      ? qmp_return (value, json_incref (given))
      : qmp_error (value, QMP_GENERIC_ERROR, wrong);
    json_decref (given);
  }
  else
    reply = qmp_error (value, QMP_GENERIC_ERROR, wrong ? wrong : "?");
  WANT (reply);
  text = json_dumps (reply, JSON_COMPACT);
  WANT (text);
  json_decref (reply);
  return text;
}

/* All answers, one behind the other; to be freed. */
static char *
converse (const uint8_t *data, size_t size, unsigned piece)
{
  struct stream stream;
  char *all = NULL;
  size_t len = 0;
  FILE *out = open_memstream (&all, &len);

  WANT (out);
  stream_init (&stream, MAX_VALUE);
  for (size_t at = 0; at < size;) {
    const size_t n = size - at < piece ? size - at : piece;
    enum stream_result r;
    json_t *value = NULL;
    char *error = NULL;

    WANT (stream_append (&stream, data + at, n) == 0);
    at += n;
    while ((r = stream_next (&stream, &value, &error)) != STREAM_MORE) {
      CLEANUP_FREE char *text =
        answer (r == STREAM_VALUE ? value : NULL,
                r == STREAM_ERROR ? error : NULL);

      fprintf (out, "%s\n", text);
      if (r == STREAM_VALUE)
        json_decref (value);
      value = NULL;
      error = NULL;
    }
  }
  stream_free (&stream);
  fclose (out);
  return all;
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  CLEANUP_FREE char *whole = converse (data, size, MAX_VALUE);
  CLEANUP_FREE char *bytes = converse (data, size, 1);
  CLEANUP_FREE char *sevens = converse (data, size, 7);

  WANT (strcmp (whole, bytes) == 0 && strcmp (whole, sevens) == 0);
  return 0;
}
