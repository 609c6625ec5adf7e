/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The inside of a secondary; only for the files of this folder.
 *
 *   secondary.c  opening and closing, the commands
 *   checkpoint.c checkpoints, of one disk and of several
 *   evidence.c   what is known of whose data the disk has
 *   recover.c    what a crash has left in the buffers
 *   commit.c     copying buffers into the disk; failover
 *   incoming.c   the primary's export: requests by stage
 *   heard.c      when the primary was heard of last
 *   map.c        what the disk lacked as a primary's, and has since a failover
 *   guest.c      that of the guest
 *   request.c    what their requests have in common
 *   note.c       what the hidden buffer's header says of all that
 *
 * Locks, in the order in which they are taken:
 *
 *   command_lock         one command at a time
 *   requests (drain)     every request of both exports; the stage changes
 *                        only while they are drained
 *   claims               during a failover, on what guest and commit
 *                        write; one at a time a thread
 *   meet_lock            who writes to the replication-export, and what
 *                        that makes of the disk; held while a note is written
 *   note.lock            the note in the hidden buffer
 *   those of the nodes
 */

#ifndef BLOCKDRIVERS_REPLICATION_STATE_H
#define BLOCKDRIVERS_REPLICATION_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "qed/qed.h"
#include "request/claim.h"
#include "request/drain.h"
#include "request/job.h"
#include "filters/replication/dirty.h"
#include "filters/replication/history.h"
#include "filters/replication/stages.h"
#include "filters/replication/secondary/note.h"
#include "filters/replication/secondary/secondary.h"

/* One for all guests, and one for each connection of a primary. */
struct change;

struct export {
  struct node node;             /* first, so that the node is an export */
  struct secondary *s;
  int (*change) (struct node *n, const struct change *c);

  /* Of a primary's: */
  struct history primary;       /* who it is, "" if it has not told */
  unsigned generation;          /* s->generation when it connected */
  atomic_bool admitted;         /* it may write; changes under meet_lock */
  _Atomic enum replication_stage told; /* in this stage it is noted what its
                                   writes make of the disk; the same */
};

/* A checkpoint in steps: nothing; prepared; made, but requests still wait, so
 * that it can be undone; or prepared in a stage in which checkpoints are
 * ignored.
 */
enum prepared { NOT_PREPARED, PREPARED, COMMITTED, PREPARED_NOTHING };

/* The map's file: that all is dirty, and nothing else; perhaps something that
 * is not so; what the disk lacked as a primary's; what has changed since the
 * failover.
 */
enum map_says { MAP_NOTHING, MAP_UNKNOWN, MAP_FORMER, MAP_PARTED };

struct secondary {
  char *active_name, *hidden_name;
  enum secondary_recover recover;
  struct events *events;        /* or NULL */
  enum buffers_state left;      /* as they were found */

  struct node *disk;            /* borrowed; NULL before begin */
  struct node *hidden, *active; /* buffers: hidden over disk, active over
                                   hidden; NULL if missing before begin */
  pthread_mutex_t buffers_lock; /* they change under it, while drained; for
                                   those who do not wait.  A leaf lock, no
                                   I/O under it */
  uint64_t unit;                /* bytes: the larger of their clusters */
  struct export guest;

  struct drain requests;
  _Atomic enum replication_stage stage;
  atomic_bool failed_over;      /* in DONE: was it by failover? */
  atomic_bool own_history;      /* in DONE: the guest's writes are known to
                                   whoever asks for the history */
  _Atomic unsigned generation;  /* of the disk's history: connections of an
                                   earlier one know it no longer */
  struct replication_error error;
  struct replication_limit refusals; /* of requests */
  _Atomic uint64_t checkpoints;

  /* Failover. */
  struct claims claims;
  atomic_bool commit_failed;
  atomic_bool commit_complete;  /* only the note may not say so */
  _Atomic uint64_t commit_done, commit_total; /* bytes */

  struct note note;
  bool same_boot;               /* as it was found */

  struct dirty_file *map_file;  /* or NULL */
  struct dirty map;             /* in it, from begin on: */
  bool has_map;
  _Atomic enum map_says map_says;

  pthread_mutex_t meet_lock;    /* protects the rest */
  _Atomic unsigned nr_primaries; /* connections that are admitted, */
  struct history primary;       /* all of this one; both written under it */
  atomic_bool has_moment;       /* the note names a checkpoint; changes while
                                   drained, or under the lock */
  atomic_bool changed;          /* a primary that told who it is has written
                                   since it last said that the disk is as its
                                   own; written under the lock */
  atomic_bool proved;           /* the disk (not yet what the guest sees) was
                                   a primary's: see NOTE_PROVED; the same */

  unsigned timeout;             /* milliseconds */
  _Atomic int64_t heard_at;     /* of a primary, clock_ms; 0 for never */
  atomic_bool silent;           /* it is connected, and lost all the same */
  _Atomic int64_t stood_until;  /* this process was stopped until then, */
  _Atomic int64_t stood_for;    /* for so long, so it heard nobody; 0, 0 */
  struct job *watch;            /* from begin to close */

  pthread_mutex_t command_lock; /* protects these */
  enum prepared prepared;
  bool joint;                   /* it is one of several disks */
  struct moment pending;        /* what is prepared or committed */
  struct note_text last;        /* the note before it was committed */
  struct moment before;         /* what the note calls earlier, */
  unsigned before_flags;        /* with the flags that it had */
  struct node *kept;            /* the hidden buffer of that one, over the
                                   hidden one; NULL if it held nothing */
  char *kept_name;
  struct moment failover_at;    /* the note of a failover */
  unsigned failover_flags;
  struct job *commit_job;       /* NULL before a failover */
};

/* Under command_lock, or drained by the failover's job. */
extern void secondary_set_stage (struct secondary *s,
                                 enum replication_stage stage);

/* Record an error of the replication itself, with errno's text. */
extern void secondary_note_error (struct secondary *s, const char *what);

/* Refuse a command, with errno's text. */
extern int secondary_refuse_errno (struct replication_refusal *refusal,
                                   const char *what);

/* What this command does now: as stages_check. */
extern int secondary_check (struct secondary *s, enum stage_command command,
                            struct replication_refusal *refusal);

/* Nobody says any more whose data the disk has: what to clear in the note.
 * Under meet_lock, or drained.
 */
extern unsigned secondary_forget_proof (struct secondary *s);

/* Connections that are there now belong to an earlier history. */
extern void secondary_outdate_primaries (struct secondary *s);

/* Write this state into the note; durable. */
extern int secondary_put_state (struct secondary *s,
                                enum buffers_state state);

/* Make both buffers as new, while no requests use them, and say so in the
 * note.
 */
extern int secondary_clean_buffers (struct secondary *s);

#endif /* BLOCKDRIVERS_REPLICATION_STATE_H */
