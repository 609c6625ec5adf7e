/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdkit-logreplay-plugin: serves the disk of a write log as it was at
 * any moment.  Parameters, the list of exports, and handing on each
 * callback; see common/writelog/moments for what happens then.
 *
 * The log is indexed once, in get_ready.  A connection has a node of its
 * own for the moment that its export name picks; all of them share the
 * index, the log and the base.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "node/align.h"
#include "utils/cleanup.h"
#include "writelog/moments/base.h"
#include "writelog/moments/moment.h"
#include "writelog/moments/state.h"
#include "utils/message.h"
#include "module/export.h"
#include "module/module.h"
#include "node/node.h"
#include "utils/rounding.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

/* Exports that are listed at most, and marks among them.  nbdkit takes
 * 10000.
 */
#define MAX_LISTED UINT64_C (9999)
#define MAX_MARKS UINT64_C (5000)

/* The longest string of the NBD protocol. */
#define MAX_STRING 4096

static char *log_name;
static char *base_name;
static int64_t size = -1;       /* -1: not given */
static int64_t tear_size = -1;  /* bytes; 0: an entry, -1: not given */

/* Constant from get_ready on. */
static struct writelog_index *log_index;
static struct writelog_totals totals;
static struct node *base;       /* or NULL */
static uint64_t tear;           /* sectors of the log, or TEAR_ENTRY */

static void
logreplay_cleanup (void)
{
  writelog_index_close (log_index);
  log_index = NULL;
  node_close (base);
  base = NULL;
}

static void
logreplay_unload (void)
{
  logreplay_cleanup ();
  free (log_name);
  free (base_name);
}

static int
set_tear (const char *value)
{
  if (strcmp (value, "entry") == 0) {
    tear_size = 0;
    return 0;
  }
  if (module_set_size (&tear_size, "tear", value) == -1)
    return -1;
  if (tear_size == 0 || !is_power_of_2 (tear_size)) {
    nbdkit_error ("tear=%s: it must be a power of two, or 'entry'", value);
    return -1;
  }
  return 0;
}

