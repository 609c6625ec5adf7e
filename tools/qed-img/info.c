/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img info. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/chain.h"
#include "tools/qed-img/qed-img.h"
#include "utils/jsontext.h"
#include "utils/sizes.h"

static const struct tool_option options[] = {
  IMG_OPTION_FORMAT,
  TOOL_OPTION_OUTPUT,
  { IMG_BACKING_CHAIN, "backing-chain", NULL,
    "describe the images below IMAGE too" },
  IMG_OPTION_FORCE_SHARE,
  IMG_OPTIONS_EVERYWHERE
};

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
