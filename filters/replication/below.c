/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See below.h. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "filters/replication/below.h"
#include "utils/message.h"

/* A byte that no disk has, and no image's lock of QEMU's is at. */
#define LOCK_BYTE ((off_t) 1 << 62)

static bool
is_open (int fd)
{
  return fcntl (fd, F_GETFD) != -1;
}

void
below_watch (struct below *b)
{
  memset (b, 0, sizeof *b);
  b->fd = -1;
  for (int fd = 0; fd < BELOW_MAX_FDS; ++fd)
    if (is_open (fd))
      b->before[fd / 8] |= 1 << fd % 8;
}

static bool
is_disk (int fd)
{
  struct stat st;

  return fstat (fd, &st) == 0 && (S_ISREG (st.st_mode) ||
                                  S_ISBLK (st.st_mode));
}

/* The only one that is new, or -1. */
static int
find_new (const struct below *b)
{
  int found = -1;

  for (int fd = 0; fd < BELOW_MAX_FDS; ++fd) {
    if ((b->before[fd / 8] >> fd % 8 & 1) || !is_open (fd) || !is_disk (fd))
      continue;
    if (found >= 0)
      return -1;
    found = fd;
  }
  return found;
}

/* A server that was killed a moment ago may have it still. */
#define PATIENCE 100
#define PAUSE 20000             /* microseconds */

/* Where such locks do not work nothing is refused. */
static int
lock (int fd)
{
  struct flock l = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BYTE, .l_len = 1
  };

  for (int i = 0; i < PATIENCE; ++i) {
    if (fcntl (fd, F_OFD_SETLK, &l) == 0 ||
        (errno != EAGAIN && errno != EACCES))
      return 0;
    usleep (PAUSE);
  }
  errno = EBUSY;
  return -1;
}

int
below_find (struct below *b)
{
  const int fd = find_new (b);
  char name[64], file[256] = "the disk";
  ssize_t len;

  if (fd == -1)
    return 0;
  snprintf (name, sizeof name, "/proc/self/fd/%d", fd);
  b->fd = open (name, O_RDWR | O_CLOEXEC);
  if (b->fd == -1 || lock (b->fd) == 0)
    return 0;
  len = readlink (name, file, sizeof file - 1);
  if (len > 0)
    file[len] = '\0';
  msg_error ("%s: another server replicates this disk, as a primary or a "
             "secondary", file);
  below_close (b);
  errno = EBUSY;
  return -1;
}

void
below_close (struct below *b)
{
  if (b->fd >= 0)
    close (b->fd);
  b->fd = -1;
}

/* The time of a device's file says nothing of the device. */
void
below_stamp (const struct below *b, bool last, struct below_stamp *stamp)
{
  struct stat st;

  *stamp = (struct below_stamp) { .inode = 0 };
  if (b->fd == -1 || (last && fsync (b->fd) == -1) ||
      fstat (b->fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  *stamp = (struct below_stamp) {
    .inode = st.st_ino,
    .seconds = st.st_mtim.tv_sec, .nanoseconds = st.st_mtim.tv_nsec,
  };
}
