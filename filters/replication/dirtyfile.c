/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See dirtyfile.h.  Nothing else knows an offset in the file. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/bootid.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "filters/replication/dirtyfile.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

#define MAGIC "BDDIRTY"
#define FORMAT_VERSION 1
#define IN_USE 1
#define CHANGED 2
#define HEADER_SIZE 4096
#define HISTORY 68
#define SELF 100
#define PARTED 132
#define STAMP 200

/* Words are converted and moved in pieces of this many. */
#define PIECE UINT64_C (512)

struct dirty_file {
  struct node *node;
  const struct below *below;    /* or NULL */
  uint8_t header[HEADER_SIZE];
  bool unwritten;               /* the header is zeroes: of a file whose making
                                   was interrupted, or of something else */
  bool begun;                   /* header is in the file */
  bool failed;                  /* the file lacks something, */
  bool distrusted;              /* and says so */
};

static uint64_t
nr_words (uint64_t size)
{
  return div_round_up (div_round_up (size, DIRTY_AREA), 64);
}

static int
not_a_map (const struct dirty_file *f, const char *why)
{
  errno = EINVAL;
  msg_error ("%s: not a replication bitmap (%s); it is left as it is",
             f->node->name, why);
  return -1;
}

static int
check_header (const struct dirty_file *f)
{
  const uint8_t *h = f->header;

  if (memcmp (h, MAGIC, 8) != 0)
    return not_a_map (f, "wrong magic");
  if (get_le32 (h + 8) != FORMAT_VERSION) {
    errno = ENOTSUP;
    msg_error ("%s: a replication bitmap of version %" PRIu32 ", and only "
               "version %d is supported", f->node->name, get_le32 (h + 8),
               FORMAT_VERSION);
    return -1;
  }
  if (get_le32 (h + 12) != DIRTY_AREA)
    return not_a_map (f, "unknown size of areas");
  if (node_size (f->node) != HEADER_SIZE + nr_words (get_le64 (h + 16)) * 8)
    return not_a_map (f, "its length does not fit its header");
  return 0;
}

struct dirty_file *
dirty_file_open (const char *name)
{
  struct dirty_file *f = calloc (1, sizeof *f);
  int err;

  if (f == NULL) {
    msg_error ("%s: open: %m", name);
    return NULL;
  }
  f->node = node_create_file (name, false);
  if (f->node == NULL)
    goto error;
  if (node_size (f->node) == 0)
    return f;
  if (node_size (f->node) < HEADER_SIZE) {
    not_a_map (f, "too short");
    goto error;
  }
  if (node_pread (f->node, f->header, HEADER_SIZE, 0) == -1)
    goto error;
  f->unwritten = is_zero (f->header, HEADER_SIZE);
  if (!f->unwritten && check_header (f) == -1)
    goto error;
  return f;

 error:
  err = errno;
  node_close (f->node);
  free (f);
  errno = err;
  return NULL;
}

/* A new file.  Its header comes last, when the length is on the medium, so
 * that a crash leaves zeroes or a whole file; and its space is allocated, so
 * that the map never meets a full disk.
 */
static int
create (struct dirty_file *f, uint64_t size)
{
  const uint64_t length = HEADER_SIZE + nr_words (size) * 8;
  uint8_t *h = f->header;

  memcpy (h, MAGIC, 8);
  put_le32 (h + 8, FORMAT_VERSION);
  put_le32 (h + 12, DIRTY_AREA);
  put_le64 (h + 16, size);
  if (node_resize (f->node, length) == -1 ||
      node_zero (f->node, length, 0, 0) == -1 ||
      node_flush (f->node) == -1) {
    const int err = errno;

    node_resize (f->node, 0);
    errno = err;
    return -1;
  }
  return 0;
}

static int
read_map (struct dirty_file *f, uint64_t size, uint64_t *map)
{
  const uint64_t n = nr_words (size);
  uint8_t buf[PIECE * 8];

  for (uint64_t i = 0; i < n; i += PIECE) {
    const size_t len = MIN (n - i, PIECE);

    if (node_pread (f->node, buf, len * 8, HEADER_SIZE + i * 8) == -1)
      return -1;
    for (size_t j = 0; j < len; ++j)
      map[i + j] = get_le64 (buf + j * 8);
  }
  return 0;
}

