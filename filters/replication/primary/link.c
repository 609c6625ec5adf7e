/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The connection of a mirror, and the thread that owns it; the design is told
 * in mirror.c.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "filters/replication/meeting.h"
#include "filters/replication/primary/link.h"
#include "filters/replication/primary/sync.h"
#include "filters/replication/report.h"
#include "node/align.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* May the remote be asked for more?  Called with the lock. */
bool
link_is_usable (const struct mirror *m)
{
  return m->remote && !m->broken && m->wanted;
}

const char *
link_name (const struct mirror *m)
{
  return link_is_usable (m) ? "connected"
    : !m->wanted && !m->refused ? "none"
    : m->refused ? "refused" : m->met ? "lost" : "connecting";
}

/* Raise an event if the link has changed, but not before it is known why it
 * was lost.  What the operator is to do about a refusal may change, too.
 */
static void
report (struct mirror *m)
{
  const char *const name = link_name (m);
  const char *const cause = link_is_usable (m) || !m->wanted ? "" : m->cause;

  if ((m->remote && m->broken) ||
      (name == m->reported &&
       (!m->refused || strcmp (cause, m->reported_cause) == 0)))
    return;
  m->reported = name;
  snprintf (m->reported_cause, sizeof m->reported_cause, "%s", cause);
  report_link (m->events, name, cause);
}

/* The state has changed, for everybody. */
void
link_announce (struct mirror *m)
{
  report (m);
  pthread_cond_broadcast (&m->changed);
  pthread_cond_broadcast (&m->work);
  pthread_cond_signal (&m->link_work);
}

int64_t
link_next_delay (int64_t delay)
{
  return MIN (delay * 2, (int64_t) LAST_DELAY);
}

/* An attempt has failed, as status and whoever waits shall know.  Called
 * with the lock.
 */
void
link_note_failure (struct mirror *m, const char *fs, ...)
{
  va_list args;

  va_start (args, fs);
  vsnprintf (m->cause, sizeof m->cause, fs, args);
  va_end (args);
  m->failures++;
  link_announce (m);
}

/* Use of the remote.  Returns NULL if there is none just now; called
 * with the lock.
 */
struct node *
link_begin_call (struct mirror *m, struct call *call)
{
  if (!link_is_usable (m))
    return NULL;
  *call = (struct call) { .since = clock_ms (), .next = m->calls };
  if (m->calls)
    m->calls->prev = call;
  m->calls = call;
  if (!m->watched)
    pthread_cond_signal (&m->link_work);
  return m->remote;
}

void
link_end_call (struct mirror *m, struct call *call)
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
    link_announce (m);
}

/* The remote has answered, and is asked for more. */
void
link_prolong_call (struct mirror *m, struct call *call)
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
  link_announce (m);
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

void
link_mark_all (struct mirror *m)
{
  if (dirty_mark (m->dirty, 0, node_size (m->disk)) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
}

/* Areas first to end - 1, which may all be marked at once. */
struct run {
  uint64_t first, end;
};

static int
mark_run (struct mirror *m, const struct run *run)
{
  const uint64_t size = node_size (m->disk);
  const uint64_t start = MIN (run->first * DIRTY_AREA, size);

  return dirty_mark (m->dirty, start,
                     MIN (run->end * DIRTY_AREA, size) - start);
}

/* The areas that a word of the remote's map names; those of the last run wait
 * for what follows.
 */
static int
add_word (struct mirror *m, uint64_t index, uint64_t word, struct run *run)
{
  int r = 0;

  for (; word; word &= word - 1) {
    const uint64_t area = index * 64 + __builtin_ctzll (word);

    if (area != run->end) {
      r |= mark_run (m, run);
      run->first = area;
    }
    run->end = area + 1;
  }
  return r;
}

/* Add what the remote's own map says, from when it was a primary: what it has
 * written that is not here.
 */
static int
read_their_map (struct mirror *m, struct node *map, char cause[CAUSE_LEN])
{
  const uint64_t nr_areas = div_round_up (node_size (m->disk), DIRTY_AREA);
  const uint64_t nr = div_round_up (nr_areas, 64);
  struct run run = { 0, 0 };
  uint8_t buf[4096];
  int r = 0;

  if (node_size (map) != nr * 8) {
    snprintf (cause, CAUSE_LEN, "the remote's map has %" PRIu64 " bytes, and "
              "not %" PRIu64, node_size (map), nr * 8);
    return -1;
  }
  for (uint64_t i = 0; i < nr; i += sizeof buf / 8) {
    const size_t n = MIN (nr - i, (uint64_t) sizeof buf / 8);

    if (node_pread (map, buf, n * 8, i * 8) == -1) {
      snprintf (cause, CAUSE_LEN, "reading the remote's map: %s",
                strerror (errno));
      return -1;
    }
    for (size_t j = 0; j < n; ++j)
      r |= add_word (m, i + j, get_le64 (buf + j * 8), &run);
  }
  r |= mark_run (m, &run);
  if (r)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
  return 0;
}

static int
take_their_map (struct mirror *m, char cause[CAUSE_LEN])
{
  const struct node_open_options options = {
    .read_only = true, .timeout = m->timeout, .cancel = m->cancel,
    .cause = cause, .cause_size = CAUSE_LEN,
  };
  struct node *map;
  int r;

  snprintf (cause, CAUSE_LEN, "the remote's map: %s", strerror (ENOMEM));
  map = align_open (m->map_uri, &options);
  if (map == NULL)
    return -1;
  r = read_their_map (m, map, cause);
  node_close (map);
  return r;
}

/* What the remote is sent from now on is not to be known in memory only, with
 * a bitmap that says something else and would be believed.
 */
static int
check_bitmap (struct mirror *m, char cause[CAUSE_LEN])
{
  if (dirty_tell (m->dirty) == 0)
    return 0;
  snprintf (cause, CAUSE_LEN, "the bitmap can neither note what the remote "
            "lacks nor be marked as incomplete: %s", strerror (errno));
  return -1;
}

/* What of the disk the remote lacks.  That everything is dirty is noted before
 * the map is about this one, so that it does not get lost if we are killed in
 * between.
 */
static int
begin_map (struct mirror *m, enum meeting meeting,
           const struct disk_identity *remote, char cause[CAUSE_LEN])
{
  if (meeting == MEETING_IN_STEP)
    return check_bitmap (m, cause);
  if (meeting == MEETING_PARTED && take_their_map (m, cause) == -1)
    return -1;
  if (meeting == MEETING_OVERWRITE || meeting == MEETING_AGAIN ||
      meeting == MEETING_ALL)
    link_mark_all (m);
  if (meeting == MEETING_ALL)
    msg_warning ("%s: nobody knows what the remote's disk lacks: all of it is "
                 "copied", m->uri);
  if (meeting == MEETING_AGAIN) {
    msg_warning ("%s: the remote's disk was rolled back to an earlier state; "
                 "all of it is copied again", m->uri);
    replication_error_replace (m->error, "the remote's disk was rolled back, "
                               "and is copied again");
  }
  if (dirty_set_history (m->dirty, &remote->history) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));
  return check_bitmap (m, cause);
}

