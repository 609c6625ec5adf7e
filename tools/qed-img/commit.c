/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img commit. */

#include <config.h>

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/qed-img/qed-img.h"
#include "tool/progress.h"

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  { 'b', NULL, "FILE", "commit into this image of the chain, and keep IMAGE" },
  { 'd', NULL, NULL, "do not empty IMAGE afterwards" },
  { 't', NULL, IMG_CACHE_MODES, "cache mode" },
  IMG_OPTION_PROGRESS,
  { 'r', NULL, "RATE", "copy at most so many bytes a second" },
  IMG_OPTION_NO_LOCK,
  IMG_OPTIONS_EVERYWHERE
};

static int
run (int argc, char *argv[])
{
  struct qed_commit_options o = { NULL };
  struct img_common common = { 0 };
  const char *image;
  int c;

  while ((c = img_next_option (&img_commit_command, argc, argv,
                               &common)) != -1) {
    switch (c) {
    case 'b':
      o.base = optarg;
      break;
    case 'd':
      o.keep = true;
      break;
    case 't':
      o.cache = img_parse_cache ("cache", optarg);
      break;
    case 'r':
      o.rate = img_parse_size ("rate limit", optarg);
      break;
    }
  }
  image = img_one_image (argc, argv, &common);

  o.no_lock = common.no_lock;
  o.progress = img_progress_start (common.progress && !common.quiet);
  if (qed_commit (image, &o) == -1)
    return EXIT_FAILURE;
  progress_end ();
  if (!common.quiet)
    printf ("Image committed.\n");
  return EXIT_SUCCESS;
}

const struct tool_command img_commit_command = {
  "commit", "IMAGE", "Write what an image holds into its backing image.",
  options, run
};
