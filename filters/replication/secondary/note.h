/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The note in the hidden buffer: what the buffers are for, and what is known
 * of the disk between two runs.  Specification: replication.md, "Whose data
 * is right".
 *
 * A write of the note that failed may have been done all the same.  So from
 * then on the note is unknown: memory has what it shall say, and nobody may
 * rely on it before note_settle has succeeded.
 */

#ifndef BLOCKDRIVERS_REPLICATION_NOTE_H
#define BLOCKDRIVERS_REPLICATION_NOTE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "filters/replication/history.h"
#include "node/node.h"

/* What the buffers mean to whoever finds them. */
enum buffers_state {
  BUFFERS_UNUSED,
  BUFFERS_RUNNING,              /* hidden has what the disk was */
  BUFFERS_FAILOVER,             /* active over hidden is to be committed */
  BUFFERS_OBSOLETE,             /* the disk is right without them */
};

/* The disk is a guest's own since a failover, until somebody says in a
 * command that it is not.
 */
#define NOTE_PROMOTED 1u

/* What the guest sees (between two runs: the disk) is a mixture: a copy had
 * begun, and was not complete at the last checkpoint.
 */
#define NOTE_INCONSISTENT 2u

/* Each run since the first that is noted so has kept the map beside (map.h).
 */
#define NOTE_MAPPED 4u

/* What the guest sees (between two runs: the disk) was the primary's disk at
 * a checkpoint: it has said so itself, or did not say who it was and wrote
 * while replication ran, after which nothing else can be had.  Without this
 * nobody has ever said whose data it is.
 */
#define NOTE_PROVED 8u

/* What is known of whose data the disk has. */
#define NOTE_EVIDENCE (NOTE_INCONSISTENT | NOTE_PROVED)

struct note_text {
  enum buffers_state state;
  unsigned flags;
  struct history history;       /* of the disk, "" if not known */
  struct history partner;       /* the primary that wrote to it last, "" if
                                   none has that told who it was */
  struct history before;        /* the disk was rolled back from this history,
                                   and nobody has written since; or "" */
  struct moment made;           /* the checkpoint that the guest's disk is of
                                   (between two runs: the disk), or "" */
  struct moment prepared;       /* a joint one that may follow, or "" */
  struct history earlier;       /* the one before, to which the disk can be
                                   brought back, or "" */
};

struct note {
  pthread_mutex_t lock;         /* writers take turns; held while the note is
                                   written and flushed.  Taken before the
                                   locks of the node */
  pthread_mutex_t text_lock;    /* protects text, which changes under both;
                                   a leaf lock, no I/O under it */
  struct note_text text;
  atomic_bool unknown;          /* the medium may say something else */
};

extern void note_init (struct note *note);
extern void note_destroy (struct note *note);

/* Take over what the hidden buffer says, and whether it was written since
 * the machine was started.  A buffer without a note, or NULL, says nothing:
 * all is 0 then.  -1 with errno after a message.
 */
extern int note_read (struct note *note, struct node *hidden,
                      bool *same_boot);

/* A change of the note: what is not named stays. */
struct note_change {
  bool set_state;
  enum buffers_state state;     /* if set_state */
  unsigned set_flags, clear_flags;
  bool new_history;             /* begin one */
  const struct history *partner; /* or NULL */
  bool rolled_back;             /* with new_history: from the one so far.  If
                                   it is not set, before is forgotten where
                                   anything but the state and flags changes */
  const struct moment *made;    /* NULL, or a checkpoint, or ""; then none is
                                   prepared any more, nor earlier */
  const struct moment *prepared; /* the same */
  const struct history *earlier; /* the same */
  bool weak;                    /* survives the process, but not a power loss
                                   (after which no buffer is of use) */
};

/* Write it; durable, unless it is weak.  After -1, with errno and a message,
 * the note is unknown.  Memory then has all from before, but a new history all
 * the same: to have one without need is safe.
 */
extern int note_put (struct note *note, struct node *hidden,
                     const struct note_change *change);

/* See that the medium says what memory does. */
extern int note_settle (struct note *note, struct node *hidden);

/* A copy of the text, and its flags alone.  Do not wait for a write. */
extern void note_get (struct note *note, struct note_text *text);
extern unsigned note_flags (struct note *note);

#endif /* BLOCKDRIVERS_REPLICATION_NOTE_H */
