/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * QEMU describes who uses an image how by two rows of bytes in the
 * image file, each of which a user locks in shared mode: a byte of the
 * first row for each permission that he holds, a byte of the second for
 * each permission that he does not grant to others.  Since shared locks
 * do not exclude each other, a newcomer first sets his own and then
 * asks whether a foreign lock stands in the other row at the same
 * place.  Two newcomers may so turn each other away, but never both
 * come in.
 *
 * The locks are open-file-description locks: they go with the file
 * descriptor, not with the process, so they survive nbdkit's fork.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "node/lock.h"
#include "utils/message.h"

enum permission { CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE,
                  NR_PERMISSIONS };

#define HELD_BASE 100
#define DENIED_BASE 200

static const char *const permission_names[NR_PERMISSIONS] = {
  "consistent read", "write", "write unchanged", "resize"
};

#define BIT(p) (1u << (p))

static int
take (int fd, const char *name, int base, unsigned permissions)
{
  for (int p = 0; p < NR_PERMISSIONS; ++p) {
    struct flock fl = {
      .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = base + p, .l_len = 1
    };

    if (!(permissions & BIT (p)))
      continue;
    if (fcntl (fd, F_OFD_SETLK, &fl) == -1) {
      if (errno == EAGAIN || errno == EACCES)
        errno = EBUSY;
      msg_error ("Could not open '%s': Failed to lock byte %d: %m", name,
                 base + p);
      return -1;
    }
  }
  return 0;
}

/* The message is QEMU's, since scripts look for it: the lock that we would
 * need, and, of those that others hold, that we would have to share.
 */
static int
refuse_foreign (int fd, const char *name, int base, unsigned permissions)
{
  for (int p = 0; p < NR_PERMISSIONS; ++p) {
    struct flock fl = {
      .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = base + p, .l_len = 1
    };

    if (!(permissions & BIT (p)))
      continue;
    if (fcntl (fd, F_OFD_GETLK, &fl) == -1) {
      msg_error ("Could not open '%s': Failed to test the lock of byte %d: "
                 "%m", name, base + p);
      return -1;
    }
    if (fl.l_type != F_UNLCK) {
      msg_error ("Could not open '%s': Failed to get %s\"%s\" lock\n"
                 "Is another process using the image [%s]?", name,
                 base == HELD_BASE ? "shared " : "", permission_names[p],
                 name);
      errno = EBUSY;
      return -1;
    }
  }
  return 0;
}

int
image_lock (int fd, const char *name, enum node_lock lock, bool read_only)
{
  unsigned held = BIT (CONSISTENT_READ), denied = 0;

  if (lock == NODE_LOCK_NONE)
    return 0;

  if (lock == NODE_LOCK_IMAGE) {
    denied = BIT (WRITE) | BIT (RESIZE);
    if (!read_only)
      held |= BIT (WRITE) | BIT (RESIZE);
  }

  if (take (fd, name, HELD_BASE, held) == -1 ||
      take (fd, name, DENIED_BASE, denied) == -1 ||
      refuse_foreign (fd, name, DENIED_BASE, held) == -1 ||
      refuse_foreign (fd, name, HELD_BASE, denied) == -1)
    return -1;
  return 0;
}
