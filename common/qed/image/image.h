/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The inside of an open QED image; only for the files of this folder.
 *
 *   open.c      opening and closing, chains of backing images
 *   cache.c     L2 slices in memory, lookups without a lock
 *   map.c       where the bytes of the disk are; block status
 *   read.c      reads
 *   write.c     writes, zero requests, trims
 *   alloc.c     space, the order of metadata updates
 *   settle.c    NEED_CHECK and the file's length, when writes pause
 *   scan.c      reading all tables, and what is wrong with them (scan.h)
 *   check.c     check and repair
 *   plan.c      repairs that are made as a whole or not at all (plan.h)
 *   mend.c      repair of the header
 *   relink.c    repair of entries that are wrong in one bit
 *   compact.c   giving leaked clusters back
 *   create.c    new images
 *   resize.c    growing a disk
 *   empty.c     dropping the data of a layer
 *   buffer.c    layers that are emptied again and again, over a node that
 *               their user gives
 *   hold.c      copying old content into a buffer
 *   commit.c    writing a layer into its backing image
 *   rebase.c    changing the backing image
 *   measure.c   how large an image would be
 *   parallel.c  copying with several threads (parallel.h)
 *   format.c    the header on disk
 *
 * Locks, in the order in which they are taken:
 *
 *   requests (drain)      every request of a client, from begin to end
 *   allocations (drain)   every update of metadata, inside a request
 *   claims                on clusters of the disk that change their
 *                         mapping; at most one at a time a thread
 *   header_lock, table_lock, cache.lock, update_lock, space_lock
 *                         leaf locks except where their comments say
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
#include "utils/bitmap.h"
#include "qed/format.h"
#include "qed/qed.h"

/* A slice is what the cache holds and what an update writes: a piece of
 * an L2 table that never straddles two tables, since tables are at
 * least this long.
 */
#define SLICE_ENTRIES 512
#define SLICE_LEN (SLICE_ENTRIES * QED_ENTRY_LEN)
#define SLICE_BITS 9

/* One update of entries of a slice: n entries from index become value,
 * value + stride, ...
 */
struct l2_update {
  unsigned index, n;
  uint64_t value, stride;

  /* For alloc.c, under update_lock. */
  struct l2_update *next;
  bool done;
  int error;                    /* errno of the update if it failed */
  pthread_cond_t changed;
};

struct slice {
  /* What lookups read without a lock.  sequence is odd while the slice
   * is being replaced, and another number afterwards.
   */
  _Atomic uint64_t sequence;
  _Atomic uint64_t key;         /* slice number + 1, or 0 */
  _Atomic (_Atomic uint64_t *) entries; /* SLICE_ENTRIES, or NULL */
  atomic_bool used;             /* since the clock hand last passed */

  /* Under cache.lock. */
  unsigned pins;                /* users that keep it from being replaced */
  uint64_t loading;             /* the key that is being read, or 0 */

  /* Under update_lock. */
  bool writing;                 /* somebody writes it to the file */
  struct l2_update *pending;    /* updates that wait for the next write */
};

/* A set-associative cache of L2 slices (cache.c). */
struct slice_cache {
  struct slice *slices;         /* nr_sets * nr_ways */
  uint64_t nr_sets;             /* power of two */
  unsigned nr_ways;

  pthread_mutex_t lock;         /* see struct slice; not held during I/O */
  pthread_cond_t changed;       /* a slice was loaded or unpinned */
  unsigned hand;                /* of the clock, under lock */
};

/* What a scan has found wrong (scan.c): what reads must not follow. */
struct damage {
  struct bitmap tables;         /* clusters of header and tables */
  struct bitmap shared;         /* data clusters mapped more than once */
  struct bitmap l1;             /* L1 entries that cannot be used */

  pthread_mutex_t lock;         /* protects reported; a leaf lock */
  struct bitmap reported;       /* entries told of already (map.c) */
};

struct qed {
  struct node node;             /* the disk; first, so that a node of
                                   ours is a struct qed */
  struct node *file;            /* what holds the image */
  struct node *backing;         /* NULL if none */
  struct qed_options options;   /* its strings are not used after open */

