/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Moments of a log and their names. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "writelog/moments/moment.h"
#include "writelog/moments/moments.h"
#include "utils/rounding.h"

static const struct entry_list *
list_of (const struct writelog_index *index, uint64_t flag)
{
  return flag == WRITELOG_FLUSH ? &index->flushes : &index->fuas;
}

static int
no_such_moment (void)
{
  errno = ENOENT;
  return -1;
}

/* ---- Finding a moment */

int
writelog_moment_entries (const struct writelog_index *index, uint64_t n,
                         struct writelog_moment *moment)
{
  if (n > index->nr_entries)
    return no_such_moment ();
  *moment = (struct writelog_moment) { .entries = n, .certain = n };
  return 0;
}

int
writelog_moment_flag (const struct writelog_index *index, uint64_t flag,
                      uint64_t n, struct writelog_moment *moment)
{
  const struct entry_list *list = list_of (index, flag);

  if (n == 0 || n > list->nr)
    return no_such_moment ();
  return writelog_moment_entries (index, list->numbers[n - 1] + UINT64_C (1),
                                  moment);
}

/* ---- Marks */

/* The text of a mark up to its first NUL, to be freed. */
static char *
read_mark (const struct writelog_index *index, const struct mark *mark)
{
  const uint64_t offset = index->place[mark->entry];
  uint8_t buf[WRITELOG_ENTRY_LEN];
  struct writelog_entry entry;
  char *text = NULL;

  if (node_pread (index->reader->node, buf, sizeof buf, offset) == -1)
    return NULL;
  writelog_entry_decode (buf, &entry);
  if (!(entry.flags & WRITELOG_MARK) ||
      writelog_entry_problem (&entry, index->sector_size)) {
    errno = EIO;
    msg_error ("%s: entry %" PRIu64 " at offset %" PRIu64 ": the mark has "
               "changed since the log was opened", index->reader->node->name,
               mark->entry, offset);
    return NULL;
  }
  text = calloc (1, entry.data_len + 1);
  if (text == NULL)
    msg_error ("%s: entry %" PRIu64 " at offset %" PRIu64 ": %m",
               index->reader->node->name, mark->entry, offset);
  else if (node_pread (index->reader->node, text, entry.data_len,
                       offset + sizeof buf) == -1) {
    free (text);
    text = NULL;
  }
  return text;
}

/* The first mark with this text, or NULL with errno, ENOENT if there is
 * none.  Where hashes collide it only takes longer.
 */
static const struct mark *
find_mark (const struct writelog_index *index, const char *name)
{
  const uint64_t hash = writelog_hash (name, strlen (name));

  for (size_t i = 0; i < index->nr_marks; ++i)
    if (index->marks[i].hash == hash) {
      CLEANUP_FREE char *text = read_mark (index, &index->marks[i]);

      if (text == NULL)
        return NULL;
      if (strcmp (text, name) == 0)
        return &index->marks[i];
    }
  errno = ENOENT;
  return NULL;
}

int
writelog_moment_mark (const struct writelog_index *index, const char *name,
                      struct writelog_moment *moment)
{
  const struct mark *mark = find_mark (index, name);

  if (mark == NULL)
    return -1;
  return writelog_moment_entries (index, mark->entry, moment);
}

int
writelog_index_mark (const struct writelog_index *index, uint64_t i,
                     char **name, uint64_t *entry, bool *first)
{
  const struct mark *found;

  *name = read_mark (index, &index->marks[i]);
  if (*name == NULL)
    return -1;
  *entry = index->marks[i].entry;
  found = find_mark (index, *name);
  if (found == NULL) {
    free (*name);
    *name = NULL;
    return -1;
  }
  *first = found == &index->marks[i];
  return 0;
}

