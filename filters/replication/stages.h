/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a command does in which stage: one table for both sides, which the
 * manual page has as well.  Specification: replication.md, "Stages".
 */

#ifndef BLOCKDRIVERS_REPLICATION_STAGES_H
#define BLOCKDRIVERS_REPLICATION_STAGES_H

#include "filters/replication/status.h"

enum stage_side { SIDE_PRIMARY, SIDE_SECONDARY, NR_SIDES };

enum stage_command {
  COMMAND_START, COMMAND_CHECKPOINT, COMMAND_STOP, COMMAND_FAIL_OVER,
  COMMAND_RESET, COMMAND_VERIFY, NR_COMMANDS
};

enum stage_answer {
  ANSWER_NOT_RUNNING,           /* refused: it has not begun */
  ANSWER_RUNNING,               /* refused: it has */
  ANSWER_STOPPED,               /* refused: it is over */
  ANSWER_NOT_PROMOTED,          /* refused: there is nothing to reset */
  ANSWER_NO_REMOTE,             /* refused: there is nothing to compare with */
  ANSWER_AS_LEFT,               /* refused, with the error that is there */
  ANSWER_IGNORED,               /* succeeds without doing anything */
  ANSWER_DO,
  ANSWER_AGAIN                  /* do, if what ended it allows that */
};

extern enum stage_answer stages_answer (enum stage_side side,
                                        enum stage_command command,
                                        enum replication_stage stage);

/* 1 for do and again, 0 for ignored, else -1 after refusing: error (borrowed)
 * is where the one that is there stands.
 */
extern int stages_check (enum stage_answer answer,
                         struct replication_error *error,
                         struct replication_refusal *refusal);

#endif /* BLOCKDRIVERS_REPLICATION_STAGES_H */
