/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The inside of a secondary; only for the secondary*.c files.
 *
 *   secondary.c          opening and closing, the commands
 *   secondary-export.c   the two exports: requests by stage
 *   secondary-commit.c   copying buffers into the disk; failover
 *   secondary-recover.c  what a crash has left in the buffers
 *
 * Locks, in the order in which they are taken:
 *
 *   command_lock         one command at a time
 *   requests (drain)     every request of both exports; the stage changes
 *                        only while they are drained
 *   claims               during a failover, on what guest and commit
 *                        write; one at a time a thread
 *   note_lock            the note in the hidden buffer
 *   those of the nodes
 */

#ifndef BLOCKDRIVERS_SECONDARY_STATE_H
#define BLOCKDRIVERS_SECONDARY_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "qed/qed.h"
#include "request/claim.h"
#include "request/drain.h"
#include "request/job.h"
#include "filters/replication/history.h"
#include "filters/replication/secondary/secondary.h"

struct export {
  struct node node;             /* first, so that the node is an export */
  struct secondary *s;
};

/* A checkpoint in two steps: nothing, prepared, or prepared in a stage
 * in which checkpoints are ignored.
 */
enum prepared { NOT_PREPARED, PREPARED, PREPARED_NOTHING };

/* What the buffers mean to whoever finds them, kept in the hidden
 * buffer's note.
 */
enum buffers_state {
  BUFFERS_UNUSED,
  BUFFERS_RUNNING,              /* hidden has what the disk was */
  BUFFERS_FAILOVER,             /* active over hidden is to be committed */
  BUFFERS_OBSOLETE,             /* the disk is right without them */
};

struct secondary {
  char *active_name, *hidden_name;
  enum secondary_recover recover;
  enum buffers_state left;      /* as they were found */

  struct node *disk;            /* borrowed; NULL before begin */
  struct node *hidden, *active; /* buffers: hidden over disk, active over
                                   hidden; NULL if missing before begin */
  uint64_t unit;                /* bytes: the larger of their clusters */
  struct export guest, replication;

  struct drain requests;
  _Atomic enum replication_stage stage;
  atomic_bool failed_over;      /* in DONE: was it by failover? */
  atomic_bool own_history;      /* in DONE: the guest's writes are known to
                                   whoever asks for the history */
  struct replication_error error;
  _Atomic uint64_t checkpoints;

  /* Failover. */
  struct claims claims;
  atomic_bool commit_failed;
  _Atomic uint64_t commit_done, commit_total; /* bytes */

  pthread_mutex_t note_lock;    /* protects these */
  enum buffers_state noted;
  struct history history;       /* of the disk */

  pthread_mutex_t command_lock; /* protects these */
  enum prepared prepared;
  struct job *commit_job;       /* NULL before the failover */
};

/* Record an error of the replication itself, with errno's text. */
extern void secondary_note_error (struct secondary *s, const char *what);

/* Empty both buffers while requests are drained.  With -1, after a
 * message and with the error recorded, both are as before.
 */
extern int secondary_empty_buffers (struct secondary *s);

/* ---- secondary-export.c */

extern void secondary_init_exports (struct secondary *s);

/* Does a buffer have some of the unit that begins at offset?  1 or 0, or
 * -1.
 */
extern int secondary_unit_held (struct secondary *s, uint64_t offset);

/* ---- secondary-commit.c */

/* Write what the top buffer has (NULL below) or what it has over the
 * one below into the disk, and make that durable.  Can be repeated.
 */
extern int secondary_copy_back (struct secondary *s, struct node *top,
                                struct node *below);

/* The failover's job. */
extern int secondary_commit (struct job *job, void *opaque);

/* ---- secondary-recover.c */

/* Write the note; durable. */
extern int secondary_put_state (struct secondary *s,
                                enum buffers_state state);

/* The same, with a new history of the disk, which somebody else than the
 * primary is going to change.
 */
extern int secondary_put_history (struct secondary *s,
                                  enum buffers_state state);

/* A new history, and otherwise the same note. */
extern int secondary_new_history (struct secondary *s);

/* Make both buffers as new, while no requests use them, and say so in the
 * note.
 */
extern int secondary_clean_buffers (struct secondary *s);

/* Look at what a crash has left in the buffers that are there, and refuse
 * what s->recover does not allow; changes nothing.
 */
extern int secondary_check_buffers (struct secondary *s);

/* Deal with what was left and has not been refused, as s->recover says. */
extern int secondary_do_recover (struct secondary *s);

#endif /* BLOCKDRIVERS_SECONDARY_STATE_H */
