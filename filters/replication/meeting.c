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
#define FORMER_KEY "; was primary "
#define FORMER_OF_KEY "; with a map for "

void
identity_describe (const struct disk_identity *id, char text[MEETING_TEXT])
{
  const char *const history = id->history.text;
  const char *const partner = id->partner.text;
  const char *const before = id->before.text;
  const char *const former = id->former.primary.text;

  snprintf (text, MEETING_TEXT, "%s%s%s%s%s%s%s%s%s%s%s", kinds[id->kind],
            partner[0] ? PARTNER_KEY : "", partner,
            before[0] ? BEFORE_KEY : "", before,
            former[0] ? FORMER_KEY : "", former,
            former[0] ? FORMER_OF_KEY : "", id->former.remote.text,
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
  read_value (&id->former.primary, description, FORMER_KEY);
  if (id->former.primary.text[0])
    read_value (&id->former.remote, description, FORMER_OF_KEY);
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

bool
export_is_map (const char *name, const char *export)
{
  const size_t len = strlen (export);

  return strncmp (name, export, len) == 0 &&
    strcmp (name + len, EXPORT_MAP) == 0;
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
enum proof { SAME, EARLIER, OTHER, NOTHING, ANY };

/* What a primary knows: it has met a remote; it has not, but the disks are
 * equal but for its map; nobody says so; its disk has parted from the other.
 */
enum knows { MET, EQUAL, UNKNOWN, PARTED, NEVER_MET };

static const struct row {
  enum disk_kind kind;
  enum knows knows;             /* NEVER_MET: any but MET */
  enum proof history;           /* does the remote tell it?  EARLIER: it
                                   tells that it had it */
  enum proof partner;           /* has a primary written that said who it
                                   was?  NOTHING: no */
  enum proof former;            /* does it tell that it was the primary of
                                   the pair?  EARLIER: of another disk */
  const char *why;              /* refused; NULL: see meeting */
  enum meeting meeting;
} rows[] = {
  { DISK_PLAIN, MET, ANY, ANY, ANY,
    "the remote used to tell the history of its disk, and tells none now: is "
    "it another server?", MEETING_REFUSED },
  { DISK_PLAIN, EQUAL, ANY, ANY, ANY, NULL, MEETING_FIRST },
  { DISK_PLAIN, UNKNOWN, ANY, ANY, ANY,
    "what was written before this start nobody knows without "
    "replication-bitmap; replication-start says that the disks are equal",
    MEETING_REFUSED },
  { DISK_PLAIN, PARTED, ANY, ANY, ANY,
    "this disk was promoted by a failover, and the remote does not tell that "
    "it was its primary", MEETING_REFUSED },

  { DISK_SECONDARY, MET, SAME, ANY, ANY, NULL, MEETING_IN_STEP },
  { DISK_SECONDARY, MET, NOTHING, ANY, ANY,
    "the remote used to tell the history of its disk, and tells none now",
    MEETING_REFUSED },
  { DISK_SECONDARY, MET, EARLIER, ANY, ANY, NULL, MEETING_AGAIN },
  { DISK_SECONDARY, MET, OTHER, ANY, ANY,
    "the remote's disk is not as it was left: others have changed it",
    MEETING_REFUSED },

  { DISK_SECONDARY, NEVER_MET, ANY, OTHER, ANY,
    "the remote's disk was written by another primary, or by this one before "
    "a restart without a bitmap", MEETING_REFUSED },
  { DISK_SECONDARY, NEVER_MET, ANY, NOTHING, SAME, NULL, MEETING_PARTED },
  { DISK_SECONDARY, NEVER_MET, ANY, NOTHING, EARLIER, NULL, MEETING_ALL },
  { DISK_SECONDARY, PARTED, ANY, NOTHING, OTHER,
    "the remote's disk was a primary's, and its map is for another disk than "
    "this one, or nobody knows", MEETING_REFUSED },
  { DISK_SECONDARY, NEVER_MET, ANY, NOTHING, OTHER,
    "the remote's disk was a primary's, and this disk was not failed over "
    "from it: start this one as the secondary again, with its "
    "replication-bitmap, and give it replication-start, then "
    "replication-stop failover=true, before",
    MEETING_REFUSED },
  { DISK_SECONDARY, EQUAL, ANY, NOTHING, NOTHING, NULL, MEETING_FIRST },
  { DISK_SECONDARY, UNKNOWN, ANY, NOTHING, NOTHING, NULL, MEETING_ALL },
  { DISK_SECONDARY, PARTED, ANY, NOTHING, NOTHING, NULL, MEETING_ALL },
};

#define NR_ROWS (sizeof rows / sizeof rows[0])

static enum proof
history_proof (const struct known_remote *known,
               const struct disk_identity *remote)
{
  return remote->history.text[0] == '\0' ? NOTHING
    : history_equal (&known->history, &remote->history) ? SAME
    : history_equal (&known->history, &remote->before) ? EARLIER : OTHER;
}

static enum proof
former_proof (const struct known_remote *known,
              const struct disk_identity *remote)
{
  return remote->former.primary.text[0] == '\0' ? NOTHING
    : pairing_equal (&known->parted, &remote->former) ? SAME
    : history_equal (&known->parted.primary, &remote->former.primary)
    ? EARLIER : OTHER;
}

static bool
fits (const struct row *row, const struct known_remote *known,
      const struct disk_identity *remote)
{
  const enum knows knows = known->history.text[0] ? MET
    : known->parted.primary.text[0] ? PARTED
    : known->equal ? EQUAL : UNKNOWN;
  const enum proof partner = remote->partner.text[0] ? OTHER : NOTHING;

  return row->kind == remote->kind &&
    (row->knows == knows || (row->knows == NEVER_MET && knows != MET)) &&
    (row->history == ANY || row->history == history_proof (known, remote)) &&
    (row->partner == ANY || row->partner == partner) &&
    (row->former == ANY || row->former == former_proof (known, remote));
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

static enum meeting
refuse (char why[MEETING_WHY], const char *text)
{
  snprintf (why, MEETING_WHY, "%s; " MEETING_WAY_OUT, text);
  return MEETING_REFUSED;
}

enum meeting
meet_remote (const struct known_remote *known,
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
  if (known->changed)
    return refuse (why, "this primary's own disk was changed, or replaced, "
                   "while its bitmap was not in use");
  for (size_t i = 0; i < NR_ROWS; ++i)
    if (fits (&rows[i], known, remote))
      return rows[i].why ? refuse (why, rows[i].why) : rows[i].meeting;
  abort ();
}
