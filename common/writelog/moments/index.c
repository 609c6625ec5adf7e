/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Building the index of moments.
 *
 * An entry takes 25 bytes, and if it changes the disk two bounds, four
 * nodes of the tree (32 bytes) and its numbers in it: some 90 bytes if
 * entries seldom overlap, some 240 at worst.  While it is built there are
 * 40 more.  All arrays grow with the entries that are really there, not
 * with what the super block says.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "writelog/moments/moments.h"
#include "utils/rounding.h"

/* What is known only while the index is built. */
struct build {
  struct cover_span *spans;     /* of the entries that change the disk */
  size_t nr_spans, spans_allocated;
  size_t entries_allocated, marks_allocated;
};

/* Make room in an array of *allocated members for one more than nr. */
static int
grow (void *arrayp, size_t nr, size_t *allocated, size_t size)
{
  const size_t wanted = MAX (*allocated + *allocated / 2, (size_t) 64);
  void **array = arrayp;
  void *larger;

  if (nr < *allocated)
    return 0;
  larger = reallocarray (*array, wanted, size);
  if (larger == NULL)
    return -1;
  *array = larger;
  *allocated = wanted;
  return 0;
}

/* Give back what was not needed; nr may be 0. */
static void
trim (void *arrayp, size_t nr, size_t size)
{
  void **array = arrayp;
  void *smaller = nr > 0 ? reallocarray (*array, nr, size) : NULL;

  if (smaller)
    *array = smaller;
}

static int
append (struct entry_list *list, uint32_t entry)
{
  if (grow (&list->numbers, list->nr, &list->allocated,
            sizeof *list->numbers) == -1)
    return -1;
  list->numbers[list->nr++] = entry;
  return 0;
}

size_t
entry_list_below (const struct entry_list *list, uint64_t n)
{
  return cover_count_below (list->numbers, list->nr, n);
}

static int
add_mark (struct writelog_index *index, struct build *b,
          const struct writelog_item *item)
{
  if (grow (&index->marks, index->nr_marks, &b->marks_allocated,
            sizeof *index->marks) == -1)
    return -1;
  index->marks[index->nr_marks++] = (struct mark) {
    .hash = writelog_hash (item->mark, strlen (item->mark)),
    .entry = item->number,
  };
  return 0;
}

/* An entry that changes sectors of the disk. */
static int
add_span (struct writelog_index *index, struct build *b,
          const struct writelog_item *item)
{
  const uint64_t end = item->entry.sector + item->entry.nr_sectors;

  if (grow (&b->spans, b->nr_spans, &b->spans_allocated,
            sizeof *b->spans) == -1)
    return -1;
  b->spans[b->nr_spans++] = (struct cover_span) {
    .start = item->entry.sector, .end = end, .id = item->number,
  };
  if (end * index->sector_size > index->end) {
    index->end = end * index->sector_size;
    index->end_entry = item->number;
  }
  return 0;
}

/* All arrays of entries have the same length. */
static int
grow_entries (struct writelog_index *index, struct build *b)
{
  size_t allocated = b->entries_allocated;

  if (grow (&index->flags, index->nr_entries, &allocated,
            sizeof *index->flags) == -1)
    return -1;
  allocated = b->entries_allocated;
  if (grow (&index->place, index->nr_entries, &allocated,
            sizeof *index->place) == -1)
    return -1;
  allocated = b->entries_allocated;
  if (grow (&index->sector, index->nr_entries, &allocated,
            sizeof *index->sector) == -1)
    return -1;
  return grow (&index->nr_sectors, index->nr_entries, &b->entries_allocated,
               sizeof *index->nr_sectors);
}

static int
add (struct writelog_index *index, struct build *b,
     const struct writelog_item *item)
{
  const uint64_t flags = item->entry.flags;

  if (grow_entries (index, b) == -1)
    return -1;
  index->flags[index->nr_entries] = flags;
  index->place[index->nr_entries] = item->mark ? item->offset :
    item->data_offset - item->entry.sector * index->sector_size;
  index->sector[index->nr_entries] = item->entry.sector;
  index->nr_sectors[index->nr_entries] = item->entry.nr_sectors;
  index->nr_entries++;

  if ((flags & WRITELOG_FLUSH) && append (&index->flushes, item->number) == -1)
    return -1;
  if ((flags & WRITELOG_FUA) && append (&index->fuas, item->number) == -1)
    return -1;
  if (item->mark)
    return add_mark (index, b, item);
  return item->entry.nr_sectors > 0 ? add_span (index, b, item) : 0;
}

