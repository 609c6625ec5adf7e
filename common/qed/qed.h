/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* QED images: opening them as nodes, and all that qed-img does with
 * them.  Specification: qed.md.
 */

#ifndef BLOCKDRIVERS_QED_H
#define BLOCKDRIVERS_QED_H

#include <stdbool.h>
#include <stdint.h>

#include "node/node.h"

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
  enum node_cache cache;        /* of all images of the chain */
  bool untouched;               /* opening writes nothing, whatever is in
                                   the file; wants repair "never" */
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

/* As node_extents, for a node of qed_open; but what an image of the chain has
 * is data, wherever its file has holes, since the file is not asked.
 */
extern int qed_mapping (struct node *n, uint64_t count, uint64_t offset,
                        struct extent *ret);

/* Trace to msg_debug: requests; updates of metadata.  nbdkit finds them
 * by name and sets them for -D qed.io=1 and -D qed.meta=1.
 */
extern int qed_debug_io;
extern int qed_debug_meta;

/* What the header says. */
struct qed_info {
  uint64_t size;                /* bytes */
  uint64_t max_size;            /* that the geometry can map, bytes */
  uint32_t cluster_size;        /* bytes */
  uint32_t table_size;          /* clusters */
  bool need_check;
  bool backing_is_raw;          /* BACKING_FORMAT_NO_PROBE */
  char *backing;                /* NULL if none; as in the header */
  char *full_backing;           /* the same, relative to this folder;
                                   NULL if that cannot be told */
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
                      enum node_cache cache,
                      void (*report) (void *opaque, const char *line),
                      void *opaque, struct qed_check_result *result);

/* Make a new image.  What NAME is must be missing, empty (as a file that
 * reads as zeroes all over is), or a QED image; block devices and NBD
 * exports are taken over if they are QED or begin with zeroes.  Nothing
 * is left behind on failure.
 */
struct qed_create_options {
  uint64_t size;                /* bytes; rounded up to 512 */
  uint32_t cluster_size;        /* bytes */
  uint32_t table_size;          /* clusters */
  const char *backing;          /* NULL, or the name for the header */
  bool backing_is_raw;          /* set BACKING_FORMAT_NO_PROBE */
  bool no_lock;                 /* the file system has no locks */
  bool no_cow;                  /* node_advise */
  uint32_t extent_size;         /* bytes; likewise */

  /* Called when nothing speaks against it, before something is written;
   * may be NULL.
   */
  void (*begins) (void *opaque);
  void *opaque;
};
extern int qed_create (const char *name,
                       const struct qed_create_options *options);

/* Bytes that the storage of an image must have: "required" now, and
 * "fully_allocated" when all of its clusters are in use.  A file is shorter
 * by the room of one table, which storage of fixed size keeps free.
 */
struct qed_measurement {
  uint64_t required;
  uint64_t fully_allocated;
};

/* Measure an image as qed_create would make it with these options
 * (whose size, cluster_size, table_size and backing count), holding
 * what source holds: the data of source where it does not read as
 * zeroes, as far as the options' size reaches.  source is NULL for an
 * empty image.  Returns -1 after a message if the options are not
 * possible or source cannot tell.
 */
extern int qed_measure (const struct qed_create_options *options,
                        struct node *source,
                        struct qed_measurement *result);

/* ---- Long operations */

/* How far a long operation is, in bytes of the disk.  report is called
 * from any thread, but from one at a time, with a done that does not
 * decrease and ends as total.  A NULL progress reports to nobody.
 */
struct qed_progress {
  void (*report) (void *opaque, uint64_t done, uint64_t total);
  void *opaque;
};

/* node_resize of a QED node grows the disk (size in bytes, a multiple
 * of 512); what is new reads as zeroes, also where the backing image is
 * longer than the disk was (qemu-img refuses that).  It is an error,
 * after a message, to ask for less than the disk has (ENOTSUP) or for a
 * size that is impossible for the geometry (EINVAL).  Requests in flight
 * end before, others wait.  Killed at any point, the disk has the old
 * size or the new one.
 */

/* Drop all data of this layer: afterwards every byte of the disk is
 * unallocated, so it reads the backing image or zeroes.  Takes time
 * that does not depend on the size of the disk nor on what it holds
 * (save what the file system needs to free the space), and is durable
 * when it returns.  Requests in flight end before, others wait.  Killed
 * at any point, the layer is as before or empty.  -1 with errno after a
 * message; EROFS if the node is read-only.
 */
extern int qed_empty (struct node *n);

/* The same for an image that is not open.  Reads neither its tables nor
 * its backing image, so a damaged image can be emptied too.
 */
extern int qed_empty_image (const char *name, bool no_lock);

/* Write what this layer holds into its backing image, which is grown
 * first if it is shorter, make that durable, and then empty this layer.
 * The time is in proportion to the data.  Killed at any point, the disk
 * reads as before, and committing again completes it.
 */
struct qed_commit_options {
  const char *base;             /* NULL for the backing image; else one
                                   further down, by its name in a header
                                   or its path: all layers above it are
                                   committed, and kept */
  bool keep;                    /* do not empty this layer */
  bool no_lock;
  enum node_cache cache;        /* of all images */
  uint64_t rate;                /* bytes a second, 0: no limit */
  const struct qed_progress *progress; /* may be NULL */
};
extern int qed_commit (const char *name,
                       const struct qed_commit_options *options);

