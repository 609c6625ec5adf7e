/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Comparing both disks while the guest goes on (interfaces.md,
 * replication-verify).
 *
 * Notes on the design
 *
 * An area that is dirty, or on its way, is going to be copied: it is not
 * looked at.  Of another one the remote is read first, and then, under a claim
 * of the range, so that nobody is writing there, the disk; so the guest never
 * waits for the remote.  If the area is still clean then, and was not changed
 * and copied in between, both must be equal.  What differs is read once more,
 * for the latter, and at last made dirty, which costs no more than a copy that
 * was not necessary.
 *
 * The thread ends in mirror_close, when it is done, and when the connection is
 * lost.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "filters/replication/primary/link.h"
#include "filters/replication/primary/sync.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define TRIES 3

struct comparison {
  struct mirror *m;
  char *ours, *theirs;          /* DIRTY_AREA bytes each */
};

static int __attribute__ ((format (printf, 2, 3)))
give_up (struct mirror *m, const char *fs, ...)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  va_list args;

  va_start (args, fs);
  vsnprintf (m->verify.desc, sizeof m->verify.desc, fs, args);
  va_end (args);
  return -1;
}

/* -1 with errno: ENOTCONN if there is no remote. */
static int
read_theirs (struct comparison *c, uint64_t count, uint64_t offset)
{
  struct mirror *m = c->m;
  struct node *remote;
  struct call call;
  int r, err;

  pthread_mutex_lock (&m->lock);
  remote = link_begin_call (m, &call);
  pthread_mutex_unlock (&m->lock);
  if (remote == NULL) {
    errno = ENOTCONN;
    return -1;
  }
  r = node_pread (remote, c->theirs, count, offset);
  err = errno;
  pthread_mutex_lock (&m->lock);
  link_end_call (m, &call);
  pthread_mutex_unlock (&m->lock);
  errno = err;
  return r;
}

/* 1 if both are the same, or it is going to be copied, 0 if not, -1 after
 * giving up.
 */
static int
compare_once (struct comparison *c, uint64_t area)
{
  struct mirror *m = c->m;
  const uint64_t offset = area * DIRTY_AREA;
  const uint64_t count = MIN (node_size (m->disk) - offset,
                              (uint64_t) DIRTY_AREA);
  struct claim claim;

  if (!dirty_is_clean (m->dirty, area))
    return 1;
  if (read_theirs (c, count, offset) == -1)
    return give_up (m, "reading the remote at offset %" PRIu64 ": %s", offset,
                    strerror (errno));
  claim_acquire (m->claims, &claim, offset, count, CLAIM_EXCLUSIVE);
  CLEANUP_CLAIM struct claim_holder holder = { m->claims, &claim };

  if (node_pread (m->disk, c->ours, count, offset) == -1)
    return give_up (m, "reading the disk at offset %" PRIu64 ": %s", offset,
                    strerror (errno));
  return !dirty_is_clean (m->dirty, area) ||
    memcmp (c->ours, c->theirs, count) == 0;
}

static void
note_area (struct mirror *m, uint64_t area, bool same)
{
  const uint64_t offset = area * DIRTY_AREA;
  const uint64_t count = MIN (node_size (m->disk) - offset,
                              (uint64_t) DIRTY_AREA);

  if (!same && dirty_mark (m->dirty, offset, count) == -1)
    replication_error_set (m->error, "writing the bitmap: %s",
                           strerror (errno));

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  m->verify.done += count;
  if (same)
    return;
  m->verify.different += count;
  sync_begin (m);
  link_announce (m);
}

static int
compare_all (struct job *job, struct comparison *c)
{
  const uint64_t nr = div_round_up (node_size (c->m->disk), DIRTY_AREA);

  for (uint64_t area = 0; area < nr; ++area) {
    int same = 0;

    for (int i = 0; i < TRIES && same == 0; ++i)
      same = compare_once (c, area);
    if (same == -1)
      return -1;
    if (job_cancelled (job))
      return give_up (c->m, "interrupted");
    note_area (c->m, area, same);
  }
  return 0;
}

static int
verify_thread (struct job *job, void *opaque)
{
  struct mirror *m = opaque;
  CLEANUP_FREE char *buf = malloc (2 * DIRTY_AREA);
  struct comparison c = { .m = m, .ours = buf, .theirs = buf + DIRTY_AREA };
  const int r = buf ? compare_all (job, &c)
    : give_up (m, "%s", strerror (ENOMEM));

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  m->verify.running = false;
  if (m->verify.different)
    msg_warning ("%s: %" PRIu64 " bytes of the remote differed, and are "
                 "copied again", m->uri, m->verify.different);
  if (r == -1)
    msg_warning ("%s: comparing the disks: %s", m->uri, m->verify.desc);
  return 0;
}

int
mirror_verify (struct mirror *m, struct replication_refusal *refusal)
{
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
    if (m->verify.running)
      return replication_refuse (refusal, "The disks are being compared");
    if (!link_is_usable (m))
      return replication_refuse (refusal, "%.120s: the remote is not "
                                 "connected", m->uri);
    m->verify = (struct replication_progress) {
      .begun = true, .running = true, .total = node_size (m->disk),
    };
  }
  job_finish (m->verify_job);
  m->verify_job = job_start ("mirror-verify", verify_thread, m);
  if (m->verify_job)
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&m->lock);
  m->verify.running = false;
  return replication_refuse (refusal, "starting a thread: %s",
                             strerror (errno));
}
