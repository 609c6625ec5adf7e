/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * Repairs never assume which of two users of a cluster is right: the
 * later one is given a copy, so that both read as before.  Only entries
 * that point to where nothing can be are cleared (if entries.c has not
 * found what they meant).
 *
 * A repair works in rounds, each of which begins with a scan.  First come
 * rounds that make copies, until nothing is shared any more: a table
 * that was given a copy may bring new findings to light.  Only then are
 * other entries cleared, since what looks like a table full of nonsense
 * may be somebody's data, before it has got its copy.  In each round
 * copies are made and flushed, then entries are changed and flushed.
 *
 * A thorough repair is made through a journal (journal.c).  Killed at any
 * point, the image is as before, or the next one completes what was begun.
 * Without one it has some entries repaired, and unused clusters at
 * its end; the next repair goes on from there.
 *
 * Copies make the file longer.  Entries that pointed behind its end do
 * so until they are cleared, even if there is a copy now.
 *
 * A file can ask for far more copies than it has clusters (holes do not
 * count) only if somebody made it so; it is refused then, or a small file
 * could fill the disk.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "node/align.h"
#include "qed/image/need-check.h"
#include "qed/image/scan.h"
#include "qed/image/space.h"
#include "qed/repair/check.h"
#include "qed/repair/compact.h"
#include "qed/repair/entries.h"
#include "qed/repair/header.h"
#include "qed/repair/journal.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Findings that one round deals with; the next takes more. */
#define MAX_FINDINGS 65536

#define COPY_PIECE ((uint64_t) 1024 * 1024)

/* Bytes that copies may take, besides eight times what the file takes. */
#define COPY_BUDGET ((uint64_t) 256 * 1024 * 1024)

/* Clusters whose first user is remembered, in a table of twice as many. */
#define MAX_SHARED 65536

struct first_user {
  uint64_t cluster;             /* of the file, or 0 */
  uint64_t offset;              /* of the disk */
};

/* A copy that has been made, and the entry that it was made for. */
struct copy {
  uint64_t offset;              /* in the file */
  uint64_t l1_index, l2_index;  /* as in struct finding, or SCAN_TABLE */
};

struct repair {
  struct qed *s;
  bool thorough;
  struct journal *journal;      /* or NULL */
  struct bitmap shared;         /* from the scan before, if thorough */
  struct first_user *users;     /* 2 * MAX_SHARED, open addressing */
  size_t nr_users;

  void (*report) (void *opaque, const char *line);
  void *opaque;

  enum { LOOK, MAKE_COPIES, CLEAR } phase;
  struct finding *findings;     /* of this phase; NULL when looking */
  size_t nr;
  uint64_t budget;              /* clusters that may still be copied */
  uint64_t limit;               /* of the file before the repair, bytes */
  struct copy *copies;          /* in the order of their offsets */
  size_t nr_copies, room;
};

/* Does the finding say that two users share a cluster, so that one must
 * have a copy?  What points into header or L1 table shares nothing, and
 * what is beyond the end of the disk has no use for a copy.
 */
static bool
wants_copy (const struct qed *s, const struct finding *f)
{
  const uint64_t bytes = f->kind == TABLE_OVERLAPS
    ? qed_table_bytes (&s->header) : s->cluster_size;
  const uint64_t l1 = s->header.l1_table_offset;

  if (f->kind != TABLE_OVERLAPS && f->kind != DATA_IN_TABLE &&
      f->kind != DATA_SHARED)
    return false;
  if (f->offset >= s->header.image_size)
    return false;
  return f->entry + bytes <= l1 ||
    f->entry >= l1 + qed_table_bytes (&s->header);
}

static struct first_user *
find_user (struct repair *rep, uint64_t cluster)
{
  size_t i = cluster * UINT64_C (0x9e3779b97f4a7c15) >> 32;

  for (;; ++i) {
    struct first_user *u = &rep->users[i & (2 * MAX_SHARED - 1)];

    if (u->cluster == cluster || u->cluster == 0)
      return u;
  }
}

/* A scan tells of the first user of each cluster. */
static void
note_user (void *opaque, uint64_t l1_index, uint64_t l2_index,
           uint64_t offset)
{
  struct repair *rep = opaque;
  struct qed *s = rep->s;
  const uint64_t cluster = offset >> s->cluster_bits;
  struct first_user *u;

  if (l2_index == SCAN_TABLE || rep->users == NULL ||
      !bitmap_has (&rep->shared, cluster) || rep->nr_users == MAX_SHARED)
    return;
  u = find_user (rep, cluster);
  rep->nr_users += u->cluster == 0;
  u->cluster = cluster;
  u->offset = ((l1_index << s->table_bits) + l2_index) << s->cluster_bits;
}

