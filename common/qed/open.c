/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * An image is opened in two steps.  The bare open reads the header and
 * the L1 table, which is enough for a check.  To serve it, its backing
 * image is opened, all tables are read (scan.c), and an image that says
 * NEED_CHECK is repaired.  What remains damaged is served read-only.
 *
 * A chain of images is a list on the stack while it is opened, which is
 * how loops are found: local files by device and inode, so under any
 * name; exports by URI.
 *
 * No thread is started here (a server forks between open and start).
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/align.h"
#include "qed/guard.h"
#include "qed/image/cache.h"
#include "qed/image/map.h"
#include "qed/image/need-check.h"
#include "qed/image/scan.h"
#include "qed/image/space.h"
#include "qed/io/allocate.h"
#include "qed/io/io.h"
#include "qed/open.h"
#include "qed/repair/check.h"
#include "qed/repair/journal.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Places of damage that are named when an image is opened. */
#define MAX_NAMED 20

/* ---- Closing */

static void
open_free (struct qed *s)
{
  allocate_forget (s);
  cache_free (s);
  damage_free (s->damage);
  image_free (s);
}

static int
qed_close (struct node *n)
{
  struct qed *s = qed_of_node (n);
  int r;

  need_check_stop (s);
  if (s->hooks)
    s->hooks->stop (s);
  r = need_check_rest (s);
  if (!n->read_only && flusher_flush (&s->flusher) == -1)
    r = -1;
  if (s->hooks)
    s->hooks->free (s);         /* its backing node is not ours */
  else if (node_close (s->backing) == -1)
    r = -1;
  open_free (s);
  return r;
}

/* ---- An image alone */

struct qed *
open_bare_file (struct node *file)
{
  struct qed *s;

  if (journal_resume (file) == -1) {
    const int err = errno;

    node_close (file);
    errno = err;
    return NULL;
  }
  s = image_open (file);
  if (s)
    s->node.ops = &qed_node_ops;
  return s;
}

struct qed *
open_bare (const char *name, const struct node_open_options *options)
{
  struct node *file = align_open (name, options);

  return file ? open_bare_file (file) : NULL;
}

/* ---- What the scan finds */

struct naming {
  const char *name;
  unsigned nr;
};

static void
name_finding (void *opaque, const struct finding *f)
{
  struct naming *naming = opaque;
  char line[FINDING_LEN];

  if (naming->nr++ < MAX_NAMED)
    msg_warning ("%s: %s", naming->name, finding_text (f, line));
}

static int
keep_damage (struct qed *s, struct scan *scan)
{
  struct damage *d = calloc (1, sizeof *d);

  if (d == NULL) {
    msg_error ("Could not open '%s': %m", s->node.name);
    return -1;
  }
  pthread_mutex_init (&d->lock, NULL);
  d->tables = scan->tables;
  d->shared = scan->shared;
  d->l1 = scan->bad_l1;
  scan->tables = scan->shared = scan->bad_l1 = BITMAP_EMPTY;
  s->damage = d;
  return 0;
}

/* Read all tables, without changing anything. */
static int
scan_for_serving (struct qed *s)
{
  struct naming naming = { .name = s->node.name };
  struct scan scan = { .found = name_finding, .opaque = &naming };
  int r = scan_image (s, &scan);

  space_begin (s, scan.result.image_end, false);
  if (r == 0 && naming.nr > 0) {
    msg_warning ("%s: the image is damaged in %u places%s; these cannot be "
                 "read%s", s->node.name, naming.nr,
                 naming.nr > MAX_NAMED ? " (some are named above)" : "",
                 s->node.read_only || s->options.untouched ? "" :
                 ", and the image is served read-only; qed-img check -r all "
                 "or repair=always repairs it");
    s->node.read_only = true;
    r = keep_damage (s, &scan);
  }
  scan_free (&scan);
  return r;
}

static void
say_repair (void *opaque, const char *line)
{
  struct naming *naming = opaque;

  if (naming->nr++ < MAX_NAMED)
    msg_warning ("%s: %s", naming->name, line);
}

/* A repair that cannot be completed leaves an image that may still be
 * read; the scan that follows decides.
 */
static void
repair_for_serving (struct qed *s)
{
  struct naming naming = { .name = s->node.name };
  struct qed_check_result result;

  if (repair_image (s, QED_FIX_ALL, false, say_repair, &naming, &result)
      == -1)
    msg_warning ("%s: the image could not be repaired", s->node.name);
  else if (naming.nr > 0)
    msg_warning ("%s: the image was damaged in %u places; %" PRIu64
                 " have been repaired", s->node.name, naming.nr,
                 result.corruptions_fixed);
}

static bool
wants_repair (const struct qed *s)
{
  if (s->node.read_only)
    return false;
  switch (s->options.repair) {
  case QED_REPAIR_ALWAYS: return true;
  case QED_REPAIR_NEVER: return false;
  default: return s->header.features & QED_NEED_CHECK;
  }
}

/* An image keeps half of the memory to itself and leaves the other half
 * to the QED images below, so the bound holds for the whole chain.
 */
static uint64_t
cache_share (const struct qed *s)
{
  const bool shared = s->backing && s->backing->ops == &qed_node_ops;
  const uint64_t all = s->nr_l1 * qed_table_bytes (&s->header);

  /* More than all tables is of use only if the disk grows. */
  return MIN (s->options.l2_cache_size / (shared ? 2 : 1),
              MAX (all, (uint64_t) QED_DEFAULT_CACHE_SIZE));
}