  struct qed_header header;     /* changes only under header_lock */
  pthread_mutex_t header_lock;  /* held while the header is written and
                                   flushed */
  unsigned cluster_bits, table_bits;
  uint64_t cluster_size, table_entries;

  /* L1 entries that image_size needs.  Entries change from 0 to the
   * offset of a table, once that is linked in the file.  Both change
   * otherwise only while requests are drained (resize.c, empty.c).
   */
  _Atomic uint64_t *l1;
  uint64_t nr_l1;
  pthread_mutex_t table_lock;   /* held while a table is made and linked;
                                   space_lock inside */

  struct slice_cache cache;
  pthread_mutex_t update_lock;  /* see struct slice; not held during I/O */

  struct damage *damage;        /* NULL if the scan found none */

  struct drain requests;
  struct drain allocations;
  struct claims claims;
  struct flusher flusher;

  /* Space: where the next cluster goes (alloc.c). */
  pthread_mutex_t space_lock;   /* protects these, held while the file's
                                   length is changed */
  uint64_t end;                 /* end of the last cluster in use, bytes */
  uint64_t kept_free;           /* bytes that stay free at the end of
                                   storage of fixed size (empty.c) */
  uint64_t *freed;              /* offsets of clusters given back */
  size_t nr_freed;
  bool tail_cut;                /* what stood behind end is gone */
  bool grow_exactly;            /* the file cannot run ahead of end */

  /* Is data flushed before the metadata that refers to it?  Then the
   * tables in the file are good at any moment.  If not, NEED_CHECK
   * covers them, since what they refer to then reads as zeroes at worst.
   */
  bool ordered;

  /* NEED_CHECK and the file's length (settle.c). */
  atomic_bool need_check;       /* NEED_CHECK is on the medium */
  bool keep_need_check;         /* it was there and nobody has checked */
  atomic_bool unsettled;        /* allocations since the last settle */
  _Atomic int64_t last_allocation; /* CLOCK_MONOTONIC, milliseconds */
  atomic_bool metadata_failed;  /* an update failed: NEED_CHECK stays */
  struct job *settle_job;       /* NULL before node_start */

  struct buffer *buffer;        /* NULL if it is none (buffer.c) */
};

/* What a buffer has besides. */
struct buffer {
  bool backing_written;         /* see qed_buffer_set_backing */
  _Atomic uint64_t nr_held;     /* clusters that are not unallocated */

  /* Emptying: where the next L1 table will be, and where it was. */
  uint64_t next_l1, previous_l1;

  /* Under space_lock.  The layer's clusters are from first to the end. */
  uint64_t first;
  int64_t began;                /* clock_ms, of this layer */
  _Atomic uint64_t stale_end;   /* before it earlier layers may have left
                                   something; changes while there are no
                                   requests only */
  uint64_t kept;                /* bytes, from first on, */
  int64_t kept_until;           /* for this long; INT64_MAX if none are */
  uint64_t drop_start, drop_end; /* what is to become holes */
  bool dropping;                /* then this is just becoming one: */
  uint64_t dropping_start, dropping_end;
  bool drop_failed;             /* so it is not tried again */
  pthread_cond_t dropped;       /* dropping has changed */

  struct job *drop_job;         /* NULL before node_start */

  pthread_mutex_t scratch_lock; /* protects free_scratch; a leaf lock */
  struct scratch *free_scratch; /* buffers for copies (hold.c) */
};

static inline struct qed *
qed_of_node (struct node *n)
{
  return (struct qed *) n;
}

/* Does new space there read as zeroes? */
static inline bool
space_is_zero (const struct qed *s, uint64_t file_offset)
{
  return !s->file->fixed_size &&
    (s->buffer == NULL || file_offset >= atomic_load (&s->buffer->stale_end));
}

/* Are QED nodes what this node is one of? */
extern const struct node_ops qed_node_ops;

/* ---- map.c */

enum map_kind { MAP_UNALLOCATED, MAP_ZERO, MAP_DATA };

/* A run of bytes of the disk with one kind of mapping in this layer;
 * for data, one after the other in the file.
 */
struct mapping {
  enum map_kind kind;
  uint64_t length;              /* bytes, at least 1 */
  uint64_t file_offset;         /* only for data */
};

