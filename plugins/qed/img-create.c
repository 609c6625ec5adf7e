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

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "img.h"
#include "cleanup.h"
#include "message.h"
#include "sizes.h"

static const struct img_option options[] = {
  IMG_OPTION_QUIET,
  IMG_OPTION_FORMAT,
  { 'b', NULL, "FILE", "make an overlay over this backing image" },
  { 'F', NULL, "raw|qed", "format of the backing image" },
  { 'u', NULL, NULL, "do not look at the backing image" },
  { 'o', NULL, "KEY=VALUE,...", "options, see '-o help'" },
  IMG_OPTIONS_EVERYWHERE
};

struct request {
  const char *image;
  int64_t size;                 /* bytes, or -1 if not given */
  char *backing;                /* NULL if none */
  char *backing_format;         /* a word, or NULL if not given */
  int64_t cluster_size;         /* bytes */
  int64_t table_size;           /* clusters, or -1 if not given */
  bool quiet, unsafe;
};

/* ---- -o KEY=VALUE,... */

enum key { BACKING_FILE, BACKING_FMT, CLUSTER_SIZE, SIZE, TABLE_SIZE,
           NR_KEYS };

static const struct {
  const char *name, *kind, *help;
} keys[NR_KEYS] = {
  [BACKING_FILE] = { "backing_file", "str", "File name of a base image" },
  [BACKING_FMT] = { "backing_fmt", "str", "Image format of the base image" },
  [CLUSTER_SIZE] = { "cluster_size", "size", "Cluster size (in bytes)" },
  [SIZE] = { "size", "size", "Virtual disk size" },
  [TABLE_SIZE] = { "table_size", "size", "L1/L2 table size (in clusters)" },
};

static void
print_keys (void)
{
  printf ("Supported qed options:\n");
  for (enum key k = 0; k < NR_KEYS; ++k) {
    char synopsis[32];

    snprintf (synopsis, sizeof synopsis, "%s=<%s>",
              keys[k].name, keys[k].kind);
    printf ("  %-22s - %s\n", synopsis, keys[k].help);
  }
}

static void
out_of_memory (void)
{
  msg_error ("out of memory");
  exit (EXIT_FAILURE);
}

static void
set_string (char **field, const char *value)
{
  free (*field);
  *field = strdup (value);
  if (*field == NULL)
    out_of_memory ();
}

static int
parse_key_size (const struct request *r, const char *name,
                const char *value, int64_t *result)
{
  *result = value ? parse_size (value) : -1;
  if (*result >= 0)
    return 0;
  if (value && errno == ERANGE)
    msg_error ("%s: Value '%s' is out of range for parameter '%s'",
               r->image, value, name);
  else {
    msg_error ("%s: Parameter '%s' expects a non-negative number below 2^63",
               r->image, name);
    fprintf (stderr,
             "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
             "tera-, peta-\nand exabytes, respectively.\n");
  }
  return -1;
}

/* value is NULL if there was no equals sign. */
static int
set_key (struct request *r, const char *name, const char *value)
{
  enum key k = 0;

  while (k < NR_KEYS && strcmp (keys[k].name, name) != 0)
    k++;

  switch (k) {
  case CLUSTER_SIZE:
    return parse_key_size (r, name, value, &r->cluster_size);
  case SIZE:
    return parse_key_size (r, name, value, &r->size);
  case TABLE_SIZE:
    return parse_key_size (r, name, value, &r->table_size);
  case BACKING_FILE:
  case BACKING_FMT:
    if (value) {
      set_string (k == BACKING_FILE ? &r->backing : &r->backing_format,
                  value);
      return 0;
    }
    msg_error ("%s: Parameter '%s' expects a value", r->image, name);
    return -1;
  default:
    msg_error ("%s: Invalid parameter '%s'", r->image, name);
    return -1;
  }
}

/* Cut the first item off a list, in place.  Two commas are one that is
 * part of the item.  Returns NULL if it was the last item, else what
 * follows.
 */
