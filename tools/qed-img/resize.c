/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img resize. */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/qed-img.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"
#include "utils/sizes.h"

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  { IMG_SHRINK, "shrink", NULL, NULL },
  { IMG_PREALLOCATION, "preallocation", "off", "accepted; nothing else is" },
  IMG_OPTION_NO_LOCK,
  IMG_OPTIONS_EVERYWHERE
};

struct change {
  char sign;                    /* of a relative size, or 0 */
  int64_t size;                 /* bytes */
  bool shrink;                  /* --shrink was given */
};

/* ---- The command line */

/* [+|-]SIZE */
static int
parse_change (struct change *change, const char *arg)
{
  change->sign = *arg == '+' || *arg == '-' ? *arg++ : 0;
  change->size = parse_size (arg);
  if (change->size >= 0)
    return 0;
  if (errno == ERANGE)
    msg_error ("New image size must be positive, and below 2^63");
  else {
    msg_error ("Parameter 'size' expects a non-negative number below 2^63");
    fprintf (stderr,
             "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
             "tera-, peta-\nand exabytes, respectively.\n");
  }
  return -1;
}

static void
check_preallocation (const char *mode)
{
  if (strcmp (mode, "off") == 0)
    return;
  if (strcmp (mode, "metadata") == 0 || strcmp (mode, "falloc") == 0 ||
      strcmp (mode, "full") == 0)
    msg_error ("Unsupported preallocation mode '%s'", mode);
  else
    msg_error ("Invalid preallocation mode '%s'", mode);
  exit (EXIT_FAILURE);
}

/* ---- Resizing */

static int
new_size (const struct change *change, const struct qed_info *info,
          uint64_t *size)
{
  const uint64_t old = info->size;

  if (change->sign == '-' && (uint64_t) change->size > old)
    *size = 0;
  else
    *size = change->sign == '-' ? old - change->size :
      change->sign == '+' ? old + change->size : (uint64_t) change->size;

  if (*size == 0 || *size > INT64_MAX) {
    msg_error ("New image size must be positive");
    return -1;
  }
  if (*size < old && !change->shrink) {
    msg_error ("Use the --shrink option to perform a shrink operation.");
    msg_warning ("Shrinking an image will delete all data beyond the "
                 "shrunken image's end. Before performing such an operation, "
                 "make sure there is no important data there.");
    return -1;
  }
  if (*size < old) {
    msg_error ("Shrinking images is currently not supported");
    return -1;
  }
  if (!is_aligned (*size, 512)) {
    msg_error ("Invalid image size specified: %" PRIu64 " is no multiple of "
               "512", *size);
    return -1;
  }
  if (*size > info->max_size) {
    msg_error ("Invalid image size specified: %" PRIu64 " is more than tables "
               "of this geometry can map", *size);
    return -1;
  }
  return 0;
}

static int
resize (const char *image, const struct change *change, bool no_lock)
{
  struct qed_options how = QED_DEFAULT_OPTIONS;
  struct qed_info info;
  struct node *n;
  uint64_t size;
  int result;

  /* An open for writing may change the image, so look at it before, and
   * leave it to the open to find it in use.
   */
  if (qed_get_info (image, true, &info) == -1)
    return -1;
  result = new_size (change, &info, &size);
  qed_info_free (&info);
  how.no_lock = no_lock;
  n = result == 0 ? qed_open (image, &how) : NULL;
  if (n == NULL)
    return -1;
  if (n->read_only) {
    msg_error ("%s: a damaged image is not resized", image);
    result = -1;
  }
  if (result == 0)
    result = node_resize (n, size);
  if (node_close (n) == -1)
    result = -1;
  return result;
}

/* The size stands last, and is taken away first, since "-1G" is no
 * option.
 */
static int
run (int argc, char *argv[])
{
  struct change change = { 0 };
  struct img_common common = { 0 };
  const char *image, *size;
  int c;

  if (argc < 3) {
    while (img_next_option (&img_resize_command, argc, argv, &common) != -1)
      ;
    tool_usage_error ("Not enough arguments");
  }
  size = argv[--argc];
  while ((c = img_next_option (&img_resize_command, argc, argv,
                               &common)) != -1) {
    switch (c) {
    case IMG_SHRINK:
      change.shrink = true;
      break;
    case IMG_PREALLOCATION:
      check_preallocation (optarg);
      break;
    }
  }
  if (optind != argc - 1)
    tool_usage_error ("Expecting image file name and size");
  image = img_parse_image (argv[optind], &common);

  if (parse_change (&change, size) == -1 ||
      resize (image, &change, common.no_lock) == -1)
    return EXIT_FAILURE;
  if (!common.quiet)
    printf ("Image resized.\n");
  return EXIT_SUCCESS;
}

const struct tool_command img_resize_command = {
  "resize", "IMAGE [+]SIZE", "Make the disk of an image larger.", options, run
};
