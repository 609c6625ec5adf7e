/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a new image shall be like: -o KEY=VALUE,... and formats. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/qed-img.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/sizes.h"

enum key { BACKING_FILE, BACKING_FMT, CLUSTER_SIZE, EXTENT_SIZE_HINT, NOCOW,
           PREALLOCATION, SIZE, TABLE_SIZE, NR_KEYS };

/* qemu-img's. */
#define DEFAULT_EXTENT_SIZE (1024 * 1024)

static const struct {
  const char *name, *kind, *help;
  bool storage;                 /* of the file that holds the image */
} keys[NR_KEYS] = {
  [BACKING_FILE] = { "backing_file", "str", "File name of a base image" },
  [BACKING_FMT] = { "backing_fmt", "str", "Image format of the base image" },
  [CLUSTER_SIZE] = { "cluster_size", "size", "Cluster size (in bytes)" },
  [EXTENT_SIZE_HINT] = { "extent_size_hint", "size",
                         "Extent size hint for the image file, 0 to disable",
                         true },
  [NOCOW] = { "nocow", "bool (on/off)",
              "Turn off copy-on-write (valid only on btrfs)", true },
  [PREALLOCATION] = { "preallocation", "str",
                      "Preallocation mode (allowed values: off, falloc, full)",
                      true },
  [SIZE] = { "size", "size", "Virtual disk size" },
  [TABLE_SIZE] = { "table_size", "size", "L1/L2 table size (in clusters)" },
};

void
img_print_options (bool storage)
{
  printf ("Supported %soptions:\n", storage ? "" : "qed ");
  for (enum key k = 0; k < NR_KEYS; ++k) {
    char synopsis[32];

    if (keys[k].storage && !storage)
      continue;
    snprintf (synopsis, sizeof synopsis, "%s=<%s>",
              keys[k].name, keys[k].kind);
    printf ("  %-22s - %s\n", synopsis, keys[k].help);
  }
  if (!storage)
    printf ("\nThe protocol level may support further options.\n"
            "Specify the target filename to include those options.\n");
}

static void
out_of_memory (void)
{
  msg_error ("out of memory");
  exit (EXIT_FAILURE);
}

void
img_set_string (char **field, const char *value)
{
  free (*field);
  *field = strdup (value);
  if (*field == NULL)
    out_of_memory ();
}

static int
parse_key_size (const struct img_new_image *new, const char *name,
                const char *value, int64_t *result)
{
  *result = value ? parse_size (value) : -1;
  if (*result >= 0)
    return 0;
  if (value && errno == ERANGE)
    msg_error ("%s: Value '%s' is out of range for parameter '%s'",
               new->image, value, name);
  else {
    msg_error ("%s: Parameter '%s' expects a non-negative number below 2^63",
               new->image, name);
    fprintf (stderr,
             "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, "
             "tera-, peta-\nand exabytes, respectively.\n");
  }
  return -1;
}

/* The words that QEMU knows. */
static int
parse_bool (const struct img_new_image *new, const char *name,
            const char *value, bool *result)
{
  if (tool_is_word_of ("on|yes|true|y", value))
    *result = true;
  else if (tool_is_word_of ("off|no|false|n", value))
    *result = false;
  else {
    msg_error ("%s: Parameter '%s' expects 'on' or 'off'", new->image, name);
    return -1;
  }
  return 0;
}

/* Space is not allocated by any mode, as with qemu-img: the file of an
 * image is empty when this is done to it.
 */
static int
check_preallocation (const struct img_new_image *new, const char *mode)
{
  if (tool_is_word_of ("off|falloc|full", mode))
    return 0;
  if (strcmp (mode, "metadata") == 0)
    msg_error ("%s: Unsupported preallocation mode: metadata", new->image);
  else
    msg_error ("%s: invalid parameter value: %s", new->image, mode);
  return -1;
}

static int
parse_extent_size (struct img_new_image *new, const char *name,
                   const char *value)
{
  if (parse_key_size (new, name, value, &new->extent_size_hint) == -1)
    return -1;
  if (new->extent_size_hint <= UINT32_MAX)
    return 0;
  msg_error ("%s: Extent size hint is too large", new->image);
  return -1;
}

/* An option that is a word. */
static int
set_word (struct img_new_image *new, enum key k, const char *value)
{
  char **const fields[NR_KEYS] = {
    [BACKING_FILE] = &new->backing, [BACKING_FMT] = &new->backing_format,
    [NOCOW] = &new->nocow, [PREALLOCATION] = &new->preallocation,
  };

  if (value == NULL && !keys[k].storage) {
    msg_error ("%s: Parameter '%s' expects a value", new->image,
               keys[k].name);
    return -1;
  }
  /* Without a value it is "on", and with "no" before it "off". */
  if (value == NULL && k == NOCOW) {
    msg_error ("%s: Invalid parameter 'cow'", new->image);
    return -1;
  }
  value = value ? : "on";
  if ((k == NOCOW &&
       parse_bool (new, keys[k].name, value, &new->no_cow) == -1) ||
      (k == PREALLOCATION && check_preallocation (new, value) == -1))
    return -1;
  img_set_string (fields[k], value);
  return 0;
}

