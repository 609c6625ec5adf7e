/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A request claims the sectors (of the log) that it touches, exclusively,
 * from before it reaches the disk until it stands in the log.  So two
 * requests on one sector stand in the log in the order in which they
 * reached the disk, and replaying gives what the disk is.  Requests on
 * different sectors do not wait for each other, and may stand in either
 * order.  Reads claim nothing.
 *
 * What the client wrote goes to the disk as it is; the entry is widened
 * to whole sectors by what the disk has around it, which nobody can
 * change under the claim.  Behind the end of a disk whose size is no
 * multiple of the sector size are zeroes.
 *
 * After a trim nobody knows what the disk has: zeroes, the old data, or
 * each in places.  The log must know, so it asks the disk: what reads as
 * zeroes (by block status where the disk has it, else by reading) is
 * logged as a discard, which gives zeroes when replayed, and everything
 * else is logged as a write of what is there.  Only whole sectors of the
 * log are trimmed, since a trim is a hint.  The same is done after a
 * request that failed on the disk, since part of it may have been done.
 * If the disk cannot be read then, the log owes the range: flushes and the
 * end of a connection try again.
 *
 * A claim is taken before any lock of the log.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "request/claim.h"
#include "utils/cleanup.h"
#include "writelog/record/held.h"
#include "writelog/record/disknote.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "writelog/record/recorder.h"
#include "utils/rounding.h"

/* What the disk has is read back in pieces of this size, or of a sector
 * if that is larger.
 */
#define READ_BACK ((uint64_t) 256 * 1024)

/* Before it is asked where it has data, its first bytes are looked at, so
 * many or a sector: to find the end of data can take a file system longer
 * than to read them, and of a short range they say it all.
 */
#define LOOK ((uint64_t) 16 * 1024)

/* In the order of durability longer writes make several entries, since
 * each is read back into memory as a whole; and zeroes from this length
 * on are logged apart from what the sectors at their ends have, to be
 * holes.
 */
#define HOLD_PIECE ((uint64_t) 4 * 1024 * 1024)
#define HOLD_ZEROES ((uint64_t) 64 * 1024)

/* What is held back takes this much memory at most, but for notes of a few
 * MiB.
 */
#define HOLD_BOUND ((size_t) 16 * 1024 * 1024)

/* More ranges than this are joined to one around them. */
#define MAX_OWED 16

/* Whole sectors, in bytes. */
struct window {
  uint64_t start, end;
};

struct recorder {
  struct writelog *log;         /* borrowed */
  struct hold *hold;            /* NULL in the order of completion */
  uint32_t sector_size;
  struct claims claims;         /* on sectors of the disk */
  atomic_int flush_errno;       /* of a flush of the disk that failed, on
                                   whatever connection, or 0 */

  pthread_mutex_t owed_lock;    /* protects owed and the change of nr_owed; a
                                   leaf lock */
  struct window owed[MAX_OWED];
  atomic_uint nr_owed;
};

struct recorder *
recorder_new (struct writelog *log, enum record_order order)
{
  struct recorder *rec = calloc (1, sizeof *rec);

  if (rec == NULL) {
    msg_error ("recording: %m");
    return NULL;
  }
  rec->log = log;
  rec->sector_size = writelog_sector_size (log);
  if (order == RECORD_DURABILITY) {
    rec->hold = hold_new (log, HOLD_BOUND, getenv ("TMPDIR") ? : "/var/tmp");
    if (rec->hold == NULL) {
      const int err = errno;

      free (rec);
      errno = err;
      return NULL;
    }
  }
  claims_init (&rec->claims);
  pthread_mutex_init (&rec->owed_lock, NULL);
  return rec;
}

int
recorder_close (struct recorder *rec)
{
  int r, err;

  if (rec == NULL)
    return 0;
  r = hold_close (rec->hold);
  err = errno;
  if (r == -1)
    disknote_spoil (writelog_note (rec->log));
  claims_destroy (&rec->claims);
  pthread_mutex_destroy (&rec->owed_lock);
  free (rec);
  errno = err;
  return r;
}

/* The sectors that a request touches. */
static struct window
window_of (const struct recorder *rec, uint64_t count, uint64_t offset)
{
  return (struct window) {
    .start = round_down (offset, rec->sector_size),
    .end = round_up (offset + count, rec->sector_size),
  };
}