static void
report_finding (struct repair *rep, const struct finding *f)
{
  struct finding named = *f;
  char line[FINDING_LEN];

  if (rep->report == NULL)
    return;
  if (f->kind == DATA_SHARED && rep->users) {
    const struct first_user *u =
      find_user (rep, f->entry >> rep->s->cluster_bits);

    if (u->cluster)
      named.other = u->offset;
  }
  rep->report (rep->opaque, finding_text (&named, line));
}

static void
check_collect (void *opaque, const struct finding *f)
{
  struct repair *rep = opaque;

  if ((rep->phase == MAKE_COPIES && !wants_copy (rep->s, f)) ||
      (rep->findings && rep->nr == MAX_FINDINGS))
    return;
  report_finding (rep, f);
  if (rep->findings)
    rep->findings[rep->nr++] = *f;
}

static uint64_t
l2_index_of (const struct finding *f)
{
  return f->kind == TABLE_OVERLAPS ? SCAN_TABLE : f->l2_index;
}

static int
note_copy (struct repair *rep, const struct finding *f, uint64_t offset)
{
  if (rep->nr_copies == rep->room) {
    const size_t room = rep->room ? rep->room * 2 : 64;
    struct copy *copies = realloc (rep->copies, room * sizeof *copies);

    if (copies == NULL) {
      msg_error ("%s: repair: %m", rep->s->node.name);
      return -1;
    }
    rep->copies = copies;
    rep->room = room;
  }
  rep->copies[rep->nr_copies++] = (struct copy) {
    .offset = offset, .l1_index = f->l1_index, .l2_index = l2_index_of (f)
  };
  return 0;
}

static int
compare_copies (const void *key, const void *element)
{
  const struct copy *a = key, *b = element;

  return a->offset < b->offset ? -1 : a->offset > b->offset;
}

/* Was it there before the repair, or is it a copy made for this entry? */
static bool
is_there (void *opaque, uint64_t l1_index, uint64_t l2_index,
          uint64_t offset, uint64_t bytes)
{
  struct repair *rep = opaque;
  const struct copy key = { .offset = offset }, *c;

  if (offset + bytes <= rep->limit)
    return true;
  c = rep->nr_copies == 0 ? NULL
    : bsearch (&key, rep->copies, rep->nr_copies, sizeof key,
               compare_copies);
  return c && c->l1_index == l1_index && c->l2_index == l2_index;
}

/* Copy what a finding refers to to the end of the image; *where is the
 * place.
 */
static int
make_copy (struct repair *rep, const struct finding *f, uint64_t *where)
{
  struct qed *s = rep->s;
  const uint64_t from = f->entry;
  const uint64_t bytes = f->kind == TABLE_OVERLAPS
    ? qed_table_bytes (&s->header) : s->cluster_size;
  const uint64_t n = bytes >> s->cluster_bits;
  CLEANUP_FREE void *buf = malloc (MIN (bytes, COPY_PIECE));

  if (buf == NULL) {
    msg_error ("%s: repair: %m", s->node.name);
    return -1;
  }
  if (n > rep->budget) {
    errno = EINVAL;
    msg_error ("%s: repair: far more clusters are shared than the file has",
               s->node.name);
    return -1;
  }
  rep->budget -= n;
  if (space_reserve (s, n, where) == -1 || note_copy (rep, f, *where) == -1)
    return -1;
  for (uint64_t done = 0; done < bytes; done += COPY_PIECE) {
    const uint64_t piece = MIN (bytes - done, COPY_PIECE);

    if (node_pread (s->file, buf, piece, from + done) == -1 ||
        node_pwrite (s->file, buf, piece, *where + done) == -1)
      return -1;
  }
  return 0;
}

/* For all findings of a round that want one.  If that fails the file does
 * not keep those that were made, or it would grow with each attempt.
 */
static int
make_copies (struct repair *rep, uint64_t *values)
{
  struct node *file = rep->s->file;
  const uint64_t size = node_size (file);

  for (size_t i = 0; i < rep->nr; ++i) {
    const struct finding *f = &rep->findings[i];

    if (wants_copy (rep->s, f) && make_copy (rep, f, &values[i]) == -1) {
      const int err = errno;

      if (!file->fixed_size)
        node_resize (file, size);
      errno = err;
      return -1;
    }
  }
  return 0;
}