uint64_t
writelog_count_marks (const struct writelog_index *index, uint64_t n)
{
  size_t low = 0, high = index->nr_marks;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (index->marks[middle].entry < n)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

char *
writelog_last_mark (const struct writelog_index *index, uint64_t n)
{
  const uint64_t nr = writelog_count_marks (index, n);

  return nr > 0 ? read_mark (index, &index->marks[nr - 1]) : strdup ("");
}

uint64_t
writelog_count_flushes (const struct writelog_index *index, uint64_t n)
{
  return entry_list_below (&index->flushes, n);
}

/* ---- Names */

/* A number and nothing else, up to the character `end'; what follows
 * that is returned, or NULL.
 */
static const char *
parse_number (const char *text, char end, uint64_t *n)
{
  const char *p = text;

  *n = 0;
  for (; *p >= '0' && *p <= '9'; ++p)
    if (__builtin_mul_overflow (*n, 10, n) ||
        __builtin_add_overflow (*n, *p - '0', n))
      return NULL;
  if (p == text || *p != end)
    return NULL;
  return end ? p + 1 : p;
}

/* Print the beginning of a text that others chose, for a message: no
 * control characters.
 */
static void
print_text (FILE *fp, const char *text)
{
  enum { LONGEST = 40 };

  for (unsigned i = 0; text[i]; ++i) {
    if (i == LONGEST) {
      fputs ("...", fp);
      break;
    }
    putc ((uint8_t) text[i] < 32 || text[i] == 127 ? '?' : text[i], fp);
  }
}

/* Say what was asked for, which entry was wrong about it (or UINT64_MAX),
 * and what there is; to be freed.
 */
static char *
describe (const struct writelog_index *index, const char *asked,
          uint64_t wrong)
{
  enum { SHOWN = 10 };
  const size_t shown = MIN (index->nr_marks, (size_t) SHOWN);
  char *list = NULL;
  size_t len;
  FILE *fp = open_memstream (&list, &len);

  if (fp == NULL)
    return NULL;
  fputs ("there is no moment '", fp);
  print_text (fp, asked);
  fputc ('\'', fp);
  if (wrong != UINT64_MAX)
    fprintf (fp, ", since entry %" PRIu64 " is not there, or cannot be lost",
             wrong);
  fprintf (fp, ": the log has entry/0 to entry/%zu, flush/N up to %zu, "
           "fua/N up to %zu, crash/N/SEED from 0 up to %zu, cut/N/SEED like "
           "that, lost/N/SET, and %zu marks",
           index->nr_entries, index->flushes.nr, index->fuas.nr,
           index->flushes.nr, index->nr_marks);
  for (size_t i = 0; i < shown; ++i) {
    CLEANUP_FREE char *mark = read_mark (index, &index->marks[i]);

    fputs (i > 0 ? ", " : " (", fp);
    print_text (fp, mark ? mark : "?");
  }
  if (shown > 0)
    fprintf (fp, "%s)", shown < index->nr_marks ? ", ..." : "");
  if (fclose (fp) != 0) {
    free (list);
    list = NULL;
  }
  return list;
}

/* A name that cannot be one of a moment is one of no moment. */
static int
parse (const struct writelog_index *index, const char *name, uint64_t tear,
       struct writelog_moment *moment, uint64_t *wrong)
{
  uint64_t n, seed;
  const char *rest;

  if (*name == '\0')
    return writelog_moment_entries (index, index->nr_entries, moment);
  if (strncmp (name, "mark/", 5) == 0)
    return writelog_moment_mark (index, name + 5, moment);
  if (strncmp (name, "entry/", 6) == 0 && parse_number (name + 6, '\0', &n))
    return writelog_moment_entries (index, n, moment);
  if (strncmp (name, "flush/", 6) == 0 && parse_number (name + 6, '\0', &n))
    return writelog_moment_flag (index, WRITELOG_FLUSH, n, moment);
  if (strncmp (name, "fua/", 4) == 0 && parse_number (name + 4, '\0', &n))
    return writelog_moment_flag (index, WRITELOG_FUA, n, moment);
  if (strncmp (name, "crash/", 6) == 0 &&
      (rest = parse_number (name + 6, '/', &n)) &&
      parse_number (rest, '\0', &seed))
    return writelog_moment_crash (index, n, seed, tear, moment);
  if (strncmp (name, "cut/", 4) == 0 &&
      (rest = parse_number (name + 4, '/', &n)) &&
      parse_number (rest, '\0', &seed))
    return writelog_moment_cut (index, n, seed, tear, moment);
  if (strncmp (name, "lost/", 5) == 0 &&
      (rest = parse_number (name + 5, '/', &n)))
    return writelog_lost_parse (index, n, rest, moment, wrong);
  return no_such_moment ();
}

int
writelog_moment_parse (const struct writelog_index *index, const char *name,
                       uint64_t tear, struct writelog_moment *moment)
{
  CLEANUP_FREE char *text = NULL;
  uint64_t wrong = UINT64_MAX;

  *moment = (struct writelog_moment) { .lost = NULL };
  if (parse (index, name, tear, moment, &wrong) == 0)
    return 0;
  if (errno != ENOENT)
    return -1;                  /* this has been told, or is ENOMEM */
  text = describe (index, name, wrong);
  msg_error ("%s: %s", index->reader->node->name,
             text ? text : "there is no such moment");
  return no_such_moment ();
}