static char *
cut_item (char *list)
{
  char *to = list;

  for (; *list; ++list) {
    if (*list == ',') {
      if (list[1] != ',') {
        *to = '\0';
        return list + 1;
      }
      list++;
    }
    *to++ = *list;
  }
  *to = '\0';
  return NULL;
}

/* Give each item of the list to f, until it returns other than 0. */
static int
for_each_item (const char *list, int (*f) (struct request *r, char *item),
               struct request *r)
{
  CLEANUP_FREE char *copy = strdup (list);
  int result = 0;

  if (copy == NULL)
    out_of_memory ();
  for (char *item = copy, *next; item && result == 0; item = next) {
    next = cut_item (item);
    result = f (r, item);
  }
  return result;
}

static int
is_help (struct request *r __attribute__ ((unused)), char *item)
{
  return strcmp (item, "help") == 0 || strcmp (item, "?") == 0;
}

static int
refuse_empty (struct request *r __attribute__ ((unused)), char *item)
{
  return *item == '\0' ? -1 : 0;
}

static int
set_item (struct request *r, char *item)
{
  char *value = strchr (item, '=');

  if (value)
    *value++ = '\0';
  return set_key (r, item, value);
}

/* All -o options of the command line, as one list. */
static void
add_to_list (char **list, const char *more)
{
  char *longer;

  if (for_each_item (more, refuse_empty, NULL) != 0) {
    msg_error ("Invalid option list: %s", more);
    exit (EXIT_FAILURE);
  }
  if (asprintf (&longer, "%s%s%s", *list ? *list : "", *list ? "," : "",
                more) == -1)
    out_of_memory ();
  free (*list);
  *list = longer;
}

/* ---- The command line */

static int64_t
parse_size_argument (const char *arg)
{
  const int64_t size = parse_size (arg);

  if (size >= 0)
    return size;
  if (errno == ERANGE)
    msg_error ("Invalid image size specified. "
               "Must be between 0 and %" PRId64 ".", INT64_MAX);
  else {
    msg_error ("Invalid image size specified. "
               "You may use k, M, G, T, P or E suffixes for");
    msg_error ("kilobytes, megabytes, gigabytes, terabytes, petabytes and "
               "exabytes.");
  }
  exit (EXIT_FAILURE);
}

/* IMAGE and SIZE. */
static int
parse_arguments (struct request *r, int argc, char *argv[], const char *list)
{
  int64_t size = -1;

  if (optind >= argc)
    img_usage_error ("Expecting image file name");
  r->image = argv[optind++];
  if (optind < argc)
    size = parse_size_argument (argv[optind++]);
  if (optind < argc)
    img_usage_error ("Unexpected argument: %s", argv[optind]);

  if (list && for_each_item (list, set_item, r) == -1)
    return -1;
  if (size >= 0 && r->size >= 0) {
    msg_error ("%s: The image size must be specified only once", r->image);
    return -1;
  }
  if (size >= 0)
    r->size = size;
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
      add_to_list (&list, optarg);
      break;
    }
  }
  r->quiet = common.quiet;

  if (list && for_each_item (list, is_help, NULL)) {
    print_keys ();
    return 1;
  }
  if (parse_arguments (r, argc, argv, list) == -1)
    return -1;
  if (backing)
    set_string (&r->backing, backing);
  if (format)
    set_string (&r->backing_format, format);
  return 0;
}

/* ---- The backing image */

static int
parse_backing_format (const struct request *r, enum qed_format *format)
{
  *format = QED_FORMAT_PROBE;
  if (r->backing_format == NULL)
    return 0;
  if (strcmp (r->backing_format, "raw") == 0)
    *format = QED_FORMAT_RAW;
  else if (strcmp (r->backing_format, "qed") == 0)
    *format = QED_FORMAT_QED;
  else {
    msg_error ("%s: Unknown backing file format '%s'; an image of another "
               "format than raw and qed can be used through an NBD server "
               "of its own, as a raw NBD URI", r->image, r->backing_format);
    return -1;
  }
  return 0;
}