/* Where the entry of a finding stands in the file. */
static int
entry_place (struct qed *s, const struct finding *f, uint64_t *place)
{
  uint8_t buf[QED_ENTRY_LEN];

  *place = s->header.l1_table_offset + f->l1_index * QED_ENTRY_LEN;
  if (f->kind == TABLE_OUTSIDE || f->kind == TABLE_OVERLAPS)
    return 0;
  if (node_pread (s->file, buf, sizeof buf, *place) == -1)
    return -1;
  *place = qed_entry_get (buf, 0) + f->l2_index * QED_ENTRY_LEN;
  return 0;
}

static int
change_entry (struct qed *s, const struct finding *f, uint64_t value)
{
  uint8_t buf[QED_ENTRY_LEN];
  uint64_t place;

  if (entry_place (s, f, &place) == -1)
    return -1;
  qed_entry_put (buf, 0, value);
  TRACE_META ("qed: repair: entry at %" PRIu64 " = %" PRIu64, place, value);
  return node_pwrite (s->file, buf, sizeof buf, place);
}

/* Deal with the findings of one round.  Returns how many, or -1. */
static ssize_t
fix_findings (struct repair *rep)
{
  struct qed *s = rep->s;
  CLEANUP_FREE uint64_t *values = calloc (rep->nr + 1, sizeof *values);
  ssize_t fixed = 0;

  if (values == NULL) {
    msg_error ("%s: repair: %m", s->node.name);
    return -1;
  }
  if (make_copies (rep, values) == -1 || node_flush (s->file) == -1)
    return -1;

  /* L2 entries first: they stand in tables as the L1 entries have them
   * now.
   */
  for (int data = 1; data >= 0; --data) {
    for (size_t i = 0; i < rep->nr; ++i) {
      const struct finding *f = &rep->findings[i];

      if ((f->kind >= DATA_OUTSIDE) != data || f->kind == TABLE_UNREADABLE)
        continue;
      if (change_entry (s, f, values[i]) == -1)
        return -1;
      fixed += f->corruptions;
    }
  }
  if (!s->file->fixed_size && node_size (s->file) > s->end &&
      node_resize (s->file, s->end) == -1)
    return -1;
  return node_flush (s->file) == -1 ? -1 : fixed;
}

/* Punch holes where runs of clusters are used by nobody, from cluster i
 * on.
 */
static int
free_runs (struct qed *s, const struct scan *scan, uint64_t i, uint64_t end)
{
  uint64_t start;

  for (; i < end; i++) {
    if (bitmap_has (&scan->used, i))
      continue;
    for (start = i; i < end && !bitmap_has (&scan->used, i);)
      i++;
    if (node_discard (s->file, (i - start) << s->cluster_bits,
                      start << s->cluster_bits) == -1)
      return -1;
  }
  return 0;
}

/* The same in all of the image, but for what the file has holes in
 * already: an entry may point behind any number of them.
 */
static int
free_unused (struct qed *s, const struct scan *scan)
{
  const uint64_t end = scan->result.image_end >> s->cluster_bits;
  uint64_t clusters;

  for (uint64_t i = 0; i < end; i += clusters) {
    struct extent e;

    if (node_extents (s->file, (end - i) << s->cluster_bits,
                      i << s->cluster_bits, &e) == -1)
      return -1;
    clusters = e.length >> s->cluster_bits;
    if (!(e.flags & EXTENT_HOLE) || clusters == 0) {
      clusters = div_round_up (e.length, s->cluster_size);
      if (free_runs (s, scan, i, i + clusters) == -1)
        return -1;
    }
  }
  return 0;
}

/* Give back leaked clusters: the file is cut at its end, and where they
 * lie inside, holes are left, or what stands behind them moves.
 */
static int
fix_leaks (struct qed *s, struct scan *scan, bool thorough)
{
  if (s->file->fixed_size || scan->result.leaks == 0)
    return 0;
  if (thorough) {
    if (compact_image (s) == -1)
      return -1;
    scan->result.image_end = s->end;
    scan->result.leaks_fixed = scan->result.leaks;
    return image_read_l1 (s);
  }
  if (node_size (s->file) > scan->result.image_end &&
      node_resize (s->file, scan->result.image_end) == -1)
    return -1;
  if (free_unused (s, scan) == -1 || node_flush (s->file) == -1)
    return -1;
  scan->result.leaks_fixed = scan->result.leaks;
  return 0;
}

