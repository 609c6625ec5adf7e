/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A node is something with a size that can be read and written at byte
 * offsets: a local file or block device (file.c), an NBD export
 * (nbd.c), a QED image over another node (../qed).  Formats are written
 * against this interface and never against file descriptors.
 * Specification: block-layer.md, "Nodes".
 *
 * All functions but node_start and node_close may be called from any
 * thread at the same time.  Offsets and counts are in bytes.  Functions
 * that return int return 0, or -1 with errno set after a message that
 * names node, offset and cause; node_zero with NODE_FAST and functions
 * that a node lacks fail with ENOTSUP and without a message.
 */

#ifndef BLOCKDRIVERS_NODE_H
#define BLOCKDRIVERS_NODE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct node;

/* Flags of requests that change something. */
#define NODE_MAY_TRIM 1         /* zero: space may be given back */
#define NODE_FAST     2         /* zero: ENOTSUP, with nothing changed,
                                   rather than writing zeroes out */
#define NODE_FUA      4         /* it is durable when the call returns;
                                   not what was written before */

/* What stands at an offset, and for how many bytes from there (at least
 * one).  ZERO: reads as zeroes.  HOLE: takes no space.  MAPPED: offset
 * says where in the node "where" the bytes are.
 */
#define EXTENT_ZERO   1
#define EXTENT_HOLE   2
#define EXTENT_MAPPED 4
#define EXTENT_UNALLOCATED 8

struct extent {
  uint64_t length;
  unsigned flags;
  unsigned depth;               /* backing images between asked and found */
  const struct node *where;     /* the node which decided, borrowed */
  uint64_t offset;              /* in it; only with MAPPED */
};

/* One of several writes. */
struct node_write {
  const void *buf;
  size_t count;
  uint64_t offset;
};

struct node_ops {
  const char *type;             /* "file", "nbd", "qed" */

  /* Start background threads; may be NULL.  Until it is called the node
   * works, but only for one thread at a time, so that it can be opened
   * before a server forks.
   */
  int (*start) (struct node *n);
  int (*close) (struct node *n);

  int (*pread) (struct node *n, void *buf, size_t count, uint64_t offset);
  int (*pwritev) (struct node *n, const struct iovec *iov, int iovcnt,
                  size_t count, uint64_t offset);
  int (*flush) (struct node *n);
  int (*extents) (struct node *n, uint64_t count, uint64_t offset,
                  struct extent *ret);

  /* Any of these may be NULL; open.c then answers ENOTSUP, writes
   * zeroes for zero, writes one after the other, asks for an extent for
   * zeroes, and does nothing for discard, cache and cut.
   */
  int (*zeroes) (struct node *n, uint64_t count, uint64_t offset,
                 uint64_t *length);
  int (*zero) (struct node *n, uint64_t count, uint64_t offset,
               unsigned flags);
  int (*discard) (struct node *n, uint64_t count, uint64_t offset);
  int (*cache) (struct node *n, uint64_t count, uint64_t offset);
  int (*resize) (struct node *n, uint64_t size);
  int64_t (*allocated_size) (struct node *n);
  int (*pwrite_many) (struct node *n, const struct node_write *writes,
                      size_t nr);

  /* A write with NODE_FUA.  A node that has it takes this flag for zero,
   * too; for others open.c flushes behind the request.
   */
  int (*pwritev_fua) (struct node *n, const struct iovec *iov, int iovcnt,
                      size_t count, uint64_t offset);
  void (*cut) (struct node *n);
  bool (*is_lost) (struct node *n, char *cause, size_t size);
};

/* The common part of every node; a driver's own struct begins with it.
 * All but size and flush_errno are constant once the node is open.
 */