/* Creating an image over one that stands on it would destroy the data
 * below.
 */
static int
refuse_target (const struct request *r, const char *backing)
{
  if (!img_same_image (r->image, backing))
    return 0;
  msg_error ("%s: Error: Trying to create an image with the same filename "
             "as the backing file", r->image);
  return -1;
}

/* Take from the chain what the user left open. */
static int
use_chain (struct request *r, const struct img_chain *chain)
{
  for (size_t i = 0; i < chain->nr; ++i)
    if (refuse_target (r, chain->layers[i].name) == -1)
      return -1;
  if (r->size == -1)
    r->size = chain->layers[0].size;
  set_string (&r->backing_format,
              chain->layers[0].format == QED_FORMAT_RAW ? "raw" : "qed");
  return 0;
}

/* Look at what the new image will stand on, which may be in use
 * meanwhile.
 */
static int
inspect_backing (struct request *r, enum qed_format format)
{
  CLEANUP_FREE char *path = qed_backing_path (r->image, r->backing);
  struct img_chain chain = IMG_EMPTY_CHAIN;
  int result;

  if (path == NULL || refuse_target (r, path) == -1)
    return -1;
  if (r->unsafe)
    return 0;
  result = img_chain_read (&chain, path, format, true, true);
  if (result == 0)
    result = use_chain (r, &chain);
  img_chain_free (&chain);
  return result;
}

static int
settle_backing (struct request *r)
{
  enum qed_format format;

  if (r->backing && *r->backing == '\0') {
    msg_error ("%s: Expected backing file name, got empty string", r->image);
    return -1;
  }
  if (parse_backing_format (r, &format) == -1)
    return -1;
  if (r->backing && inspect_backing (r, format) == -1)
    return -1;
  if (r->size == -1) {
    msg_error ("%s: Image creation needs a size parameter", r->image);
    return -1;
  }
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

static void
announce (const struct request *r)
{
  printf ("Formatting '%s', fmt=qed size=%" PRId64, r->image, r->size);
  if (r->backing)
    print_value ("backing_file", r->backing);
  if (r->backing_format)
    print_value ("backing_fmt", r->backing_format);
  printf (" cluster_size=%" PRId64, r->cluster_size);
  if (r->table_size != -1)
    printf (" table_size=%" PRId64, r->table_size);
  printf ("\n");
  fflush (stdout);              /* before messages about failures */
}

/* qed_create knows the rules for these, as far as they fit a header. */
static int
narrow (const struct request *r, const char *what, int64_t value,
        uint32_t *result)
{
  if (value > UINT32_MAX) {
    msg_error ("%s: QED %s of %" PRId64 " is too large",
               r->image, what, value);
    return -1;
  }
  *result = value;
  return 0;
}

static int
create (const struct request *r)
{
  struct qed_create_options o = {
    .size = r->size,
    .table_size = QED_DEFAULT_TABLE_SIZE,
    .backing = r->backing,
    .backing_is_raw = r->backing && r->backing_format &&
      strcmp (r->backing_format, "raw") == 0,
  };

  if (!r->quiet)
    announce (r);
  if (narrow (r, "cluster size", r->cluster_size, &o.cluster_size) == -1 ||
      (r->table_size != -1 &&
       narrow (r, "table size", r->table_size, &o.table_size) == -1))
    return -1;
  return qed_create (r->image, &o);
}

static int
run (int argc, char *argv[])
{
  struct request r = {
    .size = -1, .cluster_size = QED_DEFAULT_CLUSTER_SIZE, .table_size = -1
  };
  int result = parse_command_line (&r, argc, argv);

  if (result == 0 &&
      (settle_backing (&r) == -1 || create (&r) == -1))
    result = -1;
  free (r.backing);
  free (r.backing_format);
  return result == -1 ? EXIT_FAILURE : EXIT_SUCCESS;
}

const struct img_command img_create_command = {
  "create", "IMAGE [SIZE]", "Make a new image.", options, run
};