/* Look up the run that begins at offset, at most count bytes of it.
 * Fails with EIO, after a message the first time, if the mapping of the
 * first byte is damaged.
 */
extern int qed_map (struct qed *s, uint64_t count, uint64_t offset,
                    struct mapping *m);
extern int qed_extents (struct node *n, uint64_t count, uint64_t offset,
                        struct extent *ret);

/* Is this a place where a data cluster (a table) can be? */
extern bool qed_cluster_offset_ok (const struct qed *s, uint64_t offset);
extern bool qed_table_offset_ok (const struct qed *s, uint64_t offset);

/* ---- cache.c */

extern int cache_init (struct slice_cache *cache, uint64_t max_bytes);
extern void cache_destroy (struct slice_cache *cache);

/* Forget all slices, while no request is in flight: the tables in the
 * file have been changed by other means.
 */
extern void cache_forget (struct slice_cache *cache);

/* The L2 entry of a cluster of the disk, whose table stands at
 * table_offset in the file.  A hit takes no lock.
 */
extern int cache_lookup (struct qed *s, uint64_t cluster,
                         uint64_t table_offset, uint64_t *entry);

/* The slice that holds this entry, in memory until cache_unpin.  NULL
 * with errno after a message.  A thread that holds a pin must not wait
 * for another one.
 */
extern struct slice *cache_pin (struct qed *s, uint64_t cluster,
                                uint64_t table_offset);
extern void cache_unpin (struct qed *s, struct slice *slice);

/* ---- read.c */

extern int qed_pread (struct node *n, void *buf, size_t count,
                      uint64_t offset);

/* Read what this layer does not have; zeroes behind the backing image's
 * end.
 */
extern int qed_read_backing (struct qed *s, void *buf, size_t count,
                             uint64_t offset);

/* What has been read of (or asked about) the backing image, where this
 * layer had nothing: for how many bytes from offset, at most count, did
 * it belong to the disk?  All, unless others write to the backing image
 * once this layer holds what they overwrite: then those bytes only that
 * this layer still does not have.
 */
extern int qed_still_backing (struct qed *s, uint64_t count, uint64_t offset,
                              uint64_t *length);

/* How many bytes from offset, at most count, does the backing image
 * hold that may be other than zero; *skip is the number of zero bytes
 * before them.
 */
extern int qed_backing_data (struct qed *s, uint64_t count, uint64_t offset,
                             uint64_t *skip, uint64_t *length);
extern int qed_cache (struct node *n, uint64_t count, uint64_t offset);

/* ---- write.c */

extern int qed_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                        size_t count, uint64_t offset);
extern int qed_zero (struct node *n, uint64_t count, uint64_t offset,
                     unsigned flags);
extern int qed_discard (struct node *n, uint64_t count, uint64_t offset);

/* Copy clusters up from the backing image, if they are unallocated. */
extern int qed_copy_up (struct qed *s, uint64_t count, uint64_t offset);

/* The same, with zero markers where the backing image reads as zeroes:
 * afterwards nothing of the range is unallocated.  Whole clusters, save
 * at the end of the disk.
 */
extern int qed_hold (struct qed *s, uint64_t count, uint64_t offset);

/* qed_zero, inside a request. */
extern int qed_zero_range (struct qed *s, uint64_t count, uint64_t offset,
                           unsigned flags);

/* How much of a request can be allocated at once: not beyond a slice,
 * nor beyond what is sensible to hold up.
 */
extern uint64_t qed_limit_allocation (const struct qed *s, uint64_t count,
                                      uint64_t offset);

/* Map whole clusters that are unallocated to zeroes.  *done is how many
 * bytes of the range that went: 0 if they have become data meanwhile.
 */
extern int qed_mark_zero (struct qed *s, uint64_t count, uint64_t offset,
                          uint64_t *done);

/* ---- alloc.c */

/* Bracket an update of metadata: nothing is settled meanwhile, and
 * NEED_CHECK is on the medium where it has to be.
 */
extern int allocation_begin (struct qed *s);
extern void allocation_end (struct qed *s);