static uint64_t
log_flags (unsigned flags)
{
  return flags & NODE_FUA ? WRITELOG_FUA : 0;
}

/* Log what happened to the bytes from start to end, which are whole
 * sectors.
 */
static int
log_range (struct recorder *rec, uint64_t start, uint64_t end,
           uint64_t flags, const struct writelog_piece *pieces, unsigned n)
{
  const struct writelog_entry entry = {
    .sector = start / rec->sector_size,
    .nr_sectors = (end - start) / rec->sector_size,
    .flags = flags,
  };

  if (rec->hold == NULL)
    return writelog_append (rec->log, &entry, pieces, n);
  if (flags & WRITELOG_FUA)
    return hold_overtake (rec->hold, &entry, pieces, n);
  return hold_add (rec->hold, &entry, pieces, n);
}

/* Make durable what a request with FUA has logged. */
static int
finish (struct recorder *rec, unsigned flags)
{
  return flags & NODE_FUA ? writelog_flush (rec->log) : 0;
}

/* ---- What the disk has */

/* How far from start on is the disk known to read as zeroes, or, with
 * *zero false, may it not?  In whole sectors.  A disk that fails to tell
 * may still be read.
 */
static void
known_zeroes (struct recorder *rec, struct node *disk,
              uint64_t start, uint64_t end, uint64_t *len, bool *zero)
{
  const uint64_t inside = MIN (end, node_size (disk)) - start;
  struct extent e;

  *len = end - start;
  *zero = false;
  if (node_extents (disk, inside, start, &e) == -1)
    return;
  *len = e.length;
  *zero = e.flags & EXTENT_ZERO;
  if (*len >= inside)
    *len = end - start;
  else if (*zero && *len >= rec->sector_size)
    *len = round_down (*len, rec->sector_size);
  else {                        /* the rest of its last sector is other */
    *zero = false;
    *len = round_up (*len, rec->sector_size);
  }
}

/* Log zeroes, if there are any. */
static int
log_zeroes (struct recorder *rec, uint64_t start, uint64_t end,
            uint64_t flags)
{
  const struct writelog_piece piece = { .len = end - start };

  if (start == end)
    return 0;
  return log_range (rec, start, end, flags, &piece,
                    flags & WRITELOG_DISCARD ? 0 : 1);
}

static int
log_data (struct recorder *rec, uint64_t start, uint64_t end,
          uint64_t flags, const uint8_t *buf)
{
  const struct writelog_piece piece = { .data = buf, .len = end - start };

  return log_range (rec, start, end, flags, &piece, 1);
}

/* What the disk has in some sectors, on its way into the log. */
struct content {
  struct recorder *rec;
  uint64_t flags, zero_flags;   /* of entries for data and for zeroes */
  uint64_t zero_start;          /* from here on all were zero; bytes */
  uint64_t data_end;            /* up to here the disk has said data */
};

/* Look at the sectors from start on, at most to end.  Sets how many bytes
 * of them are known to be zero, or else buf has what is in them.
 */
static int
look_at (struct content *c, struct node *disk, uint8_t *buf,
         uint64_t start, uint64_t end, uint64_t *len, bool *zero)
{
  const uint64_t sector = c->rec->sector_size;
  const uint64_t look = MIN (end - start, MAX (LOOK, sector));
  uint64_t have = 0;

  *zero = false;
  *len = MIN (end - start, MAX (READ_BACK, sector));
  if (start >= c->data_end) {
    if (node_pread_padded (disk, buf, look, start) == -1)
      return -1;
    if (look < end - start && is_zero (buf, look)) {
      known_zeroes (c->rec, disk, start, end, len, zero);
      if (*zero)
        return 0;
      c->data_end = start + *len;
      *len = MIN (*len, MAX (READ_BACK, sector));
    }
    have = MIN (look, *len);
  }
  return node_pread_padded (disk, buf + have, *len - have, start + have);
}

/* The length of the run of sectors at the beginning of buf that are all
 * zero, or are all not.  Zeroes that make no discards are not told apart:
 * entries would only be more.
 */
