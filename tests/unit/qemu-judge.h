/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What qemu-img says of an image. */

#ifndef BLOCKDRIVERS_QEMU_JUDGE_H
#define BLOCKDRIVERS_QEMU_JUDGE_H

#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "utils/cleanup.h"
#include "tests/unit/unit.h"

/* The exit status of qemu-img check, whose words are in check.log then. */
static inline int
qemu_img_check (const char *path)
{
  CLEANUP_FREE char *command;
  int status;

  CHECK (asprintf (&command, "qemu-img check -q -f qed %s >check.log 2>&1",
                   path) != -1);
  status = system (command);
  CHECK (WIFEXITED (status));
  return WEXITSTATUS (status);
}

#endif /* BLOCKDRIVERS_QEMU_JUDGE_H */
