/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * There is no queue of data.  What the remote lacks is known by blocks
 * (dirty.h), and the senders read it from the disk when they are about
 * to send it.  So memory is bounded however slow the remote is, a block
 * that changes ten times while it waits is sent once, and there is one
 * way only for a write of this moment, for what a lost connection has
 * left behind and for the first full copy.
 *
 * A sender takes a batch of dirty areas.  Of each it claims the range,
 * so that nobody is writing there, notes that its blocks are clean,
 * reads them and lets the claim go: the guest waits for a read of the
 * disk at the most, never for the remote.  Then the batch is sent.  An
 * area is in one batch at a time, so two versions of a block cannot
 * overtake each other on the way, and the later one is found dirty when
 * the earlier one has arrived.
 *
 * The link thread owns the connection.  It connects, waiting longer after
 * each attempt that failed, and drops a connection that is lost, when
 * nobody uses it any more; then all that was sent since the last flush
 * of the remote is dirty again.  It also keeps the time of each request
 * to the remote, since NBD has none, and cuts the remote off when one
 * takes too long.
 *
 * A remote that comes back may have become another one: a secondary that
 * was rolled back lacks what it had, and one that has failed over has what
 * we never sent.  So each connection begins with a meeting (meeting.h).  If
 * that is refused, the guest goes on, and the link looks again from time to
 * time.
 *
 * A sender flushes the remote when something has been unsure for some
 * seconds, which bounds what has to be sent again.
 *
 * Threads: the link and the senders, from mirror_open to mirror_close.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/iszero.h"
#include "request/job.h"
#include "utils/message.h"
#include "filters/replication/meeting.h"
#include "filters/replication/primary/mirror.h"
#include "utils/rounding.h"

/* One sender reads while the other waits for the remote. */
#define NR_SENDERS 2

/* Areas in a batch: 4 MiB of data at the most, and less when the remote
 * takes so many milliseconds for it.
 */
#define BATCH 64
#define SLOW_BATCH 2000

/* Block status of the disk is asked for this far ahead. */
#define EXTENTS_AHEAD (UINT64_C (1024) * 1024 * 1024)

/* Clean blocks between two dirty ones that are sent along, since that
 * costs less than another request.
 */
#define GAP 2

/* Milliseconds between attempts to connect, or to send again what the
 * remote refused: doubled from one to the next.
 */
#define FIRST_DELAY 250
#define LAST_DELAY 16000

/* Milliseconds for which something may be unsure, and bytes: a flush
 * must not take so long that the remote seems to hang.
 */
#define FLUSH_AFTER 5000
#define FLUSH_BYTES (UINT64_C (256) * 1024 * 1024)

/* Milliseconds between two passes over what is dirty: three times what
 * the pass took, within limits, so that where both share a processor the
 * guest has most of it.
 */
#define REST_FACTOR 3
#define MIN_REST 100
#define MAX_REST 1000

/* It makes no sense to wait for less than this while the guest writes,
 * or when there has been no progress for so many milliseconds and
 * batches.
 */
#define CLOSE_ENOUGH (UINT64_C (4) * 1024 * 1024)
#define PATIENCE 500
#define PATIENCE_BATCHES (4 * NR_SENDERS)

#define CAUSE_LEN 200

/* A request to the remote that is under way, on its caller's stack. */
struct call {
  int64_t since;
  struct call *prev, *next;
};

/* What a sender is about to send. */
struct batch {
  uint64_t areas[BATCH];
  uint16_t blocks[BATCH];       /* of each area */
  bool failed[BATCH];           /* could not be read */
  bool zero[BATCH];             /* the whole area is zero */
  size_t nr;
  struct node_write writes[BATCH * DIRTY_AREA / DIRTY_BLOCK / 2];
  size_t nr_writes;
  char *buf;                    /* BATCH areas */
  size_t limit;                 /* areas to take */
  uint64_t data, data_end;      /* here the disk is known to have data */
  char cause[CAUSE_LEN];        /* why it could not be copied */
};

struct sender {
  struct mirror *mirror;
  struct job *job;
  struct batch batch;
};

struct mirror {
  char *uri;
  char *own_uri, *synced_uri;   /* the same for a remote that wants to know
                                   who we are */
  unsigned timeout;
  struct node *disk;
  struct dirty *dirty;
  struct claims *claims;
  struct replication_error *error;
  int cancel;                   /* eventfd: give up connecting */
  struct job *link;
  struct sender senders[NR_SENDERS];

  atomic_uint idle;             /* senders that found nothing dirty, or are
                                   looking for it */