/* What is known of the remote. */
static void
recall (struct mirror *m, struct known_remote *known)
{
  dirty_get_history (m->dirty, &known->history);
  dirty_get_parted (m->dirty, &known->parted);
  known->changed = dirty_disk_was_changed (m->dirty);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  known->equal = m->equal;
}

/* Open the remote and meet it: first without a word, then, if it is a
 * secondary of ours, with our name, which makes it ours alone.  NULL with the
 * cause; *refused: by the meeting.
 */
static struct node *
open_and_meet (struct mirror *m, bool all_dirty, char cause[CAUSE_LEN],
               bool *refused, bool *identified)
{
  struct known_remote known;
  struct disk_identity remote;
  enum meeting meeting;

  *refused = *identified = false;
  for (;;) {
    struct node *n = open_remote (m, *identified ? m->own_uri : m->uri, cause);

    if (n == NULL)
      return NULL;
    identity_read (&remote, n->description);
    /* It was noted when we connected; others have not written. */
    if (history_equal (&remote.partner, &m->self))
      remote.partner.text[0] = '\0';
    recall (m, &known);
    meeting = meet_remote (&known, &remote, all_dirty, cause);
    if (meeting != MEETING_REFUSED &&
        (*identified || remote.kind != DISK_SECONDARY) &&
        begin_map (m, meeting, &remote, cause) == 0)
      return n;
    node_close (n);
    *refused = meeting == MEETING_REFUSED;
    if (*refused || *identified)
      return NULL;
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
  const uint64_t attempt = ++m->attempts;
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
    m->connect_delay = link_next_delay (m->connect_delay);
    msg_debug ("%s: %s", m->uri, cause);
    if (refused)
      note_refusal (m, cause);
    m->refused = refused;
    m->failed_attempt = attempt;
    link_note_failure (m, "%s", cause);
    return;
  }
  m->refused = false;
  m->identified = identified;
  m->met = true;
  m->equal = true;
  m->made_dirty = all_dirty;
  m->remote = n;
  m->broken = node_is_lost (n, NULL, 0);
  m->heard_at = clock_ms ();
  /* What it has refused it may refuse again. */
  if (!m->look_again)
    m->send_at = 0;
  m->look_again = false;
  sync_begin (m);
  link_announce (m);
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
    link_note_failure (m, "connection lost: %s", cause);
    m->connect_at = clock_ms () + m->connect_delay;
    m->connect_delay = link_next_delay (m->connect_delay);
  }
  dirty_lost (m->dirty);
  m->remote = NULL;
  m->broken = false;
  m->flush_at = INT64_MAX;
  link_announce (m);
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

int
link_thread (struct job *job, void *opaque)
{
  struct mirror *m = opaque;

  (void) job;
  pthread_mutex_lock (&m->lock);
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
  pthread_mutex_unlock (&m->lock);
  return 0;
}
