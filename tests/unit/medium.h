/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A disk in memory that remembers, like a real one with a volatile cache,
 * what was flushed and each sector written since, so that a power loss can
 * be played; and that fails when it is told to, with or without doing what
 * it was asked for.
 */

#ifndef BLOCKDRIVERS_MEDIUM_H
#define BLOCKDRIVERS_MEDIUM_H

#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "node/node.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

#define MEDIUM_SECTOR 512
#ifndef MEDIUM_FIXED_SIZE
#define MEDIUM_FIXED_SIZE (UINT64_C (4) * 1024 * 1024)
#endif

struct sector_write {
  uint64_t sector;
  uint8_t data[MEDIUM_SECTOR];
};

struct medium {
  struct node node;
  pthread_mutex_t lock;         /* protects all below, and the model */

  uint8_t *now;                 /* what reads see; capacity bytes */
  uint8_t *flushed;
  uint64_t capacity, size, flushed_size;

  struct sector_write *writes;  /* since the flush, in order */
  size_t nr_writes, max_writes;
  uint64_t sizes[256];          /* lengths since the flush */
  size_t nr_sizes;

  void (*event) (struct medium *m); /* after each change, or NULL */
  uint64_t seed;                /* the rest is for the test */
  unsigned states;              /* played */
  unsigned seldom;              /* one in so many events is a power loss */
  void (*judge) (const char *path); /* of the disk afterwards */
  bool dead;                    /* its process was killed */

  /* Faults: changes number fault_at and so many behind it, counted from 0
   * on, fail with EIO, and are done all the same if it lies.
   */
  uint64_t nr_changes, fault_at, nr_faults;
  bool lies;
};

/* Is this change done (0), done and a failure (1), or not done (-1)? */
static inline int
medium_fault (struct medium *m)
{
  const uint64_t nr = m->nr_changes++;

  if (nr < m->fault_at || nr >= m->fault_at + m->nr_faults)
    return 0;
  return m->lies ? 1 : -1;
}

static inline int
medium_done (struct medium *m, int fault)
{
  if (fault != -1 && m->event)
    m->event (m);
  if (fault)
    errno = EIO;
  return fault ? -1 : 0;
}

static inline struct medium *
medium_of (struct node *n)
{
  return (struct medium *) n;
}

static inline void
record_sectors (struct medium *m, uint64_t offset, uint64_t count)
{
  for (uint64_t s = offset / MEDIUM_SECTOR;
       s * MEDIUM_SECTOR < offset + count; ++s) {
    if (m->nr_writes == m->max_writes) {
      m->max_writes = m->max_writes * 2 + 64;
      m->writes = realloc (m->writes, m->max_writes * sizeof *m->writes);
      CHECK (m->writes);
    }
    m->writes[m->nr_writes].sector = s;
    memcpy (m->writes[m->nr_writes].data, m->now + s * MEDIUM_SECTOR,
            MEDIUM_SECTOR);
    m->nr_writes++;
  }
}

static inline void
reserve (struct medium *m, uint64_t size)
{
  const uint64_t want = round_up (size + MEDIUM_SECTOR, 1 << 20);

  if (want <= m->capacity)
    return;
  m->now = realloc (m->now, want);
  m->flushed = realloc (m->flushed, want);
  CHECK (m->now && m->flushed);
  memset (m->now + m->capacity, 0, want - m->capacity);
  memset (m->flushed + m->capacity, 0, want - m->capacity);
  m->capacity = want;
}

static inline int
medium_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct medium *m = medium_of (n);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  memcpy (buf, m->now + offset, count);
  return 0;
}

static inline int
medium_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                size_t count, uint64_t offset)
{
  struct medium *m = medium_of (n);
  int fault;
  uint64_t at = offset;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (m->dead)
    return 0;
  fault = medium_fault (m);
  if (fault == -1)
    return medium_done (m, fault);
  for (int i = 0; i < iovcnt; ++i) {
    memcpy (m->now + at, iov[i].iov_base, iov[i].iov_len);
    at += iov[i].iov_len;
  }
  record_sectors (m, offset, count);
  return medium_done (m, fault);
}

static inline int
medium_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  struct medium *m = medium_of (n);
  int fault;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (m->dead)
    return 0;
  fault = medium_fault (m);
  if (fault == -1)
    return medium_done (m, fault);
  memset (m->now + offset, 0, count);
  record_sectors (m, offset, count);
  return medium_done (m, fault);
}

