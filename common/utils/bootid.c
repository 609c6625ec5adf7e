/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See bootid.h. */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "utils/bootid.h"

void
boot_id_read (void *id)
{
  FILE *fp = fopen ("/proc/sys/kernel/random/boot_id", "re");

  memset (id, 0, BOOT_ID_LEN);
  if (fp == NULL)
    return;
  if (fread (id, 1, BOOT_ID_LEN, fp) != BOOT_ID_LEN)
    memset (id, 0, BOOT_ID_LEN);
  fclose (fp);
}
