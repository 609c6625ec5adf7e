/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The state of an open QED image, and its header.  Each piece has one
 * file that writes it; the others call that one.
 *
 * Each room uses those before it only: format, image/, io/, repair/, chain,
 * open, the operations (create, measure, empty, commit, rebase), buffer.
 *
 * Locks, in the order in which they are taken:
 *
 *   requests (drain)      every request of a client, from begin to end
 *   updates (drain)       every update of metadata, inside a request
 *   claims                on clusters of the disk that change their
 *                         mapping; at most one at a time a thread
 *   table_lock            a table is made and linked: I/O, space_lock
 *                         and the flusher inside
 *   header_lock           the header is written and flushed: I/O, and the
 *                         flusher inside
 *   space_lock            the file's length changes, and the hooks of a
 *                         buffer are called: I/O
 *   update_lock, cache->lock, scratch_lock, damage->lock
 *                         leaf locks, a few instructions, no I/O
 *
 * A mapping only ever changes from unallocated or zero to something
 * else while requests are in flight (a trim leaves a hole in the file
 * under the same mapping).  So a request that has looked up a data
 * cluster may use it without holding anything, and only what allocates
 * needs claims.
 */

#ifndef BLOCKDRIVERS_QED_IMAGE_H
#define BLOCKDRIVERS_QED_IMAGE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"
#include "request/claim.h"
#include "request/drain.h"
#include "request/flush.h"
#include "request/job.h"
#include "qed/format.h"
#include "qed/qed.h"

struct qed;

/* What a layer that is emptied again and again does otherwise (buffer.c). */
struct qed_hooks {
  int (*start) (struct qed *s);
  void (*stop) (struct qed *s); /* before all is made durable on closing */
  void (*free) (struct qed *s);

  /* Before n clusters are reserved, under space_lock, which it may give up
   * for a moment: returns the least offset, from end on, that they may have.
   */
  uint64_t (*reserve) (struct qed *s, uint64_t n);

  /* Before and after qed_empty, while no request is in flight. */
  void (*empty) (struct qed *s);
  void (*emptied) (struct qed *s);
};

struct qed {
  struct node node;             /* the disk; first, so that a node of
                                   ours is a struct qed */
  struct node *file;            /* what holds the image */
  struct node *backing;         /* NULL if none */
  struct qed_options options;   /* its strings are not used after open */

  struct drain requests, updates;
  struct claims claims;
  struct flusher flusher;

  /* image.c */
  pthread_mutex_t header_lock;
  struct qed_header header;     /* of header_change and header_undo */
  atomic_bool header_unknown;   /* the file may have another one */
  unsigned cluster_bits, table_bits;
  uint64_t cluster_size, table_entries;

  /* table.c: L1 entries that image_size needs.  Entries change from 0 to
   * the offset of a table, once that is linked in the file.  Both change
   * otherwise only while requests are drained.
   */
  _Atomic uint64_t *l1;
  uint64_t nr_l1;
  pthread_mutex_t table_lock, update_lock;
  atomic_bool metadata_failed;  /* an update failed: NEED_CHECK stays */
  struct slice_cache *cache;    /* NULL in an image that is open bare */

  struct damage *damage;        /* NULL if the scan found none (map.h) */

  /* space.c, under space_lock */
  pthread_mutex_t space_lock;
  uint64_t end;                 /* end of the last cluster in use, bytes */
  uint64_t kept_free;           /* bytes that stay free at the end of
                                   storage of fixed size (empty.c) */
  uint64_t *freed;              /* offsets of clusters given back */
  size_t nr_freed;
  bool tail_cut;                /* what stood behind end is gone */
  bool grow_exactly;            /* the file cannot run ahead of end */
  uint64_t durable_length;      /* of the file at least, bytes */
  bool length_unknown;          /* the node may not know the file's */
  _Atomic uint64_t stale_end;   /* space before it may hold what an earlier
                                   layer had; changes while there are no
                                   requests */

  /* need-check.c */
  atomic_bool need_check;       /* NEED_CHECK is on the medium */
  bool keep_need_check;         /* it was there and nobody has checked */
  atomic_bool updated;          /* since all was last made durable */
  _Atomic int64_t last_update;  /* clock_ms */
  struct job *need_check_job;   /* NULL before node_start */

  bool ordered;                 /* data is flushed before the metadata that
                                   refers to it (space.c) */

  /* allocate.c */
  _Atomic uint64_t nr_mapped;   /* clusters that this layer has got */
  pthread_mutex_t scratch_lock;
  struct scratch *scratch;      /* memory for copies that nobody uses */

  /* Set for buffers only. */
  const struct qed_hooks *hooks;
  struct buffer *buffer;        /* buffer.c */
  bool is_volatile;             /* nobody expects it after a power loss */
  bool backing_written;         /* see qed_buffer_set_backing */
  uint64_t ask_len;             /* bytes: for less the backing image is not
                                   asked for its extents, but read */
};

static inline struct qed *
qed_of_node (struct node *n)
{
  return (struct qed *) n;
}

/* Read header and L1 table of an image, which is enough for a check.  Owns
 * file, also when it fails; returns NULL with errno after a message.
 * image_free closes file; NULL is ignored.
 */
extern struct qed *image_open (struct node *file);
extern void image_free (struct qed *s);

/* Just enough for scan_image to look at a file through another header.
 * Does not own file; to be freed with free.
 */
extern struct qed *image_view (struct node *file,
                               const struct qed_header *header);

/* Read the L1 entries in memory again. */
extern int image_read_l1 (struct qed *s);

/* Can a data cluster (a table) be at this offset of the file? */
extern bool image_cluster_ok (const struct qed *s, uint64_t offset);
extern bool image_table_ok (const struct qed *s, uint64_t offset);

extern int image_flush (struct qed *s); /* after a write: make it durable */

/* The backing name in a header: *name is to be freed, NULL if none. */
extern int header_backing_name (struct node *file, const struct qed_header *h,
                                char **name);

/* What is to change in the header.  Unknown autoclear_features, which would
 * be wrong afterwards, are cleared with each change.
 */
struct header_edit {
  uint64_t set, clear;          /* features */
  uint64_t l1_table_offset;     /* 0: as it is */
  uint64_t image_size;          /* 0: as it is */
  bool new_name;                /* these two are meant: */
  uint32_t backing_offset, backing_len;
  bool flush;                   /* return when it is durable */
};

/* Write the header with a change.  If that fails, and perhaps was done, memory
 * has the old one, and the file is given it again, durably; by header_known if
 * that fails, too.  What undoes a change memory has even if it fails.
 */
extern int header_change (struct qed *s, const struct header_edit *edit);
extern int header_undo (struct qed *s, const struct header_edit *edit);

/* Before anything is written: write the header, if it is not known that the
 * file has the one in memory; -1 after a message.
 */
extern int header_known (struct qed *s);
extern int header_clear_unknown (struct qed *s); /* before all writes */

/* Trace, where the flag is set. */
#define TRACE_IO(...)                           \
  do { if (qed_debug_io) msg_debug (__VA_ARGS__); } while (0)
#define TRACE_META(...)                         \
  do { if (qed_debug_meta) msg_debug (__VA_ARGS__); } while (0)

#endif /* BLOCKDRIVERS_QED_IMAGE_H */
