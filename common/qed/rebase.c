/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A safe rebase compares what the old and the new backing image have
 * where the image has nothing, and copies clusters that differ up from
 * the old one (or marks them as zeroes).  Both chains tell where their
 * bytes come from, so what is zero in both, or the same place of the
 * same file, is not read.  All of that leaves the disk as it is.
 *
 * Then the header is switched, after a flush.  Fields and name do not
 * fit into one sector in general, so the new name is written beside the
 * old one where there is room, and the write of the sector with the
 * fields switches from one to the other.  Only if two names cannot
 * stand side by side (4 KiB clusters and names of some 2000 bytes) the
 * name is overwritten; after a crash in that moment the rebase has to
 * be run again (with -u if it was a safe one that had come that far).
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/align.h"
#include "qed/image/map.h"
#include "qed/io/allocate.h"
#include "qed/io/backing.h"
#include "qed/open.h"
#include "qed/parallel.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* ---- The header */

/* Before anything is changed: can the header name this backing image? */
static int
check_name (const struct qed *s, const char *name)
{
  const uint64_t len = strlen (name);

  if (len > 0 &&
      (s->header.compat_features & ~(uint64_t) QED_KNOWN_COMPAT)) {
    errno = ENOTSUP;
    msg_error ("%s: rebase: compat_features of the QED header has unknown "
               "bits 0x%" PRIx64 ", so it must not be changed",
               s->node.name, s->header.compat_features);
    return -1;
  }
  if (len <= QED_MAX_BACKING_LEN &&
      QED_HEADER_LEN + len <= qed_header_bytes (&s->header))
    return 0;
  errno = ENOSPC;
  msg_error ("%s: rebase: the name of the backing image, which has %" PRIu64
             " bytes, is too long for the QED header of %" PRIu64 " bytes",
             s->node.name, len, qed_header_bytes (&s->header));
  return -1;
}

/* A place for a name, beside the old one if possible. */
static uint64_t
name_place (const struct qed *s, uint64_t len)
{
  const struct qed_header *h = &s->header;
  const uint64_t old_end = (uint64_t) h->backing_offset + h->backing_len;

  if (!(h->features & QED_BACKING_FILE) || h->backing_len == 0 ||
      QED_HEADER_LEN + len <= h->backing_offset)
    return QED_HEADER_LEN;
  if (MAX (old_end, (uint64_t) QED_HEADER_LEN) + len <= qed_header_bytes (h))
    return MAX (old_end, (uint64_t) QED_HEADER_LEN);
  return QED_HEADER_LEN;
}

static int
switch_header (struct qed *s, const char *name, bool raw)
{
  const uint64_t len = strlen (name);
  const uint64_t place = name_place (s, len);
  struct header_edit edit = {
    .clear = QED_BACKING_FILE | QED_BACKING_NO_PROBE,
    .new_name = true, .flush = true
  };

  if (image_flush (s) == -1)
    return -1;
  if (len > 0) {
    if (node_pwrite (s->file, name, len, place) == -1 ||
        image_flush (s) == -1)
      return -1;
    edit.set = QED_BACKING_FILE | (raw ? QED_BACKING_NO_PROBE : 0);
    edit.clear &= ~edit.set;
    edit.backing_offset = place;
    edit.backing_len = len;
  }
  return header_change (s, &edit);
}

/* ---- Comparing the old chain with the new one */

struct rebase {
  struct qed *s;
  struct node *old, *new;       /* NULL if none; old is s->backing */
};

static bool
same_store (const struct node *a, const struct node *b)
{
  dev_t dev_a, dev_b;
  ino_t ino_a, ino_b;
  bool local_a, local_b;

  if (a->ops == &qed_node_ops)
    a = ((const struct qed *) a)->file;
  if (b->ops == &qed_node_ops)
    b = ((const struct qed *) b)->file;
  local_a = node_identity (a, &dev_a, &ino_a);
  local_b = node_identity (b, &dev_b, &ino_b);
  if (local_a != local_b)
    return false;
  return local_a ? dev_a == dev_b && ino_a == ino_b
                 : strcmp (a->name, b->name) == 0;
}

