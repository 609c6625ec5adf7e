/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See evidence.h.
 *
 * A disk is consistent when there is proof, and not as long as nothing speaks
 * against it: one that no primary has ever made equal to its own may be empty,
 * or of last year.  The proof is durable.  So when the primary's host has
 * died, and this server was started again, a failover goes on as before; how
 * old the disk is tells the time of its checkpoint, which a start does not
 * change.
 */

#include <config.h>

#include <stdio.h>

#include "filters/replication/secondary/checkpoint.h"
#include "filters/replication/secondary/evidence.h"

static bool
is_consistent (unsigned flags)
{
  return (flags & NOTE_EVIDENCE) == NOTE_PROVED;
}

/* Why it is not. */
static const char *
doubt (unsigned flags, const struct note_text *text)
{
  return flags & NOTE_INCONSISTENT
    ? "a copy from the primary had begun, and was not complete at the last "
    "checkpoint"
    : text->partner.text[0]
    ? "no primary has said so far, at a checkpoint, that this disk is as its "
    "own"
    : "it has met no primary, so nobody has said whose data it has";
}

/* What else whoever decides about a failover should know. */
static const char *
reservation (const struct note_text *text,
             const struct replication_status *status)
{
  if (text->flags & NOTE_PROMOTED)
    return text->made.id.text[0] ? "" : "it was promoted by a failover, and "
      "has been a primary's since";
  if (text->partner.text[0] == '\0')
    return "the primary does not say who it is, so its checkpoints are its "
      "own matter";
  return status->last_heard < 0
    ? "no primary has connected since this server was started; the data are "
    "as old as the checkpoint" : "";
}

void
evidence_query (const struct note_text *text,
                struct replication_status *status)
{
  status->consistent = is_consistent (text->flags);
  snprintf (status->disk_desc, sizeof status->disk_desc, "%s",
            status->consistent ? reservation (text, status)
            : doubt (text->flags, text));
}

int
evidence_check (struct secondary *s, enum failover_needs needs,
                const struct history *at,
                struct replication_refusal *refusal)
{
  const unsigned flags = checkpoint_evidence_at (s, at);
  struct note_text text;

  note_get (&s->note, &text);
  if (needs == NEEDS_NOTHING || is_consistent (flags) ||
      (needs == NEEDS_NO_DOUBT && !(flags & NOTE_INCONSISTENT) &&
       text.partner.text[0] == '\0'))
    return 0;
  return replication_refuse (refusal, "The disk is not consistent: %s; "
                             "replication-stop failover=true force=true "
                             "fails over all the same", doubt (flags, &text));
}
