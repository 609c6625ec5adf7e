/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See meeting.h. */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "filters/replication/meeting.h"

/* ---- What an export says */

static const char *const kinds[] = {
  [DISK_PLAIN] = "",
  [DISK_SECONDARY] = "replication secondary: for the primary's writes",
  [DISK_PROMOTED] = ("replication secondary: for the primary's writes, "
                     "closed by a failover"),
  [DISK_GUEST] = "replication secondary: the disk of its guest",
  [DISK_PRIMARY] = "replication primary: the disk of its guest",
};

#define HISTORY_KEY "; history "
#define PARTNER_KEY "; last primary "
#define BEFORE_KEY "; rolled back from "

void
identity_describe (const struct disk_identity *id, char text[MEETING_TEXT])
{
  const char *const history = id->history.text;
  const char *const partner = id->partner.text;
  const char *const before = id->before.text;

  snprintf (text, MEETING_TEXT, "%s%s%s%s%s%s%s", kinds[id->kind],
            partner[0] ? PARTNER_KEY : "", partner,
            before[0] ? BEFORE_KEY : "", before,
            history[0] ? HISTORY_KEY : "", history);
}

static void
read_value (struct history *h, const char *description, const char *key)
{
  const char *p = strstr (description, key);

  h->text[0] = '\0';
  if (p && strlen (p + strlen (key)) >= HISTORY_LEN)
    history_set (h, p + strlen (key));
}

void
identity_read (struct disk_identity *id, const char *description)
{
  *id = (struct disk_identity) { .kind = DISK_PLAIN };
  if (description == NULL)
    return;
  for (enum disk_kind kind = DISK_SECONDARY; kind <= DISK_PRIMARY; ++kind)
    if (strncmp (description, kinds[kind], strlen (kinds[kind])) == 0)
      id->kind = kind;
  if (id->kind == DISK_PLAIN)
    return;
  read_value (&id->history, description, HISTORY_KEY);
  read_value (&id->partner, description, PARTNER_KEY);
  read_value (&id->before, description, BEFORE_KEY);
}

/* ---- How a primary names itself */

bool
export_is (const char *name, const char *export, struct history *primary,
           bool *synced)
{
  const size_t len = strlen (export);

  *synced = false;
  primary->text[0] = '\0';
  if (strncmp (name, export, len) != 0)
    return false;
  name += len;
  if (*name == '\0')
    return true;
  if (strncmp (name, EXPORT_PRIMARY, strlen (EXPORT_PRIMARY)) != 0)
    return false;
  name += strlen (EXPORT_PRIMARY);
  if (strlen (name) < HISTORY_LEN)
    return false;
  history_set (primary, name);
  *synced = strcmp (name + HISTORY_LEN, EXPORT_SYNCED) == 0;
  return primary->text[0] && (*synced || name[HISTORY_LEN] == '\0');
}

char *
uri_with_suffix (const char *uri, const char *suffix)
{
  const char *const authority = strstr (uri, "://");
  const char *const start = authority ? authority + 3 : uri;
  const size_t host = strcspn (start, "/?#");
  const size_t path = host + strcspn (start + host, "?#");
  const size_t head = start - uri + path;
  char *text = NULL;
  size_t size;
  FILE *fp = open_memstream (&text, &size);

  if (fp == NULL)
    return NULL;
  fwrite (uri, 1, head, fp);
  if (host == path)
    fputc ('/', fp);
  for (const char *p = suffix; *p; ++p)
    fprintf (fp, strchr ("?=&", *p) ? "%%%02X" : "%c", (unsigned char) *p);
  fputs (uri + head, fp);
  if (fclose (fp) == 0)
    return text;
  free (text);
  return NULL;
}

/* ---- The table of meetings */

/* What a remote says, against what the primary remembers.  The first row that
 * fits decides; the manual has the same table.
 */
enum proof { SAME, ROLLED_BACK, OTHER, NOTHING, ANY };

static const struct row {
  enum disk_kind kind;
  bool met;                     /* does the primary remember a history? */
  enum proof history;           /* does the remote tell it?  ROLLED_BACK: it
                                   tells that it had it */
  enum proof partner;           /* has a primary written that said who it
                                   was?  NOTHING: no */
  const char *why;              /* refused; NULL: see meeting */
  enum meeting meeting;
} rows[] = {
  { DISK_PLAIN, true, ANY, ANY,
    "the remote used to tell the history of its disk, and tells none now: is "
    "it another server?", MEETING_REFUSED },
  { DISK_PLAIN, false, ANY, ANY, NULL, MEETING_FIRST },
  { DISK_SECONDARY, true, SAME, ANY, NULL, MEETING_IN_STEP },
  { DISK_SECONDARY, true, NOTHING, ANY,
    "the remote used to tell the history of its disk, and tells none now",
    MEETING_REFUSED },
  { DISK_SECONDARY, true, ROLLED_BACK, ANY, NULL, MEETING_AGAIN },
  { DISK_SECONDARY, true, OTHER, ANY,
    "the remote's disk is not as it was left: others have changed it",
    MEETING_REFUSED },
  { DISK_SECONDARY, false, ANY, NOTHING, NULL, MEETING_FIRST },
  { DISK_SECONDARY, false, ANY, OTHER,
    "the remote's disk was written by another primary, or by this one before "
    "a restart without a bitmap", MEETING_REFUSED },
};

#define NR_ROWS (sizeof rows / sizeof rows[0])

static bool
fits (const struct row *row, const struct history *known,
      const struct disk_identity *remote)
{
  const enum proof history = remote->history.text[0] == '\0' ? NOTHING
    : history_equal (known, &remote->history) ? SAME
    : history_equal (known, &remote->before) ? ROLLED_BACK : OTHER;
  const enum proof partner = remote->partner.text[0] ? OTHER : NOTHING;

  return row->kind == remote->kind && row->met == (known->text[0] != '\0') &&
    (row->history == ANY || row->history == history) &&
    (row->partner == ANY || row->partner == partner);
}

/* These are never written to, whatever a command says. */
static const char *
never (enum disk_kind kind)
{
  switch (kind) {
  case DISK_PROMOTED:
    return "the remote's disk was promoted by a failover, and is its guest's: "
      "only replication-reset there gives it up";
  case DISK_GUEST:
    return "the remote is the export of the secondary's guest, not the one "
      "for a primary's writes";
  case DISK_PRIMARY:
    return "the remote is a replication primary, not a secondary";
  default:
    return NULL;
  }
}

enum meeting
meet_remote (const struct history *known,
             const struct disk_identity *remote, bool full,
             char why[MEETING_WHY])
{
  const char *const refusal = never (remote->kind);

  if (refusal) {
    snprintf (why, MEETING_WHY, "%s", refusal);
    return MEETING_REFUSED;
  }
  if (full)
    return MEETING_OVERWRITE;
  for (size_t i = 0; i < NR_ROWS; ++i)
    if (fits (&rows[i], known, remote)) {
      if (rows[i].why == NULL)
        return rows[i].meeting;
      snprintf (why, MEETING_WHY, "%s; replication-start sync=full copies all "
                "over it", rows[i].why);
      return MEETING_REFUSED;
    }
  abort ();
}
