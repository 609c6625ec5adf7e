/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The history of a secondary's disk, by which a primary knows whether it
 * still is what the primary made it.
 *
 * A history is a random text.  It stays the same as long as nobody but the
 * primary changes the disk, over restarts too, and is a new one when
 * somebody else did: by a rollback, a failover, or writes of the
 * secondary's guest after a stop.  The secondary tells it in the
 * description of its replication-export (meeting.h).  To have a new one
 * without need is safe: it costs a full copy.
 */

#ifndef BLOCKDRIVERS_REPLICATION_HISTORY_H
#define BLOCKDRIVERS_REPLICATION_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#define HISTORY_LEN 32          /* hexadecimal digits, without the NUL */

/* "" stands for one that is not known. */
struct history {
  char text[HISTORY_LEN + 1];
};

/* Make a new one.  -1 with errno after a message. */
extern int history_make (struct history *h);

/* Take one over from so many bytes; "" if they are none. */
extern void history_set (struct history *h, const void *bytes);

/* Is it known, and the same? */
extern bool history_equal (const struct history *a, const struct history *b);

/* A primary, and the history of the remote disk that its map is about: outside
 * of the map its disk is equal to that one.  Both "" for none.
 */
struct pairing {
  struct history primary, remote;
};

/* Are both known, and the same? */
extern bool pairing_equal (const struct pairing *a, const struct pairing *b);

/* A checkpoint: the same one has the same identifier on all disks that took
 * part in it.
 */
struct moment {
  struct history id;            /* "" for none */
  uint64_t time;                /* milliseconds since the epoch */
};

/* One that is just now, with a new identifier. */
extern int moment_make (struct moment *m);

/* With this identifier; "" for none. */
extern void moment_set (struct moment *m, const char *id);

#endif /* BLOCKDRIVERS_REPLICATION_HISTORY_H */
