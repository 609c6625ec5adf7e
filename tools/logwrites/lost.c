/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See lost.h. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tool/tool.h"
#include "tools/logwrites/lost.h"
#include "utils/cleanup.h"
#include "utils/jsontext.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "utils/sizes.h"
#include "writelog/moments/moment.h"

struct losses {
  struct writelog_index *index;
  struct writelog_moment moment;
  struct lost_piece *pieces;
  size_t nr;
};

int
logwrites_parse_tear (const struct writelog_index *index, const char *text,
                      uint64_t *tear)
{
  struct writelog_totals totals;
  int64_t size;

  *tear = TEAR_SECTOR;
  if (text == NULL)
    return 0;
  if (strcmp (text, "entry") == 0) {
    *tear = TEAR_ENTRY;
    return 0;
  }
  writelog_index_totals (index, &totals);
  size = parse_size (text);
  if (size > 0 && is_power_of_2 (size) && size >= totals.sector_size) {
    *tear = size / totals.sector_size;
    return 0;
  }
  msg_error ("--tear: '%s' is neither 'entry' nor a power of two of at least "
             "%" PRIu32 ", the log's sector", text, totals.sector_size);
  return -1;
}

static int
find (struct losses *l, const char *export, const char *tear_text)
{
  uint64_t tear;

  if (logwrites_parse_tear (l->index, tear_text, &tear) == -1 ||
      writelog_moment_parse (l->index, export, tear, &l->moment) == -1)
    return -1;
  if (writelog_moment_losses (l->index, &l->moment, &l->pieces, &l->nr) == 0)
    return 0;
  msg_error ("%s: %m", export);
  return -1;
}

static void
print_text (const struct losses *l, const char *set)
{
  for (size_t i = 0; i < l->nr; ++i) {
    const struct lost_piece *p = &l->pieces[i];
    const struct writelog_index_entry e =
      writelog_index_entry (l->index, p->entry);

    printf ("%" PRIu64 " lost %" PRIu64 "+%" PRIu64 " of %" PRIu64
            "+%" PRIu64 "\n", p->entry, p->start, p->end - p->start,
            e.sector, e.nr_sectors);
  }
  if (l->nr > 0)
    printf ("the same state: lost/%" PRIu64 "/%s\n", l->moment.entries, set);
}

static int
print_json (const struct losses *l, const char *set)
{
  json_t *const lost = json_array ();
  json_t *const object = json_object ();
  CLEANUP_FREE char *same = NULL;

  if (asprintf (&same, "lost/%" PRIu64 "/%s", l->moment.entries, set) == -1)
    same = NULL;
  for (size_t i = 0; i < l->nr; ++i) {
    const struct lost_piece *p = &l->pieces[i];

    json_array_append_new (lost, json_pack (
      "{s:I, s:I, s:I}", "entry", (json_int_t) p->entry,
      "sector", (json_int_t) p->start,
      "nr-sectors", (json_int_t) (p->end - p->start)));
  }
  json_object_set_new (object, "lost", lost);
  if (l->nr > 0 && same)
    json_object_set_new (object, "same-state", json_text (same));
  return tool_print_json (object);
}

static int
print (const struct losses *l, bool json)
{
  CLEANUP_FREE char *set = writelog_lost_print (l->index, l->pieces, l->nr);

  if (set == NULL) {
    msg_error ("list --lost: %m");
    return -1;
  }
  if (json)
    return print_json (l, set);
  print_text (l, set);
  return 0;
}

int
logwrites_list_lost (const char *log, const char *export, const char *tear,
                     bool json)
{
  struct writelog_reader *const reader = writelog_reader_open (log);
  struct losses l = { NULL };
  int r = -1;

  if (reader)
    l.index = writelog_index_open (reader);
  if (l.index && find (&l, export, tear) == 0) {
    r = print (&l, json);
    free (l.pieces);
    writelog_moment_free (&l.moment);
  }
  writelog_index_close (l.index);
  return r;
}