/* Do both read the same bytes, as far as can be told without reading? */
static bool
known_equal (const struct extent *a, const struct extent *b)
{
  if (a->flags & b->flags & EXTENT_ZERO)
    return true;
  return (a->flags & b->flags & EXTENT_MAPPED) &&
    a->offset == b->offset && same_store (a->where, b->where);
}

/* From offset, at most count bytes: how many may differ behind how many
 * that do not?
 */
static int
find_difference (struct rebase *rb, uint64_t count, uint64_t offset,
                 uint64_t *skip, uint64_t *length)
{
  *skip = 0;
  while (*skip < count) {
    struct extent a, b;

    if (backing_extents (rb->old, count - *skip, offset + *skip, &a) == -1 ||
        backing_extents (rb->new, a.length, offset + *skip, &b) == -1)
      return -1;
    *length = MIN (a.length, b.length);
    if (!known_equal (&a, &b))
      return 0;
    *skip += *length;
  }
  *length = 0;
  return 0;
}

static int
next_piece (void *opaque, uint64_t offset, struct piece *piece)
{
  struct rebase *rb = opaque;
  struct qed *s = rb->s;
  const uint64_t size = node_size (&s->node);
  const uint64_t most = MAX (s->cluster_size, UINT64_C (4) << 20);

  while (offset < size) {
    uint64_t skip, length, start, end;
    struct mapping m;

    if (qed_map (s, size - offset, offset, &m) == -1)
      return -1;
    if (m.kind == MAP_UNALLOCATED) {
      if (find_difference (rb, m.length, offset, &skip, &length) == -1)
        return -1;
      if (length > 0) {
        start = round_down (offset + skip, s->cluster_size);
        end = round_up (offset + skip + length, s->cluster_size);
        piece->offset = start;
        piece->length = MIN (MIN (end - start, most), size - start);
        return 0;
      }
    }
    offset += m.length;
  }
  return 0;
}

/* Compare one cluster. */
static int
differs (struct rebase *rb, uint64_t count, uint64_t offset,
         uint8_t *buf1, uint8_t *buf2, bool *result)
{
  *result = false;
  while (count > 0 && !*result) {
    const uint64_t length = MIN (count, (uint64_t) PARALLEL_BUFFER);

    if (node_pread_padded (rb->old, buf1, length, offset) == -1 ||
        node_pread_padded (rb->new, buf2, length, offset) == -1)
      return -1;
    *result = memcmp (buf1, buf2, length) != 0;
    count -= length;
    offset += length;
  }
  return 0;
}

/* Let the image hold each run of clusters of a piece that differ. */
static int
hold_differences (void *opaque, const struct piece *piece,
                  uint8_t *buf1, uint8_t *buf2)
{
  struct rebase *rb = opaque;
  const uint64_t end = piece->offset + piece->length;
  uint64_t run = piece->offset, offset = piece->offset;

  while (offset < end) {
    const uint64_t length = MIN (rb->s->cluster_size, end - offset);
    bool different;

    if (differs (rb, length, offset, buf1, buf2, &different) == -1)
      return -1;
    if (!different) {
      if (run < offset && allocate_hold (rb->s, offset - run, run) == -1)
        return -1;
      run = offset + length;
    }
    offset += length;
  }
  return run < end ? allocate_hold (rb->s, end - run, run) : 0;
}

/* ---- Rebasing */

/* Of a file that is there: the format that its magic tells, or NULL. */
static int
guess_format (const struct qed *s, const char *backing, const char **format)
{
  const struct node_open_options options = { .read_only = true };
  CLEANUP_FREE char *full = NULL;
  const char *path;
  struct node *n;
  int r;

  *format = NULL;
  if (qed_backing_full_name (s->node.name, backing, &full) == -1)
    return -1;
  path = full ? qed_without_protocol (full) : NULL;
  if (path == NULL || node_is_uri (path) || access (path, R_OK) == -1)
    return 0;
  n = align_open (path, &options);
  if (n == NULL)
    return -1;
  r = chain_name_format (n, format);
  node_close (n);
  return r;
}

/* Who does not say a format leaves it to be found out by whoever opens the
 * image.  Where the header says that the disk below is raw, its user may
 * have written to its beginning what he likes.
 */
