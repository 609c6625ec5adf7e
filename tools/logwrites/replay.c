/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* logwrites replay: do to a disk what a log says, or some of it; and
 * what replay-log finds in logs besides.
 *
 * Notes on the design
 *
 * The log is walked twice.  The first walk decides which entries are
 * meant, with every error that the log or the command line may have, and
 * how much disk they need.  Only then the target is opened, and the
 * second walk, which begins where the first one found the start, writes.
 *
 * A target may end within the last sector that the log writes: a disk
 * whose size is no multiple of the log's sectors has logged that sector
 * with padding.
 */

#include <config.h>

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/logwrites/logwrites.h"
#include "tool/progress.h"
#include "node/align.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

enum {
  REPLAY_LOG = TOOL_FIRST_CODE,
  REPLAY_REPLAY,
  REPLAY_LIMIT,
  REPLAY_NEXT_FLUSH,
  REPLAY_NEXT_FUA,
  REPLAY_START_ENTRY,
  REPLAY_START_MARK,
  REPLAY_END_MARK,
  REPLAY_FIND,
  REPLAY_NUM_ENTRIES,
  REPLAY_NO_DISCARD,
  REPLAY_FSCK,
  REPLAY_CHECK,
  REPLAY_START_SECTOR,
  REPLAY_END_SECTOR,
};

static const struct tool_option options[] = {
  { REPLAY_LOG, "log", "FILE", "the log" },
  { REPLAY_REPLAY, "replay", "FILE", "the disk to replay it onto" },
  { REPLAY_START_ENTRY, "start-entry", "N", "begin with entry N" },
  { REPLAY_START_MARK, "start-mark", "NAME", "begin behind this mark" },
  { REPLAY_LIMIT, "limit", "N[@SECTOR]", "stop after N entries" },
  { REPLAY_NEXT_FLUSH, "next-flush", NULL, "stop after the next flush" },
  { REPLAY_NEXT_FUA, "next-fua", NULL, "stop after the next FUA write" },
  { REPLAY_END_MARK, "end-mark", "NAME", "stop at this mark" },
  { REPLAY_NO_DISCARD, "no-discard", NULL, "skip discards" },
  { REPLAY_FSCK, "fsck", "COMMAND",
    "run a command now and then, and stop if it fails" },
  { REPLAY_CHECK, "check", "N|flush|fua|discard",
    "run it after every N entries, or each with this flag" },
  { REPLAY_START_SECTOR, "start-sector", "N",
    "replay only what is for this sector of the disk and later ones" },
  { REPLAY_END_SECTOR, "end-sector", "N",
    "replay only what is for this sector of the disk and earlier ones" },
  { REPLAY_FIND, "find", NULL,
    "only print where it would stop, as ENTRY@SECTOR" },
  { REPLAY_NUM_ENTRIES, "num-entries", NULL,
    "only print how many entries there are" },
  { 'v', "verbose", NULL, "print each entry that is replayed" },
  TOOL_OPTION_OUTPUT,
  TOOL_OPTION_HELP,
  { 0 }
};

/* What the command line says. */
struct wish {
  const char *log, *target;
  uint64_t start_entry;
  const char *start_mark, *end_mark; /* NULL if not given */
  uint64_t limit;
  bool has_limit;
  uint64_t stop_flags;          /* FLUSH, FUA */
  bool find, num_entries;
  bool no_discard, verbose, json;
  const char *fsck;
  uint64_t check_flags;
  uint64_t check_every;         /* entries, or 0 */
  uint64_t start_sector, end_sector; /* of the disk, both inclusive */
};

/* The entries that are meant. */
struct part {
  uint64_t first, end;          /* entries first..end */
  uint64_t first_offset, end_offset; /* bytes in the log, of these */
  uint64_t disk_end;            /* sectors that they need */
  uint64_t disk_end_entry;      /* the first one that needs them all, */
  uint64_t disk_end_offset;     /* and where in the log it is */
  uint64_t last_offset;         /* of the last one in the log, bytes */
};

/* ---- The first walk */

static int
refuse (const struct writelog_reader *log, const char *what,
        const char *name, uint64_t from)
{
  msg_error ("%s: there is no %s%s%s%s from entry %" PRIu64 " on",
             log->node->name, what, name ? " '" : "", name ? name : "",
             name ? "'" : "", from);
  return -1;
}

