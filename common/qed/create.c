/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Making new images, and reading what the header of one says.
 *
 * The header is written last, after everything else is durable: a
 * creation that is killed leaves something that is no QED image, and
 * that the next one takes over.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node/align.h"
#include "qed/create.h"
#include "qed/image/space.h"
#include "qed/open.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Storage of fixed size that begins with this many zeroes is taken to be
 * empty: to read all of a disk would take too long, and one that was
 * given away for an image holds remains of others.
 */
#define EMPTY_LEN ((uint64_t) 1024 * 1024)

/* Files are read in pieces of this size. */
#define PIECE ((uint64_t) 1024 * 1024)

static int
create_refuse (const char *name, const char *why)
{
  errno = EINVAL;
  msg_error ("%s: %s", name, why);
  return -1;
}

int
qed_make_header (const char *name, const struct qed_create_options *o,
                 struct qed_header *h)
{
  const uint64_t backing_len = o->backing ? strlen (o->backing) : 0;

  if (!qed_cluster_size_ok (o->cluster_size))
    return create_refuse (name, "QED cluster size must be within range "
                          "[4096, 67108864] and power of 2");
  if (!qed_table_size_ok (o->table_size))
    return create_refuse (name, "QED table size must be within range [1, 16] "
                          "and power of 2");
  if (backing_len > QED_MAX_BACKING_LEN)
    return create_refuse (name, "the name of the backing image is longer than "
                          "4095 bytes");
  if (o->size > qed_max_image_size (o->cluster_size, o->table_size)) {
    errno = EINVAL;
    msg_error ("%s: QED image size must not be more than %" PRIu64
               " bytes with this cluster size and table size", name,
               qed_max_image_size (o->cluster_size, o->table_size));
    return -1;
  }

  *h = (struct qed_header) {
    .cluster_size = o->cluster_size,
    .table_size = o->table_size,
    .header_size = div_round_up (QED_HEADER_LEN + backing_len,
                                 o->cluster_size),
    .image_size = round_up (o->size, QED_SECTOR),
  };
  h->l1_table_offset = qed_header_bytes (h);
  if (backing_len > 0) {
    h->features = QED_BACKING_FILE |
      (o->backing_is_raw ? QED_BACKING_NO_PROBE : 0);
    h->backing_offset = QED_HEADER_LEN;
    h->backing_len = backing_len;
  }
  return 0;
}

/* Does a range read as zeroes?  Holes are not read. */
static int
reads_as_zeroes (struct node *file, uint64_t count, uint8_t *buf,
                 bool *result)
{
  uint64_t offset = 0;

  *result = true;
  while (*result && offset < count) {
    struct extent e;

    if (node_extents (file, count - offset, offset, &e) == -1)
      return -1;
    if (!(e.flags & EXTENT_ZERO)) {
      e.length = MIN (e.length, PIECE);
      if (node_pread (file, buf, e.length, offset) == -1)
        return -1;
      *result = is_zero (buf, e.length);
    }
    offset += e.length;
  }
  return 0;
}

static void
refuse_content (struct node *file)
{
  errno = EEXIST;
  if (file->fixed_size)
    msg_error ("%s: create: this holds something that is no QED image; if "
               "that is not needed, zero its first %" PRIu64 " bytes, for "
               "example with %s", file->name,
               MIN (node_size (file), EMPTY_LEN),
               node_is_uri (file->name)
               ? "nbdsh -u URI -c 'h.zero(BYTES, 0)'"
               : "blkdiscard -z -l BYTES");
  else
    msg_error ("%s: create: this holds something that is no QED image; "
               "remove it first if it is not needed", file->name);
}

/* May we write over what is there? */
static int
check_target (struct node *file)
{
  const uint64_t size = node_size (file);
  CLEANUP_FREE uint8_t *buf = malloc (PIECE);
  uint8_t start[QED_HEADER_LEN];
  const uint64_t start_len = MIN (size, sizeof start);
  bool empty;

  if (buf == NULL) {
    msg_error ("%s: create: %m", file->name);
    return -1;
  }
  if (node_pread (file, start, start_len, 0) == -1)
    return -1;
  if (qed_has_magic (start, start_len))
    return 0;
  if (reads_as_zeroes (file, file->fixed_size ? MIN (size, EMPTY_LEN) : size,
                       buf, &empty) == -1)
    return -1;
  if (empty)
    return 0;
  refuse_content (file);
  return -1;
}

