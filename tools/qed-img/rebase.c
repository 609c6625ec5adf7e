/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img rebase. */

#include <config.h>

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/chain.h"
#include "tools/qed-img/qed-img.h"
#include "tool/progress.h"
#include "utils/cleanup.h"
#include "utils/message.h"

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  { 'b', NULL, "FILE", "the new backing image, '' for none" },
  { 'F', NULL, IMG_BACKING_FORMATS, "format of the new backing image" },
  { 'u', NULL, NULL, "change the name only, look at no backing image" },
  { 't', NULL, IMG_CACHE_MODES, "cache mode" },
  { 'T', NULL, IMG_CACHE_MODES, "cache mode of the backing images" },
  IMG_OPTION_PROGRESS,
  { 'U', "force-share", NULL, "use backing images even if they are in use" },
  IMG_OPTION_NO_LOCK,
  IMG_OPTIONS_EVERYWHERE
};

/* Nobody else looks at the new backing image of an unsafe rebase. */
static int
refuse_itself (const char *image, const struct qed_rebase_options *o)
{
  enum qed_format format = o->backing_format;
  CLEANUP_FREE char *path = NULL;

  if (o->backing == NULL || *o->backing == '\0')
    return 0;
  if (o->unsafe) {
    if (qed_backing_full_name (image, o->backing, &path) == -1)
      return -1;
  }
  else if ((path = qed_backing_path (image, o->backing, false,
                                     &format)) == NULL)
    return -1;
  if (path == NULL || !img_same_image (image, qed_without_protocol (path)))
    return 0;
  msg_error ("%s: the new backing image '%s' is the image itself", image,
             o->backing);
  return -1;
}

static int
run (int argc, char *argv[])
{
  struct qed_rebase_options o = { NULL };
  struct img_common common = { 0 };
  const char *image, *format = NULL;
  bool foreign;
  int c;

  while ((c = img_next_option (&img_rebase_command, argc, argv,
                               &common)) != -1) {
    switch (c) {
    case 'b':
      o.backing = optarg;
      break;
    case 'F':
      format = optarg;
      break;
    case 'u':
      o.unsafe = true;
      break;
    case 't':
      o.cache = img_parse_cache ("cache", optarg);
      break;
    case 'T':
      o.backing_cache = img_parse_cache ("source cache", optarg);
      break;
    }
  }
  image = img_one_image (argc, argv, &common);
  if (o.backing == NULL && !o.unsafe)
    tool_usage_error ("Must specify backing file (-b) or use unsafe mode "
                      "(-u)");
  foreign = o.unsafe && img_is_foreign_format (format);
  if (foreign)
    o.backing_format = QED_FORMAT_QED; /* it is not raw */
  if ((!foreign &&
       img_parse_backing_format (image, format, &o.backing_format) == -1) ||
      refuse_itself (image, &o) == -1)
    return EXIT_FAILURE;

  o.no_lock = common.force_share || common.no_lock;
  o.no_image_lock = common.no_lock;
  o.progress = img_progress_start (common.progress && !common.quiet);
  if (qed_rebase (image, &o) == -1)
    return EXIT_FAILURE;
  progress_end ();
  if (foreign && o.backing && *o.backing && !common.quiet)
    img_warn_of_format (image, format);
  return EXIT_SUCCESS;
}

const struct tool_command img_rebase_command = {
  "rebase", "IMAGE", "Give an image another backing image.", options, run
};
