/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Reading a write log entry by entry. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "writelog/reader.h"
#include "utils/rounding.h"

/* Entries that stand close together are read in pieces of up to MAX, so
 * that a log of small writes costs few system calls.  Where long data
 * lie between them little more than each entry's sector is read.
 */
#define MIN_AHEAD ((size_t) 4096)
#define MAX_AHEAD ((size_t) 256 * 1024)

static int
read_super (struct writelog_reader *r)
{
  uint8_t buf[WRITELOG_NOTED_LEN] = { 0 };
  const size_t len = MIN (node_size (r->node), sizeof buf);
  const char *why;

  if (node_pread (r->node, buf, len, 0) == -1)
    return -1;
  switch (writelog_super_decode (buf, len, &r->super, &why)) {
  case WRITELOG_SUPER_OK:
    if (node_size (r->node) >= r->super.sector_size)
      return 0;
    why = "the log ends inside it";
    break;
  case WRITELOG_SUPER_EMPTY:
    why = "it is empty";
    break;
  default:
    break;
  }
  errno = EINVAL;
  msg_error ("%s: not a write log: super block at offset 0: %s",
             r->node->name, why);
  return -1;
}

static struct writelog_reader *
reader_open (struct node *node, bool borrowed)
{
  struct writelog_reader *r = calloc (1, sizeof *r);

  if (r)
    r->buffer = malloc (MAX_AHEAD);
  if (r == NULL || r->buffer == NULL) {
    msg_error ("%s: open: %m", node->name);
    free (r);
    if (!borrowed)
      node_close (node);
    return NULL;
  }
  r->node = node;
  r->borrowed = borrowed;
  if (read_super (r) == -1) {
    const int err = errno;

    writelog_reader_close (r);
    errno = err;
    return NULL;
  }
  writelog_reader_rewind (r);
  return r;
}

struct writelog_reader *
writelog_reader_open_node (struct node *node)
{
  return reader_open (node, false);
}

struct writelog_reader *
writelog_reader_borrow_node (struct node *node)
{
  return reader_open (node, true);
}

struct writelog_reader *
writelog_reader_open (const char *name)
{
  const struct node_open_options options = { .read_only = true };
  struct node *node = align_open (name, &options);

  return node ? writelog_reader_open_node (node) : NULL;
}

void
writelog_reader_close (struct writelog_reader *r)
{
  if (r == NULL)
    return;
  if (!r->borrowed)
    node_close (r->node);
  free (r->buffer);
  free (r->mark);
  free (r);
}

void
writelog_reader_rewind (struct writelog_reader *r)
{
  writelog_reader_seek (r, 0, r->super.sector_size);
}

void
writelog_reader_seek (struct writelog_reader *r, uint64_t number,
                      uint64_t offset)
{
  r->next = number;
  r->offset = offset;
}

static int
refuse (const struct writelog_reader *r, const char *why)
{
  errno = EINVAL;
  msg_error ("%s: entry %" PRIu64 " at offset %" PRIu64 ": %s",
             r->node->name, r->next, r->offset, why);
  return -1;
}

/* Read the buffer anew, from an offset on and at least count bytes,
 * which lie inside the log.
 */
static int
fill_buffer (struct writelog_reader *r, size_t count, uint64_t offset)
{
  const uint64_t end = r->buffer_offset + r->buffer_len;
  const bool close = offset >= r->buffer_offset && offset <= end + r->ahead;
  size_t len;

  r->ahead = close ? MIN (2 * r->ahead, MAX_AHEAD) : MIN_AHEAD;
  len = MIN (node_size (r->node) - offset, MAX (r->ahead, count));

  r->buffer_len = 0;
  if (node_pread (r->node, r->buffer, len, offset) == -1)
    return -1;
  r->buffer_offset = offset;
  r->buffer_len = len;
  return 0;
}

/* Copy count bytes at an offset, which lie inside the log. */
static int
copy_out (struct writelog_reader *r, void *dest, size_t count,
          uint64_t offset)
{
  if (count > MAX_AHEAD)
    return node_pread (r->node, dest, count, offset);

  if ((offset < r->buffer_offset ||
       offset - r->buffer_offset > r->buffer_len ||
       r->buffer_len - (offset - r->buffer_offset) < count) &&
      fill_buffer (r, count, offset) == -1)
    return -1;
  memcpy (dest, r->buffer + (offset - r->buffer_offset), count);
  return 0;
}

/* A mark's text, which is no longer than the entry's sector. */
static int
read_mark (struct writelog_reader *r, size_t len)
{
  char *text = realloc (r->mark, len + 1);

  if (text == NULL) {
    msg_error ("%s: entry %" PRIu64 ": %m", r->node->name, r->next);
    return -1;
  }
  r->mark = text;
  text[len] = '\0';
  return copy_out (r, text, len, r->offset + WRITELOG_ENTRY_LEN);
}

/* Behind what an entry, or a mark's text, fills of its sector are zeroes. */
static int
check_rest (struct writelog_reader *r, size_t used)
{
  const uint64_t end = r->offset + r->super.sector_size;
  uint8_t buf[4096];
  size_t len;

  for (uint64_t at = r->offset + used; at < end; at += len) {
    len = MIN (end - at, sizeof buf);
    if (copy_out (r, buf, len, at) == -1)
      return -1;
    if (!is_zero (buf, len))
      return refuse (r, "bytes behind it in its sector that are not zero");
  }
  return 0;
}

/* Does the entry with its data lie inside the log?  The range of an
 * entry without a problem ends at 2^63 bytes at most, so nothing overflows.
 */
static bool
fits (const struct writelog_reader *r, const struct writelog_entry *entry)
{
  const uint64_t left = node_size (r->node) - r->offset;

  return left >= r->super.sector_size &&
    writelog_data_sectors (entry) <=
    left / r->super.sector_size - 1;
}

int
writelog_reader_next (struct writelog_reader *r, struct writelog_item *item)
{
  const uint32_t sector_size = r->super.sector_size;
  uint8_t buf[WRITELOG_ENTRY_LEN];
  const char *problem;

  if (r->next == r->super.nr_entries)
    return 0;
  if (r->offset > node_size (r->node) ||
      node_size (r->node) - r->offset < sector_size)
    return refuse (r, "the log ends before it");

  if (copy_out (r, buf, sizeof buf, r->offset) == -1)
    return -1;
  writelog_entry_decode (buf, &item->entry);
  problem = writelog_entry_problem (&item->entry, sector_size);
  if (problem)
    return refuse (r, problem);
  if (!fits (r, &item->entry))
    return refuse (r, "the log ends inside it");

  if (check_rest (r, WRITELOG_ENTRY_LEN +
                  (item->entry.flags & WRITELOG_MARK ?
                   item->entry.data_len : 0)) == -1)
    return -1;
  item->mark = NULL;
  if (item->entry.flags & WRITELOG_MARK) {
    if (read_mark (r, item->entry.data_len) == -1)
      return -1;
    item->mark = r->mark;
  }
  item->number = r->next;
  item->offset = r->offset;
  item->data_offset = r->offset + sector_size;
  r->next++;
  r->offset += (1 + writelog_data_sectors (&item->entry)) * sector_size;
  return 1;
}