/* Walk to where the part begins. */
static int
find_start (struct writelog_reader *log, const struct wish *w)
{
  struct writelog_item item;
  int r;

  if (w->start_entry > 0 && w->start_entry >= log->super.nr_entries) {
    msg_error ("%s: there is no entry %" PRIu64 ": the log has %" PRIu64,
               log->node->name, w->start_entry, log->super.nr_entries);
    return -1;
  }
  while (log->next < w->start_entry)
    if (writelog_reader_next (log, &item) == -1)
      return -1;
  if (w->start_mark == NULL)
    return 0;
  while ((r = writelog_reader_next (log, &item)) == 1)
    if (item.mark && strcmp (item.mark, w->start_mark) == 0)
      return 0;
  return r == -1 ? -1 : refuse (log, "mark", w->start_mark, w->start_entry);
}

/* The sectors of an entry that are replayed: *start..*end. */
static void
wanted_sectors (const struct wish *w, const struct writelog_entry *e,
                uint64_t *start, uint64_t *end)
{
  *end = e->sector + e->nr_sectors;
  if (*end > 0 && *end - 1 > w->end_sector)
    *end = w->end_sector + 1;
  *start = MIN (MAX (e->sector, w->start_sector), *end);
}

static bool
is_skipped (const struct wish *w, const struct writelog_entry *e)
{
  return w->no_discard && (e->flags & WRITELOG_DISCARD);
}

/* One more entry belongs to the part. */
static void
add_to_part (struct part *p, const struct wish *w,
             const struct writelog_reader *log,
             const struct writelog_item *item)
{
  uint64_t start, end;

  wanted_sectors (w, &item->entry, &start, &end);
  if (start == end)
    end = 0;
  p->end = item->number + 1;
  p->end_offset = log->offset;
  if (end > p->disk_end && !is_skipped (w, &item->entry)) {
    p->disk_end = end;
    p->disk_end_entry = item->number;
    p->disk_end_offset = item->offset;
  }
}

/* Walk to where the part ends.  An end mark is looked for also if
 * something else comes before it, so that one that is unknown is always
 * an error.  Returns whether anything ended it but the end of the log.
 */
static int
find_end (struct writelog_reader *log, const struct wish *w, struct part *p)
{
  bool stopped = w->has_limit && w->limit == 0;
  bool mark_met = w->end_mark == NULL;
  struct writelog_item item;
  int r;

  while (!stopped || !mark_met) {
    bool at_mark;

    r = writelog_reader_next (log, &item);
    if (r == -1)
      return -1;
    if (r == 0)
      break;
    at_mark = !mark_met && item.mark && strcmp (item.mark, w->end_mark) == 0;
    mark_met |= at_mark;
    if (stopped)
      continue;
    add_to_part (p, w, log, &item);
    p->last_offset = item.offset;
    stopped = at_mark || (item.entry.flags & w->stop_flags) ||
      (w->has_limit && p->end - p->first == w->limit);
  }
  if (!mark_met)
    return refuse (log, "mark", w->end_mark, p->first);
  return stopped;
}

static const char *
flags_name (uint64_t flags)
{
  switch (flags) {
  case WRITELOG_FLUSH: return "flush";
  case WRITELOG_FUA: return "FUA write";
  default: return "flush or FUA write";
  }
}

/* Which entries are meant?  -1 after a message if there are none such. */
static int
find_part (struct writelog_reader *log, const struct wish *w, struct part *p)
{
  int stopped;

  *p = (struct part) { 0 };
  if (find_start (log, w) == -1)
    return -1;
  p->first = p->end = log->next;
  p->first_offset = p->end_offset = log->offset;

  stopped = find_end (log, w, p);
  if (stopped == -1)
    return -1;
  if (w->stop_flags && !stopped)
    return refuse (log, flags_name (w->stop_flags), NULL, p->first);
  if (!stopped && w->has_limit) {
    msg_error ("%s: there are no %" PRIu64 " entries from entry %" PRIu64
               " on: the log has %" PRIu64, log->node->name, w->limit,
               p->first, log->super.nr_entries);
    return -1;
  }
  return 0;
}

/* ---- The target */

static bool
is_same (const struct node *a, const struct node *b)
{
  dev_t dev1, dev2;
  ino_t ino1, ino2;

  if (node_identity (a, &dev1, &ino1) && node_identity (b, &dev2, &ino2))
    return dev1 == dev2 && ino1 == ino2;
  return strcmp (a->name, b->name) == 0;
}

/* How long is a target that can grow?  As the logged disk was, if that is
 * noted and nothing goes beyond it.
 */
