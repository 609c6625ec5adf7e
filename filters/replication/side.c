/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* One side of a replication: hands everything on to the primary or to
 * the secondary.
 */

#include <config.h>

#include <stdio.h>

#include "filters/replication/report.h"
#include "filters/replication/side.h"

int
side_open (struct side *side, const struct params *params,
           struct events *events)
{
  const struct primary_options primary = {
    .remote = params->remote, .bitmap = params->bitmap, .events = events,
    .timeout = params->timeout, .sync_rate = params->sync_rate,
  };
  const struct secondary_options secondary = {
    .active = params->active, .hidden = params->hidden,
    .bitmap = params->bitmap, .recover = params->recover, .events = events,
    .timeout = params->timeout ? params->timeout : REPLICATION_TIMEOUT,
  };

  side->mode = params->mode;
  side->events = events;
  side->timeout = params->timeout ? params->timeout : REPLICATION_TIMEOUT;
  side->has_remote = params->remote != NULL;
  if (side->mode == MODE_PRIMARY)
    side->primary = primary_open (&primary);
  else
    side->secondary = secondary_open (&secondary);
  return side->primary || side->secondary ? 0 : -1;
}

int
side_begin (struct side *side, struct node *disk, const struct below *below)
{
  if (side->primary)
    primary_set_below (side->primary, below);
  else
    secondary_set_below (side->secondary, below);
  return side->primary ? primary_begin (side->primary, disk)
                       : secondary_begin (side->secondary, disk);
}

void
side_interrupt (struct side *side, bool interrupted)
{
  if (side->primary)
    primary_interrupt (side->primary, interrupted);
}

void
side_expect_failover (struct side *side)
{
  if (side->primary)
    primary_expect_failover (side->primary);
}

bool
side_close (struct side *side)
{
  if (!primary_close (side->primary))
    return false;
  secondary_close (side->secondary);
  side->primary = NULL;
  side->secondary = NULL;
  return true;
}

int
side_start (struct side *side, bool full,
            struct replication_refusal *refusal)
{
  if (full && side->secondary)
    return replication_refuse (refusal, "sync=full is for a primary, this "
                               "is a secondary");
  if (full && !side->has_remote)
    return replication_refuse (refusal, "sync=full needs a primary with "
                               "replication-remote, this one only forwards");
  return side->primary ? primary_start (side->primary, full, refusal)
                       : secondary_start (side->secondary, refusal);
}

bool
side_is_promoted (struct side *side)
{
  return side->secondary && secondary_is_promoted (side->secondary);
}

int
side_launch (struct side *side, struct replication_refusal *refusal)
{
  return side->primary ? primary_launch (side->primary, refusal)
                       : secondary_start (side->secondary, refusal);
}

int
side_reset (struct side *side, struct replication_refusal *refusal)
{
  return side->secondary ? secondary_reset (side->secondary, refusal)
    : replication_refuse (refusal, "replication-reset is for a secondary, "
                          "this is a primary");
}

/* What becomes of a checkpoint, or of a step of one. */
static int
report (struct side *side, int r, const struct replication_refusal *refusal)
{
  if (r == -1)
    report_checkpoint_failed (side->events, refusal->desc);
  return r;
}

int
side_can_checkpoint (struct side *side, struct replication_refusal *refusal)
{
  return !side->primary ? 0
    : report (side, primary_is_running (side->primary, refusal), refusal);
}

int
side_checkpoint (struct side *side, struct replication_refusal *refusal)
{
  return report (side, side->primary
                 ? primary_checkpoint (side->primary, refusal)
                 : secondary_checkpoint (side->secondary, refusal), refusal);
}

int
side_stop (struct side *side, struct replication_refusal *refusal)
{
  return side->primary
    ? primary_stop (side->primary, false, refusal)
    : secondary_stop (side->secondary, false, false, refusal);
}

void
side_query (struct side *side, struct replication_status *status)
{
  if (side->primary)
    primary_query (side->primary, status);
  else
    secondary_query (side->secondary, status);
  if (status->stage == REPLICATION_NONE && status->desc[0] == '\0')
    snprintf (status->desc, sizeof status->desc,
              "Block replication is not running");
}

int
side_checkpoint_prepare (struct side *side, const struct moment *moment,
                         struct replication_refusal *refusal)
{
  return report (side, side->primary
                 ? primary_checkpoint_prepare (side->primary, moment,
                                               refusal)
                 : secondary_checkpoint_prepare (side->secondary, moment,
                                                 refusal),
                 refusal);
}

int
side_checkpoint_commit (struct side *side,
                        struct replication_refusal *refusal)
{
  return report (side, side->primary
                 ? primary_checkpoint_commit (side->primary, refusal)
                 : secondary_checkpoint_commit (side->secondary, refusal),
                 refusal);
}

void
side_checkpoint_release (struct side *side)
{
  if (side->primary)
    primary_checkpoint_release (side->primary);
  else
    secondary_checkpoint_release (side->secondary);
}

void
side_checkpoint_abort (struct side *side)
{
  if (side->primary)
    primary_checkpoint_release (side->primary);
  else
    secondary_checkpoint_abort (side->secondary);
}

void
side_checkpoint_doubt (struct side *side)
{
  if (side->primary)
    primary_checkpoint_release (side->primary);
  else
    secondary_checkpoint_doubt (side->secondary);
}

int
side_fail_over (struct side *side, bool force, const struct history *at,
                struct replication_refusal *refusal)
{
  if (side->secondary)
    return secondary_fail_over (side->secondary, force, at, refusal);
  if (at->text[0])
    return replication_refuse (refusal, "Parameter 'checkpoint' is for a "
                               "secondary");
  return primary_stop (side->primary, true, refusal);
}

int
side_verify (struct side *side, struct replication_refusal *refusal)
{
  return side->primary ? primary_verify (side->primary, refusal)
    : secondary_verify (side->secondary, refusal);
}
