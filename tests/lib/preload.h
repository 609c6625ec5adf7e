/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* For libraries that are preloaded and stand before functions of the C
 * library.  To be included first, after config.h.
 *
 * What takes an off_t has two names there, NAME and NAME64.  Ours is defined
 * as NAME64, and as NAME where the two are the same function.  Where off_t has
 * 32 bits nobody here calls NAME; stat and fcntl have yet other names there,
 * and are left alone.
 */

#ifndef BLOCKDRIVERS_PRELOAD_H
#define BLOCKDRIVERS_PRELOAD_H

/* Both names are meant as they stand, and what we define is no other function
 * that checks something first.
 */
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#undef _FORTIFY_SOURCE

#include "tests/lib/next.h"

/* After NAME64. */
#ifdef __LP64__
#define ALSO_AS(type, name, arguments)                          \
  extern __attribute__ ((visibility ("default"), alias (#name "64"))) \
  type name arguments;
#else
#define ALSO_AS(type, name, arguments)
#endif

#endif /* BLOCKDRIVERS_PRELOAD_H */
