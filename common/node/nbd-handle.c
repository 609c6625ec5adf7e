/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What a new handle of libnbd is told before it connects.  What only newer
 * versions of libnbd can be told stands here.
 */

#include <config.h>

#include <stddef.h>

#include "node/nbd-handle.h"

/* What a URI may say that is not for whoever wrote the file that it may have
 * come from: which of our files are read, and how weak TLS may be.
 */
static int
allow_in_uri (struct nbd_handle *nbd, bool allowed)
{
  if (nbd_set_uri_allow_local_file (nbd, allowed) == -1)
    return -1;
#if LIBNBD_HAVE_NBD_SET_URI_ALLOW_TLS_PRIORITY
  if (nbd_set_uri_allow_tls_priority (nbd, allowed) == -1)
    return -1;
#endif
  return 0;
}

struct nbd_handle *
nbd_handle_new (bool from_file)
{
  struct nbd_handle *nbd = nbd_create ();

  if (nbd &&
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 0 &&
      allow_in_uri (nbd, !from_file) == 0 &&
      nbd_set_full_info (nbd, true) == 0) /* for the description */
    return nbd;
  nbd_close (nbd);
  return NULL;
}
