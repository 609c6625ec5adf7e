/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* nbdkit-qed-plugin: serves a QED image.  This is glue: parameters, and
 * handing on each callback; see common/qed for what happens then.
 *
 * One image is open for all connections, from get_ready on.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "utils/message.h"
#include "module/export.h"
#include "module/module.h"
#include "node/node.h"
#include "qed/qed.h"
#include "utils/rounding.h"
#include "plugins/qed/server.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static char *filename;
static char *backing;
static struct qed_options options;
static struct node *image;

static void
qed_load (void)
{
  options = QED_DEFAULT_OPTIONS;
  module_load ();
}

static void
qed_unload (void)
{
  node_close (image);
  free (filename);
  free (backing);
}

static int
set_cache_size (const char *value)
{
  int64_t size;

  if (module_set_size (&size, "l2-cache-size", value) == -1)
    return -1;
  if (size < QED_MIN_CACHE_SIZE) {
    nbdkit_error ("l2-cache-size=%s: it must be at least %d bytes",
                  value, QED_MIN_CACHE_SIZE);
    return -1;
  }
  options.l2_cache_size = size;
  return 0;
}

static int
qed_config (const char *key, const char *value)
{
  static const char *const formats[] = { "raw", "qed", NULL };
  static const char *const repairs[] = { "auto", "always", "never", NULL };
  static const char *const trims[] = { "unmap", "ignore", NULL };
  static const char *const detects[] = { "off", "on", "unmap", NULL };
  int r;

  if (strcmp (key, "file") == 0)
    return module_set_image (&filename, key, value);
  if (strcmp (key, "backing") == 0) {
    if (strcmp (value, "none") == 0 && backing == NULL) {
      backing = strdup (value);
      return backing ? 0 : -1;
    }
    return module_set_image (&backing, key, value);
  }
  if (strcmp (key, "backing-format") == 0) {
    r = module_choose (key, value, formats);
    options.backing_format = r == 0 ? QED_FORMAT_RAW : QED_FORMAT_QED;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "repair") == 0) {
    r = module_choose (key, value, repairs);
    options.repair = r;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "l2-cache-size") == 0)
    return set_cache_size (value);
  if (strcmp (key, "trim") == 0) {
    r = module_choose (key, value, trims);
    options.ignore_trim = r == 1;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "detect-zeroes") == 0) {
    r = module_choose (key, value, detects);
    options.detect_zeroes = r;
    return r == -1 ? -1 : 0;
  }
  if (strcmp (key, "copy-on-read") == 0)
    return module_set_bool (&options.copy_on_read, key, value);
  if (strcmp (key, "lock") == 0) {
    bool lock;

    r = module_set_bool (&lock, key, value);
    options.no_lock = !lock;
    return r;
  }
  nbdkit_error ("unknown parameter '%s'", key);
  return -1;
}

static int
qed_config_complete (void)
{
  if (filename == NULL) {
    nbdkit_error ("the name of a QED image is missing: nbdkit qed IMAGE");
    return -1;
  }
  options.backing = backing;
  options.read_only = server_is_read_only ();
  if (options.copy_on_read && options.read_only) {
    nbdkit_error ("copy-on-read=true needs an image that can be written, "
                  "but it is opened read-only");
    return -1;
  }
  return 0;
}

#define qed_config_help                                                 \
  "[file=]IMAGE     (required) The QED image, a path or an NBD URI.\n"  \
  "backing=IMAGE|none          Backing image instead of the header's.\n" \
  "backing-format=raw|qed      How to read the backing image.\n"        \
  "repair=auto|always|never    Repair on a writable open (auto).\n"     \
  "l2-cache-size=SIZE          Memory for cached L2 tables (32M).\n"    \
  "trim=unmap|ignore           What to do with trims (unmap).\n"        \
  "detect-zeroes=off|on|unmap  Turn written zeroes into holes (off).\n" \
  "copy-on-read=BOOL           Copy what is read from below (false).\n" \
  "lock=BOOL                   Take QEMU's image locks (true)."

static void
qed_dump_plugin (void)
{
  printf ("qed_backing=yes\n");
  printf ("qed_locks=ofd\n");
  printf ("qed_uri=nbd,nbds,nbd+unix,nbds+unix,nbd+vsock,nbds+vsock\n");
  printf ("qed_min_cluster_size=4096\n");
  printf ("qed_max_cluster_size=67108864\n");
  printf ("qed_default_l2_cache_size=%d\n", QED_DEFAULT_CACHE_SIZE);
}

static int
qed_get_ready (void)
{
  image = qed_open (filename, &options);
  return image ? 0 : -1;
}

static int
qed_after_fork (void)
{
  return node_start (image);
}

static void
qed_cleanup (void)
{
  node_close (image);           /* it has said what failed, if anything */
  image = NULL;
}

/* All connections have one handle. */
static void *
qed_plugin_open (int readonly)
{
  return image;
}

static const char *
qed_export_description (void *handle)
{
  return nbdkit_printf_intern ("QED image %s", filename);
}

static struct nbdkit_plugin plugin = {
  .name = "qed",
  .longname = "nbdkit QED plugin",
  .version = PACKAGE_VERSION,
  .description = "serve QED copy-on-write disk images",
  .load = qed_load,
  .unload = qed_unload,
  .config = qed_config,
  .config_complete = qed_config_complete,
  .config_help = qed_config_help,
  .magic_config_key = "file",
  .dump_plugin = qed_dump_plugin,
  .get_ready = qed_get_ready,
  .after_fork = qed_after_fork,
  .cleanup = qed_cleanup,
  .open = qed_plugin_open,
  .export_description = qed_export_description,
  .get_size = export_get_size,
  .block_size = export_block_size,
  .can_write = export_can_write,
  .can_flush = export_yes,
  .can_trim = export_yes,
  .can_zero = export_yes,
  .can_fast_zero = export_yes,
  .can_fua = export_can_fua,
  .can_multi_conn = export_yes,
  .can_extents = export_yes,
  .can_cache = export_can_cache,
  .pread = export_pread,
  .pwrite = export_pwrite,
  .zero = export_zero,
  .trim = export_trim,
  .flush = export_flush,
  .cache = export_cache,
  .extents = export_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
