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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "filters/replication/meeting.h"
#include "filters/replication/primary/link.h"
#include "filters/replication/primary/mirror.h"
#include "filters/replication/primary/send.h"
#include "filters/replication/primary/sync.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* It makes no sense to wait for less than this while the guest writes,
 * or when there has been no progress for so many milliseconds and
 * batches.
 */
#define CLOSE_ENOUGH (UINT64_C (4) * 1024 * 1024)
#define PATIENCE 500
#define PATIENCE_BATCHES (4 * NR_SENDERS)

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
  free (m->map_uri);
}

static int
make_own_uris (struct mirror *m, const struct history *self)
{
  char suffix[sizeof EXPORT_PRIMARY EXPORT_SYNCED + HISTORY_LEN];

  snprintf (suffix, sizeof suffix, EXPORT_PRIMARY "%s", self->text);
  m->own_uri = uri_with_suffix (m->uri, suffix);
  strcat (suffix, EXPORT_SYNCED);
  m->synced_uri = uri_with_suffix (m->uri, suffix);
  m->map_uri = uri_with_suffix (m->uri, EXPORT_MAP);
  return m->own_uri && m->synced_uri && m->map_uri ? 0 : -1;
}

struct mirror *
mirror_open (const struct mirror_options *options)
{
  struct mirror *m = calloc (1, sizeof *m);

  if (m == NULL || (m->uri = strdup (options->uri)) == NULL) {
    msg_error ("%s: %m", options->uri);
    free (m);
    return NULL;
  }
  m->timeout = options->timeout;
  m->sync_rate = options->sync_rate;
  m->disk = options->disk;
  m->dirty = options->dirty;
  m->claims = options->claims;
  m->error = options->error;
  m->events = options->events;
  m->self = *options->self;
  m->equal = options->equal;
  m->reported = link_name (m);
  if (make_own_uris (m, options->self) == -1) {
    msg_error ("%s: %m", options->uri);
    free_uris (m);
    free (m);
    return NULL;
  }
  m->flush_at = INT64_MAX;
  m->connect_delay = m->send_delay = FIRST_DELAY;
  pthread_mutex_init (&m->lock, NULL);
  clock_cond_init (&m->changed);
  clock_cond_init (&m->work);
  clock_cond_init (&m->link_work);

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
    link_announce (m);
  }
  if (m->cancel >= 0)
    (void) !write (m->cancel, &one, sizeof one);
  job_finish (m->verify_job);
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

  return link_is_usable (m);
}

/* Who waits now does not wait for the next attempt. */
static void
hurry (struct mirror *m)
{
  m->connect_at = 0;
  m->send_at = 0;
  link_announce (m);
}

static int
refuse_interrupted (const struct mirror *m,
                    struct replication_refusal *refusal)
{
  return replication_refuse (refusal, "%.120s: interrupted", m->uri);
}

/* *made_dirty: the connection was made with everything dirty, and it is not
 * an older one.  An attempt that had begun before was made without all_dirty
 * and equal, so that its failure is no answer.
 */
static int
wait_for_connection (struct mirror *m, bool all_dirty, bool equal,
                     bool *made_dirty, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  const uint64_t begun = m->attempts;
  const bool wanted = m->wanted;

  m->wanted = true;
  m->all_dirty = all_dirty;
  m->equal |= equal;
  m->made_dirty = false;
  hurry (m);
  while (m->remote == NULL && m->failed_attempt <= begun && !m->interrupted) {
    pthread_cond_wait (&m->changed, &m->lock);
    if (m->failed_attempt == begun && m->connect_at > 0)
      hurry (m);
  }
  m->all_dirty = false;
  *made_dirty = m->made_dirty;
  if (m->remote)
    return 0;
  m->wanted = wanted;
  link_announce (m);
  if (m->failed_attempt <= begun)
    return refuse_interrupted (m, refusal);
  return replication_refuse (refusal, "%.100s: %.400s", m->uri, m->cause);
}

int
mirror_connect (struct mirror *m, bool all_dirty, bool equal,
                struct replication_refusal *refusal)
{
  bool made_dirty;

  if (wait_for_connection (m, all_dirty, equal, &made_dirty, refusal) == -1)
    return -1;
  if (all_dirty && !made_dirty) {
    link_mark_all (m);
    mirror_kick (m);
  }
  return 0;
}

void
mirror_keep_trying (struct mirror *m)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);

  m->wanted = true;
  link_announce (m);
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

  status->remote_connected = link_is_usable (m);
  sync_query (m, &status->sync);
  status->verify = m->verify;
  if (m->heard_at)
    status->last_heard = clock_ms () - m->heard_at;
  status->link = link_name (m);
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
  link_announce (m);
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
  link_announce (m);
}

/* May we go on to wait for the remote? */
static int
check_waiting (const struct mirror *m, uint64_t failures,
               struct replication_refusal *refusal)
{
  if (m->interrupted)
    return refuse_interrupted (m, refusal);
  if (m->failures != failures)
    return replication_refuse (refusal, "%.100s: %.400s", m->uri, m->cause);
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
  link_announce (m);
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
    if (link_is_usable (m)) {
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

/* Called with the lock. */
static int
complete (struct mirror *m, struct replication_refusal *refusal)
{
  const uint64_t failures = m->failures;
  const int64_t deadline = clock_ms () + MIRROR_HOLD;
  struct asked_flush asked = { .is_asked = false };

  CLEANUP_WAITING struct mirror *waiting = m;
  begin_waiting (m);
  for (;;) {
    if (check_waiting (m, failures, refusal) == -1)
      return -1;
    if (link_is_usable (m) && dirty_bytes (m->dirty) == 0) {
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

int
mirror_complete (struct mirror *m, struct replication_refusal *refusal)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  int r;

  m->unlimited = true;
  r = complete (m, refusal);
  m->unlimited = false;
  return r;
}
