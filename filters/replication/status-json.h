/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What query-replication answers (interfaces.md,
 * "nbdkit-replication-filter").
 */

#ifndef BLOCKDRIVERS_REPLICATION_STATUS_JSON_H
#define BLOCKDRIVERS_REPLICATION_STATUS_JSON_H

#include <jansson.h>

#include "filters/replication/status.h"

/* A new reference; NULL if out of memory. */
extern json_t *status_json (const struct replication_status *s,
                            const char *mode, bool is_secondary);

/* Text that may be no UTF-8; not if it is "". */
extern void status_set_text (json_t *object, const char *key,
                             const char *text);

#endif /* BLOCKDRIVERS_REPLICATION_STATUS_JSON_H */