static int
walk (struct writelog_index *index, struct build *b)
{
  struct writelog_item item;
  int r;

  while ((r = writelog_reader_next (index->reader, &item)) == 1) {
    if (item.number == COVER_MAX_SPANS) {
      errno = EFBIG;
      msg_error ("%s: entry %" PRIu64 " at offset %" PRIu64 ": more entries "
                 "than can be indexed", index->reader->node->name,
                 item.number, item.offset);
      return -1;
    }
    if (add (index, b, &item) == -1) {
      msg_error ("%s: entry %" PRIu64 " at offset %" PRIu64 ": %m",
                 index->reader->node->name, item.number, item.offset);
      return -1;
    }
  }
  return r;
}

static void
trim_all (struct writelog_index *index)
{
  trim (&index->flags, index->nr_entries, sizeof *index->flags);
  trim (&index->place, index->nr_entries, sizeof *index->place);
  trim (&index->sector, index->nr_entries, sizeof *index->sector);
  trim (&index->nr_sectors, index->nr_entries, sizeof *index->nr_sectors);
  trim (&index->marks, index->nr_marks, sizeof *index->marks);
  trim (&index->flushes.numbers, index->flushes.nr,
        sizeof *index->flushes.numbers);
  trim (&index->fuas.numbers, index->fuas.nr, sizeof *index->fuas.numbers);
}

static int
build (struct writelog_index *index)
{
  struct build b = { 0 };
  int r = walk (index, &b);

  if (r == 0) {
    trim_all (index);
    r = cover_build (&index->cover, b.spans, b.nr_spans);
    if (r == -1)
      msg_error ("%s: index of %zu entries: %m", index->reader->node->name,
                 index->nr_entries);
  }
  free (b.spans);
  return r;
}

struct writelog_index *
writelog_index_open (struct writelog_reader *reader)
{
  struct writelog_index *index = calloc (1, sizeof *index);

  if (index == NULL) {
    msg_error ("%s: open: %m", reader->node->name);
    writelog_reader_close (reader);
    return NULL;
  }
  index->reader = reader;
  index->sector_size = reader->super.sector_size;
  writelog_reader_rewind (reader);
  if (build (index) == -1) {
    const int err = errno;

    writelog_index_close (index);
    errno = err;
    return NULL;
  }
  return index;
}

void
writelog_index_close (struct writelog_index *index)
{
  if (index == NULL)
    return;
  writelog_reader_close (index->reader);
  cover_free (&index->cover);
  free (index->flags);
  free (index->place);
  free (index->sector);
  free (index->nr_sectors);
  free (index->flushes.numbers);
  free (index->fuas.numbers);
  free (index->marks);
  free (index);
}

struct node *
writelog_index_log (const struct writelog_index *index)
{
  return index->reader->node;
}

void
writelog_index_set_log (struct writelog_index *index, struct node *log)
{
  index->reader->node = log;
}

void
writelog_index_totals (const struct writelog_index *index,
                       struct writelog_totals *totals)
{
  *totals = (struct writelog_totals) {
    .sector_size = index->sector_size,
    .entries = index->nr_entries,
    .flushes = index->flushes.nr,
    .fuas = index->fuas.nr,
    .marks = index->nr_marks,
    .end = index->end,
    .disk_size = index->reader->super.disk_size,
    .end_entry = index->end_entry,
    .memory = sizeof *index + cover_memory (&index->cover) +
      index->nr_entries * (sizeof *index->flags + 3 * sizeof *index->place) +
      (index->flushes.nr + index->fuas.nr) *
      sizeof *index->flushes.numbers +
      index->nr_marks * sizeof *index->marks,
  };
}

struct writelog_index_entry
writelog_index_entry (const struct writelog_index *index, uint64_t entry)
{
  return (struct writelog_index_entry) {
    .flags = index->flags[entry], .sector = index->sector[entry],
    .nr_sectors = index->nr_sectors[entry],
  };
}