static uint64_t
target_size (const struct writelog_reader *log, const struct part *p)
{
  const uint64_t sector_size = log->super.sector_size;
  const uint64_t noted = log->super.disk_size;

  return div_round_up (noted, sector_size) >= p->disk_end ? noted
    : p->disk_end * sector_size;
}

/* Make sure that all of the part has a place. */
static int
fit_target (const struct writelog_reader *log, struct node *target,
            const struct part *p)
{
  const uint64_t sector_size = log->super.sector_size;
  const uint64_t size = node_size (target);

  if (!target->fixed_size && size < log->super.disk_size && p->end > p->first)
    return node_resize (target, target_size (log, p));
  if (div_round_up (size, sector_size) >= p->disk_end) {
    if (size < log->super.disk_size)
      msg_warning ("%s: it has %" PRIu64 " bytes, but the disk of the log has "
                   "%" PRIu64, target->name, size, log->super.disk_size);
    return 0;
  }
  if (!target->fixed_size)
    return node_resize (target, target_size (log, p));
  errno = ENOSPC;
  msg_error ("%s: %" PRIu64 " bytes are too few: entry %" PRIu64
             " at offset %" PRIu64 " of the log goes up to %" PRIu64,
             target->name, size, p->disk_end_entry, p->disk_end_offset,
             p->disk_end * sector_size);
  return -1;
}

static struct node *
open_target (const struct writelog_reader *log, const char *name,
             const struct part *p)
{
  const struct node_open_options o = { .lock = NODE_LOCK_IMAGE };
  struct node *target = align_open (name, &o);

  if (target == NULL)
    return NULL;
  if (is_same (log->node, target))
    msg_error ("%s: this is the log, which cannot be replayed onto itself",
               name);
  else if (fit_target (log, target, p) == 0)
    return target;
  node_close (target);
  return NULL;
}

/* ---- The second walk */

/* Data are copied in pieces of this size. */
#define PIECE (UINT64_C (1024) * 1024)

/* Below this length it is not worth while to look for holes. */
#define LONG_DATA (UINT64_C (64) * 1024)

struct replay {
  const struct wish *wish;
  struct writelog_reader *log;
  struct node *target;
  char *buffer;                 /* PIECE bytes */
  uint64_t checks;              /* runs of --fsck's command */
};

static int
copy_piece (struct replay *r, uint64_t count, uint64_t from, uint64_t to)
{
  if (node_pread (r->log->node, r->buffer, count, from) == -1)
    return -1;
  return node_pwrite (r->target, r->buffer, count, to);
}

/* Long writes of zeroes may be holes in the log, and then become holes
 * on the disk.
 */
static int
copy_data (struct replay *r, uint64_t count, uint64_t from, uint64_t to)
{
  while (count > 0) {
    struct extent e = { .length = count };
    int ret;

    if (count >= LONG_DATA &&
        node_extents (r->log->node, count, from, &e) == -1)
      return -1;
    if (e.flags & EXTENT_ZERO)
      ret = node_zero (r->target, e.length, to, NODE_MAY_TRIM);
    else {
      e.length = MIN (e.length, PIECE);
      ret = copy_piece (r, e.length, from, to);
    }
    if (ret == -1)
      return -1;
    count -= e.length;
    from += e.length;
    to += e.length;
  }
  return 0;
}

static int
apply (struct replay *r, const struct writelog_item *item)
{
  const struct writelog_entry *const e = &item->entry;
  const uint64_t sector_size = r->log->super.sector_size;
  uint64_t start, end, to, count;

  wanted_sectors (r->wish, e, &start, &end);
  if (start == end || is_skipped (r->wish, e))
    return 0;
  to = start * sector_size;
  count = (end - start) * sector_size;
  /* The padding of the last sector; fit_target has seen to the rest. */
  count = MIN (count, node_size (r->target) - to);

  /* A device is asked to discard, but in a way that leaves zeroes. */
  if (e->flags & WRITELOG_DISCARD)
    return node_zero (r->target, count, to, NODE_MAY_TRIM);
  return copy_data (r, count, item->data_offset +
                    (start - e->sector) * sector_size, to);
}

static bool
is_check_due (const struct replay *r, const struct part *p,
              const struct writelog_item *item)
{
  const struct wish *const w = r->wish;

  if (item->entry.flags & w->check_flags)
    return true;
  return w->check_every > 0 &&
    (item->number - p->first + 1) % w->check_every == 0;
}