/* Is this what a crash leaves of a file that is being made for a disk of this
 * size?  1, or 0 if it has to be made, or -1 after a message.
 */
static int
check_unwritten (struct dirty_file *f, uint64_t size, uint64_t *map)
{
  const uint64_t n = nr_words (size);

  if (!f->unwritten)
    return node_size (f->node) == 0 ? 0 : 1;
  if (node_size (f->node) != HEADER_SIZE + n * 8)
    return not_a_map (f, "wrong magic");
  if (read_map (f, size, map) == -1)
    return -1;
  return is_zero (map, n * 8) ? 0 : not_a_map (f, "wrong magic");
}

void
dirty_file_get_self (const struct dirty_file *f, struct history *self)
{
  history_set (self, f->header + SELF);
}

void
dirty_file_set_below (struct dirty_file *f, const struct below *below)
{
  f->below = below;
}

bool
dirty_file_disk_was_changed (const struct dirty_file *f)
{
  return get_le32 (f->header + 24) & CHANGED;
}

/* What is not known on one of both sides says nothing. */
static bool
is_another_disk (const struct dirty_file *f)
{
  const uint8_t *h = f->header + STAMP;
  struct below_stamp now = { .inode = 0 };

  if (f->below)
    below_stamp (f->below, false, &now);
  return now.inode && get_le64 (h) &&
    (get_le64 (h) != now.inode ||
     (get_le64 (h + 8) && (get_le64 (h + 8) != now.seconds ||
                           get_le64 (h + 16) != now.nanoseconds)));
}

/* at_end: the disk does not change any more. */
static void
put_stamp (struct dirty_file *f, bool at_end)
{
  uint8_t *h = f->header + STAMP;
  struct below_stamp now = { .inode = 0 };

  if (f->below)
    below_stamp (f->below, at_end, &now);
  put_le64 (h, now.inode);
  put_le64 (h + 8, at_end ? now.seconds : 0);
  put_le64 (h + 16, at_end ? now.nanoseconds : 0);
}

/* The map says less than is so: all is dirty, on the medium, too. */
static int
distrust (struct dirty_file *f, uint64_t size, uint64_t *map, const char *why)
{
  const uint64_t n = nr_words (size);

  msg_warning ("%s: %s, so all areas count as dirty", f->node->name, why);
  memset (map, 0xff, n * 8);
  return dirty_file_write (f, map, 0, n - 1) == -1 ? -1 : node_flush (f->node);
}

/* See that there is an identifier. */
static int
make_self (struct dirty_file *f)
{
  struct history self;

  dirty_file_get_self (f, &self);
  if (self.text[0] == '\0' && history_make (&self) == -1)
    return -1;
  memcpy (f->header + SELF, self.text, HISTORY_LEN);
  return 0;
}

int
dirty_file_begin (struct dirty_file *f, uint64_t size, uint64_t *map)
{
  const int exists = check_unwritten (f, size, map);
  uint8_t *h = f->header;
  char boot[BOOT_ID_LEN];

  boot_id_read (boot);
  if (exists == -1)
    return -1;
  if (!exists) {
    if (create (f, size) == -1)
      return -1;
  }
  else if (get_le64 (h + 16) != size) {
    errno = EINVAL;
    msg_error ("%s: the bitmap is for a disk of %" PRIu64 " bytes, and this "
               "one has %" PRIu64 "; if the disk was resized remove the "
               "bitmap, and let replication-start sync=full copy the disk",
               f->node->name, get_le64 (h + 16), size);
    return -1;
  }
  else if (read_map (f, size, map) == -1)
    return -1;

  if (size > 0 && (get_le32 (h + 24) & IN_USE) &&
      (boot[0] == '\0' || memcmp (boot, h + 32, BOOT_ID_LEN) != 0) &&
      distrust (f, size, map, "the host went down while the bitmap was in "
                "use") == -1)
    return -1;
  if (size > 0 && is_another_disk (f)) {
    if (distrust (f, size, map, "the disk was changed, or replaced, while the "
                  "bitmap was not in use") == -1)
      return -1;
    put_le32 (h + 24, get_le32 (h + 24) | CHANGED);
  }

  if (make_self (f) == -1)
    return -1;
  put_le32 (h + 24, get_le32 (h + 24) | IN_USE);
  put_stamp (f, false);
  memcpy (h + 32, boot, BOOT_ID_LEN);
  if (node_pwrite (f->node, h, HEADER_SIZE, 0) == -1 ||
      node_flush (f->node) == -1)
    return -1;
  f->begun = true;
  node_keep (f->node);
  return 0;
}

