/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* To be preloaded together with a sanitizer's runtime.
 *
 * Modules stay loaded until the end, so that a report can name the function
 * that it is about, and what only a module's variables point to is no leak.
 *
 * Locales stay, because where the address sanitizer is preloaded, and after
 * strerror, glibc 2.36 waits for ever for a lock in freelocale, which
 * libp11-kit (of GnuTLS, of nbdkit) calls when a program ends: the lock's
 * count of readers is one too low since before main.
 *
 * What the process starts, such as the scripts of nbdkit's eval plugin, has
 * neither: a shell does not bear the thread sanitizer, and dd is reported.
 */

#include <config.h>

#include <dlfcn.h>
#include <locale.h>
#include <stdlib.h>

extern int dlclose (void *handle);
extern void freelocale (locale_t locale);

int
dlclose (void *handle)
{
  return 0;
}

void
freelocale (locale_t locale)
{
}

static __attribute__ ((constructor)) void
begin (void)
{
  unsetenv ("LD_PRELOAD");
}