static uint64_t
first_run (const struct content *c, const uint8_t *buf, uint64_t len,
           bool *zero)
{
  const uint64_t step =
    c->zero_flags & WRITELOG_DISCARD ? c->rec->sector_size : len;
  uint64_t run = step;

  *zero = is_zero (buf, step);
  while (run < len && is_zero (buf + run, step) == *zero)
    run += step;
  return run;
}

/* Log what has been read back; zeroes wait until their end is known. */
static int
log_read_back (struct content *c, const uint8_t *buf, uint64_t start,
               uint64_t end)
{
  uint64_t at, len;
  bool zero;

  for (at = start; at < end; at += len) {
    len = first_run (c, buf + (at - start), end - at, &zero);
    if (zero)
      continue;
    if (log_zeroes (c->rec, c->zero_start, at, c->zero_flags) == -1 ||
        log_data (c->rec, at, at + len, c->flags, buf + (at - start)) == -1)
      return -1;
    c->zero_start = at + len;
  }
  return 0;
}

/* Log what the disk has in some sectors; zero_flags are those of entries
 * for zeroes.
 */
static int
log_content (struct recorder *rec, struct node *disk,
             struct window w, uint64_t flags, uint64_t zero_flags)
{
  CLEANUP_FREE uint8_t *buf = malloc (MAX (READ_BACK, rec->sector_size));
  struct content c = {
    .rec = rec, .flags = flags, .zero_flags = zero_flags,
    .zero_start = w.start,
  };
  uint64_t at, len;
  bool zero;

  if (buf == NULL) {
    msg_error ("reading back from the disk: %m");
    return -1;
  }
  for (at = w.start; at < w.end; at += len)
    if (look_at (&c, disk, buf, at, w.end, &len, &zero) == -1 ||
        (!zero && log_read_back (&c, buf, at, at + len) == -1))
      return -1;
  return log_zeroes (rec, c.zero_start, w.end, zero_flags);
}

/* ---- What the log lacks, and owes */

static void
owe (struct recorder *rec, struct window w)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rec->owed_lock);
  const unsigned n = atomic_load (&rec->nr_owed);

  if (n < MAX_OWED) {
    rec->owed[n] = w;
    atomic_store (&rec->nr_owed, n + 1);
  }
  else {
    rec->owed[0].start = MIN (rec->owed[0].start, w.start);
    rec->owed[0].end = MAX (rec->owed[0].end, w.end);
  }
}

static bool
next_owed (struct recorder *rec, struct window *w)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&rec->owed_lock);
  const unsigned n = atomic_load (&rec->nr_owed);

  if (n == 0)
    return false;
  *w = rec->owed[n - 1];
  atomic_store (&rec->nr_owed, n - 1);
  return true;
}

/* Log what the disk has, after something that may have changed it.  If that
 * cannot be read the log goes on without it for now; the client knows that its
 * request has failed.  Keeps errno when it returns -1.
 */
static int
log_or_owe (struct recorder *rec, struct node *disk, struct window w,
            uint64_t flags, uint64_t zero_flags)
{
  int err;

  if (log_content (rec, disk, w, flags, zero_flags) == 0)
    return 0;
  err = errno;
  disknote_spoil (writelog_note (rec->log));
  if (writelog_check (rec->log) == 0) {
    owe (rec, w);
    msg_error ("the log lacks what a request has left on the disk at offset "
               "%" PRIu64 ", count %" PRIu64 ", which could not be read; the "
               "next flush tries again", w.start, w.end - w.start);
  }
  errno = err;
  return -1;
}

bool
record_settle (struct recorder *rec, struct node *disk)
{
  struct window w;

  while (atomic_load (&rec->nr_owed) > 0 && next_owed (rec, &w)) {
    struct claim claim;
    int r;

    claim_acquire (&rec->claims, &claim, w.start, w.end - w.start,
                   CLAIM_EXCLUSIVE);
    r = log_or_owe (rec, disk, w, 0, 0);
    claim_release (&rec->claims, &claim);
    if (r == -1)
      return false;
  }
  return true;
}

/* After a request failed on the disk, part of it may have been done: log
 * what there is now.  Keeps errno.
 */
static int
log_failed_request (struct recorder *rec, struct node *disk,
                    struct window w)
{
  const int err = errno, lost = atomic_load (&disk->flush_errno);

  if (lost)
    atomic_store (&rec->flush_errno, lost);
  log_or_owe (rec, disk, w, 0, 0);
  errno = err;
  return -1;
}

