/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See stream.h.
 *
 * Notes on the design
 *
 * Each byte is looked at once, to find out where a value ends: strings,
 * and how many brackets are open, suffice for that.  Whether the text is
 * JSON at all is left to jansson, which gets it whole.  So "{]" is a
 * value for us and an error for jansson, and what comes after it is read
 * as usual.  jansson calls itself for each bracket, hence the bound on
 * their depth.
 *
 * Where the end of a value is not found, the end of a line is a new
 * start: in a string, where it must not be, and after a value has become
 * too long or too deep.  Until then nothing of such a value is taken for
 * another one, as it could be part of a string or an argument.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/rounding.h"
#include "control/stream.h"

#define MAX_DEPTH 256

/* More than this is not kept while nothing is in it. */
#define MAX_IDLE_CAPACITY 65536

void
stream_init (struct stream *s, size_t max)
{
  *s = (struct stream) { .max = max };
}

void
stream_free (struct stream *s)
{
  free (s->data);
  stream_init (s, s->max);
}

/* What lies before the value has been dealt with. */
static void
forget_what_was_taken (struct stream *s)
{
  if (s->begin > 0) {
    memmove (s->data, s->data + s->begin, s->end - s->begin);
    s->scanned -= s->begin;
    s->end -= s->begin;
    s->begin = 0;
  }
  if (s->end == 0 && s->capacity > MAX_IDLE_CAPACITY) {
    free (s->data);
    s->data = NULL;
    s->capacity = 0;
  }
}

int
stream_append (struct stream *s, const void *data, size_t len)
{
  forget_what_was_taken (s);
  if (len > s->capacity - s->end) {
    const size_t capacity = MAX (s->end + len, 2 * s->capacity);
    char *const p = realloc (s->data, capacity);

    if (p == NULL)
      return -1;
    s->data = p;
    s->capacity = capacity;
  }
  memcpy (s->data + s->end, data, len);
  s->end += len;
  return 0;
}

static enum stream_result
refuse (char **error, const char *text)
{
  *error = strdup (text);
  return STREAM_ERROR;
}

static void
begin_afresh (struct stream *s)
{
  s->begin = s->scanned;
  s->state = STREAM_BETWEEN;
  s->depth = 0;
  s->skipping = false;
}

/* The value ends here. */
static enum stream_result
end_value (struct stream *s, json_t **value, char **error)
{
  const char *const text = s->data + s->begin;
  const size_t len = s->scanned - s->begin;
  const bool skipped = s->skipping;
  json_error_t e;

  begin_afresh (s);
  if (skipped)
    return STREAM_MORE;
  *value = json_loadb (text, len, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES,
                       &e);
  if (*value)
    return STREAM_VALUE;
  if (asprintf (error, "JSON parse error, %s", e.text) == -1)
    *error = NULL;
  return STREAM_ERROR;
}

/* It goes on.  Not for too long. */
static enum stream_result
bound_value (struct stream *s, char **error)
{
  const bool too_deep = s->depth > MAX_DEPTH;
  const bool refused =
    !s->skipping && (too_deep || s->scanned - s->begin >= s->max);

  s->skipping |= refused;
  if (s->skipping)
    s->begin = s->scanned;
  if (refused)
    return refuse (error, too_deep ? "JSON nesting depth limit exceeded"
                   : "JSON token size limit exceeded");
  return STREAM_MORE;
}

static bool
is_blank (char c)
{
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool
is_bracket (char c)
{
  return c == '{' || c == '}' || c == '[' || c == ']';
}

static bool
in_string (const struct stream *s)
{
  return s->state == STREAM_IN_STRING || s->state == STREAM_IN_ESCAPE;
}

/* A byte of a value outside of strings.  Is it the last one? */
static bool
scan_in_value (struct stream *s, char c)
{
  switch (c) {
  case '"':
    s->state = STREAM_IN_STRING;
    return false;
  case '{': case '[':
    s->depth++;
    return false;
  case '}': case ']':
    /* There may be nothing that it closes. */
    return s->depth == 0 || --s->depth == 0;
  default:
    return false;
  }
}

/* The same in a string. */
static bool
scan_in_string (struct stream *s, char c)
{
  if (s->state == STREAM_IN_ESCAPE)
    s->state = STREAM_IN_STRING;
  else if (c == '\\')
    s->state = STREAM_IN_ESCAPE;
  else if (c == '"') {
    s->state = STREAM_IN_VALUE;
    return s->depth == 0;
  }
  return false;
}

static bool
scan (struct stream *s, char c)
{
  if (s->state == STREAM_BETWEEN) {
    s->begin = s->scanned - 1;
    s->state = is_bracket (c) || c == '"' ? STREAM_IN_VALUE
      : STREAM_IN_WORD;
  }
  if (in_string (s))
    return scan_in_string (s, c);
  return s->state == STREAM_IN_VALUE && scan_in_value (s, c);
}

/* Look at the byte before s->scanned. */
static enum stream_result
scan_byte (struct stream *s, json_t **value, char **error)
{
  const char c = s->data[s->scanned - 1];

  if (c == '\xff') {
    begin_afresh (s);
    return refuse (error, "JSON parse error, stray byte 0xff");
  }
  if (c == '\n' && s->skipping) {
    begin_afresh (s);
    return STREAM_MORE;
  }
  if (c == '\n' && in_string (s)) {
    begin_afresh (s);
    return refuse (error, "JSON parse error, a string is not closed");
  }
  if (is_blank (c) && s->state == STREAM_BETWEEN) {
    s->begin = s->scanned;
    return STREAM_MORE;
  }
  if (s->state == STREAM_IN_WORD &&
      (is_blank (c) || is_bracket (c) || c == '"')) {
    s->scanned--;
    return end_value (s, value, error);
  }
  if (scan (s, c))
    return end_value (s, value, error);
  return bound_value (s, error);
}

enum stream_result
stream_next (struct stream *s, json_t **value, char **error)
{
  enum stream_result r = STREAM_MORE;

  while (r == STREAM_MORE && s->scanned < s->end) {
    s->scanned++;
    r = scan_byte (s, value, error);
  }
  return r;
}
