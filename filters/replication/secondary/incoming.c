/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The secondary's export for the primary (replication.md, "The picture",
 * "Stages", "Whose data is right").
 *
 * Notes on the design
 *
 * While replication is running the primary's writes first see to it that
 * the hidden buffer holds the clusters that they touch, and then go to
 * the disk.  Where it holds them already, which it can tell without a
 * lock, they go straight down.  The guest's requests go to the active
 * buffer, which reads through the hidden one and that through to the
 * disk.  No request of one export waits for one of the other except while
 * a cluster is being copied: a guest that has read the disk looks whether
 * the hidden buffer has the cluster by then, and if it does reads that
 * instead (backing_unchanged).  So what it gets was on the disk before
 * the primary's write was issued.
 *
 * Before it writes, a primary is admitted, and what its writes make of the
 * disk is noted; connections that knew the disk before the guest took it have
 * to be made anew.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "filters/replication/report.h"
#include "filters/replication/secondary/heard.h"
#include "filters/replication/secondary/map.h"
#include "filters/replication/secondary/request.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Another primary writes, or has connected and said who it is. */
static int
refuse_primary (struct secondary *s)
{
  errno = EBUSY;
  msg_error ("replication: refused a primary: another one%s%s is connected, "
             "and a secondary takes one at a time",
             s->primary.text[0] ? " with the identifier " : "",
             s->primary.text);
  errno = EBUSY;
  return -1;
}

/* May this connection write?  Called with meet_lock. */
static int
admit (struct export *e)
{
  struct secondary *s = e->s;

  if (atomic_load (&e->admitted))
    return 0;
  if (atomic_load (&s->nr_primaries) > 0 &&
      strcmp (s->primary.text, e->primary.text) != 0)
    return refuse_primary (s);
  s->primary = e->primary;
  heard_now (s);
  if (atomic_fetch_add (&s->nr_primaries, 1) == 0)
    report_link (s->events, "connected", "");
  atomic_store (&e->admitted, true);
  return 0;
}

/* Where the guest would see what is written the disk is of no checkpoint any
 * more.
 */
static bool
ends_moment (struct secondary *s, enum replication_stage stage)
{
  return stage != REPLICATION_RUNNING && atomic_load (&s->has_moment);
}

static int
forget_moment (struct secondary *s)
{
  static const struct moment none;
  const struct note_change change = { .made = &none };

  if (note_put (&s->note, s->hidden, &change) == -1)
    return -1;
  atomic_store (&s->has_moment, false);
  return 0;
}

/* One that does not say who it is writes to the disk of one that did: whatever
 * that one knows of the disk is not so any more.  Once for each connection.
 * While replication runs it is a primary, whose checkpoints are its own
 * matter; before, it may be anybody in the middle of a copy.
 */
static int
note_stranger (struct export *e, enum replication_stage stage)
{
  struct secondary *s = e->s;
  struct note_change change = { .new_history = false };
  struct note_text text;
  bool is_known;

  note_get (&s->note, &text);
  is_known = text.partner.text[0];
  change.new_history =
    is_known && atomic_load (&e->told) == REPLICATION_FAILOVER;
  if (stage != REPLICATION_RUNNING)
    change.clear_flags = secondary_forget_proof (s) & text.flags;
  else if (!is_known) {
    change.set_flags = NOTE_PROVED & ~text.flags;
    atomic_store (&s->proved, true);
  }
  if (!change.new_history && !change.set_flags && !change.clear_flags)
    return 0;
  return note_put (&s->note, s->hidden, &change);
}

/* Note what the writes of a primary that says who it is make of the disk: it
 * is this one's, and where the guest would see them (not in RUNNING) a mixture
 * from the first to the last of a copy.  Called with meet_lock.
 */
static int
note_writes (struct export *e, enum replication_stage stage)
{
  struct secondary *s = e->s;
  struct note_change change = {
    .partner = &e->primary,
    .set_flags = stage == REPLICATION_RUNNING ? 0 : NOTE_INCONSISTENT,
  };
  struct note_text text;

  if (ends_moment (s, stage) && forget_moment (s) == -1)
    return -1;
  if (e->primary.text[0] == '\0')
    return note_stranger (e, stage);
  note_get (&s->note, &text);
  if (strcmp (text.partner.text, e->primary.text) != 0)
    change.clear_flags = secondary_forget_proof (s);
  if ((strcmp (text.partner.text, e->primary.text) != 0 ||
       text.before.text[0] ||
       (change.set_flags & ~text.flags)) &&
      note_put (&s->note, s->hidden, &change) == -1)
    return -1;
  atomic_store (&s->changed, true);
  return 0;
}

