/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdkit-blklogwrites-filter: records what changes the disk in a write
 * log.  This is glue: parameters, and handing on requests; see
 * common/writelog for what happens then.
 *
 * One log is open for all connections, from get_ready on.  A log that is
 * started anew is emptied when the first connection has been accepted,
 * since only then it is known that the log suits the disk.  A log is of
 * one disk, so it is of the export that is first written to; all other
 * exports can only be read.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "utils/cleanup.h"
#include "filters/blklogwrites/commands.h"
#include "filters/blklogwrites/ending.h"
#include "utils/message.h"
#include "module/module.h"
#include "module/next.h"
#include "node/node.h"
#include "writelog/record/recorder.h"
#include "utils/rounding.h"
#include "writelog/record/writer.h"

static char *log_name;
static bool append;
static int64_t sector_size;     /* 0 if not given */
static int64_t interval = WRITELOG_DEFAULT_INTERVAL;
static enum record_order order;
static char *control_name;

/* A parameter of the layers below. */
struct parameter {
  struct parameter *next;
  char *key, *value;
};
static struct parameter *parameters;

static struct writelog *writelog;
static struct recorder *recorder;
static struct control *control;
static struct events events = EVENTS_INITIALIZER;
static struct job *ending;      /* NULL where nothing can hang */
static bool started;            /* the log is, by after_fork */
static atomic_bool asked;       /* a connection has been asked for */

static pthread_mutex_t export_lock = PTHREAD_MUTEX_INITIALIZER;
static char *recorded_export;   /* the one that is recorded, NULL while
                                   nothing has been written; under
                                   export_lock, with which the log's note
                                   of the disk is read and changed */

/* A connection. */
struct handle {
  struct node *disk;            /* the layer below; from prepare on */
  char *export;
  atomic_bool recorded;         /* it is the recorded one; false if not
                                   known yet */
};

/* Also called after a start that failed. */
static void
end (void)
{
  /* These have said what failed, if anything. */
  events_connect (&events, NULL);
  control_close (control);
  recorder_close (recorder);
  /* Also a run without a connection leaves a log of its own.  But one that
   * has refused all of them, since the log did not suit the disk or the
   * disk was not there, leaves the log as it was.
   */
  if (started && !atomic_load (&asked))
    writelog_begin (writelog);
  writelog_finish (writelog);
  job_finish (ending);
  writelog_close (writelog);
  ending = NULL;
  started = false;
  control = NULL;
  recorder = NULL;
  writelog = NULL;
}

static void
forget_parameters (void)
{
  while (parameters) {
    struct parameter *p = parameters;

    parameters = p->next;
    free (p->key);
    free (p->value);
    free (p);
  }
}

static void
blklogwrites_unload (void)
{
  end ();
  forget_parameters ();
  free (log_name);
  free (control_name);
  free (recorded_export);
}

/* ---- Parameters */

static int
set_sector_size (const char *value)
{
  if (module_set_size (&sector_size, "log-sector-size", value) == -1)
    return -1;
  if (!is_power_of_2 (sector_size) ||
      sector_size < WRITELOG_MIN_SECTOR_SIZE ||
      sector_size > WRITELOG_MAX_SECTOR_SIZE) {
    nbdkit_error ("log-sector-size=%s: it must be a power of two from %d "
                  "to %d", value, WRITELOG_MIN_SECTOR_SIZE,
                  WRITELOG_MAX_SECTOR_SIZE);
    return -1;
  }
  return 0;
}

static int
set_interval (const char *value)
{
  if (nbdkit_parse_int64_t ("log-super-update-interval", value,
                            &interval) == -1)
    return -1;
  if (interval < 1) {
    nbdkit_error ("log-super-update-interval=%s: it must be at least 1",
                  value);
    return -1;
  }
  return 0;
}

static int
note_parameter (const char *key, const char *value)
{
  struct parameter *p = calloc (1, sizeof *p);

  if (p) {
    p->next = parameters;
    parameters = p;
    p->key = strdup (key);
    p->value = strdup (value);
  }
  if (p == NULL || p->key == NULL || p->value == NULL) {
    nbdkit_error ("%s=%s: %m", key, value);
    return -1;
  }
  return 0;
}

/* The log must not be written over the disk, or what else a layer uses,
 * which would be a beginner's mistake.
 */
static int
check_log_is_no_disk (void)
{
  struct stat log, other;

  if (node_is_uri (log_name) || stat (log_name, &log) == -1)
    return 0;
  for (const struct parameter *p = parameters; p; p = p->next) {
    if (stat (p->value, &other) == 0 &&
        other.st_dev == log.st_dev && other.st_ino == log.st_ino) {
      nbdkit_error ("%s: it cannot be the log, since it is also %s=%s",
                    log_name, p->key, p->value);
      return -1;
    }
  }
  return 0;
}

