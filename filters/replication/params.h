/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The parameters of nbdkit-replication-filter.  Specification:
 * interfaces.md, "nbdkit-replication-filter".
 */

#ifndef BLOCKDRIVERS_REPLICATION_PARAMS_H
#define BLOCKDRIVERS_REPLICATION_PARAMS_H

#include <stdbool.h>

#include "filters/replication/secondary/secondary.h"

enum replication_mode { MODE_MISSING, MODE_PRIMARY, MODE_SECONDARY };

/* Strings are NULL if not given.  Names of files are absolute. */
struct params {
  enum replication_mode mode;
  char *remote;                 /* primary */
  char *bitmap;
  char *active, *hidden;        /* secondary */
  char *top_id, *export;        /* secondary; export is not NULL after
                                   params_check */
  char *control;
  bool start;
  unsigned timeout;             /* milliseconds; 0 if not given */
  uint64_t sync_rate;           /* primary; bytes a second, or 0 */
  enum secondary_recover recover; /* secondary */
  unsigned given;               /* a bit for each that has been set */
};

/* Set one.  Returns 1 if it is no parameter of ours, 0, or -1 after a
 * message.
 */
extern int params_set (struct params *params, const char *key,
                       const char *value);

/* All are given: do they go together?  -1 after a message. */
extern int params_check (struct params *params);

extern void params_free (struct params *params);

extern const char *mode_name (enum replication_mode mode);

#endif /* BLOCKDRIVERS_REPLICATION_PARAMS_H */
