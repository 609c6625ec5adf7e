/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Trying a state: serve it, run a command on it, and see what that says. */

#ifndef BLOCKDRIVERS_WRITELOG_TRY_H
#define BLOCKDRIVERS_WRITELOG_TRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "writelog/moments/index.h"
#include "writelog/moments/loss.h"

/* A command is given the state as an NBD export, and also as a file if that
 * is wanted: by nbdfuse, or as a copy.
 */
enum try_disk { TRY_NO_DISK, TRY_FUSE, TRY_COPY };

struct try_setup {
  struct writelog_index *index;
  const char *log;              /* names */
  const char *base;             /* or NULL */
  uint64_t size;                /* bytes of the disk */
  const char *command, *name_command; /* shell commands */
  enum try_disk disk;
  int64_t timeout;              /* milliseconds; 0: none */
  const char *dir;              /* a private folder */
};

enum try_verdict {
  TRY_GOOD, TRY_BAD, TRY_SKIPPED,
  TRY_UNTOLD                    /* it could not be tried */
};

struct try_task {
  struct writelog_moment moment; /* owned */
  char *export;                 /* its name, may be ""; owned */
  bool name;                    /* ask name_command, about this: */
  struct lost_piece piece;
};

struct try_outcome {
  enum try_verdict verdict;
  bool cannot_run;              /* UNTOLD because there is no such command */
  char *why;                    /* why BAD or UNTOLD; owned, may be NULL */
  char *output;                 /* what the command said, or the end of
                                   that; owned, ends with NUL */
  size_t output_len;
};

/* Bytes of output that are kept. */
#define TRY_MAX_OUTPUT ((size_t) 64 * 1024)

extern void try_free (struct try_outcome *outcome);
extern void try_free_task (struct try_task *task);

/* For a process that does nothing else.  The base is open; job is a number
 * for names.  control is watched: when its other end is closed the try is
 * given up (-1).  children is of children_adopt.
 */
struct try_context {
  const struct try_setup *setup;
  struct node *base;            /* or NULL */
  unsigned job;
  int control, children;
  int scratch;                  /* a file for what is written */
};

extern int try_state (struct try_context *context, struct try_task *task,
                      struct try_outcome *outcome);

#endif /* BLOCKDRIVERS_WRITELOG_TRY_H */