/* ---- Writes and zeroes */

/* What the disk has in a request's sectors before and after it. */
struct edges {
  uint64_t before, after;       /* bytes */
  uint8_t *buf;                 /* both, one behind the other, or NULL */
};

static int
read_edges (struct recorder *rec, struct node *disk,
            struct window w, uint64_t count, uint64_t offset,
            struct edges *edges)
{
  edges->before = offset - w.start;
  edges->after = w.end - (offset + count);
  edges->buf = NULL;
  if (edges->before == 0 && edges->after == 0)
    return 0;

  edges->buf = malloc (edges->before + edges->after);
  if (edges->buf == NULL) {
    msg_error ("reading around a write: %m");
    return -1;
  }
  if (node_pread_padded (disk, edges->buf, edges->before, w.start) == -1)
    return -1;
  return node_pread_padded (disk, edges->buf + edges->before, edges->after,
                            offset + count);
}

/* The part of some pieces from "skip" on that is "len" bytes long.
 * Returns how many pieces it has.
 */
static unsigned
part_of (const struct writelog_piece *pieces, unsigned n, uint64_t skip,
         uint64_t len, struct writelog_piece *part)
{
  for (unsigned i = 0; i < n; ++i) {
    const uint64_t skipped = MIN (skip, pieces[i].len);

    part[i].data = pieces[i].data ?
      (const uint8_t *) pieces[i].data + skipped : NULL;
    part[i].len = MIN (len, pieces[i].len - skipped);
    skip -= skipped;
    len -= part[i].len;
  }
  return n;
}

/* Where does the entry end that begins at "at"? */
static uint64_t
entry_end (const struct recorder *rec, struct window w, uint64_t at,
           bool zero, uint32_t count, uint64_t offset, unsigned flags)
{
  const uint64_t start = round_up (offset, rec->sector_size);
  const uint64_t end = round_down (offset + count, rec->sector_size);

  if (rec->hold == NULL)
    return w.end;
  if (zero)
    return end < start + HOLD_ZEROES ? w.end :
      at < start ? start : at < end ? end : w.end;
  if (flags & NODE_FUA)
    return w.end;
  return MIN (w.end, at + MAX (HOLD_PIECE, rec->sector_size));
}

/* Write, or zero if buf is NULL, and log it.  The sectors are claimed. */
static int
write_claimed (struct recorder *rec, struct node *disk,
               struct window w, const void *buf, uint32_t count,
               uint64_t offset, unsigned flags)
{
  struct disknote *note = writelog_note (rec->log);
  struct disknote_before before;
  struct edges edges;
  CLEANUP_FREE uint8_t *edge_buf = NULL;
  int r;

  r = read_edges (rec, disk, w, count, offset, &edges);
  edge_buf = edges.buf;
  if (r == -1)
    return -1;

  disknote_before (note, &before, rec->sector_size, disk, w.start, w.end,
                   true);
  if (buf)
    r = node_pwrite_flags (disk, buf, count, offset, flags);
  else
    r = node_zero (disk, count, offset, flags);
  if (r == -1) {
    disknote_forget (&before);
    /* A fast zero that would be slow has changed nothing. */
    if ((flags & NODE_FAST) && errno == ENOTSUP)
      return -1;
    return log_failed_request (rec, disk, w);
  }

  const struct writelog_piece pieces[] = {
    { .data = edges.buf, .len = edges.before },
    { .data = buf, .len = count },
    { .data = edges.buf ? edges.buf + edges.before : NULL,
      .len = edges.after },
  };
  disknote_after (note, &before, rec->sector_size, w.start, pieces, 3);
  for (uint64_t at = w.start, end; at < w.end; at = end) {
    struct writelog_piece part[3];

    end = entry_end (rec, w, at, buf == NULL, count, offset, flags);
    if (log_range (rec, at, end, log_flags (flags), part,
                   part_of (pieces, 3, at - w.start, end - at, part)) == -1)
      return -1;
  }
  return 0;
}