/* Give an image another backing image.  Safe: the disk keeps its
 * content, for which clusters that the two backing images have
 * differently are copied into this layer; the time is in proportion to
 * the data of both.  Unsafe: only the header changes, and the new
 * backing image is not looked at.  Killed at any point, the image has
 * the old backing image or the new one, and the disk reads the same (if
 * it is safe).
 */
struct qed_rebase_options {
  const char *backing;          /* for the header, so relative to the
                                   image's folder; NULL or "" for none */
  enum qed_format backing_format; /* RAW sets BACKING_FORMAT_NO_PROBE;
                                   PROBE: by its magic when it is safe,
                                   and recorded if it is raw; otherwise left
                                   to be probed, unless that would make a
                                   disk that was raw something else (EPERM).
                                   QED: unsafe, any that is not raw */
  bool unsafe;
  bool no_lock;                 /* of the backing images */
  bool no_image_lock;
  enum node_cache cache;        /* of the image */
  enum node_cache backing_cache;
  const struct qed_progress *progress; /* may be NULL */
};
extern int qed_rebase (const char *name,
                       const struct qed_rebase_options *options);

/* Find a backing image the way qed_open does: make its name relative to
 * the folder of the image (result to be freed; NULL after a message, that
 * says how to change a name that stands in the header), and set a format
 * that is PROBE to what the name says; and tell its format by magic.
 */
#define QED_OTHER_BACKING \
  "backing=URI, or for good: qed-img rebase -u -b URI IMAGE"
extern char *qed_backing_path (const char *image, const char *backing,
                               bool in_header, enum qed_format *format);
extern int qed_probe (struct node *n, enum qed_format *format);

/* The name as QEMU has it, also where we need not be able to open it:
 * *name, to be freed, is NULL if it is relative to an image that is no
 * local file.  What begins with file: is not relative to the image, and is
 * a path without that.
 */
extern int qed_backing_full_name (const char *image, const char *backing,
                                  char **name);
extern const char *qed_without_protocol (const char *name);

/* ---- Buffers */

/* A buffer is a local image file that holds for a while what differs
 * from a node, and is emptied again and again.  It survives the death of
 * the process at any moment; power loss only from qed_buffer_keep on.
 * The node is given by the user, stays his, and is not named in the
 * file: a backing image that the header names is not opened.
 */

/* Make a missing (or empty) file a new buffer for size bytes. */
extern int qed_buffer_create (const char *name, uint64_t size);

/* Open one.  That changes nothing of the file: space that a crash has
 * leaked is given back when the buffer is emptied, and one that is
 * damaged is read-only, after a message for each place, and can only be
 * closed or its note be read.  Before node_start it needs
 * qed_buffer_set_backing.
 */
extern struct node *qed_buffer_open (const char *name);

/* Its size is at least that of the backing node.  written: others write
 * to it while the buffer is in use, after they have called
 * qed_buffer_hold for the range; who reads the buffer then never sees
 * what they wrote.
 */
extern void qed_buffer_set_backing (struct node *n, struct node *backing,
                                    bool written);

/* Copy clusters up, as they are in the backing node, all that the range
 * touches, where the buffer does not have them.  When it returns, they
 * survive the death of the process.
 */
extern int qed_buffer_hold (struct node *n, uint64_t count, uint64_t offset);

/* What does the buffer have at offset, and for how many bytes from
 * there (at most count)?
 */
enum qed_held { QED_HELD_NOT, QED_HELD_ZEROES, QED_HELD_DATA };
extern int qed_buffer_held (struct node *n, uint64_t count, uint64_t offset,
                            enum qed_held *held, uint64_t *length);

/* How many clusters it has, and their size in bytes; constant time. */
extern uint64_t qed_buffer_nr_held (struct node *n);
extern uint64_t qed_buffer_cluster_size (struct node *n);

/* Emptying in steps, while the caller lets no request through.  Prepare
 * does what may fail.  Switch empties the file, and is all that a crash
 * can tell; it fails only if the header cannot be written, and then
 * changes nothing.  After it comes finish, which cannot fail, or back,
 * which goes back, and may fail as well.  Undo takes back the last of these
 * two; where that fails, nothing can be written until it has been done.
 * Finish does nothing where nothing was switched.
 * Prepare may be called again.  All take constant time; the space is given
 * back in the background.
 */
extern int qed_buffer_empty_prepare (struct node *n);
extern int qed_buffer_empty_switch (struct node *n);
extern int qed_buffer_empty_back (struct node *n);
extern void qed_buffer_empty_undo (struct node *n);
extern void qed_buffer_empty_finish (struct node *n);

/* Make it and its space as new, and durable, while the caller lets no
 * request through; waits for the background.
 */
extern int qed_buffer_clean (struct node *n);

/* What it holds is durable, and from here on it survives power loss as
 * any other image, until it is emptied.  While the caller lets no request
 * through; a node_flush before shortens that.
 */
extern int qed_buffer_keep (struct node *n);

/* A note of the user's, in the unused end of the header's first cluster,
 * where no reader of QED images looks.  Zeroes if there was none.  What
 * is put survives the death of the process, and with durable power loss.
 */
#define QED_NOTE_LEN 512
extern int qed_buffer_get_note (struct node *n, uint8_t note[QED_NOTE_LEN]);
extern int qed_buffer_put_note (struct node *n,
                                const uint8_t note[QED_NOTE_LEN],
                                bool durable);

#endif /* BLOCKDRIVERS_QED_H */
