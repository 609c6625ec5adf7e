/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdkit-replication-filter: checkpoints and failover for any NBD disk.
 * This is glue: it brings parameters, exports and the control socket
 * together with the two sides, which do the work.
 *
 * There is one state for all connections.  It lasts from get_ready, when
 * files are opened so that errors appear on the command line, to
 * cleanup.  The layer below can be used from after_fork on, through one
 * context of our own; connections open none.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>
#include <time.h>

#include <nbdkit-filter.h>

#include "filters/replication/below.h"
#include "filters/replication/commands.h"
#include "filters/replication/meeting.h"
#include "module/module.h"
#include "module/next.h"
#include "filters/replication/params.h"
#include "filters/replication/requests.h"
#include "filters/replication/side.h"

static struct params params;
static int server_thread_model;
static struct side side;
static struct events events = EVENTS_INITIALIZER;
static struct commands *commands;
static struct node *disk;       /* the layer below */
static struct below below = { .fd = -1 }; /* and its file */

/* End in the order that the parts need each other. */
static void
end (void)
{
  commands_close (commands);
  commands = NULL;
  if (side_close (&side))
    node_close (disk);          /* it has said what failed, if anything */
  else
    module_keep_all ();         /* it hangs until the process ends */
  disk = NULL;
  below_close (&below);
}

static void
replication_unload (void)
{
  end ();                       /* if the server has not begun */
  params_free (&params);
}

static int
replication_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
                    const char *key, const char *value)
{
  const int r = params_set (&params, key, value);

  return r == 1 ? next (nxdata, key, value) : r;
}

static int
replication_config_complete (nbdkit_next_config_complete *next,
                             nbdkit_backend *nxdata)
{
  return params_check (&params) == -1 ? -1 : next (nxdata);
}

#define replication_config_help                                             \
  "replication-mode=primary|secondary  (required) Which side this is.\n"    \
  "replication-remote=URI       Primary: the secondary's export.\n"         \
  "replication-bitmap=FILE      Keep the map of what the other side lacks.\n" \
  "replication-active=FILE      (secondary) Buffer of the guest's writes.\n" \
  "replication-hidden=FILE      (secondary) Buffer of old content.\n"       \
  "replication-top-id=NAME      (secondary) Export for the guest.\n"        \
  "replication-export=NAME      Secondary: export for the primary (\"\").\n" \
  "replication-recover=fail|rollback|discard|reset\n"                       \
  "                             Secondary: buffers of a crash (fail);\n"    \
  "                             reset: forget that it was promoted.\n"      \
  "replication-control=SOCKET   Unix socket for commands.\n"                \
  "replication-start=BOOL       Start replication at once (false).\n"         \
  "replication-sync-rate=SIZE   Primary: bytes a second of a copy.\n"        \
  "replication-timeout=SECONDS  A partner that is silent for so long is lost."

static int
replication_get_ready (int thread_model)
{
  server_thread_model = thread_model;
  if (params.mode == MODE_SECONDARY &&
      thread_model == NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS) {
    nbdkit_error ("a secondary has two clients, but this plugin serves one "
                  "connection at a time");
    return -1;
  }
  if (side_open (&side, &params, &events) == -1)
    return -1;
  if (params.control) {
    commands = commands_open (params.control, &side, &events);
    if (commands == NULL) {
      end ();                   /* nbdkit exits without calling unload */
      return -1;
    }
  }
  return 0;
}

/* A primary's guest has its disk whatever becomes of the remote. */
static int
start_now (void)
{
  struct replication_refusal refusal;

  if (side_is_promoted (&side))
    return 0;                   /* this has been said */
  if (side_launch (&side, &refusal) == 0)
    return 0;
  if (params.mode == MODE_SECONDARY) {
    nbdkit_error ("replication-start: %s", refusal.desc);
    return -1;
  }
  nbdkit_error ("replication-start: %s; the primary serves its disk, "
                "remembers what the remote lacks, and goes on trying",
                refusal.desc);
  return 0;
}

/* Since when, and why the primary is refused. */
static void
tell_promoted (void)
{
  struct replication_status status;
  char when[64] = "";
  time_t seconds;
  struct tm tm;

  side_query (&side, &status);
  seconds = status.checkpoint.time / 1000;
  if (seconds && gmtime_r (&seconds, &tm))
    strftime (when, sizeof when, " of %Y-%m-%dT%H:%M:%SZ", &tm);
  nbdkit_error ("this disk was promoted by a failover%s%s%s, and is served to "
                "its guest; replication-reset, or replication-recover=reset, "
                "says that it may be overwritten again",
                status.checkpoint.id.text[0] ? " at checkpoint " : "",
                status.checkpoint.id.text, when);
}

static int
begin (nbdkit_backend *backend)
{
  below_watch (&below);
  disk = next_node_open (backend, server_thread_model, "disk");
  if (disk == NULL || below_find (&below) == -1 ||
      node_start (disk) == -1 || side_begin (&side, disk, &below) == -1)
    return -1;
  if (side_is_promoted (&side))
    tell_promoted ();
  if (params.start && start_now () == -1)
    return -1;
  return commands ? commands_start (commands) : 0;
}