static int
blklogwrites_config (nbdkit_next_config *next, nbdkit_backend *nxdata,
                     const char *key, const char *value)
{
  static const char *const orders[] = { "completion", "durability", NULL };

  if (strcmp (key, "log") == 0)
    return module_set_image (&log_name, key, value);
  if (strcmp (key, "log-append") == 0)
    return module_set_bool (&append, key, value);
  if (strcmp (key, "log-sector-size") == 0)
    return set_sector_size (value);
  if (strcmp (key, "log-super-update-interval") == 0)
    return set_interval (value);
  if (strcmp (key, "log-order") == 0) {
    const int r = module_choose (key, value, orders);

    order = r == 1 ? RECORD_DURABILITY : RECORD_COMPLETION;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "log-control") == 0)
    return module_set_socket (&control_name, key, value);
  return note_parameter (key, value) == -1 ? -1 : next (nxdata, key, value);
}

static int
blklogwrites_config_complete (nbdkit_next_config_complete *next,
                              nbdkit_backend *nxdata)
{
  if (log_name == NULL) {
    nbdkit_error ("the name of a log is missing: log=LOG");
    return -1;
  }
  if (append && sector_size) {
    nbdkit_error ("log-append and log-sector-size cannot be given together: "
                  "a log that exists has its sector size");
    return -1;
  }
  return check_log_is_no_disk () == -1 ? -1 : next (nxdata);
}

#define blklogwrites_config_help                                        \
  "log=LOG                       (required) The log, a path or an NBD URI.\n" \
  "log-append=BOOL               Continue a log that exists (false).\n" \
  "log-sector-size=SIZE          Unit of a new log (512).\n"            \
  "log-super-update-interval=N   Entries until it is written again (4096).\n" \
  "log-order=completion|durability  Order of the entries (completion).\n" \
  "log-control=SOCKET            Unix socket for marks and status."

/* ---- Start and end */

static int
open_all (void)
{
  const struct writelog_options options = {
    .append = append, .sector_size = sector_size, .interval = interval,
    .events = &events,
  };

  writelog = writelog_open (log_name, &options);
  if (writelog == NULL)
    return -1;
  recorder = recorder_new (writelog, order);
  if (recorder == NULL)
    return -1;
  if (control_name) {
    control = commands_open (control_name, writelog);
    if (control == NULL)
      return -1;
    events_connect (&events, control);
  }
  return 0;
}

/* If this fails nbdkit exits without another call. */
static int
blklogwrites_get_ready (int thread_model)
{
  if (open_all () == -1) {
    end ();
    return -1;
  }
  return 0;
}

static int
blklogwrites_after_fork (nbdkit_backend *backend)
{
  if (writelog_start (writelog) == -1)
    return -1;
  started = true;
  if (node_is_uri (log_name) && (ending = ending_start (writelog)) == NULL)
    return -1;
  return control ? control_start (control) : 0;
}

static void
blklogwrites_cleanup (nbdkit_backend *backend)
{
  end ();
}

/* ---- Connections */

static unsigned
from_nbdkit_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? NODE_FUA : 0) |
    (flags & NBDKIT_FLAG_MAY_TRIM ? NODE_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? NODE_FAST : 0);
}

static void
blklogwrites_close (void *handle)
{
  struct handle *h = handle;

  node_close (h->disk);
  free (h->export);
  free (h);
}

static void *
blklogwrites_open (nbdkit_next_open *next, nbdkit_context *context,
                   int readonly, const char *exportname, int is_tls)
{
  struct handle *h = calloc (1, sizeof *h);

  if (h == NULL || (h->export = strdup (exportname)) == NULL) {
    nbdkit_error ("open: %m");
    free (h);
    return NULL;
  }
  /* From here on a layer may refuse it without this one being told. */
  atomic_store (&asked, true);
  if (next (context, readonly, exportname) == -1) {
    blklogwrites_close (h);
    return NULL;
  }
  return h;
}

/* Is this export the one that is recorded?  It becomes so if none is
 * and "now" is true.  -1 after a message if the log cannot be told.
 */
static int
is_recorded (struct handle *h, bool now)
{
  if (atomic_load_explicit (&h->recorded, memory_order_relaxed))
    return true;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export_lock);
  if (recorded_export == NULL && now) {
    if (writelog_note_disk (writelog, node_size (h->disk)) == -1)
      return -1;
    recorded_export = strdup (h->export);
  }
  if (recorded_export == NULL)
    return !now;
  if (strcmp (recorded_export, h->export) != 0)
    return false;
  atomic_store (&h->recorded, true);
  return true;
}

/* What the layer below wants is known only now.  (Some plugins crash when
 * they are opened without a client, so it cannot be asked at the start.)
 */
static int
check_block_size (uint32_t minimum)
{
  if (minimum <= writelog_sector_size (writelog))
    return 0;
  nbdkit_error ("%s: the log's sector size of %" PRIu32 " bytes is smaller "
                "than the disk's minimum block size of %" PRIu32 " bytes",
                log_name, writelog_sector_size (writelog), minimum);
  return -1;
}

