/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Moments of a log by name.  Specification: interfaces.md,
 * "nbdkit-logreplay-plugin".
 */

#ifndef BLOCKDRIVERS_WRITELOG_MOMENT_H
#define BLOCKDRIVERS_WRITELOG_MOMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "writelog/moments/index.h"
#include "writelog/moments/loss.h"

/* These return -1, with errno ENOENT and without a message, if there is
 * no such moment.  writelog_moment_mark and writelog_moment_parse read
 * the log, and return -1 with another errno, after a message, if that
 * fails.
 */

/* After the first n entries. */
extern int writelog_moment_entries (const struct writelog_index *index,
                                    uint64_t n,
                                    struct writelog_moment *moment);

/* At the first mark of this name. */
extern int writelog_moment_mark (const struct writelog_index *index,
                                 const char *name,
                                 struct writelog_moment *moment);

/* Just after the n-th entry, from 1, with the flag FLUSH or FUA.  The
 * data of that entry itself are there.
 */
extern int writelog_moment_flag (const struct writelog_index *index,
                                 uint64_t flag, uint64_t n,
                                 struct writelog_moment *moment);

/* By name, as interfaces.md lists them: "" for the last one, "entry/N",
 * "mark/NAME", "flush/N", "fua/N", "crash/N/SEED", "lost/N/SET"; and
 * "cut/N/SEED"; tear is for power losses (loss.h).  There is a message in
 * any case, and it says what exists if this does not.  The moment is to be
 * freed (writelog_moment_free).
 */
extern int writelog_moment_parse (const struct writelog_index *index,
                                  const char *name, uint64_t tear,
                                  struct writelog_moment *moment);

/* The i-th mark, from 0, in the order of the log.  *name is to be freed
 * by the caller; *first says whether it is the first one of this name.
 * Returns -1 with errno, after a message, if the log cannot be read.
 */
extern int writelog_index_mark (const struct writelog_index *index,
                                uint64_t i, char **name, uint64_t *entry,
                                bool *first);

/* The name of the last mark among the first n entries, to be freed; "" if
 * there is none.  NULL with errno, after a message, if the log cannot be
 * read.
 */
extern char *writelog_last_mark (const struct writelog_index *index,
                                 uint64_t n);

/* How many marks are among the first n entries, and how many flushes? */
extern uint64_t writelog_count_marks (const struct writelog_index *index,
                                      uint64_t n);
extern uint64_t writelog_count_flushes (const struct writelog_index *index,
                                        uint64_t n);

#endif /* BLOCKDRIVERS_WRITELOG_MOMENT_H */
