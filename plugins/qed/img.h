/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* qed-img: what its sub-commands share.  Each of them is described by
 * one table, from which parsing and help are made.
 */

#ifndef BLOCKDRIVERS_IMG_H
#define BLOCKDRIVERS_IMG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#include "qed.h"

/* Options without a letter. */
enum {
  IMG_OUTPUT = 256,
  IMG_OBJECT,
  IMG_IMAGE_OPTS,
  IMG_BACKING_CHAIN,
};

struct img_option {
  int code;                     /* its letter, or a number from above */
  const char *name;             /* long name, or NULL */
  const char *value;            /* what it takes: NULL for nothing, words
                                   as "A|B", or a kind such as "FILE" */
  const char *help;             /* NULL: known, but not supported here */
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
#define IMG_OPTION_OUTPUT                                               \
  { IMG_OUTPUT, "output", "human|json", "how to print the result" }
#define IMG_OPTIONS_EVERYWHERE                                          \
  { 'h', "help", NULL, "print this help and exit" },                    \
  { IMG_OBJECT, "object", "OBJECT", NULL },                             \
  { IMG_IMAGE_OPTS, "image-opts", NULL, NULL },                         \
  { 0 }

struct img_command {
  const char *name;
  const char *arguments;        /* "IMAGE [SIZE]" */
  const char *help;
  const struct img_option *options; /* ends with code 0 */
  int (*run) (int argc, char *argv[]); /* returns the exit status */
};

extern const struct img_command img_create_command;
extern const struct img_command img_info_command;
extern const struct img_command img_check_command;

/* ---- qed-img.c */

/* What the options that mean the same everywhere have said. */
struct img_common {
  bool quiet;
  bool json;
  bool force_share;
};

/* getopt for a command's table: the code of the next option that is the
 * command's own business, its value in optarg, or -1 at the end; optind
 * then is the first argument.  Does not return for mistakes and --help.
 */
extern int img_next_option (const struct img_command *command,
                            int argc, char *argv[],
                            struct img_common *common);

/* The only argument, after all options. */
extern const char *img_one_image (int argc, char *argv[]);

/* Say what is wrong with the command line and exit with status 1. */
extern void img_usage_error (const char *fs, ...)
  __attribute__ ((noreturn, format (printf, 1, 2)));

/* Print the value to standard output as qemu-img does, and release it.
 * NULL is what jansson returns when out of memory.  Returns -1 after a
 * message.
 */
extern int img_print_json (json_t *value);

/* A JSON string of bytes that may be no UTF-8. */
extern json_t *img_json_string (const char *str);

/* ---- img-info.c */

/* An image, or one below it. */
struct img_layer {
  char *name;                   /* path or URI, to be opened from here */
  enum qed_format format;       /* never QED_FORMAT_PROBE */
  uint64_t size;                /* bytes, of the disk */
  int64_t allocated_size;       /* bytes, or -1 */
  bool is_uri;
  struct qed_info info;         /* if format is QED */
};

struct img_chain {
  struct img_layer *layers;     /* the uppermost first */
  size_t nr;
};

#define IMG_EMPTY_CHAIN ((struct img_chain) { NULL })

/* Read what the headers say of an image and, if whole, of all images
 * below it, down to the one that has no backing image.  A loop, or an
 * image that is missing or of a foreign format, is an error: -1 after a
 * message.  The chain must be freed in any case.
 */
extern int img_chain_read (struct img_chain *chain, const char *name,
                           enum qed_format format, bool no_lock, bool whole);
extern void img_chain_free (struct img_chain *chain);

/* Are these the same file or export? */
extern bool img_same_image (const char *name1, const char *name2);

#endif /* BLOCKDRIVERS_IMG_H */