static int
logreplay_config (const char *key, const char *value)
{
  if (strcmp (key, "log") == 0)
    return module_set_image (&log_name, key, value);
  if (strcmp (key, "base") == 0)
    return module_set_image (&base_name, key, value);
  if (strcmp (key, "size") == 0)
    return module_set_size (&size, key, value);
  if (strcmp (key, "tear") == 0)
    return set_tear (value);
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
logreplay_config_complete (void)
{
  if (log_name == NULL) {
    nbdkit_error ("the name of a write log is missing: "
                  "nbdkit logreplay LOG");
    return -1;
  }
  return 0;
}

#define logreplay_config_help                                           \
  "[log=]LOG        (required) The write log, a path or an NBD URI.\n"  \
  "base=IMAGE       The disk before the first entry (zeroes).\n"        \
  "size=SIZE        Size of the disk (as noted, else of base or log).\n" \
  "tear=SIZE|entry  What a power loss takes at least (a sector of the log)."

static void
logreplay_dump_plugin (void)
{
  printf ("logreplay_moments=entry,mark,flush,fua,crash,cut,lost\n");
  printf ("logreplay_base_format=raw\n");
  printf ("logreplay_uri=nbd,nbds,nbd+unix,nbds+unix,nbd+vsock,nbds+vsock\n");
  printf ("logreplay_min_sector_size=%d\n", WRITELOG_MIN_SECTOR_SIZE);
  printf ("logreplay_max_sector_size=%d\n", WRITELOG_MAX_SECTOR_SIZE);
}

static int
open_base (void)
{
  const struct node_open_options options = {
    .read_only = true, .lock = NODE_LOCK_IMAGE,
  };

  base = align_open (base_name, &options);
  return base ? 0 : -1;
}

/* The size of the disk if none was given.  The last sector of the log
 * may reach behind the base, if that is no multiple of it.
 */
static int
find_size (void)
{
  const uint64_t base_size = base ? node_size (base)
                                  : MIN (totals.end, (uint64_t) INT64_MAX);

  if (totals.disk_size > 0 && totals.disk_size <= INT64_MAX) {
    size = totals.disk_size;
    return 0;
  }
  if (base == NULL)
    msg_warning ("%s: the log does not say how large the disk is, and there "
                 "is no base: it is taken to end with the highest sector "
                 "that was written; size= overrides that", log_name);
  if (totals.end > round_up (base_size, totals.sector_size)) {
    nbdkit_error ("%s: the base has %" PRIu64 " bytes, but entry %" PRIu64
                  " of the log reaches up to byte %" PRIu64 "; it is not the "
                  "disk that was logged, or give its size by size=",
                  base_name, base_size, totals.end_entry, totals.end);
    return -1;
  }
  size = base_size;
  return 0;
}

/* In sectors of the log. */
static int
find_tear (void)
{
  tear = tear_size == 0 ? TEAR_ENTRY : TEAR_SECTOR;
  if (tear_size <= 0)
    return 0;
  if (tear_size < totals.sector_size) {
    nbdkit_error ("tear=%" PRIi64 ": the log's sectors have %" PRIu32
                  " bytes, and what is lost of them cannot be told",
                  tear_size, totals.sector_size);
    return -1;
  }
  tear = tear_size / totals.sector_size;
  return 0;
}

static int
logreplay_get_ready (void)
{
  struct writelog_reader *reader = writelog_reader_open (log_name);

  if (reader == NULL)
    return -1;
  log_index = writelog_index_open (reader);
  if (log_index == NULL)
    return -1;
  writelog_index_totals (log_index, &totals);
  nbdkit_debug ("%s: %" PRIu64 " entries, index of %" PRIu64 " bytes",
                log_name, totals.entries, totals.memory);
  if ((base_name && open_base () == -1) ||
      writelog_check_base (log_index, base) == -1)
    return -1;
  return size == -1 && find_size () == -1 ? -1 : find_tear ();
}

static int
logreplay_after_fork (void)
{
  if (node_start (writelog_index_log (log_index)) == -1)
    return -1;
  return base ? node_start (base) : 0;
}

/* ---- Exports */

/* Add one that is the same as entry/N. */
static int
add_export (struct nbdkit_exports *exports, const char *name, uint64_t n)
{
  char description[64];

  snprintf (description, sizeof description, "the same as entry/%" PRIu64, n);
  return nbdkit_add_export (exports, name, description);
}

static int
list_marks (struct nbdkit_exports *exports)
{
  for (uint64_t i = 0; i < MIN (totals.marks, MAX_MARKS); ++i) {
    CLEANUP_FREE char *mark = NULL, *name = NULL;
    uint64_t entry;
    bool first;

    if (writelog_index_mark (log_index, i, &mark, &entry, &first) == -1)
      return -1;
    /* Only the first mark of a name can be asked for, and no name that is
     * too long for the protocol.
     */
    if (!first || strlen (mark) > MAX_STRING - strlen ("mark/"))
      continue;
    if (asprintf (&name, "mark/%s", mark) == -1) {
      name = NULL;
      nbdkit_error ("%s: list of marks: %m", log_name);
      return -1;
    }
    if (add_export (exports, name, entry) == -1)
      return -1;
  }
  return 0;
}

static int
list_flushes (struct nbdkit_exports *exports)
{
  const uint64_t room = MAX_LISTED - 1 - MIN (totals.marks, MAX_MARKS);

  for (uint64_t n = 1; n <= MIN (totals.flushes, room); ++n) {
    struct writelog_moment moment;
    char name[32];

    if (writelog_moment_flag (log_index, WRITELOG_FLUSH, n, &moment) == -1)
      return -1;
    snprintf (name, sizeof name, "flush/%" PRIu64, n);
    if (add_export (exports, name, moment.entries) == -1)
      return -1;
  }
  return 0;
}

static int
logreplay_list_exports (int readonly, int is_tls,
                        struct nbdkit_exports *exports)
{
  if (nbdkit_add_export (exports, "", "after the last entry") == -1 ||
      list_marks (exports) == -1)
    return -1;
  return list_flushes (exports);
}

static const char *
logreplay_default_export (int readonly, int is_tls)
{
  return "";
}

/* The handle of a connection is the disk at its moment. */
static void *
logreplay_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct writelog_moment moment;
  struct node *node;

  if (name == NULL ||
      writelog_moment_parse (log_index, name, tear, &moment) == -1)
    return NULL;
  node = writelog_moment_open (log_index, &moment, base, size);
  writelog_moment_free (&moment);
  return node;
}

static void
logreplay_close (void *handle)
{
  node_close (handle);
}

static const char *
logreplay_export_description (void *handle)
{
  const char *name = nbdkit_export_name ();
  struct writelog_moment moment;
  uint64_t entries, certain;

  if (name == NULL ||
      writelog_moment_parse (log_index, name, tear, &moment) == -1)
    return NULL;
  entries = moment.entries;
  certain = moment.certain;
  writelog_moment_free (&moment);
  if (entries == certain)
    return nbdkit_printf_intern ("%s after %" PRIu64 " of %" PRIu64
                                 " entries", log_name, certain,
                                 totals.entries);
  return nbdkit_printf_intern ("%s after %" PRIu64 " of %" PRIu64
                               " entries and a part of the next %" PRIu64,
                               log_name, certain, totals.entries,
                               entries - certain);
}

static struct nbdkit_plugin plugin = {
  .name = "logreplay",
  .longname = "nbdkit write log replay plugin",
  .version = PACKAGE_VERSION,
  .description = "serve the disk of a write log at any moment",
  .load = module_load,
  .unload = logreplay_unload,
  .config = logreplay_config,
  .config_complete = logreplay_config_complete,
  .config_help = logreplay_config_help,
  .magic_config_key = "log",
  .dump_plugin = logreplay_dump_plugin,
  .get_ready = logreplay_get_ready,
  .after_fork = logreplay_after_fork,
  .cleanup = logreplay_cleanup,
  .list_exports = logreplay_list_exports,
  .default_export = logreplay_default_export,
  .open = logreplay_open,
  .close = logreplay_close,
  .export_description = logreplay_export_description,
  .get_size = export_get_size,
  .block_size = export_block_size,
  .can_multi_conn = export_yes,
  .can_extents = export_yes,
  .can_cache = export_can_cache,
  .pread = export_pread,
  .extents = export_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
