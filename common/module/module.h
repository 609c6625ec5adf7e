/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the plugins and filters have in common as modules of nbdkit.
 * Only this folder of common/ knows nbdkit, so it is compiled into the
 * modules and not into the library.
 */

#ifndef BLOCKDRIVERS_MODULE_H
#define BLOCKDRIVERS_MODULE_H

#include <stdbool.h>
#include <stdint.h>

/* For .load: hand the messages of common/ to nbdkit. */
extern void module_load (void);

/* Let the server unload no module any more, when a thread may still be in
 * one below that hangs: what it waits for could come after all.
 */
extern void module_keep_all (void);

/* The value of a parameter that names a file, or where URIs make sense
 * an NBD export.  A name is made absolute, since nbdkit changes its
 * folder when it goes into the background.  *name must be NULL, or the
 * parameter was given twice.  -1 after a message.
 */
extern int module_set_image (char **name, const char *key, const char *value);
extern int module_set_path (char **name, const char *key, const char *value);

/* The same for a socket that is made before nbdkit changes its folder
 * (.get_ready): the name is kept as it is, since in a folder with a long
 * path only a relative one fits in the address of a socket.
 */
extern int module_set_socket (char **name, const char *key,
                              const char *value);

/* A size or a boolean in nbdkit's spellings; -1 after messages, one of
 * which names the parameter.
 */
extern int module_set_size (int64_t *size, const char *key,
                            const char *value);
extern int module_set_bool (bool *flag, const char *key, const char *value);

/* The place of a value in a list of two or three words that ends with
 * NULL, which is also the number of the enum; -1 after a message.
 */
extern int module_choose (const char *key, const char *value,
                          const char *const words[]);

#endif /* BLOCKDRIVERS_MODULE_H */
