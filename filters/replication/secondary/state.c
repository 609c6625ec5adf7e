/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See state.h. */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "filters/replication/report.h"
#include "filters/replication/secondary/state.h"

void
secondary_set_stage (struct secondary *s, enum replication_stage stage)
{
  atomic_store (&s->stage, stage);
  report_stage (s->events, stage, note_flags (&s->note) & NOTE_PROMOTED
                ? "promoted" : "secondary");
}

void
secondary_note_error (struct secondary *s, const char *what)
{
  const int err = errno;

  replication_error_set (&s->error, "%s: %s", what, strerror (err));
  errno = err;
}

int
secondary_refuse_errno (struct replication_refusal *refusal, const char *what)
{
  return replication_refuse (refusal, "%s: %s", what, strerror (errno));
}

int
secondary_check (struct secondary *s, enum stage_command command,
                 struct replication_refusal *refusal)
{
  const enum stage_answer answer =
    stages_answer (SIDE_SECONDARY, command, atomic_load (&s->stage));

  return stages_check (answer, &s->error, refusal);
}

unsigned
secondary_forget_proof (struct secondary *s)
{
  atomic_store (&s->proved, false);
  return NOTE_PROVED;
}

void
secondary_outdate_primaries (struct secondary *s)
{
  atomic_fetch_add (&s->generation, 1);
}

int
secondary_put_state (struct secondary *s, enum buffers_state state)
{
  const struct note_change change = { .set_state = true, .state = state };

  return note_put (&s->note, s->hidden, &change);
}

int
secondary_clean_buffers (struct secondary *s)
{
  if (qed_buffer_clean (s->active) == -1 ||
      qed_buffer_clean (s->hidden) == -1)
    return -1;
  return secondary_put_state (s, BUFFERS_UNUSED);
}