  pthread_mutex_t lock;         /* protects the rest; never held while the
                                   remote is used.  Taken before the locks
                                   of dirty, of error and of nodes */
  pthread_cond_t changed;       /* for commands: anything below, or what
                                   is dirty */
  pthread_cond_t work;          /* for senders */
  pthread_cond_t link_work;     /* for the link */
  bool wanted;                  /* we are to be connected */
  int64_t cut_at;               /* if we are not, what is under way has its
                                   time until then */
  bool unanswered;              /* since then a call has ended without an
                                   answer */
  bool all_dirty;               /* when we are, everything will be dirty */
  bool ending;
  unsigned interrupted;         /* so many want nobody to wait */
  struct node *remote;          /* set and unset by the link only */
  bool broken;                  /* the link shall drop remote */
  bool identified;              /* remote knows who we are */
  bool look_again;              /* remote is alive, but has refused what a
                                   secondary takes: what is it now? */
  int64_t heard_at;             /* when it has last answered */
  bool asking;                  /* a sender asks whether it is there */
  bool refused;                 /* the last meeting was */
  bool met;                     /* there was a remote since wanted */
  struct call *calls;           /* that use remote */
  bool watched;                 /* the link looks at them from time to
                                   time */
  bool flushing;
  int64_t flush_at;             /* if something is unsure */
  uint64_t flushed;             /* sent when the last flush began */
  uint64_t flushes;             /* that succeeded, so far */
  int64_t connect_at, connect_delay;
  int64_t send_at, send_delay;
  bool in_pass;
  int64_t pass_began;
  int64_t rest_until;           /* before the next pass */
  unsigned waiters;             /* commands that wait for the copying */
  uint64_t failures;            /* attempts to connect, copy or flush */
  char cause[CAUSE_LEN];        /* of the last one */
  uint64_t batches, sent;       /* so far: their number and bytes */
};

/* The state has changed, for everybody. */
static void
announce (struct mirror *m)
{
  pthread_cond_broadcast (&m->changed);
  pthread_cond_broadcast (&m->work);
  pthread_cond_signal (&m->link_work);
}

/* May the remote be asked for more?  Called with the lock. */
static bool
is_usable (const struct mirror *m)
{
  return m->remote && !m->broken && m->wanted;
}

static int64_t
next_delay (int64_t delay)
{
  return MIN (delay * 2, (int64_t) LAST_DELAY);
}

/* An attempt has failed, as status and whoever waits shall know.  Called
 * with the lock.
 */
static void __attribute__ ((format (printf, 2, 3)))
note_failure (struct mirror *m, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vsnprintf (m->cause, sizeof m->cause, fs, args);
  va_end (args);
  m->failures++;
  announce (m);
}

/* Use of the remote.  Returns NULL if there is none just now; called
 * with the lock.
 */
static struct node *
begin_call (struct mirror *m, struct call *call)
{
  if (!is_usable (m))
    return NULL;
  *call = (struct call) { .since = clock_ms (), .next = m->calls };
  if (m->calls)
    m->calls->prev = call;
  m->calls = call;
  if (!m->watched)
    pthread_cond_signal (&m->link_work);
  return m->remote;
}

static void
end_call (struct mirror *m, struct call *call)
{
  if (call->next)
    call->next->prev = call->prev;
  if (call->prev)
    call->prev->next = call->next;
  else
    m->calls = call->next;
  if (node_is_lost (m->remote, NULL, 0))
    m->broken = true;
  else
    m->heard_at = clock_ms ();
  if (m->broken)
    m->unanswered = true;
  if (m->broken || !m->wanted)
    announce (m);
}

/* The remote has answered, and is asked for more. */
static void
prolong_call (struct mirror *m, struct call *call)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  call->since = clock_ms ();
}

/* Called by the node, without locks. */
static void
connection_lost (void *opaque)
{
  struct mirror *m = opaque;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  m->broken = true;
  announce (m);
}

/* Open the remote; it must have the disk's size.  On failure says why. */
static struct node *
open_remote (struct mirror *m, const char *uri, char cause[CAUSE_LEN])
{
  const struct node_open_options options = {
    .timeout = m->timeout, .cancel = m->cancel,
    .cause = cause, .cause_size = CAUSE_LEN,
    .lost = connection_lost, .opaque = m,
    .rewrites = true,           /* what was not flushed is dirty */
  };
  const uint64_t size = node_size (m->disk);
  struct node *n;

  /* In case that out of memory is all that is wrong. */
  snprintf (cause, CAUSE_LEN, "open: %s", strerror (ENOMEM));
  n = align_open (uri, &options);
  if (n == NULL)
    return NULL;
  if (node_size (n) != size)
    snprintf (cause, CAUSE_LEN, "the remote has %" PRIu64 " bytes, and the "
              "disk %" PRIu64, node_size (n), size);
  else if (node_start (n) == 0)
    return n;
  else
    snprintf (cause, CAUSE_LEN, "starting a thread: %s", strerror (errno));
  node_close (n);
  return NULL;
}

