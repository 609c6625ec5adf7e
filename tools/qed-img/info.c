/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img info, and reading what the headers of a chain say. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tools/qed-img/qed-img.h"
#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"
#include "utils/sizes.h"

static const struct tool_option options[] = {
  IMG_OPTION_FORMAT,
  TOOL_OPTION_OUTPUT,
  { IMG_BACKING_CHAIN, "backing-chain", NULL,
    "describe the images below IMAGE too" },
  IMG_OPTION_FORCE_SHARE,
  IMG_OPTIONS_EVERYWHERE
};

/* ---- Chains */

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

/* ---- Output.  Order and wording are qemu-img's. */

static void
print_backing (const struct qed_info *info)
{
  if (info->backing == NULL)
    return;
  printf ("backing file: %s", info->backing);
  if (info->full_backing == NULL)
    printf (" (cannot determine actual path)");
  else if (strcmp (info->backing, info->full_backing) != 0)
    printf (" (actual path: %s)", info->full_backing);
  printf ("\n");
  if (info->backing_is_raw)
    printf ("backing file format: raw\n");
}

static void
print_layer (const struct img_layer *layer)
{
  const bool is_qed = layer->format == QED_FORMAT_QED;
  char size[HUMAN_SIZE_LEN], allocated[HUMAN_SIZE_LEN] = "unavailable";

  if (layer->allocated_size >= 0)
    human_size (allocated, layer->allocated_size);
  printf ("image: %s\n"
          "file format: %s\n"
          "virtual size: %s (%" PRIu64 " bytes)\n"
          "disk size: %s\n",
          layer->name, is_qed ? "qed" : "raw",
          human_size (size, layer->size), layer->size, allocated);
  if (is_qed && layer->info.need_check)
    printf ("cleanly shut down: no\n");
  if (is_qed) {
    printf ("cluster_size: %" PRIu32 "\n", layer->info.cluster_size);
    print_backing (&layer->info);
  }
}

static void
print_chain (const struct img_chain *chain)
{
  for (size_t i = 0; i < chain->nr; ++i) {
    if (i > 0)
      printf ("\n");
    print_layer (&chain->layers[i]);
  }
}

/* Returns NULL when out of memory. */
static json_t *
layer_to_json (const struct img_layer *layer)
{
  const struct qed_info *info =
    layer->format == QED_FORMAT_QED ? &layer->info : NULL;
  json_t *o = json_object ();
  int r = 0;

  if (info && info->backing && info->backing_is_raw)
    r |= json_object_set_new (o, "backing-filename-format",
                              json_string ("raw"));
  r |= json_object_set_new (o, "virtual-size", json_integer (layer->size));
  r |= json_object_set_new (o, "filename", json_text (layer->name));
  if (info)
    r |= json_object_set_new (o, "cluster-size",
                              json_integer (info->cluster_size));
  r |= json_object_set_new (o, "format", json_string (info ? "qed" : "raw"));
  if (layer->allocated_size >= 0)
    r |= json_object_set_new (o, "actual-size",
                              json_integer (layer->allocated_size));
  if (info && info->full_backing)
    r |= json_object_set_new (o, "full-backing-filename",
                              json_text (info->full_backing));
  if (info && info->backing)
    r |= json_object_set_new (o, "backing-filename",
                              json_text (info->backing));
  if (info || !layer->is_uri)
    r |= json_object_set_new (o, "dirty-flag",
                              json_boolean (info && info->need_check));
  if (r == 0)
    return o;
  json_decref (o);
  return NULL;
}

static json_t *
chain_to_json (const struct img_chain *chain)
{
  json_t *array = json_array ();

  for (size_t i = 0; i < chain->nr; ++i) {
    if (json_array_append_new (array,
                               layer_to_json (&chain->layers[i])) == -1) {
      json_decref (array);
      return NULL;
    }
  }
  return array;
}

static int
print (const struct img_chain *chain, bool json, bool whole)
{
  if (json)
    return tool_print_json (whole ? chain_to_json (chain)
                            : layer_to_json (&chain->layers[0]));
  print_chain (chain);
  return 0;
}

static int
run (int argc, char *argv[])
{
  struct img_chain chain = IMG_EMPTY_CHAIN;
  struct img_common common = { 0 };
  bool whole = false;
  const char *image;
  int r;

  while (img_next_option (&img_info_command, argc, argv, &common)
         == IMG_BACKING_CHAIN)
    whole = true;
  image = img_one_image (argc, argv, &common);

  r = img_chain_read (&chain, image, QED_FORMAT_QED,
                      common.force_share || common.no_lock, whole);
  if (r == 0)
    r = print (&chain, common.json, whole);
  img_chain_free (&chain);
  return r == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

const struct tool_command img_info_command = {
  "info", "IMAGE", "Describe an image.", options, run
};
