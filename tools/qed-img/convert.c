/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img convert.
 *
 * Notes on the design
 *
 * First everything that can be refused is looked at: the command line,
 * the source, and whether the target is one of its files.  Then the
 * target is made, unless -n says that it is there, and opened as if it
 * had always been; and the library copies.
 *
 * What a target reads as before anything is written to it decides what
 * must be written: a new one reads as zeroes or its backing image, others
 * as whatever.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/chain.h"
#include "tools/qed-img/qed-img.h"
#include "node/align.h"
#include "qed/copy.h"
#include "qed/parallel.h"
#include "tool/progress.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "utils/sizes.h"

#define DEFAULT_SPARSE 4096
#define MAX_SPARSE (UINT64_C (16) << 20)
#define DEFAULT_THREADS 8

static const struct tool_option options[] = {
  IMG_OPTION_QUIET,
  { 'f', "format", "qed|raw", "format of SOURCE" },
  { 'O', NULL, "raw|qed", "format of TARGET; raw if it is not given" },
  { 'n', NULL, NULL, "TARGET is there already, and as large" },
  { IMG_TARGET_IS_ZERO, "target-is-zero", NULL,
    "with -n: TARGET reads as zeroes" },
  { 'B', NULL, "FILE", "TARGET stands on the same as SOURCE, by this name" },
  { 'F', NULL, IMG_BACKING_FORMATS, "format of the backing image" },
  { 'o', NULL, "KEY=VALUE,...", "options of TARGET, see '-o help'" },
  { 'S', NULL, "SIZE", "so long zeroes are not written; 0: all are" },
  { 'W', NULL, NULL, "write in any order" },
  { 'm', NULL, "N", "copy N pieces side by side, at most 16" },
  { 'r', NULL, "RATE", "copy at most so many bytes a second" },
  { 't', NULL, IMG_CACHE_MODES, "cache mode of TARGET" },
  { 'T', NULL, IMG_CACHE_MODES, "cache mode of SOURCE" },
  IMG_OPTION_PROGRESS,
  IMG_OPTION_FORCE_SHARE,
  IMG_OPTION_NO_LOCK,
  { 'C', NULL, NULL, NULL },
  { 'c', NULL, NULL, NULL },
  { 'l', NULL, "SNAPSHOT", NULL },
  { IMG_BITMAPS, "bitmaps", NULL, NULL },
  { IMG_SALVAGE, "salvage", NULL, NULL },
  { IMG_TARGET_IMAGE_OPTS, "target-image-opts", NULL, NULL },
  IMG_OPTIONS_EVERYWHERE
};

struct request {
  struct img_new_image new;     /* the target */
  bool to_qed;                  /* -O qed */
  bool exists;                  /* -n */
  struct qed_copy_options copy;
  enum node_cache cache;        /* of the target */
  struct img_common common;     /* its cache mode is that of the source */
  const char *source;           /* path or URI */
  enum qed_format source_format;
};

/* ---- The command line */

static __attribute__ ((noreturn)) void
mistake (const char *text)
{
  msg_error ("%s", text);
  exit (EXIT_FAILURE);
}

static void
refuse_unsupported (int code)
{
  switch (code) {
  case 'C':
    mistake ("-C is not supported: what is copied is looked at");
  case 'c':
    mistake ("Compression not supported for this file format");
  case 'l':
    mistake ("-l is not supported: QED images have no snapshots");
  case IMG_BITMAPS:
    mistake ("Source lacks bitmap support");
  case IMG_SALVAGE:
    mistake ("--salvage is not supported: what cannot be read ends the copy; "
             "nbdcopy(1) and ddrescue(1) save the rest");
  case IMG_TARGET_IMAGE_OPTS:
    mistake ("--target-image-opts is not supported: give a file name or an "
             "NBD URI");
  }
}

static bool
parse_output_format (const char *format)
{
  if (!tool_is_word_of ("raw|qed", format)) {
    msg_error ("Unknown file format '%s': qed-img makes qed and raw images",
               format);
    exit (EXIT_FAILURE);
  }
  return strcmp (format, "qed") == 0;
}