static void
mark_all (struct mirror *m)
{
  if (dirty_mark (m->dirty, 0, node_size (m->disk)) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
}

/* What of the disk the remote lacks.  That everything is dirty is noted before
 * the map is about this one, so that it does not get lost if we are killed in
 * between.
 */
static void
begin_map (struct mirror *m, enum meeting meeting,
           const struct disk_identity *remote)
{
  if (meeting == MEETING_IN_STEP)
    return;
  if (meeting == MEETING_OVERWRITE || meeting == MEETING_AGAIN)
    mark_all (m);
  if (meeting == MEETING_AGAIN) {
    msg_warning ("%s: the remote's disk was rolled back to an earlier state; "
                 "all of it is copied again", m->uri);
    replication_error_replace (m->error, "the remote's disk was rolled back, "
                               "and is copied again");
  }
  if (dirty_set_history (m->dirty, &remote->history) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
}

/* Open the remote and meet it: first without a word, then, if it is a
 * secondary of ours, with our name, which makes it ours alone.  NULL with the
 * cause; *refused: by the meeting.
 */
static struct node *
open_and_meet (struct mirror *m, bool all_dirty, char cause[CAUSE_LEN],
               bool *refused, bool *identified)
{
  struct history known;
  struct disk_identity remote;
  enum meeting meeting;

  *refused = *identified = false;
  for (;;) {
    struct node *n = open_remote (m, *identified ? m->own_uri : m->uri, cause);

    if (n == NULL)
      return NULL;
    identity_read (&remote, n->description);
    dirty_get_history (m->dirty, &known);
    meeting = meet_remote (&known, &remote, all_dirty, cause);
    if (meeting != MEETING_REFUSED &&
        (*identified || remote.kind != DISK_SECONDARY)) {
      begin_map (m, meeting, &remote);
      return n;
    }
    node_close (n);
    if (meeting == MEETING_REFUSED) {
      *refused = true;
      return NULL;
    }
    *identified = true;
  }
}

/* Tell of a refusal, once for each reason.  Called with the lock. */
static void
note_refusal (struct mirror *m, const char *cause)
{
  if (!m->refused || strcmp (m->cause, cause) != 0)
    msg_warning ("%s: refused to replicate to it: %s; the guest goes on "
                 "without", m->uri, cause);
  replication_error_set (m->error, "%s", cause);
}

/* Called and returns with the lock. */
static void
try_to_connect (struct mirror *m)
{
  const bool all_dirty = m->all_dirty;
  char cause[CAUSE_LEN];
  bool refused, identified;
  struct node *n;

  m->broken = false;
  pthread_mutex_unlock (&m->lock);
  n = open_and_meet (m, all_dirty, cause, &refused, &identified);
  pthread_mutex_lock (&m->lock);

  if (n == NULL) {
    m->broken = false;
    m->connect_at = clock_ms () + m->connect_delay;
    m->connect_delay = next_delay (m->connect_delay);
    msg_debug ("%s: %s", m->uri, cause);
    if (refused)
      note_refusal (m, cause);
    m->refused = refused;
    note_failure (m, "%s", cause);
    return;
  }
  m->refused = false;
  m->identified = identified;
  m->met = true;
  m->remote = n;
  m->broken = node_is_lost (n, NULL, 0);
  m->heard_at = clock_ms ();
  /* What it has refused it may refuse again. */
  if (!m->look_again)
    m->send_at = 0;
  m->look_again = false;
  announce (m);
}

/* Drop a connection that nobody uses.  Called and returns with the
 * lock.
 */
static void
drop_remote (struct mirror *m)
{
  struct node *n = m->remote;
  char cause[CAUSE_LEN] = "";

  if (m->wanted && node_is_lost (n, cause, sizeof cause)) {
    msg_warning ("%s: connection lost: %s; the guest goes on without",
                 m->uri, cause);
    replication_error_set (m->error, "connection to the remote lost: %s",
                           cause);
    note_failure (m, "connection lost: %s", cause);
    m->connect_at = clock_ms () + m->connect_delay;
    m->connect_delay = next_delay (m->connect_delay);
  }
  dirty_lost (m->dirty);
  m->remote = NULL;
  m->broken = false;
  m->flush_at = INT64_MAX;
  announce (m);
  pthread_mutex_unlock (&m->lock);
  node_close (n);
  pthread_mutex_lock (&m->lock);
}

/* When does the oldest call have had its time? */
static int64_t
calls_end (const struct mirror *m)
{
  int64_t end = INT64_MAX;

  for (const struct call *c = m->calls; c; c = c->next)
    end = MIN (end, c->since + m->timeout);
  return end;
}

/* Is it time to hang up? */
static bool
is_over (const struct mirror *m, bool wanted)
{
  const int64_t time = clock_ms ();

  return calls_end (m) <= time ||
    (!wanted && (m->calls == NULL || m->ending || m->cut_at <= time));
}

/* Wait until the next attempt to connect, or until the oldest call must
 * have come to its end.  Called and returns with the lock.
 */
static void
link_sleep (struct mirror *m, bool wanted)
{
  int64_t when = INT64_MAX;

  if (m->remote && !m->broken)
    when = wanted ? calls_end (m) : MIN (calls_end (m), m->cut_at);
  else if (!m->remote && wanted)
    when = m->connect_at;
  m->watched = m->remote && when < INT64_MAX;
  clock_wait (&m->link_work, &m->lock, when);
  m->watched = false;
}

static int
link_thread (struct job *job, void *opaque)
{
  struct mirror *m = opaque;

  (void) job;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  while (!m->ending || m->remote) {
    const bool wanted = m->wanted && !m->ending;

    if (m->remote && is_over (m, wanted))
      m->broken = true;
    if (m->remote && m->broken && m->calls)
      node_cut (m->remote);

    if (m->remote && m->broken && !m->calls)
      drop_remote (m);
    else if (!m->remote && wanted && m->connect_at <= clock_ms ())
      try_to_connect (m);
    else
      link_sleep (m, wanted);
  }
  return 0;
}

/* Where in the batch's buffer is the area? */
static char *
area_buf (const struct batch *b, size_t i)
{
  return b->buf + i * DIRTY_AREA;
}

static uint64_t
area_length (const struct mirror *m, uint64_t area)
{
  return MIN (node_size (m->disk) - area * DIRTY_AREA,
              (uint64_t) DIRTY_AREA);
}

/* What can be read at once: blocks, or more if the disk wants that. */
static uint64_t
read_align (const struct mirror *m)
{
  return MAX (m->disk->align, (uint32_t) DIRTY_BLOCK);
}

/* Can we know that all of an area is zero without reading it?  To ask
 * where data ends may take the time to walk over all of it (tmpfs does),
 * so we look at the beginning first, and do not ask twice.  That there
 * is data is a hint only, which may be out of date.
 */
static bool
is_hole (struct mirror *m, struct batch *b, size_t i)
{
  const uint64_t offset = b->areas[i] * DIRTY_AREA;
  const uint64_t length = area_length (m, b->areas[i]);
  const uint64_t look = MIN (read_align (m), length);
  const uint64_t ahead = MIN (node_size (m->disk) - offset, EXTENTS_AHEAD);
  struct extent e;

  if ((offset >= b->data && offset < b->data_end) ||
      node_pread (m->disk, area_buf (b, i), look, offset) == -1 ||
      !is_zero (area_buf (b, i), look) ||
      node_extents (m->disk, ahead, offset, &e) == -1)
    return false;
  if (e.flags & EXTENT_ZERO)
    return e.length >= length;
  b->data = offset;
  b->data_end = offset + e.length;
  return false;
}

/* Read blocks first..end of the area and add a write of them. */
static int
read_run (struct mirror *m, struct batch *b, size_t i, unsigned first,
          unsigned end)
{
  const uint64_t length = area_length (m, b->areas[i]);
  const uint64_t align = read_align (m);
  const uint64_t start = round_down (first * DIRTY_BLOCK, align);
  const uint64_t stop = MIN (round_up (end * DIRTY_BLOCK, align), length);
  const uint64_t offset = b->areas[i] * DIRTY_AREA + start;
  char *buf = area_buf (b, i) + start;

  if (node_pread (m->disk, buf, stop - start, offset) == -1)
    return -1;
  b->writes[b->nr_writes++] = (struct node_write) {
    .buf = buf, .count = stop - start, .offset = offset,
  };
  return 0;
}

/* Read these blocks of an area, in runs. */
static int
read_blocks (struct mirror *m, struct batch *b, size_t i, unsigned blocks)
{
  while (blocks) {
    const unsigned first = __builtin_ctz (blocks);
    unsigned end = first, gap;

    do {
      end += __builtin_ctz (~(blocks >> end));
      gap = blocks >> end ? __builtin_ctz (blocks >> end) : GAP + 1;
      if (gap <= GAP)
        end += gap;
    } while (gap <= GAP);
    if (read_run (m, b, i, first, end) == -1)
      return -1;
    blocks &= ~0u << end;
  }
  return 0;
}

/* Take an area's blocks from the disk into the batch.  The guest may
 * change them again when this returns.
 */
static int
read_area (struct mirror *m, struct batch *b, size_t i)
{
  const uint64_t area = b->areas[i], length = area_length (m, area);
  const size_t nr_writes = b->nr_writes;
  struct claim claim;
  bool whole;

  claim_acquire (m->claims, &claim, area * DIRTY_AREA, length,
                 CLAIM_EXCLUSIVE);
  CLEANUP_CLAIM struct claim_holder holder = { m->claims, &claim };

  b->blocks[i] = dirty_begin_copy (m->dirty, area);
  whole = b->blocks[i] == DIRTY_ALL;
  b->zero[i] = whole && is_hole (m, b, i);
  if (b->zero[i])
    return 0;
  if (read_blocks (m, b, i, b->blocks[i]) == -1) {
    b->nr_writes = nr_writes;
    return -1;
  }
  if (whole && is_zero (area_buf (b, i), length)) {
    b->zero[i] = true;
    b->nr_writes = nr_writes;
  }
  return 0;
}

/* Make a range of the remote zero where it is not. */
static int
zero_range (struct mirror *m, struct call *call, struct node *remote,
            uint64_t offset, uint64_t end)
{
  struct extent e;

  for (; offset < end; offset += e.length) {
    if (node_extents (remote, end - offset, offset, &e) == -1)
      return -1;
    prolong_call (m, call);
    if (e.flags & EXTENT_ZERO)
      continue;
    if (node_zero (remote, e.length, offset, NODE_MAY_TRIM) == -1)
      return -1;
    prolong_call (m, call);
  }
  return 0;
}

static int
send_zeroes (struct mirror *m, struct call *call, struct node *remote,
             const struct batch *b)
{
  for (size_t i = 0, next; i < b->nr; i = next) {
    next = i + 1;
    if (!b->zero[i])
      continue;
    while (next < b->nr && b->zero[next] &&
           b->areas[next] == b->areas[next - 1] + 1)
      next++;
    if (zero_range (m, call, remote, b->areas[i] * DIRTY_AREA,
                    b->areas[next - 1] * DIRTY_AREA +
                    area_length (m, b->areas[next - 1])) == -1)
      return -1;
  }
  return 0;
}

static void __attribute__ ((format (printf, 3, 4)))
batch_failed (struct mirror *m, struct batch *b, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vsnprintf (b->cause, sizeof b->cause, fs, args);
  va_end (args);
  replication_error_set (m->error, "%s", b->cause);
}

static void
read_batch (struct mirror *m, struct batch *b)
{
  b->nr_writes = 0;
  for (size_t i = 0; i < b->nr; ++i) {
    b->failed[i] = read_area (m, b, i) == -1;
    if (b->failed[i])
      batch_failed (m, b, "reading the disk at offset %" PRIu64 ": %s",
                    b->areas[i] * DIRTY_AREA, strerror (errno));
  }
}

/* Send what has been read.  b->cause says what failed, unless it is the
 * connection, of which the link tells.
 */
static bool
write_batch (struct mirror *m, struct call *call, struct node *remote,
             struct batch *b)
{
  int err;

  if (node_pwrite_many (remote, b->writes, b->nr_writes) == 0 &&
      send_zeroes (m, call, remote, b) == 0)
    return true;
  err = errno;
  if (!node_is_lost (remote, NULL, 0))
    batch_failed (m, b, "writing to the remote: %s", strerror (err));
  return false;
}

/* A secondary of ours has answered with an error.  Perhaps it was promoted, or
 * its guest has taken the disk: the connection is made anew, with a meeting.
 * Called with the lock.
 */
static void
doubt_remote (struct mirror *m)
{
  if (m->identified)
    m->broken = m->look_again = true;
}

/* Copy the areas of a batch to the remote, if it is still there when
 * they have been read.  Returns false if they could not be sent.  Called
 * and returns with the lock.
 */
static bool
copy_batch (struct mirror *m, struct batch *b)
{
  struct node *remote;
  struct call call;
  bool ok = false;

  b->cause[0] = '\0';
  pthread_mutex_unlock (&m->lock);
  read_batch (m, b);
  pthread_mutex_lock (&m->lock);
  remote = begin_call (m, &call);
  if (remote) {
    const int64_t since = clock_ms ();

    pthread_mutex_unlock (&m->lock);
    ok = write_batch (m, &call, remote, b);
    /* All of a batch fails if a part of it does, so that the other areas
     * are not sent in vain again and again they go one by one.
     */
    if (!ok)
      b->limit = 1;
    else if (clock_ms () > since + SLOW_BATCH)
      b->limit = MAX (b->limit / 2, 1U);
    else if (b->limit < BATCH)
      b->limit++;
  }
  else
    pthread_mutex_unlock (&m->lock);
  for (size_t i = 0; i < b->nr; ++i)
    dirty_end_copy (m->dirty, b->areas[i], b->blocks[i],
                    ok && !b->failed[i]);
  pthread_mutex_lock (&m->lock);
  if (remote && !ok && b->cause[0])
    doubt_remote (m);
  if (remote)
    end_call (m, &call);
  return ok;
}

/* Something other than the connection failed: wait before it is tried
 * again.  Called with the lock.
 */
static void
note_send_failure (struct mirror *m, const char *cause)
{
  m->send_at = clock_ms () + m->send_delay;
  m->send_delay = next_delay (m->send_delay);
  note_failure (m, "%s", cause);
}

/* Called with the lock. */
static void
note_batch (struct mirror *m, const struct batch *b, bool ok)
{
  if (b->cause[0])
    note_send_failure (m, b->cause);
  else if (ok) {
    m->batches++;
    for (size_t i = 0; i < b->nr; ++i)
      m->sent += __builtin_popcount (b->blocks[i]) * DIRTY_BLOCK;
    m->send_delay = m->connect_delay = FIRST_DELAY;
  }
  if (m->flush_at == INT64_MAX)
    m->flush_at = clock_ms () + FLUSH_AFTER;
  if (m->sent - m->flushed >= FLUSH_BYTES)
    m->flush_at = 0;
  pthread_cond_broadcast (&m->changed);
}

/* Note where in a pass the areas just taken stand. */
static void
note_pass (struct mirror *m, bool end)
{
  if (!m->in_pass)
    m->pass_began = clock_ms ();
  m->in_pass = !end;
  if (end)
    m->rest_until = clock_ms () +
      MIN (MAX ((clock_ms () - m->pass_began) * REST_FACTOR, MIN_REST),
           MAX_REST);
}

/* Take dirty areas.  As long as this finds none, whoever makes something
 * dirty wakes us: idle is counted before looking, so that one of us sees
 * the other.
 */
static bool
take_batch (struct mirror *m, struct batch *b)
{
  bool end;

  atomic_fetch_add (&m->idle, 1);
  b->nr = dirty_take (m->dirty, b->areas, b->limit, &end);
  if (b->nr == 0) {
    m->in_pass = false;
    return false;
  }
  atomic_fetch_sub (&m->idle, 1);
  note_pass (m, end);
  return true;
}

/* When is a remote to be asked that has not been asked anything?  So one that
 * stands still, or has become another one, is noticed without a write.
 */
static int64_t
ask_at (const struct mirror *m)
{
  return m->asking || m->calls ? INT64_MAX : m->heard_at + m->timeout / 3;
}

/* Called and returns with the lock. */
static void
ask_remote (struct mirror *m)
{
  struct call call;
  struct node *remote = begin_call (m, &call);
  char c;
  int r;

  if (remote == NULL)
    return;
  m->asking = true;
  pthread_mutex_unlock (&m->lock);
  r = node_size (remote) > 0 ? node_pread (remote, &c, 1, 0) : 0;
  pthread_mutex_lock (&m->lock);
  m->asking = false;
  if (r == -1)
    doubt_remote (m);
  end_call (m, &call);
  announce (m);
}

/* Copy what is dirty, or wait.  Called and returns with the lock. */
static void
send_or_wait (struct mirror *m, struct batch *b)
{
  const int64_t flush_at = m->flushing ? INT64_MAX : m->flush_at;
  const int64_t when = m->waiters ? m->send_at :
    MAX (m->send_at, m->rest_until);

  if (!is_usable (m))
    clock_wait (&m->work, &m->lock, INT64_MAX);
  else if (clock_ms () < when)
    clock_wait (&m->work, &m->lock, MIN (when, flush_at));
  else if (take_batch (m, b))
    note_batch (m, b, copy_batch (m, b));
  else {
    clock_wait (&m->work, &m->lock, MIN (flush_at, ask_at (m)));
    atomic_fetch_sub (&m->idle, 1);
  }
}

/* Flush the remote.  Nobody else does; called and returns with the
 * lock.
 */
static int
flush_remote (struct mirror *m)
{
  struct call call;
  struct node *remote = begin_call (m, &call);
  int r, err;

  if (remote == NULL)
    return -1;
  m->flushing = true;
  m->flush_at = INT64_MAX;
  m->flushed = m->sent;
  dirty_begin_flush (m->dirty);
  pthread_mutex_unlock (&m->lock);
  r = node_flush (remote);
  err = errno;
  if (dirty_end_flush (m->dirty, r == 0) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
  pthread_mutex_lock (&m->lock);
  m->flushing = false;
  m->flushes += r == 0;
  end_call (m, &call);
  if (r == -1 && !m->broken) {
    char cause[CAUSE_LEN];

    snprintf (cause, sizeof cause, "flushing the remote: %s",
              strerror (err));
    replication_error_set (m->error, "%s", cause);
    note_send_failure (m, cause);
  }
  if (dirty_is_unsure (m->dirty))
    m->flush_at = MIN (m->flush_at, clock_ms () + FLUSH_AFTER);
  announce (m);
  return r;
}

static int
sender_thread (struct job *job, void *opaque)
{
  struct sender *sender = opaque;
  struct mirror *m = sender->mirror;

  (void) job;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  while (!m->ending) {
    if (is_usable (m) && !m->flushing && m->flush_at <= clock_ms ())
      flush_remote (m);
    else if (is_usable (m) && ask_at (m) <= clock_ms ())
      ask_remote (m);
    else
      send_or_wait (m, &sender->batch);
  }
  return 0;
}

void
mirror_kick (struct mirror *m)
{
  if (atomic_load (&m->idle) == 0)
    return;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  pthread_cond_signal (&m->work);
}

static int
start_threads (struct mirror *m)
{
  m->cancel = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (m->cancel == -1) {
    msg_error ("%s: eventfd: %m", m->uri);
    return -1;
  }
  m->link = job_start ("mirror-link", link_thread, m);
  if (m->link == NULL)
    return -1;
  for (int i = 0; i < NR_SENDERS; ++i) {
    struct sender *sender = &m->senders[i];

    sender->mirror = m;
    sender->batch.limit = BATCH;
    sender->batch.buf = malloc ((size_t) BATCH * DIRTY_AREA);
    if (sender->batch.buf == NULL) {
      msg_error ("%s: buffer to send from: %m", m->uri);
      return -1;
    }
    sender->job = job_start ("mirror-send", sender_thread, sender);
    if (sender->job == NULL)
      return -1;
  }
  return 0;
}

static void
free_uris (struct mirror *m)
{
  free (m->uri);
  free (m->own_uri);
  free (m->synced_uri);
}

static int
make_own_uris (struct mirror *m, const struct history *self)
{
  char suffix[sizeof EXPORT_PRIMARY EXPORT_SYNCED + HISTORY_LEN];

  snprintf (suffix, sizeof suffix, EXPORT_PRIMARY "%s", self->text);
  m->own_uri = uri_with_suffix (m->uri, suffix);
  strcat (suffix, EXPORT_SYNCED);
  m->synced_uri = uri_with_suffix (m->uri, suffix);
  return m->own_uri && m->synced_uri ? 0 : -1;
}

struct mirror *
mirror_open (const struct mirror_options *options)
{
  struct mirror *m = calloc (1, sizeof *m);
  pthread_condattr_t attr;

  if (m == NULL || (m->uri = strdup (options->uri)) == NULL) {
    msg_error ("%s: %m", options->uri);
    free (m);
    return NULL;
  }
  m->timeout = options->timeout;
  m->disk = options->disk;
  m->dirty = options->dirty;
  m->claims = options->claims;
  m->error = options->error;
  if (make_own_uris (m, options->self) == -1) {
    msg_error ("%s: %m", options->uri);
    free_uris (m);
    free (m);
    return NULL;
  }
  m->flush_at = INT64_MAX;
  m->connect_delay = m->send_delay = FIRST_DELAY;
  pthread_mutex_init (&m->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&m->changed, &attr);
  pthread_cond_init (&m->work, &attr);
  pthread_cond_init (&m->link_work, &attr);
  pthread_condattr_destroy (&attr);

  if (start_threads (m) == -1) {
    const int err = errno;

    mirror_close (m);
    errno = err;
    return NULL;
  }
  return m;
}

void
mirror_close (struct mirror *m)
{
  const uint64_t one = 1;

  if (m == NULL)
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
    m->ending = true;
    announce (m);
  }
  if (m->cancel >= 0)
    (void) !write (m->cancel, &one, sizeof one);
  for (int i = 0; i < NR_SENDERS; ++i) {
    job_finish (m->senders[i].job);
    free (m->senders[i].batch.buf);
  }
  job_finish (m->link);
  if (m->cancel >= 0)
    close (m->cancel);
  pthread_cond_destroy (&m->link_work);
  pthread_cond_destroy (&m->work);
  pthread_cond_destroy (&m->changed);
  pthread_mutex_destroy (&m->lock);
  free_uris (m);
  free (m);
}

bool
mirror_is_connected (struct mirror *m)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  return is_usable (m);
}

/* Who waits now does not wait for the next attempt. */
static void
hurry (struct mirror *m)
{
  m->connect_at = 0;
  m->send_at = 0;
  announce (m);
}

static int
refuse_interrupted (const struct mirror *m,
                    struct replication_refusal *refusal)
{
  return replication_refuse (refusal, "%.120s: interrupted", m->uri);
}

int
mirror_connect (struct mirror *m, bool all_dirty,
                struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  const uint64_t failures = m->failures;
  const bool wanted = m->wanted;

  m->wanted = true;
  m->all_dirty = all_dirty;
  hurry (m);
  while (m->remote == NULL && m->failures == failures && !m->interrupted)
    pthread_cond_wait (&m->changed, &m->lock);
  m->all_dirty = false;
  if (m->remote)
    return 0;
  m->wanted = wanted;
  if (m->failures == failures)
    return refuse_interrupted (m, refusal);
  return replication_refuse (refusal, "%.200s: %.200s", m->uri, m->cause);
}

void
mirror_keep_trying (struct mirror *m)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  m->wanted = true;
  announce (m);
}

