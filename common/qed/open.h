/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Opening images, bare or with what is below them. */

#ifndef BLOCKDRIVERS_QED_OPEN_H
#define BLOCKDRIVERS_QED_OPEN_H

#include "qed/chain.h"
#include "qed/image/image.h"

/* QED nodes are those with these operations. */
extern const struct node_ops qed_node_ops;

/* Open an image alone: header, geometry and L1 table, without backing
 * image, cache and scan.  A repair that was interrupted is completed or
 * taken back.  To be closed with image_free.  The second owns file, also
 * when it fails.
 */
extern struct qed *open_bare (const char *name,
                              const struct node_open_options *options);
extern struct qed *open_bare_file (struct node *file);

/* Open a QED image over a file, and what is below it.  Owns file, also
 * when it fails.
 */
extern struct node *open_image (struct node *file,
                                const struct qed_options *options,
                                const struct chain_link *above);

/* The same over the file of an image that was opened bare, to look at it
 * before anything is changed.  Owns bare, also when it fails.
 */
extern struct node *open_again (struct qed *bare,
                                const struct qed_options *options);

/* Open a backing image, whatever its format, and what is below it.
 * from_header: its name stood in the header of the image (and is
 * relative to that one's folder).
 */
extern struct node *open_backing (const char *image, const char *name,
                                  bool from_header, enum qed_format format,
                                  const struct qed_options *options,
                                  const struct chain_link *above);

/* The same with all options for the image itself, which may be
 * writable, be opened without what is below it (backing "none"), and so
 * on.
 */
extern struct node *open_layer (const char *image, const char *name,
                                bool from_header, enum qed_format format,
                                const struct qed_options *options,
                                const struct chain_link *above);

#endif /* BLOCKDRIVERS_QED_OPEN_H */