static int
run_fsck (struct replay *r, const struct writelog_item *item)
{
  int status;

  /* Who reads a device or an export by another way sees it then. */
  if (node_flush (r->target) == -1)
    return -1;
  r->checks++;
  tool_flush ();
  status = system (r->wish->fsck);
  if (status == 0)
    return 0;
  if (status == -1)
    msg_error ("cannot run the command of --fsck: %m");
  else if (WIFEXITED (status))
    msg_error ("%s: after entry %" PRIu64 " at offset %" PRIu64
               " the command of --fsck failed with exit status %d: %s",
               r->log->node->name, item->number, item->offset,
               WEXITSTATUS (status), r->wish->fsck);
  else
    msg_error ("%s: after entry %" PRIu64 " at offset %" PRIu64
               " the command of --fsck was ended by signal %d: %s",
               r->log->node->name, item->number, item->offset,
               WTERMSIG (status), r->wish->fsck);
  return -1;
}

static int
replay_entry (struct replay *r, const struct part *p)
{
  struct writelog_item item;

  if (writelog_reader_next (r->log, &item) == -1)
    return -1;
  if (r->wish->verbose)
    logwrites_print_entry (&item);
  if (apply (r, &item) == -1)
    return -1;
  progress_report (NULL, r->log->offset - p->first_offset,
                   p->end_offset - p->first_offset);
  return is_check_due (r, p, &item) ? run_fsck (r, &item) : 0;
}

/* A check that never ran has not passed. */
static int
report_checks (const struct replay *r, const struct part *p)
{
  if (r->checks == 0) {
    msg_error ("%s: the command of --fsck never ran: of entries %" PRIu64
               " to %" PRIu64 " none was one for --check",
               r->log->node->name, p->first, p->end);
    return -1;
  }
  if (!r->wish->json)
    printf ("%" PRIu64 " checks passed\n", r->checks);
  return 0;
}

static int
replay_part (struct replay *r, const struct part *p)
{
  const struct wish *const w = r->wish;

  progress_start (isatty (STDOUT_FILENO) && !w->verbose && !w->fsck);
  writelog_reader_seek (r->log, p->first, p->first_offset);
  while (r->log->next < p->end)
    if (replay_entry (r, p) == -1)
      return -1;
  progress_end ();
  if (node_flush (r->target) == -1)
    return -1;
  return w->fsck ? report_checks (r, p) : 0;
}

static int
replay (struct writelog_reader *log, const struct wish *w,
        const struct part *p)
{
  CLEANUP_FREE char *buffer = malloc (PIECE);
  struct replay r = { .wish = w, .log = log, .buffer = buffer };
  int ret;

  if (buffer == NULL) {
    msg_error ("%s: %m", w->target);
    return -1;
  }
  r.target = open_target (log, w->target, p);
  if (r.target == NULL)
    return -1;
  ret = replay_part (&r, p);
  return node_close (r.target) == -1 ? -1 : ret;
}

/* ---- What only looks at the log */

static int
print_number_of_entries (struct writelog_reader *log, bool json)
{
  struct logwrites_totals t;

  if (logwrites_count (log, &t) == -1)
    return -1;
  if (json)
    return tool_print_json (json_pack ("{s:I}", "entries",
                                       (json_int_t) t.entries));
  printf ("%" PRIu64 "\n", t.entries);
  return 0;
}

static int
print_last (const struct writelog_reader *log, const struct part *p,
            bool json)
{
  const uint64_t sector = p->end_offset / log->super.sector_size;

  if (json)
    return tool_print_json (json_pack ("{s:I, s:I, s:I}", "entry",
                                       (json_int_t) (p->end - 1), "offset",
                                       (json_int_t) p->last_offset,
                                       "sector", (json_int_t) sector));
  printf ("%" PRIu64 "@%" PRIu64 "\n", p->end - 1, sector);
  return 0;
}

/* --log alone: what the super block says. */
static int
print_super (const struct writelog_reader *log, bool json)
{
  if (json)
    return tool_print_json (json_pack ("{s:i, s:I, s:I}", "version", 1,
                                       "sector-size", (json_int_t)
                                       log->super.sector_size, "entries",
                                       (json_int_t) log->super.nr_entries));
  printf ("Log version 1, sector size %" PRIu32 ", entries %" PRIu64 "\n",
          log->super.sector_size, log->super.nr_entries);
  return 0;
}

/* ---- The command */