int
dirty_file_distrust (struct dirty_file *f)
{
  memset (f->header + 32, 0, BOOT_ID_LEN);
  if (node_pwrite (f->node, f->header, HEADER_SIZE, 0) == 0)
    return 0;
  f->failed = true;
  f->distrusted = false;
  return -1;
}

/* The file lacks something, so let the next user distrust it. */
static void
spoil (struct dirty_file *f)
{
  const int err = errno;

  f->failed = true;
  f->distrusted = dirty_file_distrust (f) == 0;
  errno = err;
}

bool
dirty_file_is_wrong (const struct dirty_file *f)
{
  return f->failed && !f->distrusted;
}

int
dirty_file_tell (struct dirty_file *f)
{
  if (!dirty_file_is_wrong (f))
    return 0;
  f->distrusted = dirty_file_distrust (f) == 0;
  return f->distrusted ? 0 : -1;
}

void
dirty_file_get_history (const struct dirty_file *f, struct history *history)
{
  history_set (history, f->header + HISTORY);
}

void
dirty_file_get_parted (const struct dirty_file *f, struct pairing *parted)
{
  history_set (&parted->primary, f->header + PARTED);
  history_set (&parted->remote, f->header + PARTED + HISTORY_LEN);
}

int
dirty_file_put_partner (struct dirty_file *f, const struct history *history,
                        const struct pairing *parted)
{
  static const struct history none;
  static const struct pairing neither;
  const struct pairing *const p = parted ? parted : &neither;

  memcpy (f->header + HISTORY, (history ? history : &none)->text, HISTORY_LEN);
  memcpy (f->header + PARTED, p->primary.text, HISTORY_LEN);
  memcpy (f->header + PARTED + HISTORY_LEN, p->remote.text, HISTORY_LEN);
  put_le32 (f->header + 24, get_le32 (f->header + 24) & ~CHANGED);
  if (!f->failed)
    boot_id_read (f->header + 32);
  if (node_pwrite (f->node, f->header, HEADER_SIZE, 0) == 0 &&
      node_flush (f->node) == 0) {
    f->distrusted = f->failed;
    return 0;
  }
  spoil (f);
  return -1;
}

int
dirty_file_write (struct dirty_file *f, const uint64_t *map,
                  uint64_t first, uint64_t last)
{
  uint8_t buf[PIECE * 8];

  for (uint64_t i = first; i <= last; i += PIECE) {
    const size_t len = MIN (last - i + 1, PIECE);

    for (size_t j = 0; j < len; ++j)
      put_le64 (buf + j * 8, map[i + j]);
    if (node_pwrite (f->node, buf, len * 8, HEADER_SIZE + i * 8) == -1) {
      spoil (f);
      return -1;
    }
  }
  return 0;
}

int
dirty_file_end (struct dirty_file *f)
{
  int r = 0, err = 0;

  if (f->begun && !f->failed) {
    put_le32 (f->header + 24, get_le32 (f->header + 24) & ~IN_USE);
    put_stamp (f, true);
    /* The map is on the medium before anybody reads that it is. */
    if (node_flush (f->node) == -1 ||
        node_pwrite (f->node, f->header, HEADER_SIZE, 0) == -1 ||
        node_flush (f->node) == -1) {
      r = -1;
      err = errno;
      spoil (f);
    }
  }
  if (node_close (f->node) == -1) {
    r = -1;
    err = errno;
  }
  free (f);
  errno = err;
  return r;
}

void
dirty_file_abandon (struct dirty_file *f)
{
  if (f->begun)
    spoil (f);
  node_close (f->node);
  free (f);
}
