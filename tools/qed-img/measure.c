/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img measure. */

#include <config.h>

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/qed-img.h"
#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

static const struct tool_option options[] = {
  TOOL_OPTION_OUTPUT,
  { 'O', NULL, "qed|raw", "measure an image of this format" },
  { 'o', NULL, "KEY=VALUE,...", "options of that image, see '-o help'" },
  { IMG_SIZE, "size", "SIZE", "size of its disk, if there is no IMAGE" },
  { 'f', "format", "qed|raw", "format of IMAGE" },
  IMG_OPTION_FORCE_SHARE,
  { 'l', NULL, "SNAPSHOT", NULL },
  IMG_OPTIONS_EVERYWHERE
};

struct request {
  struct img_new_image new;     /* measure this */
  bool is_raw;                  /* -O raw */
  int64_t size;                 /* bytes, or -1 if not given */
  const char *source;           /* holding what this holds, or NULL */
  const char *source_format;    /* a word, or NULL if not given */
  bool snapshot;                /* -l */
};

/* ---- The command line */

static bool
parse_output_format (const char *format)
{
  if (strcmp (format, "raw") == 0)
    return true;
  if (strcmp (format, "qed") == 0)
    return false;
  msg_error ("Unknown file format '%s': qed-img measures qed and raw images",
             format);
  exit (EXIT_FAILURE);
}

static __attribute__ ((noreturn)) void
mistake (const char *text)
{
  msg_error ("%s", text);
  exit (EXIT_FAILURE);
}

static void
parse_arguments (struct request *r, int argc, char *argv[],
                 struct img_common *common)
{
  if (argc - optind > 1)
    mistake ("At most one filename argument is allowed.");
  r->source = argv[optind];     /* NULL if there is none */
  if (!r->source && (r->source_format || r->snapshot))
    mistake ("--image-opts, -f, and -l require a filename argument.");
  if (!r->source && r->size == -1)
    mistake ("Either --size N or one filename must be specified.");
  if (r->source && r->size != -1)
    mistake ("--size N cannot be used together with a filename.");
  if (r->snapshot)
    mistake ("-l is not supported: QED images have no snapshots");
  if (r->source)
    r->source = img_parse_image (r->source, common);
}

/* Returns 1 if help was asked for and printed. */
static int
parse_command_line (struct request *r, int argc, char *argv[],
                    struct img_common *common)
{
  CLEANUP_FREE char *list = NULL;
  int c;

  while ((c = img_next_option (&img_measure_command, argc, argv,
                               common)) != -1) {
    switch (c) {
    case 'O':
      r->is_raw = parse_output_format (optarg);
      break;
    case 'o':
      img_add_options (&list, optarg);
      break;
    case 'l':
      r->snapshot = true;
      break;
    case IMG_SIZE:
      r->size = img_parse_size ("image size", optarg);
      break;
    }
  }
  r->source_format = common->format;

  if (img_options_want_help (list)) {
    img_print_options (false);
    return 1;
  }
  parse_arguments (r, argc, argv, common);
  if (r->is_raw && list)
    mistake ("Invalid options for file format 'raw': it has none");
  return img_set_options (&r->new, list);
}

/* ---- Measuring */

static struct node *
open_source (const struct request *r, const struct img_common *common)
{
  struct qed_options how = QED_DEFAULT_OPTIONS;
  const struct node_open_options raw = {
    .read_only = true,
    .lock = common->force_share || common->no_lock ? NODE_LOCK_NONE
      : NODE_LOCK_IMAGE,
  };

  how.read_only = true;
  how.no_lock = common->force_share || common->no_lock;
  if (r->source_format ? strcmp (r->source_format, "raw") == 0
      : common->name_format == QED_FORMAT_RAW)
    return align_open (r->source, &raw);
  return qed_open (r->source, &how);
}

/* n is NULL if there is no source. */
static int
measure_node (struct request *r, struct node *n, struct qed_measurement *m)
{
  struct qed_create_options o;
  const uint64_t size = round_up (n ? node_size (n) : (uint64_t) r->size,
                                  512);

  if (r->is_raw) {
    m->required = m->fully_allocated = size;
    return 0;
  }
  r->new.size = size;
  if (img_create_options (&r->new, &o) == -1)
    return -1;
  return qed_measure (&o, n, m);
}

static int
measure (struct request *r, const struct img_common *common,
         struct qed_measurement *m)
{
  struct node *n = NULL;
  int result;

  if (r->source && (n = open_source (r, common)) == NULL)
    return -1;
  result = measure_node (r, n, m);
  if (node_close (n) == -1)
    result = -1;
  return result;
}

static int
print (const struct qed_measurement *m, bool json)
{
  if (json)
    return tool_print_json (json_pack ("{s:I, s:I}", "required",
                                       (json_int_t) m->required,
                                       "fully-allocated",
                                       (json_int_t) m->fully_allocated));
  printf ("required size: %" PRIu64 "\nfully allocated size: %" PRIu64 "\n",
          m->required, m->fully_allocated);
  return 0;
}

static int
run (int argc, char *argv[])
{
  struct request r = {
    .new = IMG_NEW_IMAGE, .size = -1
  };
  struct img_common common = { 0 };
  struct qed_measurement m;
  int result;

  r.new.image = "measure";
  result = parse_command_line (&r, argc, argv, &common);

  if (result == 0 &&
      (measure (&r, &common, &m) == -1 || print (&m, common.json) == -1))
    result = -1;
  img_new_image_free (&r.new);
  return result == -1 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct tool_command img_measure_command = {
  "measure", "[IMAGE]", "Tell how much space an image would take.",
  options, run
};