static int
replication_after_fork (nbdkit_backend *backend)
{
  if (begin (backend) == 0)
    return 0;
  end ();                       /* nbdkit exits without calling cleanup */
  return -1;
}

static void
replication_cleanup (nbdkit_backend *backend)
{
  end ();
}

/* ---- Exports */

static const struct disk_identity guest_identity = { .kind = DISK_GUEST };
static const struct disk_identity primary_identity = { .kind = DISK_PRIMARY };
static const struct disk_identity secondary_kind = { .kind = DISK_SECONDARY };

static const char *
describe (const struct disk_identity *identity)
{
  char text[MEETING_TEXT];

  identity_describe (identity, text);
  return nbdkit_strdup_intern (text);
}

static int
add_export (struct nbdkit_exports *exports, const char *name,
            const struct disk_identity *identity)
{
  const char *const description = describe (identity);

  return description ? nbdkit_add_export (exports, name, description) : -1;
}

static int
replication_list_exports (nbdkit_next_list_exports *next,
                          nbdkit_backend *nxdata, int readonly, int is_tls,
                          struct nbdkit_exports *exports)
{
  if (params.mode == MODE_PRIMARY)
    return add_export (exports, "", &primary_identity);
  if (add_export (exports, params.export, &secondary_kind) == -1)
    return -1;
  return add_export (exports, params.top_id, &guest_identity);
}

/* A client that names no export gets the one with the empty name, if
 * there is one: it must not end up on the wrong side by default.
 */
static const char *
replication_default_export (nbdkit_next_default_export *next,
                            nbdkit_backend *nxdata, int readonly, int is_tls)
{
  return "";
}

static void *
replication_open (nbdkit_next_open *next, nbdkit_context *context,
                  int readonly, const char *exportname, int is_tls)
{
  struct history primary;
  bool synced;

  if (params.mode == MODE_PRIMARY) {
    if (strcmp (exportname, "") == 0)
      return primary_node (side.primary);
    nbdkit_error ("there is no export \"%s\": a primary has only the one "
                  "with the empty name", exportname);
    return NULL;
  }
  if (strcmp (exportname, params.top_id) == 0)
    return secondary_guest_node (side.secondary);
  if (export_is_map (exportname, params.export))
    return secondary_connect_map (side.secondary);
  if (export_is (exportname, params.export, &primary, &synced)) {
    if (synced && secondary_synced (side.secondary, &primary) == -1)
      return NULL;
    return secondary_connect (side.secondary, &primary);
  }
  nbdkit_error ("there is no export \"%s\": there are \"%s\" for the guest "
                "and \"%s\" for the primary's writes", exportname,
                params.top_id, params.export);
  return NULL;
}

/* A guest's node goes with its side. */
static void
replication_close (void *handle)
{
  if (params.mode == MODE_SECONDARY &&
      handle != secondary_guest_node (side.secondary))
    secondary_disconnect (side.secondary, handle);
}

/* What a primary reads when it connects. */
static const char *
replication_export_description (nbdkit_next *next, void *handle)
{
  struct disk_identity identity;

  if (params.mode == MODE_PRIMARY)
    return describe (&primary_identity);
  if (handle == secondary_guest_node (side.secondary))
    return describe (&guest_identity);
  secondary_identity (side.secondary, &identity);
  return describe (&identity);
}

#if HAVE_STRUCT_NBDKIT_FILTER_DUMP_PLUGIN
static void
replication_dump_plugin (void)
{
  printf ("replication_version=%s\n", PACKAGE_VERSION);
}
#endif

static struct nbdkit_filter filter = {
  .name = "replication",
  .longname = "nbdkit replication filter",
  .description = "replicate a disk to another host, with checkpoints and "
                 "failover",
  .load = module_load,
  .unload = replication_unload,
  .config = replication_config,
  .config_complete = replication_config_complete,
  .config_help = replication_config_help,
#if HAVE_STRUCT_NBDKIT_FILTER_DUMP_PLUGIN
  .dump_plugin = replication_dump_plugin,
#endif
  .get_ready = replication_get_ready,
  .after_fork = replication_after_fork,
  .cleanup = replication_cleanup,
  .list_exports = replication_list_exports,
  .default_export = replication_default_export,
  .open = replication_open,
  .close = replication_close,
  .export_description = replication_export_description,
  .get_size = request_get_size,
  .block_size = request_block_size,
  .can_write = request_can_write,
  .can_flush = request_yes,
  .is_rotational = request_no,
  .can_trim = request_yes,
  .can_zero = request_can_zero,
  .can_fast_zero = request_yes,
  .can_extents = request_yes,
  .can_fua = request_can_fua,
  .can_multi_conn = request_yes,
  .can_cache = request_can_cache,
  .pread = request_pread,
  .pwrite = request_pwrite,
  .flush = request_flush,
  .trim = request_trim,
  .zero = request_zero,
  .extents = request_extents,
  .cache = request_cache,
};

NBDKIT_REGISTER_FILTER (filter)