static int
prepare_tables (struct qed *s)
{
  if (cache_init (s, cache_share (s)) == -1)
    return -1;
  if (wants_repair (s))
    repair_for_serving (s);
  if (scan_for_serving (s) == -1)
    return -1;
  need_check_keep (s);
  s->ordered = s->backing || s->file->fixed_size;
  space_keep_table (s);
  return header_clear_unknown (s);
}

/* ---- Opening with a chain */

static struct node *
open_formatted (struct node *file, enum qed_format format,
                const struct qed_options *options,
                const struct chain_link *above)
{
  const struct chain_link link = { .above = above, .node = file };
  const bool guess = format == QED_FORMAT_PROBE;

  if ((guess && qed_probe (file, &format) == -1) ||
      chain_find_loop (&link) == -1) {
    node_close (file);
    return NULL;
  }
  if (format == QED_FORMAT_RAW)
    return guess && !file->read_only ? guard_raw (file) : file;

  /* Others may write to a raw image below, as with QEMU, but not to one
   * whose tables we have read.
   */
  if (!options->no_lock && node_add_lock (file, NODE_LOCK_IMAGE) == -1) {
    node_close (file);
    return NULL;
  }
  return open_image (file, options, above);
}

struct node *
open_layer (const char *image, const char *name, bool from_header,
            enum qed_format format, const struct qed_options *options,
            const struct chain_link *above)
{
  const struct node_open_options file_options = {
    .read_only = options->read_only,
    .lock = options->no_lock ? NODE_LOCK_NONE
      : options->read_only ? NODE_LOCK_BACKING : NODE_LOCK_IMAGE,
    .from_file = from_header, .cache = options->cache
  };
  CLEANUP_FREE char *path = NULL;
  struct node *file, *n = NULL;

  path = from_header ? qed_backing_path (image, name, true, &format)
    : strdup (name);
  file = path ? align_open (path, &file_options) : NULL;
  if (file)
    n = open_formatted (file, format, options, above);
  if (n == NULL) {
    const int err = errno;

    msg_error ("%s: cannot open its backing image \"%s\"", image, name);
    errno = err;
  }
  return n;
}

struct node *
open_backing (const char *image, const char *name, bool from_header,
              enum qed_format format, const struct qed_options *options,
              const struct chain_link *above)
{
  struct qed_options below = *options;

  below.read_only = true;
  below.backing = NULL;
  below.backing_format = QED_FORMAT_PROBE;
  below.copy_on_read = false;
  below.l2_cache_size = options->l2_cache_size / 2;
  return open_layer (image, name, from_header, format, &below, above);
}

/* Open the backing image that the options or the header name. */
static int
open_below (struct qed *s, const struct chain_link *link)
{
  CLEANUP_FREE char *name = NULL;
  enum qed_format format = s->options.backing_format;
  const bool from_header = s->options.backing == NULL;

  if (from_header) {
    if (header_backing_name (s->file, &s->header, &name) == -1)
      return -1;
    if (name == NULL)
      return 0;
    if (format == QED_FORMAT_PROBE &&
        (s->header.features & QED_BACKING_NO_PROBE))
      format = QED_FORMAT_RAW;
  }
  else {
    if (strcmp (s->options.backing, "none") == 0)
      return 0;
    name = strdup (s->options.backing);
    if (name == NULL) {
      msg_error ("Could not open '%s': %m", s->node.name);
      return -1;
    }
  }
  s->backing = open_backing (s->node.name, name, from_header, format,
                             &s->options, link);
  return s->backing ? 0 : -1;
}

struct node *
open_image (struct node *file, const struct qed_options *options,
                const struct chain_link *above)
{
  struct chain_link link = { .above = above, .node = file };
  struct qed *s;

  if (chain_find_loop (&link) == -1) {
    node_close (file);
    return NULL;
  }
  s = open_bare_file (file);
  if (s == NULL)
    return NULL;
  s->options = *options;

  if (open_below (s, &link) == -1 || prepare_tables (s) == -1) {
    const int err = errno;

    node_close (s->backing);
    open_free (s);
    errno = err;
    return NULL;
  }
  s->options.backing = NULL;
  return &s->node;
}

struct node *
open_again (struct qed *bare, const struct qed_options *options)
{
  struct node *file = bare->file;

  bare->file = NULL;
  image_free (bare);
  return open_image (file, options, NULL);
}

struct node *
qed_open (const char *name, const struct qed_options *options)
{
  const struct node_open_options file_options = {
    .read_only = options->read_only,
    .lock = options->no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
    .cache = options->cache
  };
  struct node *file = align_open (name, &file_options);

  return file ? open_image (file, options, NULL) : NULL;
}

static int
qed_start (struct node *n)
{
  struct qed *s = qed_of_node (n);

  if (node_start (s->file) == -1)
    return -1;
  if (s->hooks)
    return s->hooks->start (s);
  if (s->backing && node_start (s->backing) == -1)
    return -1;
  return n->read_only ? 0 : need_check_start (s);
}

static int
qed_flush (struct node *n)
{
  struct qed *s = qed_of_node (n);
  int r;

  TRACE_IO ("qed: flush");
  request_begin (&s->requests);
  r = header_known (s);
  if (r == 0)
    r = flusher_flush (&s->flusher);
  request_end (&s->requests);
  return r;
}

static int64_t
qed_allocated_size (struct node *n)
{
  return node_allocated_size (qed_of_node (n)->file);
}

const struct node_ops qed_node_ops = {
  .type = "qed",
  .start = qed_start,
  .close = qed_close,
  .pread = qed_pread,
  .pwritev = qed_pwritev,
  .flush = qed_flush,
  .extents = qed_extents,
  .zeroes = qed_zeroes,
  .zero = qed_zero,
  .discard = qed_discard,
  .cache = qed_cache,
  .resize = qed_resize,
  .allocated_size = qed_allocated_size,
};
