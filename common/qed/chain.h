/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Chains of backing images: names, formats, loops. */

#ifndef BLOCKDRIVERS_QED_CHAIN_H
#define BLOCKDRIVERS_QED_CHAIN_H

#include "qed/image/image.h"

/* The images above one that is being opened, from there upwards. */
struct chain_link {
  const struct chain_link *above;
  const struct node *node;      /* the file or export */
};

/* Is this the same file as one above?  Then -1 after a message. */
extern int chain_find_loop (const struct chain_link *link);

/* The backing name in the header: *name is to be freed, NULL if there
 * is none.
 */
extern int qed_backing_name (struct node *file, const struct qed_header *h,
                             char **name);

/* Open a backing image, whatever its format, and what is below it.
 * from_header: its name stood in the header of the image (and is
 * relative to that one's folder).
 */
extern struct node *chain_open_backing (const char *image, const char *name,
                                        bool from_header,
                                        enum qed_format format,
                                        const struct qed_options *options,
                                        const struct chain_link *above);

/* The same with all options for the image itself, which may be
 * writable, be opened without what is below it (backing "none"), and so
 * on.
 */
extern struct node *chain_open_layer (const char *image, const char *name,
                                      bool from_header,
                                      enum qed_format format,
                                      const struct qed_options *options,
                                      const struct chain_link *above);

/* Open a QED image over a file, and what is below it.  Owns file, also
 * when it fails.
 */
extern struct node *chain_open_qed (struct node *file,
                                    const struct qed_options *options,
                                    const struct chain_link *above);

/* The same over the file of an image that was opened bare, to look at it
 * before anything is changed.  Owns bare, also when it fails.
 */
extern struct node *chain_reopen (struct qed *bare,
                                  const struct qed_options *options);

#endif /* BLOCKDRIVERS_QED_CHAIN_H */