/* A log that is continued must be of this disk.  Exports beside the
 * recorded one can only be read; and once that is known the log has more
 * than it had, so that nothing can be told.
 */
static int
check_disk (struct handle *h)
{
  if (h->disk->read_only)
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&export_lock);
  return recorded_export ? 0 : writelog_check_disk (writelog, h->disk);
}

static int
blklogwrites_prepare (nbdkit_next *next, void *handle, int readonly)
{
  struct handle *h = handle;

  h->disk = next_node_of (next, "disk");
  if (h->disk == NULL ||
      check_block_size (h->disk->align) == -1 ||
      check_disk (h) == -1 ||
      writelog_begin (writelog) == -1)
    return -1;
  return 0;
}

/* The last chance to read, if the log lacks something. */
static int
blklogwrites_finalize (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  if (atomic_load (&h->recorded))
    record_settle (recorder, h->disk);
  return 0;
}

/* The layer's, but requests of less than a sector of the log are not
 * preferred, unless the layer takes no longer ones.
 */
static int
blklogwrites_block_size (nbdkit_next *next, void *handle, uint32_t *minimum,
                         uint32_t *preferred, uint32_t *maximum)
{
  if (next->block_size (next, minimum, preferred, maximum) == -1)
    return -1;
  if (*minimum == 0) {          /* it has not said any */
    *minimum = 1;
    *preferred = 512;
    *maximum = UINT32_MAX;
  }
  if (writelog_sector_size (writelog) <= *maximum)
    *preferred = MAX (*preferred, writelog_sector_size (writelog));
  return 0;
}

static int
blklogwrites_can_write (nbdkit_next *next, void *handle)
{
  return is_recorded (handle, false) == 1 ? next->can_write (next) : 0;
}

/* Before each request that changes something. */
static int
check_recorded (struct handle *h, int *err)
{
  const int recorded = is_recorded (h, true);

  if (recorded == 1)
    return 0;
  *err = recorded == -1 ? errno : EROFS;
  if (recorded == -1)
    return -1;
  nbdkit_error ("export \"%s\" cannot be written to: the log is of another "
                "export", h->export);
  return -1;
}

static int
finish (int r, int *err)
{
  if (r == -1)
    *err = errno;
  return r;
}

static int
blklogwrites_pwrite (nbdkit_next *next, void *handle, const void *buf,
                     uint32_t count, uint64_t offset, uint32_t flags,
                     int *err)
{
  struct handle *h = handle;

  if (check_recorded (h, err) == -1)
    return -1;
  return finish (record_write (recorder, h->disk, buf, count, offset,
                               from_nbdkit_flags (flags)), err);
}

static int
blklogwrites_zero (nbdkit_next *next, void *handle, uint32_t count,
                   uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;

  if (check_recorded (h, err) == -1)
    return -1;
  return finish (record_zero (recorder, h->disk, count, offset,
                              from_nbdkit_flags (flags)), err);
}

static int
blklogwrites_trim (nbdkit_next *next, void *handle, uint32_t count,
                   uint64_t offset, uint32_t flags, int *err)
{
  struct handle *h = handle;

  if (check_recorded (h, err) == -1)
    return -1;
  return finish (record_trim (recorder, h->disk, count, offset,
                              from_nbdkit_flags (flags)), err);
}

/* An export that can only be read logs nothing. */
static int
blklogwrites_flush (nbdkit_next *next, void *handle, uint32_t flags,
                    int *err)
{
  struct handle *h = handle;

  if (h->disk->read_only || is_recorded (h, false) != 1)
    return next->flush (next, flags, err);
  return finish (record_flush (recorder, h->disk), err);
}

#if HAVE_STRUCT_NBDKIT_FILTER_DUMP_PLUGIN
static void
blklogwrites_dump_plugin (void)
{
  printf ("blklogwrites_version=%s\n", PACKAGE_VERSION);
}
#endif

static struct nbdkit_filter filter = {
  .name = "blklogwrites",
  .longname = "nbdkit blklogwrites filter",
  .description = "record writes in a log",
  .load = module_load,
  .unload = blklogwrites_unload,
  .config = blklogwrites_config,
  .config_complete = blklogwrites_config_complete,
  .config_help = blklogwrites_config_help,
#if HAVE_STRUCT_NBDKIT_FILTER_DUMP_PLUGIN
  .dump_plugin = blklogwrites_dump_plugin,
#endif
  .get_ready = blklogwrites_get_ready,
  .after_fork = blklogwrites_after_fork,
  .cleanup = blklogwrites_cleanup,
  .open = blklogwrites_open,
  .close = blklogwrites_close,
  .prepare = blklogwrites_prepare,
  .finalize = blklogwrites_finalize,
  .block_size = blklogwrites_block_size,
  .can_write = blklogwrites_can_write,
  .pwrite = blklogwrites_pwrite,
  .zero = blklogwrites_zero,
  .trim = blklogwrites_trim,
  .flush = blklogwrites_flush,
};

NBDKIT_REGISTER_FILTER (filter)
