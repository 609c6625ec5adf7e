/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Who meets whom, and whose data may overwrite whose.  Specification:
 * replication.md, "Whose data is right", "Meeting".
 *
 * An export says in its description what it is; a primary decides by that, and
 * by what it remembers of its partner, what it may do to the remote disk.
 * Without proof it does nothing: copying over a disk that it does not know is
 * left to a command, and over one that was promoted to nobody.
 */

#ifndef BLOCKDRIVERS_REPLICATION_MEETING_H
#define BLOCKDRIVERS_REPLICATION_MEETING_H

#include <stdbool.h>
#include <stddef.h>

#include "filters/replication/history.h"

enum disk_kind {
  DISK_PLAIN,                   /* says nothing: any NBD server */
  DISK_SECONDARY,               /* the export for a primary's writes */
  DISK_PROMOTED,                /* the same, after a failover */
  DISK_GUEST,                   /* the export of a secondary's guest */
  DISK_PRIMARY                  /* a primary, perhaps ourselves */
};

/* What an export tells of its disk. */
struct disk_identity {
  enum disk_kind kind;
  struct history history;       /* "" if it tells none */
  struct history partner;       /* the primary that wrote last, or "" */
  struct history before;        /* the disk is an earlier state of this
                                   history, to which it was rolled back, and
                                   nobody has written since; or "" */
  struct pairing former;        /* the disk was this primary's, and nobody has
                                   written since, with a map for that disk
                                   or ""; or both "" */
};

/* The description of an export: text of at most MEETING_TEXT bytes. */
#define MEETING_TEXT 400
extern void identity_describe (const struct disk_identity *id,
                               char text[MEETING_TEXT]);

/* What a description (NULL: none) says. */
extern void identity_read (struct disk_identity *id, const char *description);

/* How a primary names itself: EXPORT?primary=ID, and with SYNCED behind it to
 * say that the remote disk is equal to its own.
 */
#define EXPORT_PRIMARY "?primary="
#define EXPORT_SYNCED "&synced"

/* Is name that of an export, with or without a primary behind it?  Then who,
 * "" if it does not say, and whether it says that the disks are equal.
 */
extern bool export_is (const char *name, const char *export,
                       struct history *primary, bool *synced);

/* The map of a secondary that was a primary: a bit an area of DIRTY_AREA
 * bytes, padded to words of 64 bits, little-endian (dirtyfile.h).
 */
#define EXPORT_MAP "?map"
extern bool export_is_map (const char *name, const char *export);

/* The URI with this behind the name of the export, to be freed.  NULL with
 * errno, without a message.
 */
extern char *uri_with_suffix (const char *uri, const char *suffix);

/* What a primary knows when it meets a remote. */
struct known_remote {
  bool changed;                 /* its own disk was changed, or replaced, by
                                   others */
  struct history history;       /* of the partner's disk, "" if it has met
                                   none.  Only then the rest matters: */
  struct pairing parted;        /* its own disk was failed over, away from
                                   these, and its map is of what was changed
                                   since; or both "" */
  bool equal;                   /* somebody says that the disks are equal but
                                   for the map */
};

enum meeting {
  MEETING_IN_STEP,              /* the remote lacks what the map says */
  MEETING_PARTED,               /* and besides what its own map says */
  MEETING_FIRST,                /* as the operator says: the disks are equal */
  MEETING_OVERWRITE,            /* as the operator says: copy everything */
  MEETING_AGAIN,                /* copy everything: all that it has is ours */
  MEETING_ALL,                  /* the same, as nobody knows what it lacks */
  MEETING_REFUSED
};

#define MEETING_WHY 400

/* The command that overwrites a remote whatever its history. */
#define MEETING_WAY_OUT \
  "replication-start sync=full copies this disk over the remote's"

/* Meet a remote.  full: a command has asked for it to be overwritten.  why is
 * filled in for MEETING_REFUSED: what is wrong, and the way out.
 */
extern enum meeting meet_remote (const struct known_remote *known,
                                 const struct disk_identity *remote,
                                 bool full, char why[MEETING_WHY]);

#endif /* BLOCKDRIVERS_REPLICATION_MEETING_H */
