/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * L2 tables are cached in slices of 512 entries.  The cache is a fixed
 * array of sets with a few ways each; slice number modulo number of
 * sets gives the set, so that a working set without gaps never
 * conflicts.  The memory of all slices is there until the image is closed,
 * since a reader may look at one at any moment, whatever it holds by then;
 * the system gives it when it is first used.
 *
 * A lookup takes no lock.  It finds the way by its key, reads one
 * entry, and then makes sure by the sequence number that the slice was
 * not replaced meanwhile; if it was, that is a miss.  The writer's
 * order (sequence odd, then entries, then key and sequence even) and
 * the reader's (sequence, key, entry, sequence) are kept by release
 * stores and acquire loads of each entry, which cost nothing on x86.
 *
 * A miss takes cache->lock to choose a victim, by a clock that spares
 * what was used since its hand last passed, and reads without the lock.
 * Others who want the same slice wait for it.  A pinned slice is never
 * replaced.  Who finds all ways of a set pinned waits; those who hold
 * pins do not wait for other pins, so that ends.
 *
 * A slice whose write has failed is doubtful: the file may have what was
 * written or not.  It has no key any more, so lookups miss it; when its
 * last pin is gone it is read again, by who needs it next.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "qed/image/cache.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define MAX_WAYS 8

/* A set-associative cache. */
struct slice_cache {
  struct slice *slices;         /* nr_sets * nr_ways */
  _Atomic uint64_t *entries;    /* SLICE_ENTRIES of each, mapped */
  uint64_t nr_sets;             /* power of two */
  unsigned nr_ways;

  pthread_mutex_t lock;         /* see struct slice; a leaf lock, not held
                                   during I/O */
  pthread_cond_t changed;       /* a slice was loaded or unpinned */
  unsigned hand;                /* of the clock, under lock */
};

static uint64_t
nr_slices (const struct slice_cache *cache)
{
  return cache->nr_sets * cache->nr_ways;
}

static int
map_entries (struct slice_cache *cache)
{
  void *entries = mmap (NULL, nr_slices (cache) * SLICE_LEN,
                        PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  if (entries == MAP_FAILED)
    return -1;
  cache->entries = entries;
  for (uint64_t i = 0; i < nr_slices (cache); ++i)
    cache->slices[i].entries = &cache->entries[i * SLICE_ENTRIES];
  return 0;
}

int
cache_init (struct qed *s, uint64_t max_bytes)
{
  const uint64_t number = MAX (max_bytes / SLICE_LEN, UINT64_C (1));
  struct slice_cache *cache = calloc (1, sizeof *cache);

  if (cache) {
    cache->nr_ways = MIN (number, (uint64_t) MAX_WAYS);
    cache->nr_sets = UINT64_C (1) << log_2 (number / cache->nr_ways);
    cache->slices = calloc (nr_slices (cache), sizeof *cache->slices);
  }
  if (cache == NULL || cache->slices == NULL || map_entries (cache) == -1) {
    msg_error ("Could not open '%s': memory for L2 tables: %m",
               s->node.name);
    if (cache)
      free (cache->slices);
    free (cache);
    return -1;
  }
  pthread_mutex_init (&cache->lock, NULL);
  pthread_cond_init (&cache->changed, NULL);
  s->cache = cache;
  return 0;
}

void
cache_free (struct qed *s)
{
  struct slice_cache *cache = s->cache;

  if (cache == NULL)
    return;
  munmap (cache->entries, nr_slices (cache) * SLICE_LEN);
  free (cache->slices);
  pthread_mutex_destroy (&cache->lock);
  pthread_cond_destroy (&cache->changed);
  free (cache);
}

void
cache_forget (struct qed *s)
{
  struct slice_cache *cache = s->cache;

  if (cache == NULL)
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);
  for (uint64_t i = 0; i < nr_slices (cache); ++i) {
    struct slice *slice = &cache->slices[i];

    assert (slice->pins == 0);
    atomic_fetch_add (&slice->sequence, 2);
    atomic_store (&slice->key, 0);
    slice->doubtful = 0;
  }
}

static struct slice *
set_of (struct slice_cache *cache, uint64_t number)
{
  return &cache->slices[(number & (cache->nr_sets - 1)) * cache->nr_ways];
}

/* Read an entry of a slice if that is, and stays, the one with this
 * key.
 */
static bool
peek (struct slice *slice, uint64_t key, unsigned index, uint64_t *entry)
{
  const uint64_t sequence =
    atomic_load_explicit (&slice->sequence, memory_order_acquire);

  if ((sequence & 1) ||
      atomic_load_explicit (&slice->key, memory_order_acquire) != key)
    return false;
  *entry = atomic_load_explicit (&slice->entries[index],
                                 memory_order_acquire);
  if (atomic_load_explicit (&slice->sequence, memory_order_relaxed)
      != sequence)
    return false;

  if (!atomic_load_explicit (&slice->used, memory_order_relaxed))
    atomic_store_explicit (&slice->used, true, memory_order_relaxed);
  return true;
}