/* Note who has connected: it may die before it has written, and lack what its
 * guest wrote when it is started again without a bitmap.  With "before" it
 * first has to learn of the rollback.  In place of another one it begins a
 * history, which that one does not know, and for which the word of that one
 * does not count.  Called with meet_lock.
 */
static int
note_primary (struct export *e)
{
  struct secondary *s = e->s;
  struct note_change change = { .partner = &e->primary };
  struct note_text text;

  note_get (&s->note, &text);
  change.new_history = text.partner.text[0];
  change.clear_flags = NOTE_PROVED;
  if ((text.flags & NOTE_PROMOTED) ||
      strcmp (text.partner.text, e->primary.text) == 0 ||
      (text.before.text[0] && !change.new_history))
    return 0;
  secondary_forget_proof (s);
  if (note_put (&s->note, s->hidden, &change) == 0)
    return 0;
  secondary_note_error (s, "writing to the hidden buffer");
  return -1;
}

/* Before a primary changes the disk.  Costs nothing once all is said: a
 * checkpoint in RUNNING and a stop come with a drain, after which it is said
 * again where that is needed.
 */
static int
meet (struct export *e, enum replication_stage stage)
{
  struct secondary *s = e->s;
  int r;

  if (atomic_load (&e->admitted) && !atomic_load (&s->note.unknown) &&
      !ends_moment (s, stage) && map_is_forgotten (s) &&
      atomic_load (&e->told) == stage &&
      (e->primary.text[0] == '\0' || atomic_load (&s->changed)))
    return 0;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->meet_lock);
  r = admit (e);
  if (r == 0)
    r = note_settle (&s->note, s->hidden);
  if (r == 0)
    r = map_forget (s);
  if (r == 0)
    r = note_writes (e, stage);
  if (r == 0)
    atomic_store (&e->told, stage);
  else if (errno != EBUSY)
    secondary_note_error (s, "writing to the hidden buffer");
  return r;
}

/* Has the guest written to the disk that this primary knew?  One that does not
 * say who it is does not look at histories either.
 */
static bool
is_outdated (const struct export *e)
{
  return e->primary.text[0] &&
    e->generation != atomic_load (&e->s->generation);
}

static int
refuse_outdated (void)
{
  errno = ESHUTDOWN;
  return -1;
}

/* Does the hidden buffer have all of a range? */
static bool
holds_all (struct secondary *s, const struct change *c)
{
  const uint64_t end = c->offset + c->count;
  uint64_t offset = c->offset, length;
  enum qed_held held;

  for (; offset < end; offset += length)
    if (qed_buffer_held (s->hidden, end - offset, offset, &held, &length)
        == -1 || held == QED_HELD_NOT)
      return false;
  return true;
}

/* In RUNNING. */
static int
hold_and_apply (struct secondary *s, const struct change *c)
{
  /* Copying is not fast. */
  if (c->kind == ZERO && (c->flags & NODE_FAST) && !holds_all (s, c)) {
    errno = ENOTSUP;
    return -1;
  }
  if (qed_buffer_hold (s->hidden, c->count, c->offset) == -1) {
    secondary_note_error (s, "copying old content into the hidden buffer");
    return -1;
  }
  if (change_apply (s->disk, c) == -1) {
    if (errno != ENOTSUP)
      secondary_note_error (s, "writing to the secondary disk");
    return -1;
  }
  return 0;
}

/* Is this the disk itself now? */
static bool
is_disk (struct secondary *s, enum replication_stage stage)
{
  return stage == REPLICATION_NONE || stage == REPLICATION_RUNNING ||
    (stage == REPLICATION_DONE && !atomic_load (&s->failed_over));
}

static int
replication_change (struct node *n, const struct change *c)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  int r;

  if (!is_disk (s, stage))
    r = request_refuse (n, change_name (c), stage);
  else if (is_outdated (export_of (n)))
    r = refuse_outdated ();
  else if (meet (export_of (n), stage) == -1)
    r = -1;
  else {
    heard_now (s);
    r = stage == REPLICATION_RUNNING ? hold_and_apply (s, c)
      : change_apply (s->disk, c);
  }
  request_leave (s);
  return r;
}

