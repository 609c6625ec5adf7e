/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * The layers that are committed are opened one by one, each without
 * what is below it, and the base apart from them for writing.  Where a
 * byte of the disk comes from is then found by asking the layers from
 * the top down; what all of them leave unallocated is in the base
 * already, and costs one lookup for each L2 table that is missing, or
 * for each run.
 *
 * The base is durable before the layer is emptied.  Until then the
 * layer hides whatever the base has, so a crash changes nothing that
 * can be read through it, and the next commit writes all of it again.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qed/image/map.h"
#include "qed/open.h"
#include "qed/parallel.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Zeroes take no buffer, but must not keep a thread for ever. */
#define ZERO_PIECE ((uint64_t) 64 * 1024 * 1024)

struct layer {
  struct qed *s;                /* alone, without its backing image */
  struct chain_link link;
  struct layer *above, *below;
};

struct commit {
  struct layer *top, *last;
  struct node *base;
};

/* ---- Opening the chain */

static struct layer *
add_layer (struct commit *c, struct node *n)
{
  struct layer *l = calloc (1, sizeof *l);

  if (l == NULL) {
    msg_error ("%s: commit: %m", n->name);
    node_close (n);
    return NULL;
  }
  l->s = qed_of_node (n);
  l->above = c->last;
  l->link.node = l->s->file;
  l->link.above = c->last ? &c->last->link : NULL;
  *(c->last ? &c->last->below : &c->top) = l;
  c->last = l;
  return l;
}

/* The image itself is opened bare first, which changes nothing, since a
 * base may turn out to be missing or in use.
 */
static int
open_top (struct commit *c, const char *name,
          const struct qed_options *options)
{
  const struct node_open_options file_options = {
    .lock = options->no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
    .cache = options->cache
  };
  struct qed *s = open_bare (name, &file_options);

  return s && add_layer (c, &s->node) ? 0 : -1;
}

/* Then, with the base at hand, it is opened as usual (and repaired). */
static int
reopen_top (struct commit *c, const char *name,
            const struct qed_options *options)
{
  struct layer *l = c->top;
  struct node *n = open_again (l->s, options);

  l->s = n ? qed_of_node (n) : NULL;
  if (n == NULL)
    return -1;
  if (!n->read_only)
    return 0;
  errno = EROFS;
  msg_error ("%s: commit: a damaged image is not committed", name);
  return -1;
}

static bool
same_file (const char *a, const char *b)
{
  CLEANUP_FREE char *real_a = realpath (a, NULL);
  CLEANUP_FREE char *real_b = realpath (b, NULL);

  return real_a && real_b && strcmp (real_a, real_b) == 0;
}

/* Is this backing image of an image the one that the user named?  A
 * relative name is relative to the current folder, or as QEMU has it to
 * the one that holds the image.
 */
static int
is_base (const char *base, const char *image, const char *name,
         const char *path, bool *found)
{
  CLEANUP_FREE char *beside = NULL;

  *found = base == NULL || strcmp (base, name) == 0 ||
    strcmp (base, path) == 0;
  if (*found || node_is_uri (base) || node_is_uri (path))
    return 0;
  if (qed_backing_full_name (image, base, &beside) == -1)
    return -1;
  *found = same_file (qed_without_protocol (base), path) ||
    (beside && same_file (qed_without_protocol (beside), path));
  return 0;
}

static int
no_such_base (const struct commit *c, const char *base)
{
  errno = ENOENT;
  if (base)
    msg_error ("%s: commit: did not find \"%s\" in the backing chain",
               c->top->s->node.name, base);
  else
    msg_error ("%s: commit: the image does not have a backing file",
               c->top->s->node.name);
  return -1;
}

/* Open what is below the last layer: the base, or a layer more. */
static int
open_below (struct commit *c, const char *base,
            const struct qed_options *options)
{
  struct qed *s = c->last->s;
  enum qed_format format = s->header.features & QED_BACKING_NO_PROBE
    ? QED_FORMAT_RAW : QED_FORMAT_PROBE;
  struct qed_options below = *options;
  CLEANUP_FREE char *name = NULL;
  CLEANUP_FREE char *path = NULL;
  struct node *n;
  bool found;

  if (header_backing_name (s->file, &s->header, &name) == -1)
    return -1;
  if (name == NULL)
    return no_such_base (c, base);
  path = qed_backing_path (s->node.name, name, true, &format);
  if (path == NULL ||
      is_base (base, s->node.name, name, path, &found) == -1)
    return -1;
  below.read_only = !found;
  below.backing = found ? NULL : "none";
  n = open_layer (s->node.name, name, true, format, &below,
                  &c->last->link);
  if (n == NULL)
    return -1;
  if (found) {
    c->base = n;
    return 0;
  }
  if (n->ops != &qed_node_ops) {
    node_close (n);
    return no_such_base (c, base);
  }
  return add_layer (c, n) ? 0 : -1;
}

