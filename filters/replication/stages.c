/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See stages.h.  A primary has no failover stages. */

#include <config.h>

#include "filters/replication/stages.h"

#define NR_STAGES (REPLICATION_DONE + 1)

/* In the order of enum replication_stage. */
#define ROW(none, running, failover, failed, done) \
  { ANSWER_##none, ANSWER_##running, ANSWER_##failover, ANSWER_##failed, \
    ANSWER_##done }

static const enum stage_answer table[NR_SIDES][NR_COMMANDS][NR_STAGES] = {
  [SIDE_PRIMARY] = {
    [COMMAND_START] =
      ROW (DO, RUNNING, RUNNING, RUNNING, AGAIN),
    [COMMAND_CHECKPOINT] =
      ROW (NOT_RUNNING, DO, STOPPED, STOPPED, STOPPED),
    [COMMAND_STOP] =
      ROW (NOT_RUNNING, DO, IGNORED, IGNORED, IGNORED),
    [COMMAND_FAIL_OVER] =
      ROW (NOT_RUNNING, DO, IGNORED, IGNORED, IGNORED),
    [COMMAND_RESET] =
      ROW (NOT_PROMOTED, NOT_PROMOTED, NOT_PROMOTED, NOT_PROMOTED,
           NOT_PROMOTED),
    [COMMAND_VERIFY] =
      ROW (NOT_RUNNING, DO, STOPPED, STOPPED, STOPPED),
  },
  [SIDE_SECONDARY] = {
    [COMMAND_START] =
      ROW (DO, RUNNING, IGNORED, AS_LEFT, AGAIN),
    [COMMAND_CHECKPOINT] =
      ROW (NOT_RUNNING, DO, IGNORED, AS_LEFT, IGNORED),
    [COMMAND_STOP] =
      ROW (NOT_RUNNING, DO, IGNORED, AS_LEFT, IGNORED),
    [COMMAND_FAIL_OVER] =
      ROW (NOT_RUNNING, DO, IGNORED, NOT_RUNNING, IGNORED),
    [COMMAND_RESET] =
      ROW (NOT_PROMOTED, NOT_PROMOTED, NOT_PROMOTED, NOT_PROMOTED, AGAIN),
    [COMMAND_VERIFY] =
      ROW (NO_REMOTE, NO_REMOTE, NO_REMOTE, NO_REMOTE, NO_REMOTE),
  },
};

enum stage_answer
stages_answer (enum stage_side side, enum stage_command command,
               enum replication_stage stage)
{
  return table[side][command][stage];
}

static int
refuse_as_left (struct replication_error *error,
                struct replication_refusal *refusal)
{
  struct replication_status status;

  replication_error_get (error, &status);
  return replication_refuse (refusal, "%s", status.desc);
}

int
stages_check (enum stage_answer answer, struct replication_error *error,
              struct replication_refusal *refusal)
{
  static const char *const texts[] = {
    [ANSWER_NOT_RUNNING] = "Block replication is not running",
    [ANSWER_RUNNING] = "Block replication is running or done",
    [ANSWER_STOPPED] = "Block replication is done: it was stopped",
    [ANSWER_NOT_PROMOTED] = ("This disk is not promoted: there is nothing to "
                             "reset"),
    [ANSWER_NO_REMOTE] = ("There is nothing to compare with: this is for a "
                          "primary with replication-remote"),
  };

  switch (answer) {
  case ANSWER_DO:
  case ANSWER_AGAIN:
    return 1;
  case ANSWER_IGNORED:
    return 0;
  case ANSWER_AS_LEFT:
    return refuse_as_left (error, refusal);
  default:
    return replication_refuse (refusal, "%s", texts[answer]);
  }
}
