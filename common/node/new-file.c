/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Local files that are made, and removed again if nobody uses them.
 *
 * A new file gets its name when it has its locks, where the file system
 * can do that: nobody else can come in between, and nothing is left if
 * the locks fail or the process is killed.  Elsewhere it is removed again,
 * unless another process was faster to lock it, whose file it is then.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "node/file.h"
#include "utils/cleanup.h"
#include "utils/message.h"

/* Of a new file, less the umask.  Never writable for others than its
 * owner: some callers have a umask of 0, and an image is no common good.
 */
#define NEW_FILE_MODE 0644

/* The place that a name means, where a link may lead to nothing: what the
 * link names.  To be freed.
 */
static char *
new_place (const char *name)
{
  char *place = strdup (name);

  for (int links = 0; place && links < 40; ++links) {
    CLEANUP_FREE char *link = place;
    char target[PATH_MAX];
    const ssize_t len = readlink (link, target, sizeof target);
    const char *const slash = strrchr (link, '/');

    if (len == -1) {
      link = NULL;
      break;
    }
    if (asprintf (&place, "%.*s%.*s",
                  slash && *target != '/' ? (int) (slash + 1 - link) : 0,
                  link, (int) len, target) == -1)
      place = NULL;
  }
  return place;
}

/* A file without a name in the folder of that one; -1 if there can be
 * none.
 */
static int
open_nameless (const char *place)
{
  const char *const slash = strrchr (place, '/');
  CLEANUP_FREE char *folder =
    slash ? strndup (place, slash + 1 - place) : strdup (".");

  if (folder == NULL || access ("/proc/self/fd", X_OK) == -1)
    return -1;
  return open (folder, O_TMPFILE | O_RDWR | FILE_OPEN_FLAGS, NEW_FILE_MODE);
}

static int
give_name (int fd, const char *place)
{
  char self[32];

  snprintf (self, sizeof self, "/proc/self/fd/%d", fd);
  return linkat (AT_FDCWD, self, AT_FDCWD, place, AT_SYMLINK_FOLLOW);
}

static int
create_file (struct file_node *f, enum node_lock lock)
{
  CLEANUP_FREE char *place = new_place (f->node.name);
  bool nameless;

  if (place == NULL)
    goto error;
  f->fd = open_nameless (place);
  nameless = f->fd >= 0;
  if (!nameless) {
    f->fd = open (place, O_CREAT | O_EXCL | O_RDWR | FILE_OPEN_FLAGS,
                  NEW_FILE_MODE);
    if (f->fd == -1)
      goto error;
  }
  if (file_node_settle (f, lock) == -1) {
    if (!nameless && errno != EBUSY)
      unlink (place);
    return -1;
  }
  f->created = place;           /* if it is this file's, also after an error */
  place = NULL;
  if (!nameless || give_name (f->fd, f->created) == 0)
    return 0;

 error:
  msg_error ("Could not create '%s': %m", f->node.name);
  return -1;
}

struct node *
node_create_file (const char *name, bool no_lock)
{
  const enum node_lock lock = no_lock ? NODE_LOCK_NONE : NODE_LOCK_IMAGE;
  struct file_node *f = file_node_new (name, false);
  int r;

  if (f == NULL)
    return NULL;
  if (access (name, F_OK) == 0)
    r = file_node_open_file (f) == -1 ? -1 : file_node_settle (f, lock);
  else
    r = create_file (f, lock);
  return r == 0 ? &f->node : file_node_give_up (f);
}

void
node_keep (struct node *n)
{
  struct file_node *f = file_node_of (n);

  if (f == NULL)
    return;
  free (f->created);
  f->created = NULL;
}

void
node_advise (struct node *n, bool no_cow, uint32_t extent_size)
{
  struct file_node *f = file_node_of (n);
  struct fsxattr x;
  int flags;

  if (f == NULL || f->is_block_device)
    return;
  if (no_cow && ioctl (f->fd, FS_IOC_GETFLAGS, &flags) == 0) {
    flags |= FS_NOCOW_FL;
    ioctl (f->fd, FS_IOC_SETFLAGS, &flags);
  }
  if (extent_size > 0 && ioctl (f->fd, FS_IOC_FSGETXATTR, &x) == 0) {
    x.fsx_xflags |= FS_XFLAG_EXTSIZE;
    x.fsx_extsize = extent_size;
    ioctl (f->fd, FS_IOC_FSSETXATTR, &x);
  }
}
