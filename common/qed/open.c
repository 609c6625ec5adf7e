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
#include "qed/chain.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "qed/repair/journal.h"
#include "utils/rounding.h"
#include "qed/image/scan.h"

/* Places of damage that are named when an image is opened. */
#define MAX_NAMED 20

__attribute__ ((visibility ("default"))) int qed_debug_io;
__attribute__ ((visibility ("default"))) int qed_debug_meta;

/* ---- Closing */

void
qed_free_bare (struct qed *s)
{
  if (s == NULL)
    return;
  node_close (s->file);
  free ((void *) s->l1);
  free (s->freed);
  free (s->node.name);
  pthread_mutex_destroy (&s->header_lock);
  pthread_mutex_destroy (&s->table_lock);
  pthread_mutex_destroy (&s->update_lock);
  pthread_mutex_destroy (&s->space_lock);
  drain_destroy (&s->requests);
  drain_destroy (&s->allocations);
  claims_destroy (&s->claims);
  flusher_destroy (&s->flusher);
  free (s);
}

void
damage_free (struct damage *d)
{
  if (d == NULL)
    return;
  bitmap_free (&d->tables);
  bitmap_free (&d->shared);
  bitmap_free (&d->l1);
  bitmap_free (&d->reported);
  pthread_mutex_destroy (&d->lock);
  free (d);
}

static int
qed_close (struct node *n)
{
  struct qed *s = qed_of_node (n);
  int r;

  job_finish (s->settle_job);
  s->settle_job = NULL;
  if (s->buffer)
    buffer_close (s);
  r = settle (s);
  if (!n->read_only && flusher_flush (&s->flusher, FLUSH_FOR_CLIENT) == -1)
    r = -1;
  if (s->buffer)
    buffer_free (s);            /* its backing node is not ours */
  else if (node_close (s->backing) == -1)
    r = -1;
  cache_destroy (&s->cache);
  damage_free (s->damage);
  qed_free_bare (s);
  return r;
}

/* ---- Header and L1 table */

static int
flush_file (void *opaque)
{
  struct node *file = opaque;

  return node_flush (file);
}

static struct qed *
new_image (const char *name)
{
  struct qed *s = calloc (1, sizeof *s);

  if (s == NULL || (s->node.name = strdup (name)) == NULL) {
    msg_error ("Could not open '%s': %m", name);
    free (s);
    return NULL;
  }
  s->node.ops = &qed_node_ops;
  s->node.align = s->node.zero_align = 1;
  s->node.fixed_size = true;
  s->node.can_fast_zero = true;
  pthread_mutex_init (&s->header_lock, NULL);
  pthread_mutex_init (&s->table_lock, NULL);
  pthread_mutex_init (&s->update_lock, NULL);
  pthread_mutex_init (&s->space_lock, NULL);
  drain_init (&s->requests);
  drain_init (&s->allocations);
  claims_init (&s->claims);
  return s;
}

static void
use_header (struct qed *s)
{
  s->cluster_size = s->header.cluster_size;
  s->cluster_bits = log_2 (s->cluster_size);
  s->table_entries = qed_table_entries (&s->header);
  s->table_bits = log_2 (s->table_entries);
  s->node.preferred = MIN (s->cluster_size, UINT64_C (32) << 20);
  atomic_init (&s->node.size, s->header.image_size);
  atomic_init (&s->need_check, s->header.features & QED_NEED_CHECK);
}

struct qed *
qed_view (struct node *file, const struct qed_header *header)
{
  struct qed *s = calloc (1, sizeof *s);

  if (s == NULL) {
    msg_error ("%s: repair: %m", file->name);
    return NULL;
  }
  s->node.name = file->name;
  s->file = file;
  s->header = *header;
  use_header (s);
  return s;
}

static int
read_header (struct qed *s)
{
  uint8_t buf[QED_HEADER_LEN];

  if (node_size (s->file) < sizeof buf) {
    errno = EINVAL;
    msg_error ("Could not open '%s': Image not in QED format", s->node.name);
    return -1;
  }
  if (node_pread (s->file, buf, sizeof buf, 0) == -1 ||
      qed_header_decode (buf, s->node.name, &s->header) == -1)
    return -1;
  use_header (s);
  return 0;
}