/* What a primary may read; NULL after errno for nothing.  A message says why,
 * unless it has to look again.
 */
static struct node *
primary_disk (struct node *n, const char *what, enum replication_stage stage)
{
  struct secondary *s = export_of (n)->s;

  if (atomic_load (&export_of (n)->admitted))
    heard_now (s);
  if (!is_disk (s, stage))
    request_refuse (n, what, stage);
  else if (is_outdated (export_of (n)))
    refuse_outdated ();
  else
    return s->disk;
  return NULL;
}

static int
replication_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const disk = primary_disk (n, "read", stage);
  const int r = disk ? node_pread (disk, buf, count, offset) : -1;

  request_leave (s);
  return r;
}

/* The hidden buffer need not be durable: after a power loss it is of no
 * use, since the disk is as the primary has flushed it.
 */
static int
replication_flush (struct node *n)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const disk = primary_disk (n, "flush", stage);
  const int r = disk ? node_flush (disk) : -1;

  if (disk && r == -1 && stage == REPLICATION_RUNNING)
    secondary_note_error (s, "flushing the secondary disk");
  request_leave (s);
  return r;
}

static int
replication_extents (struct node *n, uint64_t count, uint64_t offset,
                     struct extent *ret)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const disk = primary_disk (n, "block status", stage);
  const int r = disk ? node_extents (disk, count, offset, ret) : -1;

  request_leave (s);
  return r;
}

static int
replication_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct secondary *s = export_of (n)->s;
  const enum replication_stage stage = request_enter (s);
  struct node *const disk = primary_disk (n, "cache", stage);
  const int r = disk ? node_cache (disk, count, offset) : -1;

  request_leave (s);
  return r;
}

static const struct node_ops replication_ops = {
  .type = "replication",
  .close = export_close,
  .pread = replication_pread,
  .pwritev = change_pwritev,
  .flush = replication_flush,
  .extents = replication_extents,
  .zero = change_zero,
  .discard = change_discard,
  .cache = replication_cache,
};

/* Called with meet_lock. */
static void
leave (struct export *e)
{
  struct secondary *s = e->s;

  if (atomic_load (&e->admitted) &&
      atomic_fetch_sub (&s->nr_primaries, 1) == 1)
    heard_the_end (s);
}

struct node *
secondary_connect (struct secondary *s, const struct history *primary)
{
  struct export *e = calloc (1, sizeof *e);
  int r = 0;

  if (e == NULL) {
    msg_error ("replication: connection of a primary: %m");
    return NULL;
  }
  export_init (e, s, &replication_ops, "replication: the primary's export",
               replication_change);
  e->primary = *primary;
  e->generation = atomic_load (&s->generation);
  atomic_init (&e->told, REPLICATION_FAILOVER); /* in which none writes */
  if (primary->text[0]) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->meet_lock);
    r = admit (e);
    if (r == 0 && (r = note_primary (e)) == -1)
      leave (e);
  }
  if (r == 0)
    return &e->node;

  const int err = errno;

  free (e);
  errno = err;
  return NULL;
}

struct node *
secondary_connect_map (struct secondary *s)
{
  return map_node_open (s);
}

void
secondary_disconnect (struct secondary *s, struct node *n)
{
  struct export *e = export_of (n);

  if (map_node_free (n))
    return;
  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->meet_lock);
    leave (e);
  }
  free (e);
}

/* Outside of RUNNING the disk is what the guest sees. */
static int
note_equal (struct secondary *s, enum replication_stage stage)
{
  const struct note_change change = {
    .clear_flags = NOTE_INCONSISTENT, .set_flags = NOTE_PROVED
  };

  if (stage == REPLICATION_RUNNING ||
      (note_flags (&s->note) & NOTE_EVIDENCE) == NOTE_PROVED)
    return 0;
  return note_put (&s->note, s->hidden, &change);
}

int
secondary_synced (struct secondary *s, const struct history *primary)
{
  const enum replication_stage stage = request_enter (s);
  int r = -1;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->meet_lock);
    if (atomic_load (&s->nr_primaries) == 0 ||
        strcmp (s->primary.text, primary->text) != 0)
      refuse_primary (s);
    else if (!is_disk (s, stage))
      request_refuse (&s->guest.node, "a primary's word", stage);
    else
      r = note_equal (s, stage);
    if (r == 0) {
      atomic_store (&s->changed, false);
      atomic_store (&s->proved, true);
    }
  }
  request_leave (s);
  return r;
}