/* value is NULL if there was no equals sign. */
static int
set_key (struct img_new_image *new, const char *name, const char *value)
{
  enum key k = 0;

  while (k < NR_KEYS && strcmp (keys[k].name, name) != 0)
    k++;

  switch (k) {
  case CLUSTER_SIZE:
    return parse_key_size (new, name, value, &new->cluster_size);
  case SIZE:
    return parse_key_size (new, name, value, &new->size);
  case TABLE_SIZE:
    return parse_key_size (new, name, value, &new->table_size);
  case EXTENT_SIZE_HINT:
    return parse_extent_size (new, name, value);
  case BACKING_FILE:
  case BACKING_FMT:
  case NOCOW:
  case PREALLOCATION:
    return set_word (new, k, value);
  default:
    msg_error ("%s: Invalid parameter '%s'", new->image, name);
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
for_each_item (const char *list,
               int (*f) (struct img_new_image *new, char *item),
               struct img_new_image *new)
{
  CLEANUP_FREE char *copy = strdup (list);
  int result = 0;

  if (copy == NULL)
    out_of_memory ();
  for (char *item = copy, *next; item && result == 0; item = next) {
    next = cut_item (item);
    result = f (new, item);
  }
  return result;
}

static int
is_help (struct img_new_image *new __attribute__ ((unused)), char *item)
{
  return strcmp (item, "help") == 0 || strcmp (item, "?") == 0;
}

static int
refuse_empty (struct img_new_image *new __attribute__ ((unused)), char *item)
{
  return *item == '\0' ? -1 : 0;
}

static int
set_item (struct img_new_image *new, char *item)
{
  char *value = strchr (item, '=');

  if (value)
    *value++ = '\0';
  return set_key (new, item, value);
}

void
img_add_options (char **list, const char *more)
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


bool
img_options_want_help (const char *list)
{
  return list && for_each_item (list, is_help, NULL);
}

int
img_set_options (struct img_new_image *new, const char *list)
{
  return list ? for_each_item (list, set_item, new) : 0;
}

uint32_t
img_extent_size (const struct img_new_image *new)
{
  return new->extent_size_hint == -1 ? DEFAULT_EXTENT_SIZE
    : new->extent_size_hint;
}

/* The library knows the rules for these, as far as they fit a header. */
static int
narrow (const struct img_new_image *new, const char *what, int64_t value,
        uint32_t *result)
{
  if (value > UINT32_MAX) {
    msg_error ("%s: QED %s of %" PRId64 " is too large",
               new->image, what, value);
    return -1;
  }
  *result = value;
  return 0;
}

int
img_create_options (const struct img_new_image *new,
                    struct qed_create_options *options)
{
  *options = (struct qed_create_options) {
    .size = new->size,
    .cluster_size = QED_DEFAULT_CLUSTER_SIZE,
    .table_size = QED_DEFAULT_TABLE_SIZE,
    .backing = new->backing,
    .backing_is_raw = new->backing && new->backing_format &&
      strcmp (new->backing_format, "raw") == 0,
    .no_cow = new->no_cow,
    .extent_size = img_extent_size (new),
  };
  if (new->cluster_size != -1 &&
      narrow (new, "cluster size", new->cluster_size,
              &options->cluster_size) == -1)
    return -1;
  if (new->table_size != -1 &&
      narrow (new, "table size", new->table_size, &options->table_size) == -1)
    return -1;
  return 0;
}

void
img_new_image_free (struct img_new_image *new)
{
  free (new->backing);
  free (new->backing_format);
  free (new->file);
  free (new->nocow);
  free (new->preallocation);
}

bool
img_is_foreign_format (const char *name)
{
  return name && tool_is_word_of (IMG_FOREIGN_FORMATS, name);
}

void
img_warn_of_format (const char *image, const char *name)
{
  msg_warning ("%s: nothing here can read a backing image in %s format: "
               "nbdkit's qed plugin needs backing=URI, of a server that can",
               image, name);
}

int
img_parse_backing_format (const char *image, const char *name,
                          enum qed_format *format)
{
  *format = QED_FORMAT_PROBE;
  if (name == NULL)
    return 0;
  if (strcmp (name, "raw") == 0)
    *format = QED_FORMAT_RAW;
  else if (strcmp (name, "qed") == 0)
    *format = QED_FORMAT_QED;
  else {
    msg_error ("%s: Unknown backing file format '%s'; an image of another "
               "format than raw and qed can be used through an NBD server "
               "of its own, as a raw NBD URI", image, name);
    return -1;
  }
  return 0;
}