static int
open_chain (struct commit *c, const char *name,
            const struct qed_commit_options *o)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;

  options.no_lock = o->no_lock;
  options.cache = o->cache;
  options.backing = "none";
  if (open_top (c, name, &options) == -1)
    return -1;
  while (c->base == NULL)
    if (open_below (c, o->base, &options) == -1)
      return -1;
  if (!c->base->read_only)
    return reopen_top (c, name, &options);
  errno = EROFS;
  msg_error ("%s: commit: cannot write into the damaged image %s", name,
             c->base->name);
  return -1;
}

static int
close_chain (struct commit *c)
{
  int r = node_close (c->base);

  while (c->last) {
    struct layer *l = c->last;

    c->last = l->above;
    if (l->s && node_close (&l->s->node) == -1)
      r = -1;
    free (l);
  }
  return r;
}

/* ---- Copying */

/* What do the layers have at offset?  What is behind the end of one
 * reads as zeroes in those above it.
 */
static int
map_layers (struct commit *c, uint64_t count, uint64_t offset,
            struct mapping *m, struct qed **s)
{
  *m = (struct mapping) { .kind = MAP_UNALLOCATED, .length = count };
  *s = c->top->s;
  for (struct layer *l = c->top; l; l = l->below) {
    const uint64_t size = node_size (&l->s->node);

    *s = l->s;
    if (offset >= size) {
      m->kind = MAP_ZERO;
      return 0;
    }
    if (qed_map (l->s, MIN (m->length, size - offset), offset, m) == -1)
      return -1;
    if (m->kind != MAP_UNALLOCATED)
      return 0;
  }
  return 0;
}

static int
next_piece (void *opaque, uint64_t offset, struct piece *piece)
{
  struct commit *c = opaque;
  const uint64_t size = node_size (&c->top->s->node);

  while (offset < size) {
    struct mapping m;
    struct qed *s;

    if (map_layers (c, size - offset, offset, &m, &s) == -1)
      return -1;
    if (m.kind != MAP_UNALLOCATED) {
      piece->offset = offset;
      piece->length = MIN (m.length, m.kind == MAP_ZERO ? ZERO_PIECE
                           : (uint64_t) PARALLEL_BUFFER);
      piece->from = m.kind == MAP_ZERO ? NULL : s->file;
      piece->from_offset = m.file_offset;
      return 0;
    }
    offset += m.length;
  }
  return 0;
}

static int
copy_piece (void *opaque, const struct piece *piece, uint8_t *buf,
            uint8_t *unused)
{
  struct commit *c = opaque;

  if (piece->from == NULL)
    return parallel_zero (c->base, piece->length, piece->offset);
  if (node_pread (piece->from, buf, piece->length, piece->from_offset) == -1)
    return -1;
  if (is_zero (buf, piece->length))
    return parallel_zero (c->base, piece->length, piece->offset);
  return parallel_write (c->base, buf, piece->length, piece->offset);
}

static int
grow_base (struct commit *c)
{
  const uint64_t size = node_size (&c->top->s->node);

  if (parallel_reaches (c->base, size))
    return 0;
  if (node_resize (c->base, size) == 0)
    return 0;
  if (errno == ENOTSUP)
    msg_error ("%s: commit: %s is shorter than the image, which has %" PRIu64
               " bytes, and cannot grow", c->top->s->node.name,
               c->base->name, size);
  return -1;
}

static int
start_chain (struct commit *c)
{
  for (struct layer *l = c->top; l; l = l->below)
    if (node_start (&l->s->node) == -1)
      return -1;
  return node_start (c->base);
}

static int
copy_layers (struct commit *c, const struct qed_commit_options *o)
{
  const struct parallel p = {
    .size = node_size (&c->top->s->node),
    .next = next_piece, .work = copy_piece, .opaque = c,
    .progress = o->progress, .rate = o->rate
  };

  if (start_chain (c) == -1 || grow_base (c) == -1 ||
      parallel_run (&p) == -1)
    return -1;
  return node_flush (c->base);
}

int
qed_commit (const char *name, const struct qed_commit_options *options)
{
  struct commit c = { .top = NULL };
  int r = open_chain (&c, name, options);

  if (r == 0)
    r = copy_layers (&c, options);
  /* An empty layer would show what those between it and the base have. */
  if (r == 0 && !options->keep && c.top == c.last)
    r = qed_empty (&c.top->s->node);

  const int err = errno;

  if (close_chain (&c) == -1)
    return -1;
  errno = err;
  return r;
}