/* Scan quietly first: is there anything to be found, and which clusters
 * are shared, so that their users can be named?
 */
static int
scan_quietly (struct repair *rep, struct scan *scan, bool *clean)
{
  *scan = (struct scan) { .is_there = is_there, .opaque = rep };
  bitmap_free (&rep->shared);
  free (rep->users);
  rep->users = NULL;
  rep->nr_users = 0;
  if (scan_image (rep->s, scan) == -1)
    return -1;
  *clean = scan->result.corruptions == 0 && scan->result.check_errors == 0;
  if (scan->shared.members > 0) {
    rep->shared = scan->shared;
    scan->shared = BITMAP_EMPTY;
    rep->users = calloc (2 * MAX_SHARED, sizeof *rep->users);
  }
  return 0;
}

static int
scan_loudly (struct repair *rep, struct scan *scan)
{
  *scan = (struct scan) {
    .found = check_collect, .unit = note_user, .is_there = is_there,
    .opaque = rep
  };
  return scan_image (rep->s, scan);
}

/* Scan, for a round that does this phase. */
static int
scan_round (struct repair *rep, struct scan *scan)
{
  struct qed *s = rep->s;
  bool clean = false;
  uint64_t end;

  rep->nr = 0;
  scan_free (scan);
  if (rep->thorough && scan_quietly (rep, scan, &clean) == -1)
    return -1;
  if (!clean) {
    scan_free (scan);
    if (scan_loudly (rep, scan) == -1)
      return -1;
  }

  /* Copies go behind everything, in use or not. */
  end = scan->result.image_end;
  if (!s->file->fixed_size)
    end = round_up (MAX (end, node_size (s->file)), s->cluster_size);
  space_begin (s, end, true);
  journal_set_end (rep->journal, s->end);
  return 0;
}

/* Repeat a phase until there is nothing more to do in it; the last scan
 * remains.
 */
static int
do_phase (struct repair *rep, int phase, struct scan *scan, uint64_t *fixed)
{
  ssize_t n;

  rep->phase = phase;
  do {
    if (scan_round (rep, scan) == -1)
      return -1;
    n = rep->findings ? fix_findings (rep) : 0;
    if (n == -1 || (n > 0 && image_read_l1 (rep->s) == -1) ||
        (journal_is_large (rep->journal) &&
         journal_carry_out (rep->journal) == -1))
      return -1;
    *fixed += n;
  } while (n > 0);
  return 0;
}

static int
fix_all (struct repair *rep, struct scan *scan, uint64_t *fixed)
{
  if (rep->thorough &&
      (journal_new (rep->s, &rep->journal) == -1 ||
       repair_entries (rep->s, rep->report, rep->opaque, fixed) == -1))
    return -1;
  if (do_phase (rep, MAKE_COPIES, scan, fixed) == -1)
    return -1;
  /* Nothing has changed since the last scan. */
  return scan->result.corruptions + scan->result.check_errors == 0 ? 0
    : do_phase (rep, CLEAR, scan, fixed);
}

/* Holes can be as long as somebody likes. */
static uint64_t
bytes_taken (struct node *file)
{
  const int64_t allocated = node_allocated_size (file);
  const uint64_t size = node_size (file);

  return allocated < 0 ? size : MIN ((uint64_t) allocated, size);
}

static int
do_phases (struct repair *rep, enum qed_fix fix, struct scan *scan)
{
  uint64_t fixed = 0;
  int r;

  rep->limit = node_size (rep->s->file);
  rep->budget =
    (8 * bytes_taken (rep->s->file) + COPY_BUDGET) >> rep->s->cluster_bits;
  if (fix == QED_FIX_ALL) {
    r = fix_all (rep, scan, &fixed);
    r = journal_finish (rep->journal, r);
  }
  else
    r = do_phase (rep, LOOK, scan, &fixed);
  scan->result.corruptions_fixed = fixed;
  return r;
}