static int
write_or_zero (struct recorder *rec, struct node *disk,
               const void *buf, uint32_t count, uint64_t offset,
               unsigned flags)
{
  const struct window w = window_of (rec, count, offset);
  struct claim claim;
  int r;

  if (writelog_check (rec->log) == -1)
    return -1;
  claim_acquire (&rec->claims, &claim, w.start, w.end - w.start,
                 CLAIM_EXCLUSIVE);
  r = write_claimed (rec, disk, w, buf, count, offset, flags);
  claim_release (&rec->claims, &claim);
  return r == 0 ? finish (rec, flags) : -1;
}

int
record_write (struct recorder *rec, struct node *disk,
              const void *buf, uint32_t count, uint64_t offset,
              unsigned flags)
{
  return write_or_zero (rec, disk, buf, count, offset, flags);
}

int
record_zero (struct recorder *rec, struct node *disk,
             uint32_t count, uint64_t offset, unsigned flags)
{
  return write_or_zero (rec, disk, NULL, count, offset, flags);
}

/* ---- Trims and flushes */

/* The whole sectors of the log among those of a trim: a disk that gives
 * back a part of one would have it logged as a write.  The last one may be
 * cut by the end of the disk.
 */
static struct window
whole_sectors (const struct recorder *rec, const struct node *disk,
               uint64_t count, uint64_t offset)
{
  const uint64_t end = offset + count;

  return (struct window) {
    .start = round_up (offset, rec->sector_size),
    .end = end == node_size (disk) ? round_up (end, rec->sector_size)
                                   : round_down (end, rec->sector_size),
  };
}

static int
trim_claimed (struct recorder *rec, struct node *disk, struct window w,
              unsigned flags)
{
  const uint64_t end = MIN (w.end, node_size (disk));
  struct disknote_before before;

  disknote_before (writelog_note (rec->log), &before, rec->sector_size, disk,
                   w.start, w.end, false);
  if (node_discard (disk, end - w.start, w.start) == -1 ||
      (flags & NODE_FUA && node_flush (disk) == -1))
    return log_failed_request (rec, disk, w);
  return log_or_owe (rec, disk, w, log_flags (flags),
                     log_flags (flags) | WRITELOG_DISCARD);
}

int
record_trim (struct recorder *rec, struct node *disk,
             uint32_t count, uint64_t offset, unsigned flags)
{
  const struct window w = whole_sectors (rec, disk, count, offset);
  struct claim claim;
  int r;

  if (writelog_check (rec->log) == -1)
    return -1;
  if (w.start >= w.end)         /* it is a hint, and FUA has nothing to do */
    return 0;
  claim_acquire (&rec->claims, &claim, w.start, w.end - w.start,
                 CLAIM_EXCLUSIVE);
  r = trim_claimed (rec, disk, w, flags);
  claim_release (&rec->claims, &claim);
  return r == 0 ? finish (rec, flags) : -1;
}

/* A failure stays, for all connections: what they had written is not known
 * to be on the medium, and nobody writes it again (node_flush keeps it for
 * one of them).
 */
static int
flush_disk (struct recorder *rec, struct node *disk)
{
  int err = atomic_load (&rec->flush_errno);

  if (err == 0 && node_flush (disk) == -1) {
    err = errno ? : EIO;
    atomic_store (&rec->flush_errno, err);
    errno = err;
    return -1;
  }
  /* Another one may have failed meanwhile. */
  err = atomic_load (&rec->flush_errno);
  if (err == 0)
    return 0;
  errno = err;
  msg_error ("flush: an earlier flush of the disk failed and data may have "
             "been lost; mend the cause and start the server again: %m");
  return -1;
}

int
record_flush (struct recorder *rec, struct node *disk)
{
  const struct writelog_entry entry = { .flags = WRITELOG_FLUSH };
  struct hold_mark mark;
  int r, err;

  record_settle (rec, disk);
  if (rec->hold)
    mark = hold_mark (rec->hold);
  if (flush_disk (rec, disk) == -1) {
    err = errno;
    if (rec->hold)
      hold_forget (rec->hold, &mark);
    errno = err;
    return -1;
  }
  if (rec->hold)
    r = hold_release (rec->hold, &mark);
  else
    r = writelog_append (rec->log, &entry, NULL, 0);
  if (r == 0)
    return writelog_flush (rec->log);

  /* It fails, but what was acknowledged before may still be saved. */
  err = errno;
  writelog_flush (rec->log);
  errno = err;
  return -1;
}
