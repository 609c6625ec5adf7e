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
#include "filters/replication/primary/dirtyfile.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

#define MAGIC "BDDIRTY"
#define FORMAT_VERSION 1
#define IN_USE 1
#define HEADER_SIZE 4096
#define HISTORY 68
#define SELF 100

/* Words are converted and moved in pieces of this many. */
#define PIECE UINT64_C (512)

struct dirty_file {
  struct node *node;
  uint8_t header[HEADER_SIZE];
  bool unwritten;               /* the header is zeroes: of a file whose making
                                   was interrupted, or of something else */
  bool begun;                   /* header is in the file */
  bool failed;                  /* the file lacks something */
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

/* The host went down while the file was in use. */
static int
distrust (struct dirty_file *f, uint64_t size, uint64_t *map)
{
  const uint64_t n = nr_words (size);

  msg_warning ("%s: the host went down while the bitmap was in use, so all "
               "areas count as dirty", f->node->name);
  memset (map, 0xff, n * 8);
  return dirty_file_write (f, map, 0, n - 1);
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
               "one has %" PRIu64, f->node->name, get_le64 (h + 16), size);
    return -1;
  }
  else if (read_map (f, size, map) == -1)
    return -1;

  if (size > 0 && (get_le32 (h + 24) & IN_USE) &&
      (boot[0] == '\0' || memcmp (boot, h + 32, BOOT_ID_LEN) != 0) &&
      (distrust (f, size, map) == -1 || node_flush (f->node) == -1))
    return -1;

  if (make_self (f) == -1)
    return -1;
  put_le32 (h + 24, get_le32 (h + 24) | IN_USE);
  memcpy (h + 32, boot, BOOT_ID_LEN);
  if (node_pwrite (f->node, h, HEADER_SIZE, 0) == -1 ||
      node_flush (f->node) == -1)
    return -1;
  f->begun = true;
  node_keep (f->node);
  return 0;
}

/* The file lacks something, so let the next user distrust it. */
static void
spoil (struct dirty_file *f)
{
  const int err = errno;

  f->failed = true;
  memset (f->header + 32, 0, BOOT_ID_LEN);
  node_pwrite (f->node, f->header, HEADER_SIZE, 0);
  errno = err;
}

void
dirty_file_get_history (const struct dirty_file *f, struct history *history)
{
  history_set (history, f->header + HISTORY);
}

int
dirty_file_put_history (struct dirty_file *f, const struct history *history)
{
  memcpy (f->header + HISTORY, history->text, HISTORY_LEN);
  if (node_pwrite (f->node, f->header, HEADER_SIZE, 0) == 0 &&
      node_flush (f->node) == 0)
    return 0;
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