int
repair_image (struct qed *s, enum qed_fix fix, bool thorough,
              void (*report) (void *opaque, const char *line),
              void *opaque, struct qed_check_result *result)
{
  struct repair rep = {
    .s = s, .thorough = thorough, .report = report, .opaque = opaque
  };
  struct scan scan = { .found = NULL };
  int r;

  if (fix == QED_FIX_ALL) {
    rep.findings = malloc (MAX_FINDINGS * sizeof *rep.findings);
    if (rep.findings == NULL) {
      msg_error ("%s: repair: %m", s->node.name);
      return -1;
    }
  }
  r = do_phases (&rep, fix, &scan);
  if (r == 0 && fix != QED_FIX_NONE && scan.result.corruptions == 0 &&
      scan.result.check_errors == 0) {
    r = fix_leaks (s, &scan, thorough);
    if (r == 0)
      r = need_check_clear (s, true);
  }
  if (r == -1 && fix == QED_FIX_ALL)
    image_read_l1 (s);              /* some entries may have been repaired */
  *result = scan.result;
  free (rep.findings);
  free (rep.users);
  bitmap_free (&rep.shared);
  free (rep.copies);
  scan_free (&scan);
  return r;
}

/* What becomes whole when the file is made longer. */
struct extension {
  struct qed *s;
  uint64_t end;                 /* how long */
  uint64_t nr;                  /* entries that point to the cut */
  void (*report) (void *opaque, const char *line);
  void *opaque;
};

static void
note_extended (void *opaque, const struct finding *f)
{
  struct extension *ext = opaque;
  const struct qed *s = ext->s;
  const uint64_t bytes = f->kind == TABLE_OUTSIDE
    ? qed_table_bytes (&s->header) : s->cluster_size;
  char line[FINDING_LEN];

  if (!f->cut || bytes > ext->end - f->entry)
    return;
  ext->nr++;
  if (ext->report)
    ext->report (ext->opaque, finding_text (f, line));
}

/* Where the file ends within a table or a data cluster, what is left of it
 * is worth keeping: give it the clusters, or the rest of one, that it
 * lacks.  *fixed goes up by the entries that are right then.
 */
static int
extend_last_cluster (struct qed *s,
                     void (*report) (void *opaque, const char *line),
                     void *opaque, uint64_t *fixed)
{
  const uint64_t size = node_size (s->file);
  struct extension ext = {
    .s = s, .end = round_up (size, s->cluster_size),
    .report = report, .opaque = opaque
  };
  struct scan scan = { .found = note_extended, .opaque = &ext };
  int r;

  if (s->file->fixed_size)
    return 0;
  for (uint64_t i = 0; i < s->nr_l1; ++i) {
    const uint64_t table = atomic_load (&s->l1[i]);

    if (is_aligned (table, s->cluster_size) && table < size &&
        table >= qed_header_bytes (&s->header))
      ext.end = MAX (ext.end, table + qed_table_bytes (&s->header));
  }
  if (ext.end == size)
    return 0;
  r = scan_image (s, &scan);
  scan_free (&scan);
  if (r == -1 || node_resize (s->file, ext.end) == -1)
    return -1;
  *fixed += ext.nr;
  return 0;
}

/* *fixed is how many faults have been corrected: those of the header, and
 * what the file has lost at its end.
 */
static struct qed *
open_for_check (const char *name, enum qed_fix fix, bool no_lock,
                enum node_cache cache,
                void (*report) (void *opaque, const char *line),
                void *opaque, uint64_t *fixed)
{
  const struct node_open_options options = {
    .read_only = fix == QED_FIX_NONE,
    .lock = no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
    .cache = cache
  };
  struct node *file = align_open (name, &options);
  CLEANUP_FREE char *backing = NULL;
  struct qed *s;
  int repaired;

  if (file == NULL)
    return NULL;
  repaired = journal_resume (file);
  if (repaired == 0 && fix == QED_FIX_ALL)
    repaired = repair_header (file, report, opaque);
  if (repaired == -1) {
    node_close (file);
    return NULL;
  }
  *fixed = repaired;
  s = image_open (file);
  /* A name that nobody can read makes the image as useless as any other
   * fault of the header does.
   */
  if (s && (header_backing_name (file, &s->header, &backing) == -1 ||
            (fix != QED_FIX_NONE && header_clear_unknown (s) == -1) ||
            (fix == QED_FIX_ALL &&
             extend_last_cluster (s, report, opaque, fixed) == -1))) {
    image_free (s);
    return NULL;
  }
  return s;
}

int
qed_check (const char *name, enum qed_fix fix, bool no_lock,
           enum node_cache cache,
           void (*report) (void *opaque, const char *line),
           void *opaque, struct qed_check_result *result)
{
  uint64_t fixed = 0;
  struct qed *s = open_for_check (name, fix, no_lock, cache, report, opaque,
                                  &fixed);
  int r;

  if (s == NULL)
    return -1;
  r = repair_image (s, fix, true, report, opaque, result);
  result->corruptions_fixed += fixed;
  image_free (s);
  return r;
}
