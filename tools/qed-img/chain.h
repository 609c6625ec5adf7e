/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the headers of an image and of those below it say. */

#ifndef BLOCKDRIVERS_IMG_CHAIN_H
#define BLOCKDRIVERS_IMG_CHAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qed/qed.h"

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
  bool from_file;               /* the name of the uppermost one stands
                                   in a header too, or will do so */
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

#endif /* BLOCKDRIVERS_IMG_CHAIN_H */