static int
read_l1 (struct qed *s)
{
  const uint64_t l1 = s->header.l1_table_offset;
  CLEANUP_FREE uint8_t *buf = NULL;
  uint64_t bytes;

  if (!qed_table_offset_ok (s, l1)) {
    errno = EINVAL;
    msg_error ("Could not open '%s': QED header: l1_table_offset is %" PRIu64
               ", but a table of %" PRIu64 " bytes there goes beyond the "
               "end of the file at %" PRIu64, s->node.name, l1,
               qed_table_bytes (&s->header), node_size (s->file));
    return -1;
  }

  s->nr_l1 = div_round_up (s->header.image_size,
                           s->table_entries << s->cluster_bits);
  bytes = s->nr_l1 * QED_ENTRY_LEN;
  buf = malloc (bytes + 1);
  s->l1 = malloc (s->nr_l1 * sizeof *s->l1 + 1);
  if (buf == NULL || s->l1 == NULL) {
    msg_error ("%s: reading the L1 table of %" PRIu64 " bytes: %m",
               s->node.name, bytes);
    return -1;
  }
  if (node_pread (s->file, buf, bytes, l1) == -1)
    return -1;
  for (uint64_t i = 0; i < s->nr_l1; ++i)
    atomic_init (&s->l1[i], qed_entry_get (buf, i));
  return 0;
}

struct qed *
qed_open_bare_file (struct node *file)
{
  struct qed *s = new_image (file->name);

  if (s == NULL) {
    node_close (file);
    return NULL;
  }
  s->file = file;
  s->node.read_only = file->read_only;
  flusher_init (&s->flusher, flush_file, file);
  if (plan_resume (file) == -1 || read_header (s) == -1 ||
      read_l1 (s) == -1) {
    const int err = errno;

    qed_free_bare (s);
    errno = err;
    return NULL;
  }
  return s;
}

struct qed *
qed_open_bare (const char *name, const struct node_open_options *options)
{
  struct node *file = align_open (name, options);

  return file ? qed_open_bare_file (file) : NULL;
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

  s->end = scan.result.image_end;
  s->tail_cut = false;
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

/* Bits of features that we do not know would be wrong after a write.  An
 * image that is to stay untouched loses them with the first write of the
 * header, which comes before all others.
 */
int
qed_clear_unknown_bits (struct qed *s)
{
  if (s->node.read_only ||
      (s->header.autoclear_features & ~(uint64_t) QED_KNOWN_AUTOCLEAR) == 0)
    return 0;
  s->header.autoclear_features &= QED_KNOWN_AUTOCLEAR;
  return s->options.untouched ? 0 : header_write (s);
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
  if (cache_init (&s->cache, cache_share (s)) == -1) {
    msg_error ("Could not open '%s': %m", s->node.name);
    return -1;
  }
  if (wants_repair (s))
    repair_for_serving (s);
  if (scan_for_serving (s) == -1)
    return -1;
  s->keep_need_check = s->header.features & QED_NEED_CHECK;
  atomic_store (&s->need_check, s->keep_need_check);
  s->ordered = s->backing || s->file->fixed_size;
  s->kept_free = s->file->fixed_size ? qed_table_bytes (&s->header) : 0;
  return qed_clear_unknown_bits (s);
}

/* ---- Opening with a chain */

/* Open the backing image that the options or the header name. */
static int
open_backing (struct qed *s, const struct chain_link *link)
{
  CLEANUP_FREE char *name = NULL;
  enum qed_format format = s->options.backing_format;
  const bool from_header = s->options.backing == NULL;

  if (from_header) {
    if (qed_backing_name (s->file, &s->header, &name) == -1)
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
  s->backing = chain_open_backing (s->node.name, name, from_header, format,
                                   &s->options, link);
  return s->backing ? 0 : -1;
}

struct node *
chain_open_qed (struct node *file, const struct qed_options *options,
                const struct chain_link *above)
{
  struct chain_link link = { .above = above, .node = file };
  struct qed *s;

  if (chain_find_loop (&link) == -1) {
    node_close (file);
    return NULL;
  }
  s = qed_open_bare_file (file);
  if (s == NULL)
    return NULL;
  s->options = *options;

  if (open_backing (s, &link) == -1 || prepare_tables (s) == -1) {
    const int err = errno;

    node_close (s->backing);
    cache_destroy (&s->cache);
    damage_free (s->damage);
    qed_free_bare (s);
    errno = err;
    return NULL;
  }
  s->options.backing = NULL;
  return &s->node;
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

  return file ? chain_open_qed (file, options, NULL) : NULL;
}

static int
qed_start (struct node *n)
{
  struct qed *s = qed_of_node (n);

  if (s->buffer)
    return node_start (s->file) == -1 ? -1 : buffer_start (s);
  if (node_start (s->file) == -1 ||
      (s->backing && node_start (s->backing) == -1))
    return -1;
  return n->read_only ? 0 : settle_start (s);
}

static int
qed_flush (struct node *n)
{
  struct qed *s = qed_of_node (n);
  int r;

  TRACE_IO ("qed: flush");
  request_begin (&s->requests);
  r = flusher_flush (&s->flusher, FLUSH_FOR_CLIENT);
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
  .zero = qed_zero,
  .discard = qed_discard,
  .cache = qed_cache,
  .resize = qed_resize,
  .allocated_size = qed_allocated_size,
};
