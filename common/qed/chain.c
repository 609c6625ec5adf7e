/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Formats and loops of backing images (qed.md, "Backing name"). */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "node/align.h"
#include "qed/chain.h"
#include "qed/format.h"
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
chain_name_format (struct node *n, const char **name)
{
  uint8_t buf[4];

  *name = NULL;
  if (node_size (n) >= sizeof buf) {
    if (node_pread (n, buf, sizeof buf, 0) == -1)
      return -1;
    if (qed_has_magic (buf, sizeof buf)) {
      *name = CHAIN_QED;
      return 0;
    }
  }
  for (size_t i = 0;
       i < sizeof foreign_formats / sizeof foreign_formats[0]; ++i) {
    bool match;

    if (matches (n, i, &match) == -1)
      return -1;
    if (match) {
      *name = foreign_formats[i].format;
      return 0;
    }
  }
  return 0;
}

int
qed_probe (struct node *n, enum qed_format *format)
{
  const char *name;

  if (chain_name_format (n, &name) == -1)
    return -1;
  *format = name ? QED_FORMAT_QED : QED_FORMAT_RAW;
  if (name == NULL || strcmp (name, CHAIN_QED) == 0)
    return 0;
  errno = ENOTSUP;
  msg_error ("%s: this image is in %s format; serve it with its "
             "own server, such as qemu-nbd, and name that one's URI "
             "instead (" QED_OTHER_BACKING "), or say that it is raw "
             "(backing-format=raw, -F raw)", n->name, name);
  return -1;
}

/* ---- Loops */

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
