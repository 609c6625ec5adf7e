/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See report.h. */

#include <config.h>

#include "filters/replication/report.h"
#include "utils/jsontext.h"

void
report_stage (struct events *events, enum replication_stage stage,
              const char *role)
{
  events_raise (events, "REPLICATION_STAGE",
                json_pack ("{s:s, s:s}", "stage",
                           replication_stage_name (stage), "role", role));
}

void
report_link (struct events *events, const char *link, const char *desc)
{
  json_t *const data = json_pack ("{s:s}", "link", link);

  if (desc[0])
    json_object_set_new (data, "link-desc", json_text (desc));
  events_raise (events, "REPLICATION_LINK", data);
}

void
report_sync (struct events *events, bool running, uint64_t total)
{
  events_raise (events, "REPLICATION_SYNC",
                json_pack ("{s:b, s:I}", "running", (int) running, "total",
                           (json_int_t) total));
}

void
report_checkpoint_failed (struct events *events, const char *desc)
{
  events_raise (events, "REPLICATION_CHECKPOINT_FAILED",
                json_pack ("{s:o}", "desc", json_text (desc)));
}