int
mirror_tell_synced (struct mirror *m, struct replication_refusal *refusal)
{
  char cause[CAUSE_LEN] = "out of memory";
  const struct node_open_options options = {
    .timeout = MIRROR_HOLD, .cancel = m->cancel,
    .cause = cause, .cause_size = sizeof cause,
  };
  struct node *n;
  bool identified;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
    identified = m->identified;
  }
  if (!identified)
    return 0;
  n = node_open (m->synced_uri, &options);
  if (n == NULL)
    return replication_refuse (refusal, "%.120s: telling the remote that it "
                               "has everything: %.80s", m->uri, cause);
  node_close (n);
  return 0;
}

void
mirror_query (struct mirror *m, struct replication_status *status)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  status->remote_connected = is_usable (m);
  status->link = status->remote_connected ? "connected"
    : !m->wanted && !m->refused ? "none"
    : m->refused ? "refused" : m->met ? "lost" : "connecting";
  if (!status->remote_connected && (m->wanted || m->refused))
    snprintf (status->link_desc, sizeof status->link_desc, "%s", m->cause);
}

bool
mirror_disconnect (struct mirror *m, unsigned ms)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  m->wanted = m->refused = m->met = false;
  m->cut_at = clock_ms () + ms;
  m->unanswered = false;
  announce (m);
  /* The link keeps the time, and drops what no call uses any more. */
  while (m->remote)
    pthread_cond_wait (&m->changed, &m->lock);
  return !m->unanswered;
}

