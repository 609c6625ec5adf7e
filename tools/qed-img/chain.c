/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See chain.h. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/qed-img/chain.h"
#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

bool
img_same_image (const char *name1, const char *name2)
{
  struct stat st1, st2;

  if (strcmp (name1, name2) == 0)
    return true;
  if (node_is_uri (name1) || node_is_uri (name2) ||
      stat (name1, &st1) == -1 || stat (name2, &st2) == -1)
    return false;
  /* Two device nodes can stand for one device. */
  if (S_ISBLK (st1.st_mode) && S_ISBLK (st2.st_mode))
    return st1.st_rdev == st2.st_rdev;
  return st1.st_dev == st2.st_dev && st1.st_ino == st2.st_ino;
}

/* Find out the format if it is open, and what is to be known of a raw
 * image.
 */
static int
open_layer (struct img_layer *layer, bool no_lock, bool from_file)
{
  const struct node_open_options how = {
    .read_only = true,
    .lock = no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
    .from_file = from_file,
  };
  struct node *n = align_open (layer->name, &how);
  int result = 0;

  if (n == NULL)
    return -1;
  if (layer->format == QED_FORMAT_PROBE)
    result = qed_probe (n, &layer->format);
  layer->size = round_up (node_size (n), 512);
  layer->allocated_size = node_allocated_size (n);
  if (node_close (n) == -1)
    result = -1;
  return result;
}

static int
read_layer (struct img_layer *layer, bool no_lock, bool from_file)
{
  layer->is_uri = node_is_uri (layer->name);
  if ((layer->format != QED_FORMAT_QED || from_file) &&
      open_layer (layer, no_lock, from_file) == -1)
    return -1;
  if (layer->format != QED_FORMAT_QED)
    return 0;
  if (qed_get_info (layer->name, no_lock, &layer->info) == -1)
    return -1;
  layer->size = layer->info.size;
  layer->allocated_size = layer->info.allocated_size;
  return 0;
}

static int
refuse_loop (const struct img_chain *chain, const char *name)
{
  for (size_t i = 0; i < chain->nr; ++i) {
    if (img_same_image (chain->layers[i].name, name)) {
      msg_error ("Backing file '%s' creates an infinite loop.", name);
      errno = ELOOP;
      return -1;
    }
  }
  return 0;
}

/* Append an image to the chain. */
static int
add_layer (struct img_chain *chain, const char *name,
           enum qed_format format, bool no_lock)
{
  const bool from_file = chain->from_file || chain->nr > 0;
  struct img_layer *layers, *layer;

  layers = reallocarray (chain->layers, chain->nr + 1, sizeof *layers);
  if (layers == NULL) {
    msg_error ("out of memory");
    return -1;
  }
  chain->layers = layers;

  layer = &layers[chain->nr];
  *layer = (struct img_layer) { .name = strdup (name), .format = format };
  if (layer->name == NULL) {
    msg_error ("out of memory");
    return -1;
  }
  if (read_layer (layer, no_lock, from_file) == -1) {
    free (layer->name);
    return -1;
  }
  chain->nr++;
  return 0;
}

/* Append what is below the last image. */
static int
add_backing (struct img_chain *chain, bool no_lock)
{
  const struct img_layer *last = &chain->layers[chain->nr - 1];
  enum qed_format format =
    last->info.backing_is_raw ? QED_FORMAT_RAW : QED_FORMAT_PROBE;
  CLEANUP_FREE char *path = qed_backing_path (last->name, last->info.backing,
                                              true, &format);

  if (path == NULL || refuse_loop (chain, path) == -1)
    return -1;
  return add_layer (chain, path, format, no_lock);
}

int
img_chain_read (struct img_chain *chain, const char *name,
                enum qed_format format, bool no_lock, bool whole)
{
  int r = add_layer (chain, name, format, no_lock);

  while (r == 0 && whole) {
    const struct img_layer *last = &chain->layers[chain->nr - 1];

    if (last->format != QED_FORMAT_QED || last->info.backing == NULL)
      break;
    r = add_backing (chain, no_lock);
  }
  return r;
}

void
img_chain_free (struct img_chain *chain)
{
  for (size_t i = 0; i < chain->nr; ++i) {
    if (chain->layers[i].format == QED_FORMAT_QED)
      qed_info_free (&chain->layers[i].info);
    free (chain->layers[i].name);
  }
  free (chain->layers);
}
