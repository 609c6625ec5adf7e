/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* For functions that stand before those of the C library: the function that
 * they stand before.
 */

#ifndef BLOCKDRIVERS_NEXT_H
#define BLOCKDRIVERS_NEXT_H

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>

/* NEXT (name), for functions without an off_t, and NEXT_OFF (name), for those
 * with one: where config.h asks for one of 64 bits, the C library has them
 * under the name NAME64, and so has the linker.
 */
#if defined __GLIBC__ && defined _FILE_OFFSET_BITS && _FILE_OFFSET_BITS == 64
#define OFF_NAME(name) name "64"
#else
#define OFF_NAME(name) name
#endif

#define NEXT_NAMED(name, text)                                  \
  ({                                                            \
    static _Atomic uintptr_t next_;                             \
                                                                \
    if (atomic_load (&next_) == 0)                              \
      atomic_store (&next_, (uintptr_t) dlsym (RTLD_NEXT, text)); \
    (__typeof__ (&name)) atomic_load (&next_);                  \
  })
#define NEXT(name) NEXT_NAMED (name, #name)
#define NEXT_OFF(name) NEXT_NAMED (name, OFF_NAME (#name))

/* In a declaration of what --wrap of the linker takes, which is to be told
 * both names.
 */
#define LINKED_AS(name) __asm__ (OFF_NAME (name))

#endif /* BLOCKDRIVERS_NEXT_H */