static uint64_t
parse_sparse (const char *arg)
{
  const int64_t size =
    img_parse_size ("buffer size for sparse output", arg);

  if (is_aligned ((uint64_t) size, 512) && (uint64_t) size <= MAX_SPARSE)
    return size;
  msg_error ("Invalid buffer size for sparse output specified. Valid sizes "
             "are multiples of 512 up to %" PRIu64 ". Select 0 to disable "
             "sparse detection (fully allocates output).", MAX_SPARSE);
  exit (EXIT_FAILURE);
}

static unsigned
parse_threads (const char *arg)
{
  char *end;
  const unsigned long n = strtoul (arg, &end, 10);

  if (*arg >= '0' && *arg <= '9' && *end == '\0' && n >= 1 &&
      n <= PARALLEL_MAX_THREADS)
    return n;
  mistake ("Invalid number of coroutines. Allowed number of coroutines is "
           "between 1 and 16");
}

/* SOURCE and TARGET. */
static int
parse_names (struct request *r, int argc, char *argv[])
{
  if (argc - optind < 2)
    mistake ("Must specify image file name");
  if (argc - optind > 2)
    mistake ("qed-img copies one image; serve several as one disk with "
             "\"nbdkit split\", and copy that");
  r->source = img_parse_image (argv[optind], &r->common);
  return img_set_image (&r->new, argv[optind + 1]);
}

static int
check_combination (struct request *r, const char *list)
{
  if (r->copy.is_zero && !r->exists)
    mistake ("--target-is-zero requires use of -n flag");
  if (r->exists && list)
    mistake ("-o has no effect when skipping image creation");
  if (img_set_options (&r->new, list) == -1)
    return -1;
  if (!r->to_qed && r->new.backing)
    mistake ("Backing file not supported for file format 'raw'");
  if (!r->to_qed && r->new.backing_format)
    mistake ("Backing file format not supported for file format 'raw'");
  if (!r->to_qed && (r->new.cluster_size != -1 || r->new.table_size != -1))
    mistake ("Invalid options for file format 'raw': it has no clusters");
  r->copy.above = r->new.backing != NULL;
  return 0;
}

/* An option of this command's own. */
static void
set_option (struct request *r, int c, char **list)
{
  switch (c) {
  case 'O':
    r->to_qed = parse_output_format (optarg);
    break;
  case 'n':
    r->exists = true;
    break;
  case IMG_TARGET_IS_ZERO:
    r->copy.is_zero = true;
    break;
  case 'B':
    img_set_string (&r->new.backing, optarg);
    break;
  case 'F':
    img_set_string (&r->new.backing_format, optarg);
    break;
  case 'o':
    img_add_options (list, optarg);
    break;
  case 'S':
    r->copy.sparse = parse_sparse (optarg);
    break;
  case 'W':
    r->copy.in_order = false;
    break;
  case 'm':
    r->copy.threads = parse_threads (optarg);
    break;
  case 'r':
    r->copy.rate = img_parse_size ("rate limit", optarg);
    break;
  case 't':
    r->cache = img_parse_cache ("cache", optarg);
    break;
  case 'T':
    r->common.cache = img_parse_cache ("source cache", optarg);
    break;
  default:
    refuse_unsupported (c);
  }
}

/* Returns 1 if help was asked for and printed. */
static int
parse_command_line (struct request *r, int argc, char *argv[])
{
  CLEANUP_FREE char *list = NULL;
  int c;

  while ((c = img_next_option (&img_convert_command, argc, argv,
                               &r->common)) != -1)
    set_option (r, c, &list);
  if (img_options_want_help (list)) {
    img_print_options (argc - optind >= 2);
    return 1;
  }
  if (parse_names (r, argc, argv) == -1)
    return -1;
  return check_combination (r, list);
}

/* ---- The source */

static int
probe (struct request *r, struct node *file)
{
  r->source_format = r->common.format
    ? (strcmp (r->common.format, "raw") == 0 ? QED_FORMAT_RAW
       : QED_FORMAT_QED) : r->common.name_format;
  return r->source_format == QED_FORMAT_PROBE
    ? qed_probe (file, &r->source_format) : 0;
}

static struct node *
open_source (struct request *r)
{
  const bool no_lock = r->common.force_share || r->common.no_lock;
  const struct node_open_options how = {
    .read_only = true, .cache = r->common.cache,
    .lock = no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
  };
  struct qed_options qed = QED_DEFAULT_OPTIONS;
  struct node *n = align_open (r->source, &how);

  if (n && probe (r, n) == -1) {
    node_close (n);
    return NULL;
  }
  if (n == NULL || r->source_format == QED_FORMAT_RAW)
    return n;
  node_close (n);
  qed.read_only = true;
  qed.no_lock = no_lock;
  qed.cache = how.cache;
  return qed_open (r->source, &qed);
}