void
mirror_interrupt (struct mirror *m, bool interrupted)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  m->interrupted += interrupted ? 1 : -1;
  announce (m);
}

/* May we go on to wait for the remote? */
static int
check_waiting (const struct mirror *m, uint64_t failures,
               struct replication_refusal *refusal)
{
  if (m->interrupted)
    return refuse_interrupted (m, refusal);
  if (m->failures != failures)
    return replication_refuse (refusal, "%.200s: %.200s", m->uri, m->cause);
  return 0;
}

/* A command begins to wait: it waits neither for the next attempt nor
 * for the next pass.
 */
static void
begin_waiting (struct mirror *m)
{
  m->waiters++;
  hurry (m);
}

static void
end_waiting (struct mirror **m)
{
  (*m)->waiters--;
}
#define CLEANUP_WAITING __attribute__ ((cleanup (end_waiting), unused))

static int
refuse_late (const struct mirror *m, unsigned limit,
             struct replication_refusal *refusal)
{
  return replication_refuse (refusal, "%.120s: the remote has not taken "
                             "everything within %.1f seconds", m->uri,
                             limit / 1000.0);
}

/* How the copying goes on. */
struct progress {
  int64_t begin;
  uint64_t sent;                /* when it began */
  uint64_t least;               /* dirty bytes seen so far */
  int64_t since;                /* when that was */
  uint64_t batches;
};

