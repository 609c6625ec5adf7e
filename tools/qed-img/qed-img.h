/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img: what its sub-commands share. */

#ifndef BLOCKDRIVERS_IMG_H
#define BLOCKDRIVERS_IMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tool/tool.h"
#include "qed/names.h"
#include "qed/qed.h"

/* Options without a letter. */
enum {
  IMG_OBJECT = TOOL_FIRST_CODE,
  IMG_IMAGE_OPTS,
  IMG_BACKING_CHAIN,
  IMG_SHRINK,
  IMG_PREALLOCATION,
  IMG_SIZE,
  IMG_NO_LOCK,
  IMG_TARGET_IS_ZERO,
  IMG_TARGET_IMAGE_OPTS,
  IMG_BITMAPS,
  IMG_SALVAGE,
};

/* Options that mean the same wherever a table lists them.
 * img_next_option handles them.
 */
#define IMG_OPTION_FORMAT                                               \
  { 'f', "format", "qed", "format of IMAGE; there is only this one" }
#define IMG_OPTION_QUIET                                                \
  { 'q', NULL, NULL, "print nothing but errors" }
#define IMG_OPTION_FORCE_SHARE                                          \
  { 'U', "force-share", NULL, "open IMAGE even if it is in use" }
#define IMG_OPTION_NO_LOCK                                              \
  { IMG_NO_LOCK, "no-lock", NULL,                                       \
    "take no locks, where the file system has none" }
#define IMG_OPTION_PROGRESS                                             \
  { 'p', NULL, NULL, "show how far it is" }
#define IMG_OPTIONS_EVERYWHERE                                          \
  TOOL_OPTION_HELP,                                                     \
  { IMG_OBJECT, "object", "OBJECT", "ignored" },                            \
  { IMG_IMAGE_OPTS, "image-opts", NULL, NULL },                         \
  { 0 }

/* Cache modes, in the order of enum node_cache. */
#define IMG_CACHE_MODES "writeback|writethrough|none|directsync|unsafe"

/* Formats of backing images, which QEMU can read and we cannot. */
#define IMG_FOREIGN_FORMATS                                             \
  "bochs|cloop|dmg|luks|parallels|qcow|qcow2|vdi|vhdx|vmdk|vpc"
#define IMG_BACKING_FORMATS "raw|qed|" IMG_FOREIGN_FORMATS

extern const struct tool_command img_create_command;
extern const struct tool_command img_convert_command;
extern const struct tool_command img_info_command;
extern const struct tool_command img_check_command;
extern const struct tool_command img_map_command;
extern const struct tool_command img_resize_command;
extern const struct tool_command img_rebase_command;
extern const struct tool_command img_commit_command;
extern const struct tool_command img_measure_command;
extern const struct tool_command img_empty_command;

/* ---- arguments.c */

/* What the options that mean the same everywhere have said. */
struct img_common {
  bool quiet;
  bool json;
  bool force_share;
  bool no_lock;
  enum node_cache cache;        /* of IMAGE, if the command has one */
  bool progress;
  const char *format;           /* NULL if not given */
  enum qed_format name_format;  /* what the name of IMAGE says */
};

/* getopt for a command's table: the code of the next option that is the
 * command's own business, its value in optarg, or -1 at the end; optind
 * then is the first argument.  Does not return for mistakes and --help.
 */
extern int img_next_option (const struct tool_command *command,
                            int argc, char *argv[],
                            struct img_common *common);

/* The only argument, after all options: the path or URI that it means, and
 * what else its name says, in *common.  Does not return for mistakes.
 */
extern const char *img_one_image (int argc, char *argv[],
                                  struct img_common *common);

/* The same of any argument. */
extern const char *img_parse_image (const char *arg,
                                    struct img_common *common);

/* A size on the command line, of at most INT64_MAX bytes; what names it
 * in the message.  Does not return for mistakes.
 */
extern int64_t img_parse_size (const char *what, const char *arg);

/* A cache mode of qemu-img; kind names the option in the message.  Does
 * not return for mistakes.
 */
extern enum node_cache img_parse_cache (const char *kind, const char *mode);

/* Where the library reports how far it is: progress_start (progress.h),
 * with the library's way to call it.  progress_end ends it.
 */
extern const struct qed_progress *img_progress_start (bool show);

/* ---- object.c */

/* The value of --object.  Does not return for mistakes, and for what cannot
 * be ignored.
 */
extern void img_check_object (const char *text);

/* ---- options.c */

/* A new image as the command line describes it. */
struct img_new_image {
  const char *image;            /* its name in messages */
  char *file;                   /* its path or URI */
  int64_t size;                 /* bytes, or -1 if not given */
  char *backing;                /* NULL if none */
  char *backing_format;         /* a word, or NULL if not given */
  int64_t cluster_size;         /* bytes, or -1 if not given */
  int64_t table_size;           /* clusters, or -1 if not given */

  /* Of the file that holds it. */
  int64_t extent_size_hint;     /* bytes, or -1 if not given */
  char *nocow, *preallocation;  /* words, or NULL if not given */
  bool no_cow;                  /* what nocow says */
};

#define IMG_NEW_IMAGE                                                   \
  ((struct img_new_image) { .size = -1, .cluster_size = -1,             \
                            .table_size = -1, .extent_size_hint = -1 })

/* Append the value of one more -o to a list, which is to be freed.  Does
 * not return for mistakes.
 */
extern void img_add_options (char **list, const char *more);

/* Does the list ask which options there are?  It may be NULL here and
 * below.  Those of the file that holds the image are printed if storage.
 */
extern bool img_options_want_help (const char *list);
extern void img_print_options (bool storage);

/* Set what the list says.  -1 after a message. */
extern int img_set_options (struct img_new_image *new, const char *list);

/* ---- new-image.c */

/* Set image and file by a name on the command line. */
extern int img_set_image (struct img_new_image *new, const char *image);

/* Look at the backing image, unless it is unsafe, and take size and format
 * from it if they were not given.
 */
extern int img_settle_backing (struct img_new_image *new, bool unsafe);

/* Make a local file a raw image of that size that reads as zeroes. */
extern int img_make_raw (struct node *n, const struct img_new_image *new,
                         uint64_t size);

/* ---- options.c */

/* The same for the library.  Borrows the strings. */
extern int img_create_options (const struct img_new_image *new,
                               struct qed_create_options *options);
extern void img_new_image_free (struct img_new_image *new);

/* The extent size hint, which has a default. */
extern uint32_t img_extent_size (const struct img_new_image *new);

/* Replace a string by a copy of value; exits if out of memory. */
extern void img_set_string (char **field, const char *value);

/* A format that QEMU can read and we cannot, of which a header can still
 * name an image; and what to say then.
 */
extern bool img_is_foreign_format (const char *name);
extern void img_warn_of_format (const char *image, const char *name);

/* The format that -F names, which may be NULL: -1 after a message. */
extern int img_parse_backing_format (const char *image, const char *name,
                                     enum qed_format *format);

#endif /* BLOCKDRIVERS_IMG_H */