struct node {
  const struct node_ops *ops;
  char *name;                   /* as the user knows it */
  _Atomic uint64_t size;        /* bytes; changes only in resize */
  bool read_only;
  bool fixed_size;              /* cannot grow: block device, NBD export.
                                   Other nodes grow by zeroes */
  bool can_fast_zero;           /* zero with NODE_FAST can succeed, if
                                   offset and count are multiples of: */
  uint32_t zero_align;          /* power of two */
  uint32_t align;               /* offset and count of each request must
                                   be multiples of it (power of two,
                                   mostly 1; see node/align.h) */
  uint32_t preferred;           /* preferred request size, power of two */
  bool sync;                    /* each change is flushed */
  bool keeps_flush_error;       /* when a flush fails all later ones fail,
                                   too */
  bool no_flush;                /* flushing does nothing */
  struct node *adapted;         /* the node that this one is only another
                                   way to, or NULL */
  pthread_mutex_t flush_lock;   /* with keeps_flush_error: one flush at a
                                   time; zero is its first state.  I/O */
  _Atomic int flush_errno;      /* of a flush that failed for good, or 0 */
  char *description;            /* what the server says of it when it is
                                   opened, or NULL; NBD only */
};

/* Which of QEMU's image locks to take on a local file (qed.md,
 * invariant 8).
 */
enum node_lock {
  NODE_LOCK_NONE,
  NODE_LOCK_IMAGE,              /* as a writer, or reader if read_only */
  NODE_LOCK_BACKING,            /* a raw image below another one */
};

/* Which caches may hold what is written, in QEMU's words. */
enum node_cache {
  NODE_CACHE_WRITEBACK,         /* the page cache, until node_flush */
  NODE_CACHE_WRITETHROUGH,      /* the page cache, and the medium */
  NODE_CACHE_NONE,              /* that of the device, until node_flush */
  NODE_CACHE_DIRECTSYNC,        /* none: not the page cache, and the
                                   medium */
  NODE_CACHE_UNSAFE             /* whatever; node_flush does nothing */
};

struct node_open_options {
  bool read_only;
  enum node_lock lock;
  enum node_cache cache;        /* past the page cache only local files
                                   can be; those whose file system cannot
                                   are refused */
  bool from_file;               /* the name came out of a file, not from
                                   the user: NBD URIs may not refer to
                                   local key files */

  /* For a caller who cares for a server that comes and goes; NBD only. */
  bool rewrites;                /* the caller writes again what a flush that
                                   failed may have lost, so that its failure
                                   does not stay */
  unsigned timeout;             /* milliseconds to connect, 0: no limit */
  int cancel;                   /* give up connecting when this descriptor
                                   becomes readable, 0: never */
  char *cause;                  /* where to write why opening failed,
                                   instead of a message, or NULL */
  size_t cause_size;
  void (*lost) (void *opaque);  /* called once when a connection of a
                                   writable node has died, from any
                                   thread, or NULL.  Requests that fail
                                   for this then print no message */
  void *opaque;
};

/* Is this name an NBD URI (of the kinds in interfaces.md), rather than
 * a path?
 */
extern bool node_is_uri (const char *name);

/* The URI with the paths in it, of a socket and of files with keys, made
 * absolute: it means the same wherever the process is later.  Returns
 * NULL with errno, without a message.
 */
extern char *node_absolute_uri (const char *uri);

/* Open a local file, block device or NBD URI, which must exist.
 * Returns NULL with errno after a message.
 */
extern struct node *node_open (const char *name,
                               const struct node_open_options *options);

/* Open, and first create if missing, a local regular file for writing
 * with the locks of a writer, or with none.  A file that was created is
 * removed when the node is closed, unless node_keep was called; when this
 * fails none is left behind.
 */
extern struct node *node_create_file (const char *name, bool no_lock);
extern void node_keep (struct node *n);

/* How an empty local file shall be stored: without copy-on-write (on
 * btrfs), and in extents of that many bytes (0: whatever; on XFS).  Where
 * that cannot be it is ignored.
 */
extern void node_advise (struct node *n, bool no_cow, uint32_t extent_size);

/* Take the locks of another role as well; a node that has no locks
 * ignores it.
 */