/* Has there been no progress for some time? */
static bool
is_stuck (const struct mirror *m, struct progress *p, uint64_t bytes)
{
  if (bytes < p->least) {
    p->least = bytes;
    p->since = clock_ms ();
    p->batches = m->batches;
  }
  return clock_ms () >= p->since + PATIENCE &&
    m->batches >= p->batches + PATIENCE_BATCHES;
}

/* Would copying the rest take more than a third of our time? */
static bool
is_hopeless (const struct mirror *m, const struct progress *p,
             uint64_t bytes)
{
  const double speed =
    (double) (m->sent - p->sent) / (clock_ms () - p->begin + 1);

  return bytes > speed * MIRROR_HOLD / 3;
}

/* A flush for which a command waits no longer than it wants. */
struct asked_flush {
  bool is_asked;
  uint64_t after;               /* it is done when m->flushes is larger */
};

/* Has a sender flushed what was sent when this was called first?  The first
 * call asks for it.  Called with the lock.
 */
static bool
has_flushed (struct mirror *m, struct asked_flush *asked)
{
  if (asked->is_asked)
    return m->flushes > asked->after;
  m->flush_at = 0;
  announce (m);
  *asked = (struct asked_flush) {
    .is_asked = true, .after = m->flushes + m->flushing
  };
  return false;
}

