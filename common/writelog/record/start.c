/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The beginning of writing a log: an empty node becomes one, of one that
 * exists the end is found, and nothing else is ever overwritten.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "writelog/reader.h"
#include "writelog/record/start.h"

/* What is written of sector 0, if that is longer; the rest never
 * changes.
 */
#define SUPER_WRITE UINT32_C (512)

int
start_write_super (struct node *node, const struct writelog_super *super)
{
  const uint32_t len = MIN (super->sector_size, SUPER_WRITE);
  uint8_t buf[SUPER_WRITE] = { 0 };

  writelog_super_encode (super, buf, len);
  return node_pwrite (node, buf, len, 0);
}

int
start_log (struct node *node, const struct writelog_super *super)
{
  if (!node->fixed_size) {
    if (node_resize (node, 0) == -1 ||
        node_resize (node, super->sector_size) == -1)
      return -1;
  }
  else if (node_zero (node, super->sector_size, 0, 0) == -1)
    return -1;
  if (start_write_super (node, super) == -1)
    return -1;
  return node_flush (node);
}

enum writelog_super_kind
start_look (struct node *node, uint32_t sector_size,
            struct writelog_super *super)
{
  const size_t max = MAX (sector_size, SUPER_WRITE);
  const size_t len = MIN (node_size (node), max);
  CLEANUP_FREE uint8_t *buf = malloc (max);
  enum writelog_super_kind kind;
  const char *why;

  if (buf == NULL) {
    msg_error ("%s: open: %m", node->name);
    return WRITELOG_SUPER_BAD;
  }
  if (node_pread (node, buf, len, 0) == -1)
    return WRITELOG_SUPER_BAD;
  kind = writelog_super_decode (buf, len, super, &why);
  if (kind == WRITELOG_SUPER_BAD) {
    errno = EINVAL;
    msg_error ("%s: neither empty nor a write log, so it is not "
               "overwritten: super block at offset 0: %s", node->name, why);
  }
  return kind;
}

static int
keep_mark (struct log_end *end, const struct node *node, const char *name)
{
  char *copy = strdup (name);

  if (copy == NULL) {
    msg_error ("%s: mark: %m", node->name);
    return -1;
  }
  free (end->last_mark);
  end->last_mark = copy;
  return 0;
}

/* Bring a ring, of which "total" were put in, in order. */
static void
unroll (struct log_recent *recent, uint64_t total)
{
  struct writelog_item items[LOG_RECENT];

  recent->nr = MIN (total, (uint64_t) LOG_RECENT);
  for (unsigned i = 0; i < recent->nr; ++i)
    items[i] = recent->items[(total - recent->nr + i) % LOG_RECENT];
  memcpy (recent->items, items, recent->nr * sizeof items[0]);
}

static int
walk (struct writelog_reader *r, struct log_end *end)
{
  struct writelog_item item;
  uint64_t with_sectors = 0;
  int more;

  while ((more = writelog_reader_next (r, &item)) == 1) {
    if (item.mark && keep_mark (end, r->node, item.mark) == -1)
      return -1;
    if (item.entry.nr_sectors > 0)
      end->recent.items[with_sectors++ % LOG_RECENT] = item;
  }
  unroll (&end->recent, with_sectors);
  end->entries = r->next;
  end->offset = r->offset;
  return more;
}

int
start_find_end (struct node *node, struct log_end *end)
{
  struct writelog_reader *r = writelog_reader_borrow_node (node);
  int result, err;

  *end = (struct log_end) { 0 };
  if (r == NULL)
    return -1;
  result = walk (r, end);
  err = errno;
  writelog_reader_close (r);
  if (result == -1)
    free (end->last_mark);
  errno = err;
  return result;
}
