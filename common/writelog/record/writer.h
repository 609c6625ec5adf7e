/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Writing a write log: any number of threads append entries, and make
 * them durable.  Specification: write-log.md, promises 3, 4, 6 and 8.
 */

#ifndef BLOCKDRIVERS_WRITELOG_WRITER_H
#define BLOCKDRIVERS_WRITELOG_WRITER_H

#include <stdbool.h>
#include <stdint.h>

#include "control/control.h"
#include "node/node.h"
#include "writelog/format.h"
#include "writelog/record/store.h"

struct writelog;
struct disknote;

#define WRITELOG_DEFAULT_INTERVAL 4096

struct writelog_options {
  bool append;                  /* continue an existing log */
  uint32_t sector_size;         /* of a new log, bytes; 0 is the default */
  uint64_t interval;            /* entries after which the super block is
                                   written at the latest, not 0 */
  struct events *events;        /* borrowed, or NULL: where it is told that
                                   nothing can be logged any more */
};

/* Open a log for writing: a local file, which is created if missing, a
 * block device or an NBD URI.  It is locked, as QEMU locks an image.
 * If it is empty a log of 0 entries is started in it.  A log that
 * exists is continued with "append"; without, it is started anew by
 * writelog_begin, until when nothing of it is changed.  All that is no
 * log is refused.  Returns NULL with errno after a message.
 */
extern struct writelog *writelog_open (const char *name,
                                       const struct writelog_options *options);

/* The same over a node, which is owned also when it fails. */
extern struct writelog *
writelog_open_node (struct node *node, const struct writelog_options *options);

/* Get ready for writelog_begin, from many threads; once, after the last
 * fork.
 */
extern int writelog_start (struct writelog *log);

/* Get ready for entries: start a log anew that is not continued.  From
 * any thread and as often as one likes; after the first success nothing
 * is done.  Marks do it by themselves.
 */
extern int writelog_begin (struct writelog *log);

/* Make durable and count all that was appended, and cut a local file to the
 * length that its entries say; nothing is appended afterwards.  A log that
 * was not begun is left as it is.  NULL is ignored.
 */
extern int writelog_finish (struct writelog *log);

/* Give up a server that does not answer: what waits for it fails. */
extern void writelog_cut (struct writelog *log);

/* Finish, unless that has been done, close and free.  A file that was
 * created for a log that was not even started is removed.  NULL is ignored.
 * The log is gone also when -1 is returned.
 */
extern int writelog_close (struct writelog *log);

/* Is this the disk that the log is of, as far as can be told (disknote.h)?
 * Only a log that is continued may say no; after a message.  Not to be
 * called at the same time as writelog_note_disk, with which the first
 * request to the disk, of so many bytes, is announced: it fails if the
 * log's note cannot be changed on its medium.
 */
extern int writelog_check_disk (struct writelog *log, struct node *disk);
extern int writelog_note_disk (struct writelog *log, uint64_t size);

/* For recorder.c. */
extern struct disknote *writelog_note (struct writelog *log);

/* Bytes; constant. */
extern uint32_t writelog_sector_size (const struct writelog *log);

/* Can the log be made longer, as a local file?  There zeroes need take no
 * space.
 */
extern bool writelog_can_grow (const struct writelog *log);

/* Has its file system more than twice so many bytes left?  A guess. */
extern bool writelog_has_plenty (const struct writelog *log, uint64_t len);

/* Append an entry with its data, which has as many bytes as the entry's
 * sectors (nothing for a discard or a flush).  Entries stand in the log
 * in the order in which they were given their place; a caller that
 * needs an order between two of them appends the second when the first
 * has returned, or holds a claim (../request/claim.h) over both calls.
 *
 * Returns 0 when the entry and all before it are wholly in the log, -1
 * with errno if it cannot be logged.  Then nothing can be logged any
 * more (but what is promised, if there is only no room): the first
 * failure is reported by a message, later calls fail with the same errno
 * and without one.
 */
extern int writelog_append (struct writelog *log,
                            const struct writelog_entry *entry,
                            const struct writelog_piece *pieces, unsigned n);

/* Room for entries that will be appended later, and must not fail then
 * for want of space.  In a log of fixed size it is counted.  In a local
 * file it is allocated, zeroes like other data; so that it cannot be lost
 * to entries that overtake, these allocate their own before they get
 * their place, once writelog_use_promises has been called.  That is once,
 * before the first entry.
 *
 * writelog_promise returns -1 with errno, which is for writelog_fail, if
 * there is no room.  What is promised is given back by
 * writelog_withdraw, or used up by writelog_append_promised, which
 * takes an entry's own sector and those of its data, and works also after
 * a failure for want of space.
 */
extern void writelog_use_promises (struct writelog *log);
extern int writelog_promise (struct writelog *log, uint64_t sectors);
extern void writelog_withdraw (struct writelog *log, uint64_t sectors);
extern int writelog_append_promised (struct writelog *log,
                                     const struct writelog_entry *entry,
                                     const struct writelog_piece *pieces,
                                     unsigned n);

/* Return when all that had been appended before is on the log's medium,
 * and counted by the super block there.  Callers that wait at the same
 * time share the work.  This can succeed after an append has failed.
 */
extern int writelog_flush (struct writelog *log);

/* Append a mark, whose name has at least one byte and at most
 * writelog_max_mark, and make it durable.
 */
extern int writelog_mark (struct writelog *log, const char *name);

/* Log no further requests, for a reason outside the log (errno, and a
 * text as in "it could not be written"): writelog_check fails from now
 * on.  What had been held back before can still be appended.
 */
extern void writelog_fail (struct writelog *log, const char *reason);

/* Can requests be logged?  Returns 0, or -1 with errno as soon as
 * something has failed.
 */
extern int writelog_check (struct writelog *log);

struct writelog_status {
  uint64_t entries;             /* complete ones */
  uint64_t sectors;             /* with the super block */
  uint32_t sector_size;
  char *last_mark;              /* or NULL */
  char *error;                  /* why nothing can be logged, or NULL */
};

/* The caller frees both strings. */
extern void writelog_query (struct writelog *log,
                            struct writelog_status *status);

#endif /* BLOCKDRIVERS_WRITELOG_WRITER_H */