int
mirror_approach (struct mirror *m, unsigned limit,
                 struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  const uint64_t failures = m->failures;
  struct progress p = {
    .begin = clock_ms (), .sent = m->sent, .least = UINT64_MAX,
  };
  const int64_t deadline = limit ? p.begin + limit : INT64_MAX;
  struct asked_flush asked = { .is_asked = false };

  CLEANUP_WAITING struct mirror *waiting = m;
  begin_waiting (m);
  for (;;) {
    const uint64_t bytes = dirty_bytes (m->dirty);

    if (check_waiting (m, failures, refusal) == -1)
      return -1;
    if (is_usable (m)) {
      const bool stuck = is_stuck (m, &p, bytes);

      if (stuck && is_hopeless (m, &p, bytes))
        return replication_refuse (refusal, "%.120s: the guest writes faster "
                                   "than the remote takes it", m->uri);
      /* So that the flush while writes are held has little to do, and
       * that nothing is held for a remote that stands still.
       */
      if ((stuck || bytes <= CLOSE_ENOUGH) && has_flushed (m, &asked))
        return 0;
    }
    if (clock_ms () >= deadline)
      return refuse_late (m, limit, refusal);
    clock_wait (&m->changed, &m->lock, MIN (deadline, clock_ms () + PATIENCE));
  }
}

int
mirror_complete (struct mirror *m, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  const uint64_t failures = m->failures;
  const int64_t deadline = clock_ms () + MIRROR_HOLD;
  struct asked_flush asked = { .is_asked = false };

  CLEANUP_WAITING struct mirror *waiting = m;
  begin_waiting (m);
  for (;;) {
    if (check_waiting (m, failures, refusal) == -1)
      return -1;
    if (is_usable (m) && dirty_bytes (m->dirty) == 0) {
      /* Often the flush that mirror_approach waited for has settled all. */
      if (!m->flushing && !dirty_is_unsure (m->dirty))
        return 0;
      if (has_flushed (m, &asked))
        return 0;
    }
    /* A flush that the remote does not answer is left to its sender. */
    if (clock_ms () >= deadline)
      return refuse_late (m, MIRROR_HOLD, refusal);
    clock_wait (&m->changed, &m->lock, deadline);
  }
}
