/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a new image stands on: its name, and what the backing image says of
 * what the user left open.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "tools/qed-img/chain.h"
#include "tools/qed-img/qed-img.h"
#include "node/align.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Zeroes are written in pieces of this size. */
#define PIECE (UINT64_C (1) << 20)

/* In the header of a qcow2 image: where the size of the disk stands. */
#define QCOW2_SIZE 24

int
img_set_image (struct img_new_image *new, const char *image)
{
  struct qed_name name;

  new->image = image;
  if (strncmp (image, "json:", 5) == 0) {       /* as qemu-img */
    msg_error ("%s: Unknown protocol 'json'", image);
    return -1;
  }
  if (qed_parse_name (image, NULL, &name) == -1)
    return -1;
  new->file = name.file;
  return 0;
}

/* Creating an image over one that stands on it would destroy the data
 * below.
 */
static int
refuse_target (const struct img_new_image *new, const char *backing)
{
  if (!img_same_image (new->file, backing))
    return 0;
  msg_error ("%s: Error: Trying to create an image with the same filename "
             "as the backing file", new->image);
  return -1;
}

/* Take from the chain what the user left open. */
static int
use_chain (struct img_new_image *new, const struct img_chain *chain)
{
  for (size_t i = 0; i < chain->nr; ++i)
    if (refuse_target (new, chain->layers[i].name) == -1)
      return -1;
  if (new->size == -1)
    new->size = chain->layers[0].size;
  img_set_string (&new->backing_format,
                  chain->layers[0].format == QED_FORMAT_RAW ? "raw" : "qed");
  return 0;
}

/* The size of the disk in an image that we cannot read otherwise, and that
 * at least must be there.
 */
static int
inspect_foreign (struct img_new_image *new, const char *path)
{
  const struct node_open_options how = { .read_only = true,
                                         .from_file = true };
  struct node *n = align_open (path, &how);
  uint8_t header[32] = { 0 };
  int result = 0;

  if (n == NULL)
    return -1;
  if (node_size (n) >= sizeof header)
    result = node_pread (n, header, sizeof header, 0);
  if (result == 0 && new->size == -1 &&
      strcmp (new->backing_format, "qcow2") == 0 &&
      memcmp (header, "QFI\xfb", 4) == 0)
    new->size = round_up (get_be64 (header + QCOW2_SIZE), 512);
  if (node_close (n) == -1)
    result = -1;
  return result;
}

/* Look at what the new image will stand on, which may be in use
 * meanwhile.
 */
static int
inspect_backing (struct img_new_image *new, enum qed_format format,
                 bool unsafe)
{
  struct img_chain chain = { .from_file = true };
  CLEANUP_FREE char *path = NULL;
  int result;

  if (unsafe) {
    if (qed_backing_full_name (new->file, new->backing, &path) == -1)
      return -1;
    return path ? refuse_target (new, qed_without_protocol (path)) : 0;
  }
  path = qed_backing_path (new->file, new->backing, false, &format);
  if (path == NULL || refuse_target (new, path) == -1)
    return -1;
  if (img_is_foreign_format (new->backing_format))
    return inspect_foreign (new, path);
  result = img_chain_read (&chain, path, format, true, true);
  if (result == 0)
    result = use_chain (new, &chain);
  img_chain_free (&chain);
  return result;
}

int
img_settle_backing (struct img_new_image *new, bool unsafe)
{
  enum qed_format format = QED_FORMAT_PROBE;

  if (new->backing && *new->backing == '\0') {
    msg_error ("%s: Expected backing file name, got empty string",
               new->image);
    return -1;
  }
  if (!img_is_foreign_format (new->backing_format) &&
      img_parse_backing_format (new->image, new->backing_format,
                                &format) == -1)
    return -1;
  if (new->backing && inspect_backing (new, format, unsafe) == -1)
    return -1;
  if (new->size == -1) {
    msg_error ("%s: Image creation needs a size parameter", new->image);
    return -1;
  }
  return 0;
}

/* With data of zeroes, or with space only. */
static int
preallocate (struct node *n, uint64_t size, bool full)
{
  CLEANUP_FREE uint8_t *zeroes = calloc (1, PIECE);

  if (!full)
    return node_zero (n, size, 0, 0);
  if (zeroes == NULL) {
    msg_error ("%s: preallocation: %m", n->name);
    return -1;
  }
  for (uint64_t offset = 0; offset < size; offset += PIECE)
    if (node_pwrite (n, zeroes, MIN (PIECE, size - offset), offset) == -1)
      return -1;
  return 0;
}

int
img_make_raw (struct node *n, const struct img_new_image *new, uint64_t size)
{
  const char *const mode = new->preallocation;

  if (node_resize (n, 0) == -1)
    return -1;
  node_advise (n, new->no_cow, img_extent_size (new));
  if (node_resize (n, size) == -1)
    return -1;
  if (mode == NULL || strcmp (mode, "off") == 0)
    return 0;
  return preallocate (n, size, strcmp (mode, "full") == 0);
}
