/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The map of a secondary (replication.md, "Whose data is right"): what its
 * disk lacked when it was a primary; or, from a failover on, what has changed
 * on it since, for when it is started as a primary.  Without a file all of
 * these do nothing.
 */

#ifndef BLOCKDRIVERS_REPLICATION_MAP_H
#define BLOCKDRIVERS_REPLICATION_MAP_H

#include "filters/replication/secondary/request.h"
#include "filters/replication/secondary/state.h"

/* Before the fork; and when the role of the disk is known.  fresh: the hidden
 * buffer knew nothing of the disk.  -1 with errno after a message.
 */
extern int map_open (struct secondary *s, const char *name);
extern int map_begin (struct secondary *s, bool fresh);

/* A clean end, if the disk has all that was written. */
extern void map_end (struct secondary *s);

/* The pair whose primary the disk was; both "" if nobody knows. */
extern void map_get_former (struct secondary *s, struct pairing *former);

/* Before the disk changes in a way that the map does not follow: it says
 * nothing from now on, durably.  Costs nothing when it does so already.
 */
extern int map_forget (struct secondary *s);
extern bool map_is_forgotten (struct secondary *s);

/* The disk parts from the primary that has written to it, "" if it did not
 * say who it was: a failover is about to begin.  Drained.  If the file cannot
 * be written there is no map, which costs a full copy later.
 */
extern void map_part (struct secondary *s, const struct pairing *pair);

/* After a failover, before this change goes to the disk.  -1 with errno if it
 * must not: if we were killed the file would be believed, and lack it.
 */
extern int map_mark (struct secondary *s, const struct change *c);

/* For a flush: -1 with errno as long as the file may say something wrong. */
extern int map_settle (struct secondary *s);

/* The map of a disk that was a primary's, as a disk that can be read; NULL
 * with errno after a message.  Its owner frees it.
 */
extern struct node *map_node_open (struct secondary *s);

/* Is it such a one?  Then it is freed. */
extern bool map_node_free (struct node *n);

#endif /* BLOCKDRIVERS_REPLICATION_MAP_H */
