/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* QED images: opening them as nodes, checking and creating them.
 * Specification: qed.md.
 */

#ifndef BLOCKDRIVERS_QED_H
#define BLOCKDRIVERS_QED_H

#include <stdbool.h>
#include <stdint.h>

#include "../node/node.h"

enum qed_format { QED_FORMAT_PROBE, QED_FORMAT_RAW, QED_FORMAT_QED };
enum qed_repair { QED_REPAIR_AUTO, QED_REPAIR_ALWAYS, QED_REPAIR_NEVER };
enum qed_detect { QED_DETECT_OFF, QED_DETECT_ON, QED_DETECT_UNMAP };

#define QED_DEFAULT_CLUSTER_SIZE 65536
#define QED_DEFAULT_TABLE_SIZE 4
#define QED_DEFAULT_CACHE_SIZE (32 * 1024 * 1024)
#define QED_MIN_CACHE_SIZE 4096

/* The parameters of nbdkit-qed-plugin (interfaces.md), in its words. */
struct qed_options {
  bool read_only;
  const char *backing;          /* NULL: what the header names; "none" */
  enum qed_format backing_format;
  enum qed_repair repair;
  uint64_t l2_cache_size;       /* bytes, for all images of the chain */
  bool ignore_trim;
  enum qed_detect detect_zeroes;
  bool copy_on_read;
  bool no_lock;
};

#define QED_DEFAULT_OPTIONS \
  ((struct qed_options) { .l2_cache_size = QED_DEFAULT_CACHE_SIZE })

/* Open an image and its backing chain.  A writable open of an image
 * with the NEED_CHECK flag repairs it, as options->repair says; an
 * image found damaged is opened read-only, after a message (look at
 * node->read_only).  Nothing is written before the first write
 * otherwise.  Returns NULL with errno after a message.
 */
extern struct node *qed_open (const char *name,
                              const struct qed_options *options);

/* Trace to msg_debug: requests; updates of metadata.  nbdkit finds them
 * by name and sets them for -D qed.io=1 and -D qed.meta=1.
 */
extern int qed_debug_io;
extern int qed_debug_meta;

/* What the header says. */
struct qed_info {
  uint64_t size;                /* bytes */
  uint32_t cluster_size;        /* bytes */
  uint32_t table_size;          /* clusters */
  bool need_check;
  bool backing_is_raw;          /* BACKING_FORMAT_NO_PROBE */
  char *backing;                /* NULL if none; as in the header */
  char *full_backing;           /* the same, relative to this folder */
  int64_t allocated_size;       /* bytes that the file takes, or -1 */
};

/* Read the header only; opens neither tables nor backing image.  The
 * strings must be freed with qed_info_free.
 */
extern int qed_get_info (const char *name, bool no_lock,
                         struct qed_info *info);
extern void qed_info_free (struct qed_info *info);

/* What a check found.  Clusters are counted as qemu-img does. */
struct qed_check_result {
  uint64_t total_clusters;      /* of the virtual disk */
  uint64_t allocated_clusters;  /* entries that map a data cluster */
  uint64_t fragmented_clusters; /* of these, not behind the one before */
  uint64_t corruptions, corruptions_fixed;
  uint64_t leaks, leaks_fixed;
  uint64_t check_errors;        /* tables that could not be read */
  uint64_t image_end;           /* bytes, end of the last used cluster */
};

enum qed_fix { QED_FIX_NONE, QED_FIX_LEAKS, QED_FIX_ALL };

/* Check an image (without its backing chain) and, unless fix is NONE,
 * repair it.  Each finding is given to report as one line.  Returns -1
 * after a message if it could not be checked at all.
 */
extern int qed_check (const char *name, enum qed_fix fix, bool no_lock,
                      void (*report) (void *opaque, const char *line),
                      void *opaque, struct qed_check_result *result);

/* Make a new image.  What NAME is must be missing, empty, or a QED
 * image; block devices and NBD exports are taken over if they are QED
 * or begin with zeroes.  Nothing is left behind on failure.
 */
struct qed_create_options {
  uint64_t size;                /* bytes; rounded up to 512 */
  uint32_t cluster_size;        /* bytes */
  uint32_t table_size;          /* clusters */
  const char *backing;          /* NULL, or the name for the header */
  bool backing_is_raw;          /* set BACKING_FORMAT_NO_PROBE */
};
extern int qed_create (const char *name,
                       const struct qed_create_options *options);

/* Find a backing image the way qed_open does: make its name relative to
 * the folder of the image (result to be freed; NULL after a message),
 * and tell its format by magic.
 */
extern char *qed_backing_path (const char *image, const char *backing);
extern int qed_probe (struct node *n, enum qed_format *format);

#endif /* BLOCKDRIVERS_QED_H */
