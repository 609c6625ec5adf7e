/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img empty. */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "tools/qed-img/qed-img.h"

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  IMG_OPTION_NO_LOCK,
  IMG_OPTIONS_EVERYWHERE
};

static int
run (int argc, char *argv[])
{
  struct img_common common = { 0 };
  const char *image;

  while (img_next_option (&img_empty_command, argc, argv, &common) != -1)
    ;
  image = img_one_image (argc, argv, &common);

  if (qed_empty_image (image, common.no_lock) == -1)
    return EXIT_FAILURE;
  if (!common.quiet)
    printf ("Image emptied.\n");
  return EXIT_SUCCESS;
}

const struct tool_command img_empty_command = {
  "empty", "IMAGE", "Drop all data of an image, down to its backing image.",
  options, run
};