int
cache_lookup (struct qed *s, uint64_t cluster, uint64_t table_offset,
              uint64_t *entry)
{
  const uint64_t number = cluster >> SLICE_BITS;
  const unsigned index = cluster & (SLICE_ENTRIES - 1);
  struct slice *set = set_of (s->cache, number);
  struct slice *slice;

  for (unsigned way = 0; way < s->cache->nr_ways; ++way)
    if (peek (&set[way], number + 1, index, entry))
      return 0;

  slice = cache_pin (s, cluster, table_offset);
  if (slice == NULL)
    return -1;
  *entry = atomic_load_explicit (&slice->entries[index],
                                 memory_order_acquire);
  cache_unpin (s, slice);
  return 0;
}

uint64_t
cache_run (struct qed *s, uint64_t cluster, uint64_t entry)
{
  const uint64_t number = cluster >> SLICE_BITS;
  const unsigned first = cluster & (SLICE_ENTRIES - 1);
  struct slice *set = set_of (s->cache, number);
  unsigned i = first;
  uint64_t value;

  for (unsigned way = 0; way < s->cache->nr_ways; ++way)
    while (i < SLICE_ENTRIES && peek (&set[way], number + 1, i, &value) &&
           value == entry)
      i++;
  return MAX (i - first, 1U);
}

/* The slice with this key, loaded, being loaded or to be.  Under
 * cache->lock.
 */
static struct slice *
find (struct slice_cache *cache, struct slice *set, uint64_t key)
{
  for (unsigned way = 0; way < cache->nr_ways; ++way)
    if (set[way].loading == key || set[way].doubtful == key ||
        atomic_load (&set[way].key) == key)
      return &set[way];
  return NULL;
}

/* A slice that may be replaced, or NULL.  Under cache->lock. */
static struct slice *
find_victim (struct slice_cache *cache, struct slice *set)
{
  /* The first round may only take away the used marks, which lookups set again
   * at any time; the third does not ask for them, or somebody would wait for
   * slices that nobody holds.
   */
  for (unsigned i = 0; i < 3 * cache->nr_ways; ++i) {
    struct slice *slice = &set[cache->hand++ % cache->nr_ways];

    if (slice->pins == 0 && slice->loading == 0 &&
        (!atomic_exchange (&slice->used, false) || i >= 2 * cache->nr_ways))
      return slice;
  }
  return NULL;
}

/* Read a slice from the file into the entries of a victim, which nobody
 * else touches meanwhile.
 */
static int
load (struct qed *s, struct slice *slice, uint64_t number,
      uint64_t table_offset)
{
  const uint64_t slices_per_table = s->table_entries >> SLICE_BITS;
  const uint64_t offset =
    table_offset + (number & (slices_per_table - 1)) * SLICE_LEN;
  uint8_t buf[SLICE_LEN];

  if (node_pread (s->file, buf, sizeof buf, offset) == -1)
    return -1;
  for (unsigned i = 0; i < SLICE_ENTRIES; ++i)
    atomic_store_explicit (&slice->entries[i], qed_entry_get (buf, i),
                           memory_order_release);
  return 0;
}

/* Replace a victim.  Called and returns with cache->lock. */
static int
replace (struct qed *s, struct slice *slice, uint64_t key,
         uint64_t table_offset)
{
  struct slice_cache *cache = s->cache;
  int r, err;

  slice->loading = key;
  slice->doubtful = 0;
  atomic_fetch_add (&slice->sequence, 1);
  atomic_store (&slice->key, 0);
  pthread_mutex_unlock (&cache->lock);
  r = load (s, slice, key - 1, table_offset);
  err = errno;
  pthread_mutex_lock (&cache->lock);
  slice->loading = 0;
  if (r == 0)
    atomic_store (&slice->key, key);
  atomic_fetch_add (&slice->sequence, 1);
  pthread_cond_broadcast (&cache->changed);
  errno = err;
  return r;
}

struct slice *
cache_pin (struct qed *s, uint64_t cluster, uint64_t table_offset)
{
  struct slice_cache *cache = s->cache;
  const uint64_t key = (cluster >> SLICE_BITS) + 1;
  struct slice *set = set_of (cache, key - 1);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cache->lock);
  for (;;) {
    struct slice *slice = find (cache, set, key);
    bool replaceable = true;

    if (slice == NULL)
      slice = find_victim (cache, set);
    else if (slice->doubtful != key || slice->pins > 0)
      replaceable = false;
    if (slice && replaceable && replace (s, slice, key, table_offset) == -1)
      return NULL;
    if (slice && slice->loading == 0 && atomic_load (&slice->key) == key) {
      slice->pins++;
      atomic_store_explicit (&slice->used, true, memory_order_relaxed);
      return slice;
    }
    pthread_cond_wait (&cache->changed, &cache->lock);
  }
}

void
cache_unpin (struct qed *s, struct slice *slice)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->cache->lock);

  assert (slice->pins > 0);
  if (--slice->pins == 0)
    pthread_cond_broadcast (&s->cache->changed);
}

void
cache_doubt (struct qed *s, struct slice *slice)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->cache->lock);

  assert (slice->pins > 0);
  slice->doubtful = atomic_load (&slice->key);
  atomic_fetch_add (&slice->sequence, 2);
  atomic_store (&slice->key, 0);
}