static int
run_on_log (const struct wish *w)
{
  struct writelog_reader *const log = writelog_reader_open (w->log);
  struct part p;
  int r;

  if (log == NULL)
    return -1;
  if (w->num_entries)
    r = print_number_of_entries (log, w->json);
  else if (!w->find && w->target == NULL)
    r = print_super (log, w->json);
  else {
    r = find_part (log, w, &p);
    if (r == 0)
      r = w->find ? print_last (log, &p, w->json) : replay (log, w, &p);
  }
  writelog_reader_close (log);
  return r;
}

static void
parse_check (struct wish *w, const char *arg)
{
  w->check_flags = w->check_every = 0;
  if (strcmp (arg, "flush") == 0)
    w->check_flags = WRITELOG_FLUSH;
  else if (strcmp (arg, "fua") == 0)
    w->check_flags = WRITELOG_FUA;
  else if (strcmp (arg, "discard") == 0)
    w->check_flags = WRITELOG_DISCARD;
  else {
    w->check_every = logwrites_parse_number ("--check", arg);
    if (w->check_every == 0)
      tool_usage_error ("--check: give a number above 0, flush, fua or "
                        "discard");
  }
}

/* N, or what --find prints, of which the sector says nothing more. */
static uint64_t
parse_limit (const char *arg)
{
  const size_t len = strcspn (arg, "@");
  CLEANUP_FREE char *number = strndup (arg, len);

  if (number == NULL)
    tool_usage_error ("--limit: %s", strerror (errno));
  if (arg[len] == '@')
    logwrites_parse_number ("--limit", arg + len + 1);
  return logwrites_parse_number ("--limit", number);
}

static void
set_option (struct wish *w, int c, const char *arg)
{
  switch (c) {
  case REPLAY_LOG:
    w->log = arg;
    break;
  case REPLAY_REPLAY:
    w->target = arg;
    break;
  case REPLAY_LIMIT:
    w->limit = parse_limit (arg);
    w->has_limit = true;
    break;
  case REPLAY_NEXT_FLUSH:
    w->stop_flags |= WRITELOG_FLUSH;
    break;
  case REPLAY_NEXT_FUA:
    w->stop_flags |= WRITELOG_FUA;
    break;
  case REPLAY_START_ENTRY:
    w->start_entry = logwrites_parse_number ("--start-entry", arg);
    break;
  case REPLAY_START_MARK:
    w->start_mark = arg;
    break;
  case REPLAY_END_MARK:
    w->end_mark = arg;
    break;
  case REPLAY_FIND:
    w->find = true;
    break;
  case REPLAY_NUM_ENTRIES:
    w->num_entries = true;
    break;
  case REPLAY_NO_DISCARD:
    w->no_discard = true;
    break;
  case REPLAY_FSCK:
    w->fsck = arg;
    break;
  case REPLAY_CHECK:
    parse_check (w, arg);
    break;
  case REPLAY_START_SECTOR:
    w->start_sector = logwrites_parse_number ("--start-sector", arg);
    break;
  case REPLAY_END_SECTOR:
    w->end_sector = logwrites_parse_number ("--end-sector", arg);
    break;
  case 'v':
    w->verbose = true;
    break;
  case TOOL_OUTPUT:
    w->json = tool_parse_output (arg);
    break;
  }
}

static void
check_wish (const struct wish *w)
{
  if (w->log == NULL)
    tool_usage_error ("--log is missing");
  if (w->num_entries && (w->find || w->target))
    tool_usage_error ("--num-entries goes with neither --replay nor --find");
  if (w->start_sector > w->end_sector)
    tool_usage_error ("--end-sector is before --start-sector");
  if (w->find && !w->stop_flags && !w->end_mark && !w->has_limit)
    tool_usage_error ("--find needs --end-mark, --next-flush, --next-fua or "
                      "--limit");
  if (w->find && w->has_limit && w->limit == 0)
    tool_usage_error ("--find: with --limit 0 there is no entry to be found");
  if ((w->fsck != NULL) != (w->check_flags || w->check_every))
    tool_usage_error ("--fsck and --check need each other");
}

static int
run (int argc, char *argv[])
{
  struct wish w = { .end_sector = UINT64_MAX };
  int c;

  while ((c = tool_next_option (&logwrites_replay_command, argc, argv)) != -1)
    set_option (&w, c, optarg);
  if (optind < argc)
    tool_usage_error ("Unexpected argument: %s", argv[optind]);
  check_wish (&w);
  return run_on_log (&w) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

const struct tool_command logwrites_replay_command = {
  "replay", "", "Replay a log, or a part of it, onto a disk.", options, run
};
