/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See evidence.h.
 *
 * A disk is inconsistent while a copy is not complete, and nobody wants to run
 * on such a mixture without knowing.  One that is not may still be empty, or
 * of last year: that it is as a primary's has to be proved.  Without proof it
 * is failed over to all the same, since whoever commands it may have made the
 * disks equal himself, as QEMU's tools do; but status and the log say so.  The
 * proof is durable: when the primary's host has died, and this server was
 * started again, it still holds; how old the disk is tells the time of its
 * checkpoint, which a start does not change.
 */

#include <config.h>

#include <stdio.h>

#include "filters/replication/secondary/checkpoint.h"
#include "filters/replication/secondary/evidence.h"
#include "utils/message.h"

#define MIXTURE "a copy from the primary had begun, and was not complete at " \
  "the last checkpoint"

/* What whoever decides about a failover should know; "" for nothing. */
static const char *
reservation (unsigned flags, const struct note_text *text)
{
  if (flags & NOTE_INCONSISTENT)
    return MIXTURE;
  if (!(flags & NOTE_PROVED))
    return text->partner.text[0] == '\0'
      ? "it has met no primary, so nobody has said whose data it has"
      : "no primary has said so far, at a checkpoint, that this disk is as "
      "its own";
  return text->partner.text[0] ? ""
    : "the primary does not say who it is, so its checkpoints are its own "
    "matter";
}

static const char *
disk_desc (const struct note_text *text,
           const struct replication_status *status)
{
  const char *const why = reservation (text->flags, text);

  if ((text->flags & NOTE_PROMOTED) && text->made.id.text[0] == '\0')
    return "it was promoted by a failover, and has been a primary's since";
  if (why[0] || (text->flags & NOTE_PROMOTED) || status->last_heard >= 0)
    return why;
  return "no primary has connected since this server was started; the data "
    "are as old as the checkpoint";
}

void
evidence_query (const struct note_text *text,
                struct replication_status *status)
{
  status->consistent = !(text->flags & NOTE_INCONSISTENT);
  snprintf (status->disk_desc, sizeof status->disk_desc, "%s",
            disk_desc (text, status));
}

int
evidence_check (struct secondary *s, bool force, const struct history *at,
                struct replication_refusal *refusal)
{
  if (force || !(checkpoint_evidence_at (s, at) & NOTE_INCONSISTENT))
    return 0;
  return replication_refuse (refusal, "The disk is not consistent: " MIXTURE
                             "; replication-stop failover=true force=true "
                             "fails over all the same");
}

void
evidence_tell (struct secondary *s)
{
  struct note_text text;
  const char *why;

  note_get (&s->note, &text);
  why = reservation (s->failover_flags, &text);
  if (why[0])
    msg_warning ("failing over to this disk: %s", why);
}
