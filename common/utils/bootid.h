/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The name that this boot of the system has. */

#ifndef BLOCKDRIVERS_BOOTID_H
#define BLOCKDRIVERS_BOOTID_H

#define BOOT_ID_LEN 36          /* bytes, without a NUL */

/* All bytes are 0 where there is no such thing; then all boots are the
 * same one.
 */
extern void boot_id_read (void *id);

#endif /* BLOCKDRIVERS_BOOTID_H */
