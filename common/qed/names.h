/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What images are called, by users of qed-img and in the headers of
 * overlays: qed.md, "Backing name", and the names that QEMU knows.
 */

#ifndef BLOCKDRIVERS_QED_NAMES_H
#define BLOCKDRIVERS_QED_NAMES_H

#include "qed/qed.h"

/* What a name means. */
struct qed_name {
  char *file;                   /* a path or an NBD URI, to be freed */
  enum qed_format format;       /* PROBE if the name does not say */
  bool no_lock;                 /* it says that there are no locks */
};

/* A name is a path, an NBD URI, "file:PATH" or "json:{...}" with QEMU's
 * block options, nested or flat, of the drivers qed and raw over file,
 * host_device or nbd.  Others that begin with a protocol, as QEMU sees
 * one, are an error: -1 after a message, which ends with hint (or NULL).
 */
extern int qed_parse_name (const char *name, const char *hint,
                           struct qed_name *result);

#endif /* BLOCKDRIVERS_QED_NAMES_H */