/* A copy into the source, or into what it stands on, would destroy what is
 * still to be read.
 */
static int
refuse_own_files (const struct request *r)
{
  struct img_chain chain = IMG_EMPTY_CHAIN;
  int result = img_chain_read (&chain, r->source, r->source_format, true,
                               true);

  for (size_t i = 0; i < chain.nr && result == 0; ++i) {
    if (img_same_image (r->new.file, chain.layers[i].name)) {
      msg_error ("%s: the target of the copy is what it is made of",
                 r->new.image);
      result = -1;
    }
  }
  img_chain_free (&chain);
  return result;
}

/* ---- The target */

/* A raw file: one that is there begins anew. */
static int
make_raw (const struct request *r)
{
  const uint64_t size = r->new.size;
  struct node *n;
  int result = 0;

  if (node_is_uri (r->new.file))
    return 0;                   /* it is there, if it is anywhere */
  n = node_create_file (r->new.file, r->common.no_lock);
  if (n == NULL)
    return -1;
  if (!n->fixed_size)
    result = img_make_raw (n, &r->new, size);
  if (result == 0)
    node_keep (n);
  if (node_close (n) == -1)
    result = -1;
  return result;
}

static int
make_qed (struct request *r)
{
  struct qed_create_options o;

  if (img_settle_backing (&r->new, false) == -1 ||
      img_create_options (&r->new, &o) == -1)
    return -1;
  o.no_lock = r->common.no_lock;
  return qed_create (r->new.file, &o);
}

static struct node *
open_target (const struct request *r)
{
  const struct node_open_options how = {
    .cache = r->cache,
    .lock = r->common.no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE,
  };
  struct qed_options qed = QED_DEFAULT_OPTIONS;
  struct node *n;

  if (!r->to_qed)
    return align_open (r->new.file, &how);
  qed.no_lock = r->common.no_lock;
  qed.cache = r->cache;
  n = qed_open (r->new.file, &qed);
  if (n && n->read_only) {
    msg_error ("%s: nothing is copied into a damaged image", r->new.image);
    node_close (n);
    return NULL;
  }
  return n;
}

/* Also tells what the target reads as. */
static struct node *
make_target (struct request *r, uint64_t size)
{
  struct node *n;

  if (!r->exists) {
    r->new.size = round_up (size, 512);
    if ((r->to_qed ? make_qed (r) : make_raw (r)) == -1)
      return NULL;
  }
  n = open_target (r);
  if (n == NULL)
    return NULL;
  if (!r->exists)
    r->copy.is_zero = r->to_qed ? r->new.backing == NULL : !n->fixed_size;
  if (parallel_reaches (n, size))
    return n;
  mistake ("output file is smaller than input file");
}

/* ---- Copying */

static int
copy (struct request *r, struct node *from, struct node *to)
{
  /* Elsewhere there is no order, since nothing is allocated. */
  if (!r->to_qed)
    r->copy.in_order = false;
  r->copy.progress =
    img_progress_start (r->common.progress && !r->common.quiet);
  if (qed_copy (from, to, &r->copy) == -1 || node_flush (to) == -1)
    return -1;
  progress_end ();
  return 0;
}

static int
convert (struct request *r)
{
  struct node *from = open_source (r), *to = NULL;
  int result = -1;

  if (from && refuse_own_files (r) == 0)
    to = make_target (r, node_size (from));
  if (to)
    result = copy (r, from, to);
  if (node_close (to) == -1 || node_close (from) == -1)
    result = -1;
  return result;
}

static int
run (int argc, char *argv[])
{
  struct request r = {
    .new = IMG_NEW_IMAGE, .cache = NODE_CACHE_UNSAFE,
    .copy = { .sparse = DEFAULT_SPARSE, .in_order = true,
              .threads = DEFAULT_THREADS }
  };
  int result = parse_command_line (&r, argc, argv);

  if (result == 0)
    result = convert (&r);
  img_new_image_free (&r.new);
  return result == -1 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct tool_command img_convert_command = {
  "convert", "SOURCE TARGET", "Copy an image, to another format too.",
  options, run
};
