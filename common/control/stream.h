/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* JSON values in a stream of bytes, as they stand on a control socket:
 * one after another, with or without line ends between or within them,
 * cut anywhere by the transport.  Memory is bounded, and the stream goes
 * on after whatever is no JSON.  Not thread-safe.
 */

#ifndef BLOCKDRIVERS_STREAM_H
#define BLOCKDRIVERS_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

enum stream_state {
  STREAM_BETWEEN,               /* values */
  STREAM_IN_WORD,               /* a value without brackets or quotes */
  STREAM_IN_VALUE,
  STREAM_IN_STRING,             /* which is the value, or part of it */
  STREAM_IN_ESCAPE              /* after a backslash in a string */
};

struct stream {
  size_t max;                   /* length of a value */
  char *data;
  size_t capacity;
  size_t begin;                 /* of the value */
  size_t scanned;               /* so far */
  size_t end;                   /* of what has been appended */
  enum stream_state state;
  size_t depth;                 /* open brackets */
  bool skipping;                /* the rest of a value that was refused */
};

enum stream_result {
  STREAM_MORE,                  /* is wanted, nothing to take */
  STREAM_VALUE,
  STREAM_ERROR
};

extern void stream_init (struct stream *s, size_t max);
extern void stream_free (struct stream *s);

/* Append what came.  Take all values first, so that what is held stays
 * below max and what is appended.  -1 with errno ENOMEM.
 */
extern int stream_append (struct stream *s, const void *data, size_t len);

/* Take the next value (a new reference), or the description of an error,
 * which is to be freed (and is NULL if there is no memory for it).  The
 * rest of a value that is too long or too deep is skipped, at most to the
 * end of the line.  A byte 0xff, which is in no text, is an error, too,
 * after which always a new value begins.
 */
extern enum stream_result stream_next (struct stream *s, json_t **value,
                                       char **error);

#endif /* BLOCKDRIVERS_STREAM_H */