/* Storage of fixed size may have room for an image, and for none of its
 * clusters.
 */
static void
warn_of_size (const struct node *file, const struct qed_header *h)
{
  const uint64_t needed = space_needed (h, 1, 1);

  if (file->fixed_size && h->image_size > 0 && node_size (file) < needed)
    msg_warning ("%s: create: nothing can be written to this image: for its "
                 "first cluster of %" PRIu32 " bytes it needs storage of "
                 "%" PRIu64 " bytes, but there are only %" PRIu64
                 "; \"qed-img measure\" tells what all of it needs",
                 file->name, h->cluster_size, needed, node_size (file));
}

static int
write_image (struct node *file, const struct qed_header *h,
             const struct qed_create_options *o)
{
  const uint64_t end = h->l1_table_offset + qed_table_bytes (h);
  uint8_t buf[QED_HEADER_LEN];

  if (file->fixed_size && node_size (file) < end) {
    errno = ENOSPC;
    msg_error ("%s: create: the image needs %" PRIu64 " bytes for its header "
               "and L1 table, but there are only %" PRIu64, file->name, end,
               node_size (file));
    return -1;
  }
  if (file->fixed_size) {
    if (node_zero (file, end, 0, NODE_MAY_TRIM) == -1)
      return -1;
  }
  else {
    if (node_resize (file, 0) == -1)
      return -1;
    node_advise (file, o->no_cow, o->extent_size);
    if (node_resize (file, end) == -1)
      return -1;
  }

  if (o->backing && node_pwrite (file, o->backing, h->backing_len,
                              h->backing_offset) == -1)
    return -1;
  if (node_flush (file) == -1)
    return -1;
  qed_header_encode (h, buf);
  if (node_pwrite (file, buf, sizeof buf, 0) == -1)
    return -1;
  return node_flush (file);
}

int
qed_create (const char *name, const struct qed_create_options *options)
{
  const struct node_open_options file_options = { .read_only = false };
  struct qed_header header;
  struct node *file;
  int r, err;

  if (qed_make_header (name, options, &header) == -1)
    return -1;
  file = node_is_uri (name) ? align_open (name, &file_options)
                            : node_create_file (name, options->no_lock);
  if (file == NULL)
    return -1;

  r = check_target (file);
  if (r == 0 && options->begins)
    options->begins (options->opaque);
  if (r == 0)
    r = write_image (file, &header, options);
  if (r == 0) {
    node_keep (file);
    warn_of_size (file, &header);
  }
  err = errno;
  if (node_close (file) == -1)
    return -1;
  errno = err;
  return r;
}

/* ---- Information */

int
qed_get_info (const char *name, bool no_lock, struct qed_info *info)
{
  const struct node_open_options options = {
    .read_only = true, .lock = no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE
  };
  struct qed *s = open_bare (name, &options);
  int r;

  if (s == NULL)
    return -1;
  *info = (struct qed_info) {
    .size = s->header.image_size,
    .max_size = qed_max_image_size (s->header.cluster_size,
                                    s->header.table_size),
    .cluster_size = s->header.cluster_size,
    .table_size = s->header.table_size,
    .need_check = s->header.features & QED_NEED_CHECK,
    .backing_is_raw = s->header.features & QED_BACKING_NO_PROBE,
    .allocated_size = node_allocated_size (s->file),
  };
  r = header_backing_name (s->file, &s->header, &info->backing);
  if (r == 0 && info->backing)
    r = qed_backing_full_name (name, info->backing, &info->full_backing);
  image_free (s);
  if (r == -1)
    qed_info_free (info);
  return r;
}

void
qed_info_free (struct qed_info *info)
{
  free (info->backing);
  free (info->full_backing);
  info->backing = info->full_backing = NULL;
}