static int
check_guess (const struct qed *s, const struct qed_rebase_options *o,
             const char *backing)
{
  const char *format;

  if (o->backing_format != QED_FORMAT_PROBE || *backing == '\0' ||
      !(s->header.features & QED_BACKING_NO_PROBE))
    return 0;
  if (guess_format (s, backing, &format) == -1)
    return -1;
  if (format) {
    errno = EPERM;
    msg_error ("%s: rebase: the header says that the backing image is raw, "
               "and %s looks like one in %s format: say with -F which is true",
               s->node.name, backing, format);
    return -1;
  }
  msg_warning ("%s: rebase: the header does not say any more that the backing "
               "image is raw; with -F raw it does", s->node.name);
  return 0;
}

static int
rebase_unsafe (const char *name, const struct qed_rebase_options *o,
               const char *backing)
{
  const struct node_open_options options = {
    .lock = o->no_image_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
    .cache = o->cache
  };
  struct qed *s = open_bare (name, &options);
  int r;

  if (s == NULL)
    return -1;
  r = check_name (s, backing);
  if (r == 0)
    r = check_guess (s, o, backing);
  if (r == 0)
    r = switch_header (s, backing, o->backing_format == QED_FORMAT_RAW);
  image_free (s);
  return r;
}

static int
open_new (struct rebase *rb, const struct qed_rebase_options *o,
          const char *backing)
{
  const struct chain_link link = { .node = rb->s->file };
  struct qed_options options = QED_DEFAULT_OPTIONS;

  if (backing[0] == '\0')
    return 0;
  options.no_lock = o->no_lock;
  options.cache = o->backing_cache;
  rb->new = open_backing (rb->s->node.name, backing, true, o->backing_format,
                          &options, &link);
  return rb->new ? 0 : -1;
}

static int
hold_all (struct rebase *rb, const struct qed_progress *progress)
{
  const struct parallel p = {
    .size = node_size (&rb->s->node),
    .next = next_piece, .work = hold_differences, .opaque = rb,
    .progress = progress
  };

  if (node_start (&rb->s->node) == -1 ||
      (rb->new && node_start (rb->new) == -1))
    return -1;
  return parallel_run (&p);
}

static int
rebase_open_image (struct rebase *rb, const struct qed_rebase_options *o,
                   const char *backing)
{
  /* What was raw by guess must not become something else later. */
  const bool raw = rb->new && rb->new->ops != &qed_node_ops;

  if (rb->s->node.read_only) {
    errno = EROFS;
    msg_error ("%s: rebase: a damaged image cannot be rebased safely",
               rb->s->node.name);
    return -1;
  }
  if (hold_all (rb, o->progress) == -1)
    return -1;
  return switch_header (rb->s, backing, raw);
}

int
qed_rebase (const char *name, const struct qed_rebase_options *o)
{
  const char *backing = o->backing ? o->backing : "";
  struct qed_options options = QED_DEFAULT_OPTIONS;
  const struct node_open_options file_options = {
    .lock = o->no_image_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
    .cache = o->cache
  };
  struct rebase rb = { .s = NULL };
  struct node *n = NULL;
  int r, err;

  if (o->unsafe)
    return rebase_unsafe (name, o, backing);

  options.no_lock = o->no_lock;
  options.cache = o->backing_cache;
  rb.s = open_bare (name, &file_options);
  if (rb.s == NULL)
    return -1;
  /* What can be refused is refused before the image is changed. */
  if (check_name (rb.s, backing) == -1 || open_new (&rb, o, backing) == -1)
    image_free (rb.s);
  else
    n = open_again (rb.s, &options);
  if (n == NULL) {
    err = errno;
    node_close (rb.new);
    errno = err;
    return -1;
  }
  rb.s = qed_of_node (n);
  rb.old = rb.s->backing;
  r = rebase_open_image (&rb, o, backing);
  err = errno;
  /* What failed first says why. */
  if (node_close (n) == -1 && r == 0) {
    err = errno;
    r = -1;
  }
  if (node_close (rb.new) == -1 && r == 0) {
    err = errno;
    r = -1;
  }
  errno = err;
  return r;
}
