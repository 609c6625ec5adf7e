/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Any text as a JSON string: names of files and messages about them need
 * not be UTF-8.
 */

#ifndef BLOCKDRIVERS_JSONTEXT_H
#define BLOCKDRIVERS_JSONTEXT_H

#include <jansson.h>

/* A flag for json_dumps: of a number the digits that were meant, not all of
 * how it is stored.
 */
#define JSON_DIGITS_MEANT JSON_REAL_PRECISION (15)

/* A JSON string of these bytes, in which those that are no part of a
 * character are replaced by U+FFFD.  NULL if out of memory.
 */
extern json_t *json_text (const char *bytes);

#endif /* BLOCKDRIVERS_JSONTEXT_H */