/* Reserve n clusters, one after the other: *offset in the file.  They
 * read as zeroes if the file is not of fixed size.  give_back returns
 * them, if nothing refers to them.
 */
extern int space_reserve (struct qed *s, uint64_t n, uint64_t *offset);
extern void space_give_back (struct qed *s, uint64_t n, uint64_t offset);

/* Make the file reach to "end", under space_lock. */
extern int space_reach (struct qed *s, uint64_t end);

/* Map clusters of the disk, all in one slice: the first of n to value,
 * the next to value + stride, ...  Makes the L2 table if there is none.
 * What value refers to has been written, and where s->ordered asks for
 * it been made durable.
 */
extern int metadata_map (struct qed *s, uint64_t cluster, unsigned n,
                         uint64_t value, uint64_t stride);

extern int header_write (struct qed *s);

/* ---- empty.c */

/* Point the header to an L1 table; if that fails, to the old one.  With
 * header_lock free.
 */
extern int empty_switch_table (struct qed *s, uint64_t l1, bool need_check);

/* What is in memory follows the header: the layer is empty. */
extern void empty_forget (struct qed *s);

/* ---- buffer.c */

/* To find the end of data can take a file system longer than to read some
 * of it, so the node under a buffer is not asked for less than this.
 */
#define BUFFER_ASK_LEN ((uint64_t) 16 * 1024 * 1024)

/* Start and end the thread of a buffer; free what only buffers have. */
extern int buffer_start (struct qed *s);
extern void buffer_close (struct qed *s);
extern void buffer_free (struct qed *s);

/* Before n clusters are reserved, under space_lock: what is being dropped
 * must not be taken.  May move s->end, or wait for a moment.
 */
extern void buffer_take_space (struct qed *s, uint64_t n);

/* Before and after qed_empty of a buffer: nothing is dropped behind its
 * back.
 */
extern void buffer_drop_nothing (struct qed *s);
extern void buffer_is_new (struct qed *s);

/* Count n clusters more that the layer has. */
static inline void
count_held (struct qed *s, uint64_t n)
{
  if (s->buffer)
    atomic_fetch_add_explicit (&s->buffer->nr_held, n, memory_order_relaxed);
}

/* ---- hold.c */

/* Write a new cluster of a buffer: the backing image's, with count bytes
 * at offset of the disk from buf.
 */
extern int buffer_write_cluster (struct qed *s, const void *buf,
                                 uint64_t count, uint64_t offset,
                                 uint64_t file_offset);

extern void scratch_free_all (struct buffer *b);

/* ---- settle.c */

extern void settle_note_allocation (struct qed *s);
extern int settle_start (struct qed *s);

/* Now: make all durable, cut the file, clear NEED_CHECK. */
extern int settle (struct qed *s);

/* ---- create.c */

/* The header of a new image; -1 after a message if the options break a
 * rule.
 */
extern int qed_make_header (const char *name,
                            const struct qed_create_options *options,
                            struct qed_header *header);

/* ---- resize.c */

extern int qed_resize (struct node *n, uint64_t size);

/* ---- open.c */

extern void damage_free (struct damage *d);

/* Open the image alone: header, geometry and L1 table, without backing
 * image, cache and scan.  For check.c and open.c.
 */
extern struct qed *qed_open_bare (const char *name,
                                  const struct node_open_options *options);
extern void qed_free_bare (struct qed *s);

/* The same over a file that has been opened; owns file, also when it
 * fails.
 */
extern struct qed *qed_open_bare_file (struct node *file);

/* Whoever writes must clear unknown autoclear_features first. */
extern int qed_clear_unknown_bits (struct qed *s);

/* Just enough of an image for scan_image to look at a file through
 * another header.  Does not own file; to be freed with free.
 */
extern struct qed *qed_view (struct node *file,
                             const struct qed_header *header);

/* Trace, where the flag is set. */
#define TRACE_IO(...)                           \
  do { if (qed_debug_io) msg_debug (__VA_ARGS__); } while (0)
#define TRACE_META(...)                         \
  do { if (qed_debug_meta) msg_debug (__VA_ARGS__); } while (0)

#endif /* BLOCKDRIVERS_QED_IMAGE_H */