static inline int
medium_flush (struct node *n)
{
  struct medium *m = medium_of (n);
  int fault;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (m->dead)
    return 0;
  fault = medium_fault (m);
  if (fault == -1)
    return medium_done (m, fault);
  if (m->event)
    m->event (m);
  memcpy (m->flushed, m->now, m->capacity);
  m->flushed_size = m->size;
  m->nr_writes = m->nr_sizes = 0;
  if (fault)
    errno = EIO;
  return fault ? -1 : 0;
}

static inline int
medium_resize (struct node *n, uint64_t size)
{
  struct medium *m = medium_of (n);
  int fault;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  if (m->dead)
    return 0;
  fault = medium_fault (m);
  if (fault == -1)
    return medium_done (m, fault);
  reserve (m, size);
  if (size < m->size)
    memset (m->now + size, 0, m->size - size);
  m->size = size;
  atomic_store (&n->size, size);
  if (m->nr_sizes < sizeof m->sizes / sizeof m->sizes[0])
    m->sizes[m->nr_sizes++] = size;
  return medium_done (m, fault);
}

static inline int
medium_extents (struct node *n, uint64_t count, uint64_t offset,
                struct extent *ret)
{
  *ret = (struct extent) { .length = count, .where = n };
  return 0;
}

static inline int
medium_close (struct node *n)
{
  struct medium *m = medium_of (n);

  free (m->now);
  free (m->flushed);
  free (m->writes);
  pthread_mutex_destroy (&m->lock);
  free (n->name);
  free (m);
  return 0;
}

static const struct node_ops medium_ops = {
  .type = "medium",
  .close = medium_close,
  .pread = medium_pread,
  .pwritev = medium_pwritev,
  .flush = medium_flush,
  .extents = medium_extents,
  .zero = medium_zero,
  .resize = medium_resize,
};

static inline struct medium *
medium_new (bool fixed, const char *name, const void *data, uint64_t size)
{
  struct medium *m = calloc (1, sizeof *m);

  CHECK (m);
  pthread_mutex_init (&m->lock, NULL);
  m->node.ops = &medium_ops;
  m->node.name = strdup (name);
  m->node.align = m->node.zero_align = 1;
  m->node.fixed_size = fixed;
  m->node.can_fast_zero = true;
  m->size = fixed ? MAX (size, MEDIUM_FIXED_SIZE) : size;
  reserve (m, m->size);
  if (fixed)
    memset (m->now, 0xee, m->size);
  memcpy (m->now, data, size);
  memcpy (m->flushed, m->now, m->capacity);
  m->flushed_size = m->size;
  atomic_init (&m->node.size, m->size);
  return m;
}

/* A medium that holds this file.  One of fixed size is full of what was
 * there before.
 */
static inline struct medium *
new_medium (bool fixed, const char *path)
{
  struct stat st;
  CLEANUP_CLOSE int fd = open (path, O_RDONLY);
  CLEANUP_FREE uint8_t *data = NULL;

  CHECK (fd >= 0 && fstat (fd, &st) == 0);
  data = malloc (st.st_size);
  CHECK (data && read (fd, data, st.st_size) == st.st_size);
  return medium_new (fixed, path, data, st.st_size);
}

static inline void
write_file (const char *path, const void *buf, size_t size)
{
  CLEANUP_CLOSE int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

  CHECK (fd >= 0 && write (fd, buf, size) == (ssize_t) size);
}

/* What a power loss may leave: what was flushed, with a random subset of
 * the sectors written since, and one of the lengths.  To be freed.
 */
static inline uint8_t *
medium_lose_power (struct medium *m, uint64_t *size)
{
  uint8_t *state = malloc (m->capacity);
  const uint64_t keep = random_below (&m->seed, 101);

  CHECK (state);
  memcpy (state, m->flushed, m->capacity);
  for (size_t i = 0; i < m->nr_writes; ++i)
    if (random_below (&m->seed, 100) < keep)
      memcpy (state + m->writes[i].sector * MEDIUM_SECTOR, m->writes[i].data,
              MEDIUM_SECTOR);
  *size = m->flushed_size;
  if (m->nr_sizes > 0 && random_below (&m->seed, 2))
    *size = m->sizes[random_below (&m->seed, m->nr_sizes)];
  return state;
}

#endif /* BLOCKDRIVERS_MEDIUM_H */
