/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See socket.h.
 *
 * The file is made by bind, and nobody can connect before listen.  So
 * its mode is right when it matters even where the umask takes bits away
 * and must be corrected after bind.
 *
 * Of two servers that find the same stale file, the second could remove
 * the new file of the first.  So they take turns, with a lock on the
 * directory.  The file is later looked up in that directory, not by its
 * path: a server in the background has another working directory.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "control/socket.h"

#define BACKLOG 128

int
socket_address (struct sockaddr_un *address, const char *path)
{
  const size_t max = sizeof address->sun_path - 1;

  if (*path == '\0') {
    errno = EINVAL;
    msg_error ("the name of a control socket is empty");
    return -1;
  }
  if (strlen (path) > max) {
    errno = ENAMETOOLONG;
    msg_error ("%s: the path of a control socket has at most %zu bytes",
               path, max);
    return -1;
  }
  *address = (struct sockaddr_un) { .sun_family = AF_UNIX };
  strcpy (address->sun_path, path);
  return 0;
}

/* Returns a non-blocking socket, or -1 after a message. */
static int
new_socket (const char *path)
{
  const int fd =
    socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

  if (fd == -1)
    msg_error ("%s: making a control socket: %m", path);
  return fd;
}

/* Others may lock a directory for reasons of their own, so this gives up
 * after a while, and is not tried where it may not be read.
 */
static void
lock_directory (int directory)
{
  for (int i = 0; i < 100; ++i) {
    if (flock (directory, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
      return;
    usleep (10000);
  }
}

static int
open_directory (const char *path)
{
  char copy[sizeof (((struct listener *) NULL)->name)];
  const char *const name = dirname (strcpy (copy, path));
  int fd = open (name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

  if (fd == -1 && errno == EACCES)
    fd = open (name, O_PATH | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1)
    msg_error ("%s: opening the directory of a control socket: %m", path);
  return fd;
}

/* Remove the file of a server that is gone. */
static int
remove_stale (struct listener *l, const struct sockaddr_un *address)
{
  const char *const path = address->sun_path;
  CLEANUP_CLOSE int fd = -1;
  struct stat st;

  if (fstatat (l->directory, l->name, &st, AT_SYMLINK_NOFOLLOW) == -1) {
    if (errno == ENOENT)
      return 0;
    msg_error ("%s: looking for a control socket: %m", path);
    return -1;
  }
  if (!S_ISSOCK (st.st_mode)) {
    errno = EEXIST;
    msg_error ("%s: this file is not a socket, so it is not replaced by a "
               "control socket", path);
    return -1;
  }

  fd = new_socket (path);
  if (fd == -1)
    return -1;
  /* EAGAIN says that many are waiting for an answer. */
  if (connect (fd, (const struct sockaddr *) address, sizeof *address) == 0
      || errno == EAGAIN) {
    errno = EADDRINUSE;
    msg_error ("%s: another server answers on this socket", path);
    return -1;
  }
  if (errno != ECONNREFUSED) {
    msg_error ("%s: finding out whether another server answers on this "
               "socket: %m", path);
    return -1;
  }
  if (unlinkat (l->directory, l->name, 0) == -1 && errno != ENOENT) {
    msg_error ("%s: removing a stale control socket: %m", path);
    return -1;
  }
  return 0;
}

static void
remove_own (struct listener *l)
{
  struct stat st;

  /* As long as the socket is open, its inode number is not used again,
   * and another server finds that it answers.
   */
  if (fstatat (l->directory, l->name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
      st.st_dev == l->file.st_dev && st.st_ino == l->file.st_ino)
    unlinkat (l->directory, l->name, 0);
}

static int
make_file (struct listener *l, const struct sockaddr_un *address)
{
  const char *const path = address->sun_path;

  if (fchmod (l->fd, 0600) == -1 ||
      bind (l->fd, (const struct sockaddr *) address, sizeof *address)
      == -1) {
    msg_error ("%s: making a control socket: %m", path);
    return -1;
  }
  if (fchmodat (l->directory, l->name, 0600, 0) == -1 ||
      fstatat (l->directory, l->name, &l->file, AT_SYMLINK_NOFOLLOW) == -1 ||
      listen (l->fd, BACKLOG) == -1) {
    const int err = errno;

    msg_error ("%s: making a control socket: %m", path);
    unlinkat (l->directory, l->name, 0);
    errno = err;
    return -1;
  }
  return 0;
}

int
listener_open (struct listener *l, const char *path)
{
  CLEANUP_CLOSE int fd = -1, directory = -1;
  struct sockaddr_un address;
  char copy[sizeof address.sun_path];
  int r;

  if (socket_address (&address, path) == -1)
    return -1;
  directory = l->directory = open_directory (path);
  if (directory == -1)
    return -1;
  strcpy (l->name, basename (strcpy (copy, path)));
  fd = l->fd = new_socket (path);
  if (fd == -1)
    return -1;

  lock_directory (directory);
  r = remove_stale (l, &address);
  if (r == 0)
    r = make_file (l, &address);
  flock (directory, LOCK_UN);
  if (r == 0)
    fd = directory = -1;
  return r;
}

void
listener_close (struct listener *l)
{
  remove_own (l);
  close (l->fd);
  close (l->directory);
}
