/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Runs of entries that can be lost. */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "utils/rounding.h"
#include "writelog/explore/runs.h"
#include "writelog/format.h"

static int
add (struct runs *runs, uint64_t entry)
{
  if (runs->nr == runs->allocated) {
    const size_t wanted = runs->allocated + runs->allocated / 2 + 16;
    struct run *const larger = reallocarray (runs->list, wanted,
                                             sizeof *larger);

    if (larger == NULL)
      return -1;
    runs->list = larger;
    runs->allocated = wanted;
  }
  runs->list[runs->nr++] = (struct run) { entry, entry };
  return 0;
}

int
runs_find (struct runs *runs, const struct writelog_index *index)
{
  struct writelog_totals totals;

  writelog_index_totals (index, &totals);
  for (uint64_t entry = 0; entry < totals.entries; ++entry) {
    const struct writelog_index_entry e = writelog_index_entry (index, entry);

    if (e.nr_sectors == 0 || (e.flags & WRITELOG_FUA))
      continue;
    if (runs->nr > 0 && runs->list[runs->nr - 1].last + 1 == entry)
      runs->list[runs->nr - 1].last = entry;
    else if (add (runs, entry) == -1)
      return -1;
  }
  return 0;
}

void
runs_free (struct runs *runs)
{
  free (runs->list);
  *runs = (struct runs) { .list = NULL };
}

/* The first run that ends at an entry or behind it. */
static size_t
find (const struct runs *runs, uint64_t entry)
{
  size_t low = 0, high = runs->nr;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (runs->list[middle].last < entry)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

char *
runs_print (const struct runs *runs, uint64_t start, uint64_t end)
{
  const char *comma = "";
  char *text = NULL;
  size_t len;
  FILE *fp = open_memstream (&text, &len);

  if (fp == NULL)
    return NULL;
  for (size_t i = find (runs, start);
       start < end && i < runs->nr && runs->list[i].first < end; ++i) {
    const uint64_t first = MAX ((uint64_t) runs->list[i].first, start);
    const uint64_t last = MIN ((uint64_t) runs->list[i].last, end - 1);

    fprintf (fp, "%s%" PRIu64, comma, first);
    if (last > first)
      fprintf (fp, "-%" PRIu64, last);
    comma = ",";
  }
  if (fclose (fp) != 0) {
    free (text);
    text = NULL;
  }
  return text;
}
