/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img create.
 *
 * Notes on the design
 *
 * The command line is first brought into a struct request, where -b, -F
 * and SIZE are the same thing as the -o options backing_file,
 * backing_fmt and size.  Then the backing chain is looked at, which may
 * supply the size and the format.  The new image is touched last, by
 * qed_create.
 */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tools/qed-img/qed-img.h"
#include "utils/cleanup.h"
#include "utils/message.h"

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  { 'b', NULL, "FILE", "make an overlay over this backing image" },
  { 'F', NULL, IMG_BACKING_FORMATS, "format of the backing image" },
  { 'u', NULL, NULL, "do not look at the backing image" },
  { 'o', NULL, "KEY=VALUE,...", "options, see '-o help'" },
  IMG_OPTION_NO_LOCK,
  IMG_OPTIONS_EVERYWHERE
};

struct request {
  struct img_new_image new;
  bool quiet, unsafe, no_lock;
};

/* ---- The command line */

/* IMAGE and SIZE. */
static int
parse_arguments (struct request *r, int argc, char *argv[], const char *list)
{
  int64_t size = -1;
  const char *image;

  if (optind >= argc)
    tool_usage_error ("Expecting image file name");
  image = argv[optind++];
  if (optind < argc)
    size = img_parse_size ("image size", argv[optind++]);
  if (optind < argc)
    tool_usage_error ("Unexpected argument: %s", argv[optind]);

  if (img_set_image (&r->new, image) == -1 ||
      img_set_options (&r->new, list) == -1)
    return -1;
  if (size >= 0 && r->new.size >= 0) {
    msg_error ("%s: The image size must be specified only once",
               r->new.image);
    return -1;
  }
  if (size >= 0)
    r->new.size = size;
  return 0;
}

/* Returns 1 if help was asked for and printed. */
static int
parse_command_line (struct request *r, int argc, char *argv[])
{
  CLEANUP_FREE char *list = NULL;
  const char *backing = NULL, *format = NULL;
  struct img_common common = { 0 };
  int c;

  while ((c = img_next_option (&img_create_command, argc, argv,
                               &common)) != -1) {
    switch (c) {
    case 'b':
      backing = optarg;
      break;
    case 'F':
      format = optarg;
      break;
    case 'u':
      r->unsafe = true;
      break;
    case 'o':
      img_add_options (&list, optarg);
      break;
    }
  }
  r->quiet = common.quiet;
  r->no_lock = common.no_lock;

  if (img_options_want_help (list)) {
    img_print_options (optind < argc);
    return 1;
  }
  if (parse_arguments (r, argc, argv, list) == -1)
    return -1;
  if (backing)
    img_set_string (&r->new.backing, backing);
  if (format)
    img_set_string (&r->new.backing_format, format);
  return 0;
}

/* ---- Creating */

/* A value in the notation of -o, where commas are doubled. */
static void
print_value (const char *key, const char *value)
{
  printf (" %s=", key);
  for (; *value; ++value) {
    if (*value == ',')
      putchar (',');
    putchar (*value);
  }
}

/* Called by qed_create. */
static void
announce (void *opaque)
{
  const struct request *const r = opaque;

  if (r->quiet)
    return;
  printf ("Formatting '%s', fmt=qed size=%" PRId64,
          r->new.image, r->new.size);
  if (r->new.backing)
    print_value ("backing_file", r->new.backing);
  if (r->new.backing_format)
    print_value ("backing_fmt", r->new.backing_format);
  printf (" cluster_size=%" PRId64, r->new.cluster_size);
  if (r->new.table_size != -1)
    printf (" table_size=%" PRId64, r->new.table_size);
  if (r->new.nocow)
    printf (" nocow=%s", r->new.nocow);
  if (r->new.preallocation)
    printf (" preallocation=%s", r->new.preallocation);
  if (r->new.extent_size_hint != -1)
    printf (" extent_size_hint=%" PRId64, r->new.extent_size_hint);
  printf ("\n");
  tool_flush ();                /* before messages about failures */
}

static int
create (struct request *r)
{
  struct qed_create_options options;

  if (img_create_options (&r->new, &options) == -1)
    return -1;
  options.no_lock = r->no_lock;
  options.begins = announce;
  options.opaque = r;
  if (qed_create (r->new.file, &options) == -1)
    return -1;
  if (r->new.backing && !r->quiet &&
      img_is_foreign_format (r->new.backing_format))
    img_warn_of_format (r->new.image, r->new.backing_format);
  return 0;
}

static int
run (int argc, char *argv[])
{
  struct request r = {
    .new = IMG_NEW_IMAGE
  };
  int result;

  r.new.cluster_size = QED_DEFAULT_CLUSTER_SIZE;
  result = parse_command_line (&r, argc, argv);

  if (result == 0 &&
      (img_settle_backing (&r.new, r.unsafe) == -1 || create (&r) == -1))
    result = -1;
  img_new_image_free (&r.new);
  return result == -1 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct tool_command img_create_command = {
  "create", "IMAGE [SIZE]", "Make a new image.", options, run
};
