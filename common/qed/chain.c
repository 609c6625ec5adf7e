/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chains of backing images (qed.md, "Backing name"). */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "node/align.h"
#include "qed/chain.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* ---- Formats */

/* Offsets that count back from the end of the file. */
#define FROM_END (UINT64_C (1) << 63)

/* Formats that we can tell but not read. */
static const struct {
  const char *format;
  uint64_t offset;
  const char *magic;
  size_t len;
} foreign_formats[] = {
  { "qcow or qcow2", 0, "QFI\xfb", 4 },
  { "VMDK", 0, "KDMV", 4 },
  { "VMDK", 0, "COWD", 4 },
  { "VMDK", 0, "# Disk DescriptorFile", 21 },
  { "VHD", 0, "conectix", 8 },
  { "VHDX", 0, "vhdxfile", 8 },
  { "VDI", 64, "\x7f\x10\xda\xbe", 4 },
  { "LUKS", 0, "LUKS\xba\xbe", 6 },
  { "Parallels", 0, "WithoutFreeSpace", 16 },
  { "Parallels", 0, "WithouFreSpacExt", 16 },
  { "Bochs", 0, "Bochs Virtual HD Image", 22 },
  { "VHD", FROM_END | 512, "conectix", 8 },
  { "DMG", FROM_END | 512, "koly", 4 },
};

static int
matches (struct node *n, size_t i, bool *match)
{
  const uint64_t size = node_size (n);
  uint64_t offset = foreign_formats[i].offset;
  uint8_t buf[32];

  *match = false;
  if (offset & FROM_END) {
    offset &= ~FROM_END;
    if (offset > size)
      return 0;
    offset = size - offset;
  }
  if (offset > size || size - offset < foreign_formats[i].len)
    return 0;
  if (node_pread (n, buf, foreign_formats[i].len, offset) == -1)
    return -1;
  *match = memcmp (buf, foreign_formats[i].magic,
                   foreign_formats[i].len) == 0;
  return 0;
}

int
qed_probe (struct node *n, enum qed_format *format)
{
  uint8_t buf[4];

  *format = QED_FORMAT_RAW;
  if (node_size (n) >= sizeof buf) {
    if (node_pread (n, buf, sizeof buf, 0) == -1)
      return -1;
    if (qed_has_magic (buf, sizeof buf)) {
      *format = QED_FORMAT_QED;
      return 0;
    }
  }
  for (size_t i = 0;
       i < sizeof foreign_formats / sizeof foreign_formats[0]; ++i) {
    bool match;

    if (matches (n, i, &match) == -1)
      return -1;
    if (match) {
      errno = ENOTSUP;
      msg_error ("%s: this backing image is in %s format; serve it with its "
                 "own server, such as qemu-nbd, and name that one's URI "
                 "instead (" QED_OTHER_BACKING "), or say that it is raw "
                 "(backing-format=raw, -F raw)", n->name,
                 foreign_formats[i].format);
      return -1;
    }
  }
  return 0;
}

/* ---- Names */

int
qed_backing_name (struct node *file, const struct qed_header *h, char **name)
{
  char *str;

  *name = NULL;
  if (!(h->features & QED_BACKING_FILE) || h->backing_len == 0)
    return 0;
  str = calloc (1, h->backing_len + 1);
  if (str == NULL) {
    msg_error ("%s: backing name: %m", file->name);
    return -1;
  }
  if (node_pread (file, str, h->backing_len, h->backing_offset) == -1) {
    free (str);
    return -1;
  }
  if (memchr (str, 0, h->backing_len) != NULL) {
    errno = EINVAL;
    msg_error ("%s: QED header: the backing name at offset %" PRIu32
               " has a zero byte in it", file->name, h->backing_offset);
    free (str);
    return -1;
  }
  *name = str;
  return 0;
}

/* ---- Opening */

int
chain_find_loop (const struct chain_link *link)
{
  const struct chain_link *l;
  dev_t dev = 0, other_dev;
  ino_t ino = 0, other_ino;
  const bool local = node_identity (link->node, &dev, &ino);

  for (l = link->above; l; l = l->above) {
    if (local ? node_identity (l->node, &other_dev, &other_ino) &&
                dev == other_dev && ino == other_ino
              : strcmp (l->node->name, link->node->name) == 0) {
      errno = ELOOP;
      msg_error ("%s: the chain of backing images comes back to this file",
                 link->node->name);
      return -1;
    }
  }
  return 0;
}

static struct node *
open_formatted (struct node *file, enum qed_format format,
                const struct qed_options *options,
                const struct chain_link *above)
{
  const struct chain_link link = { .above = above, .node = file };

  if ((format == QED_FORMAT_PROBE && qed_probe (file, &format) == -1) ||
      chain_find_loop (&link) == -1) {
    node_close (file);
    return NULL;
  }
  if (format == QED_FORMAT_RAW)
    return file;

  /* Others may write to a raw image below, as with QEMU, but not to one
   * whose tables we have read.
   */
  if (!options->no_lock && node_add_lock (file, NODE_LOCK_IMAGE) == -1) {
    node_close (file);
    return NULL;
  }
  return chain_open_qed (file, options, above);
}

struct node *
chain_open_layer (const char *image, const char *name, bool from_header,
                  enum qed_format format, const struct qed_options *options,
                  const struct chain_link *above)
{
  const struct node_open_options file_options = {
    .read_only = options->read_only,
    .lock = options->no_lock ? NODE_LOCK_NONE
      : options->read_only ? NODE_LOCK_BACKING : NODE_LOCK_IMAGE,
    .from_file = from_header, .cache = options->cache
  };
  CLEANUP_FREE char *path = NULL;
  struct node *file, *n = NULL;

  path = from_header ? qed_backing_path (image, name, true, &format)
    : strdup (name);
  file = path ? align_open (path, &file_options) : NULL;
  if (file)
    n = open_formatted (file, format, options, above);
  if (n == NULL) {
    const int err = errno;

    msg_error ("%s: cannot open its backing image \"%s\"", image, name);
    errno = err;
  }
  return n;
}

struct node *
chain_open_backing (const char *image, const char *name, bool from_header,
                    enum qed_format format, const struct qed_options *options,
                    const struct chain_link *above)
{
  struct qed_options below = *options;

  below.read_only = true;
  below.backing = NULL;
  below.backing_format = QED_FORMAT_PROBE;
  below.copy_on_read = false;
  below.l2_cache_size = options->l2_cache_size / 2;
  return chain_open_layer (image, name, from_header, format, &below, above);
}

struct node *
chain_reopen (struct qed *bare, const struct qed_options *options)
{
  struct node *file = bare->file;

  bare->file = NULL;
  qed_free_bare (bare);
  return chain_open_qed (file, options, NULL);
}
