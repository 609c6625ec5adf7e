/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the command lines of the sub-commands have in common. */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/qed-img.h"
#include "tool/progress.h"
#include "utils/message.h"
#include "utils/sizes.h"

/* The command's table says which formats it knows. */
static void
check_format (const struct tool_command *command, const char *format)
{
  const struct tool_option *o = command->options;

  while (o->code != 'f')
    o++;
  if (!tool_is_word_of (o->value, format)) {
    msg_error ("Unknown file format '%s': qed-img works on qed images",
               format);
    exit (EXIT_FAILURE);
  }
}

int
img_next_option (const struct tool_command *command, int argc, char *argv[],
                 struct img_common *common)
{
  for (;;) {
    const int c = tool_next_option (command, argc, argv);

    switch (c) {
    case 'f':
      check_format (command, optarg);
      common->format = optarg;
      break;
    case 'q':
      common->quiet = true;
      break;
    case 'U':
      common->force_share = true;
      break;
    case IMG_NO_LOCK:
      common->no_lock = true;
      break;
    case 'p':
      common->progress = true;
      break;
    case TOOL_OUTPUT:
      common->json = tool_parse_output (optarg);
      break;
    case IMG_OBJECT:
      img_check_object (optarg);
      break;
    case IMG_IMAGE_OPTS:
      tool_usage_error ("--image-opts is not supported: "
                        "give a file name, an NBD URI or json:{...}");
    default:
      return c;
    }
  }
}

int64_t
img_parse_size (const char *what, const char *arg)
{
  const int64_t size = parse_size (arg);

  if (size >= 0)
    return size;
  if (errno == ERANGE)
    msg_error ("Invalid %s specified. Must be between 0 and %" PRId64 ".",
               what, INT64_MAX);
  else {
    msg_error ("Invalid %s specified. "
               "You may use k, M, G, T, P or E suffixes for", what);
    msg_error ("kilobytes, megabytes, gigabytes, terabytes, petabytes and "
               "exabytes.");
  }
  exit (EXIT_FAILURE);
}

enum node_cache
img_parse_cache (const char *kind, const char *mode)
{
  static const char *const names[] = {
    [NODE_CACHE_WRITEBACK] = "writeback",
    [NODE_CACHE_WRITETHROUGH] = "writethrough",
    [NODE_CACHE_NONE] = "none",
    [NODE_CACHE_DIRECTSYNC] = "directsync",
    [NODE_CACHE_UNSAFE] = "unsafe",
  };

  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i)
    if (strcmp (mode, names[i]) == 0)
      return i;
  if (strcmp (mode, "off") == 0)        /* an old name */
    return NODE_CACHE_NONE;
  msg_error ("Invalid %s option: %s", kind, mode);
  exit (EXIT_FAILURE);
}

/* The name that a command was given, until the program ends. */
static char *image_file;

const char *
img_parse_image (const char *arg, struct img_common *common)
{
  struct qed_name name;

  if (qed_parse_name (arg, NULL, &name) == -1)
    exit (EXIT_FAILURE);
  if (name.no_lock)
    common->no_lock = true;
  common->name_format = name.format;
  free (image_file);
  image_file = name.file;
  return image_file;
}

const char *
img_one_image (int argc, char *argv[], struct img_common *common)
{
  const char *image;

  if (optind != argc - 1)
    tool_usage_error ("Expecting one image file name");
  image = img_parse_image (argv[optind], common);
  if (common->name_format == QED_FORMAT_RAW && common->format == NULL) {
    msg_error ("Could not open '%s': raw by its name, and qed-img works on "
               "qed images", argv[optind]);
    exit (EXIT_FAILURE);
  }
  return image;
}

/* ---- Progress */

const struct qed_progress *
img_progress_start (bool show)
{
  static const struct qed_progress progress = { .report = progress_report };

  progress_start (show);
  return &progress;
}