extern int node_add_lock (struct node *n, enum node_lock lock);

/* Device and inode of a local file, for finding the same file under
 * two names.  Returns false where there is no such thing.
 */
extern bool node_identity (const struct node *n, dev_t *dev, ino_t *ino);

/* Is this a local file that has no name any more, because it has been
 * removed?
 */
extern bool node_is_removed (const struct node *n);

/* Start the threads of the node and of those below it.  Call it once,
 * after the last fork; the node then takes requests from many threads.
 */
extern int node_start (struct node *n);

/* Close and free; NULL is ignored.  The node is gone also when -1 is
 * returned, which means that something could not be written back.
 */
extern int node_close (struct node *n);

static inline uint64_t
node_size (const struct node *n)
{
  return atomic_load_explicit (&n->size, memory_order_acquire);
}

/* All of offset..offset+count must lie inside the node (EIO, "beyond
 * the end", otherwise).  What has been written survives the death of
 * this process when the call returns, and power loss after the next
 * node_flush.
 */
extern int node_pread (struct node *n, void *buf, size_t count,
                       uint64_t offset);
extern int node_pwrite (struct node *n, const void *buf, size_t count,
                        uint64_t offset);

/* Read what may reach behind the end, where there are zeroes; NULL has no
 * bytes at all.
 */
extern int node_pread_padded (struct node *n, void *buf, size_t count,
                              uint64_t offset);

extern int node_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                         uint64_t offset);

/* A write with flags, of which only NODE_FUA means something.  When it
 * fails the data may have been written or not.
 */
extern int node_pwrite_flags (struct node *n, const void *buf, size_t count,
                              uint64_t offset, unsigned flags);

/* Several writes, which may be carried out at the same time and in any
 * order.  When one fails any of the others may have been done or not.
 */
extern int node_pwrite_many (struct node *n, const struct node_write *writes,
                             size_t nr);

/* Make the range read as zeroes. */
extern int node_zero (struct node *n, uint64_t count, uint64_t offset,
                      unsigned flags);

/* Give space back if that is possible; the range then reads as zeroes
 * or as before, sector by sector.
 */
extern int node_discard (struct node *n, uint64_t count, uint64_t offset);

/* What was written before becomes durable.  A failure stays: all later
 * flushes of a node over a medium (a file, an NBD export, the layer below
 * a filter) fail too, since what could not be written may have been
 * dropped, and nobody would write it again.
 */
extern int node_flush (struct node *n);

/* One extent from offset, at most count bytes (count > 0). */
extern int node_extents (struct node *n, uint64_t count, uint64_t offset,
                         struct extent *ret);

/* How many bytes from offset on, at most count, are known to read as zeroes,
 * as far as that takes less time than to read a few KiB?  *length may be 0
 * where an extent would say zero, and nothing is said of what is behind.
 */
extern int node_zeroes (struct node *n, uint64_t count, uint64_t offset,
                        uint64_t *length);

/* Read ahead. */
extern int node_cache (struct node *n, uint64_t count, uint64_t offset);

/* Grow (by zeroes) or cut. */
extern int node_resize (struct node *n, uint64_t size);

/* Bytes that the node takes where it is stored; -1 if unknown (no
 * message).
 */
extern int64_t node_allocated_size (struct node *n);

/* Give up a server that does not answer: requests in flight and all
 * later ones fail, and node_close does not wait.  Only NBD nodes can be
 * cut off; others ignore it.
 */
extern void node_cut (struct node *n);

/* Will no request to this node ever succeed again, because its server
 * is gone?  Then cause (if not NULL) says why.  No message.
 */
extern bool node_is_lost (struct node *n, char *cause, size_t size);

/* For drivers. */
extern struct node *file_node_open (const char *name,
                                    const struct node_open_options *options);
extern struct node *nbd_node_open (const char *uri,
                                   const struct node_open_options *options);

#endif /* BLOCKDRIVERS_NODE_H */
