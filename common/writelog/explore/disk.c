/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A disk as a file: nbdfuse, or a copy. */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/iszero.h"
#include "utils/rounding.h"
#include "writelog/explore/children.h"
#include "writelog/explore/disk.h"

#define PATIENCE 10000          /* milliseconds */
#define PIECE ((size_t) 64 * 1024)

extern char **environ;

/* Wait for a child for a while. */
static bool
wait_for (pid_t pid, int64_t limit)
{
  while (waitpid (pid, NULL, WNOHANG) == 0) {
    if (clock_ms () > limit)
      return false;
    clock_sleep_until (clock_ms () + 1);
  }
  return true;
}

static void
end_process (pid_t pid)
{
  kill (pid, SIGKILL);
  waitpid (pid, NULL, 0);
}

/* The file appears when it is mounted. */
static bool
wait_for_file (pid_t pid, const char *file)
{
  const int64_t limit = clock_ms () + PATIENCE;

  while (access (file, F_OK) == -1) {
    if (waitpid (pid, NULL, WNOHANG) != 0)
      return false;
    if (clock_ms () > limit) {
      end_process (pid);
      return false;
    }
    clock_sleep_until (clock_ms () + 1);
  }
  return true;
}

static char *
read_text (int fd)
{
  char buf[1000];
  const ssize_t n = pread (fd, buf, sizeof buf - 1, 0);

  buf[MAX (n, (ssize_t) 0)] = '\0';
  buf[strcspn (buf, "\n")] = '\0';
  return strdup (buf[0] ? buf : "it ended");
}

pid_t
disk_mount (const char *folder, const char *uri, char **file, char **why)
{
  const int messages = open ("/dev/null", O_RDWR | O_CLOEXEC);
  const char *argv[] = { "nbdfuse", NULL, uri, NULL };
  FILE *said = tmpfile ();
  pid_t pid = -1;

  *file = *why = NULL;
  if (asprintf (file, "%s/disk", folder) == -1)
    *file = NULL;
  else if (said && messages >= 0 &&
           (mkdir (folder, 0700) == 0 || errno == EEXIST)) {
    argv[1] = *file;
    fcntl (fileno (said), F_SETFD, FD_CLOEXEC);
    pid = children_start (argv, environ, fileno (said));
    if (pid != -1 && !wait_for_file (pid, *file)) {
      pid = -1;
      *why = read_text (fileno (said));
    }
  }
  if (pid == -1 && *why == NULL && asprintf (why, "%m") == -1)
    *why = NULL;
  if (pid == -1) {
    disk_abandon (folder);
    free (*file);
    *file = NULL;
  }
  if (said)
    fclose (said);
  if (messages >= 0)
    close (messages);
  return pid;
}

/* As root at once; others may ask fusermount. */
static void
unmount (const char *folder)
{
  const char *argv[] = { "fusermount3", "-u", "-z", folder, NULL };
  const int null = open ("/dev/null", O_RDWR | O_CLOEXEC);
  pid_t pid;

  if (umount2 (folder, MNT_DETACH) == -1 && errno == EPERM && null >= 0) {
    pid = children_start (argv, environ, null);
    if (pid != -1 && !wait_for (pid, clock_ms () + PATIENCE))
      end_process (pid);
  }
  if (null >= 0)
    close (null);
}

void
disk_abandon (const char *folder)
{
  unmount (folder);
  rmdir (folder);
}

bool
disk_unmount (const char *folder, pid_t pid)
{
  const bool running = waitpid (pid, NULL, WNOHANG) == 0;

  unmount (folder);
  if (running && !wait_for (pid, clock_ms () + PATIENCE))
    end_process (pid);
  rmdir (folder);
  return running;
}

/* ---- A copy */

static int
write_all (int fd, const char *buf, size_t count, off_t offset)
{
  while (count > 0) {
    const ssize_t r = pwrite (fd, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r <= 0)
      return -1;
    buf += r;
    count -= r;
    offset += r;
  }
  return 0;
}

static int
copy_range (struct node *node, int fd, uint64_t count, uint64_t offset)
{
  CLEANUP_FREE char *buf = malloc (PIECE);
  size_t n;

  if (buf == NULL)
    return -1;
  for (; count > 0; count -= n, offset += n) {
    n = MIN (count, PIECE - offset % PIECE);
    if (node_pread (node, buf, n, offset) == -1)
      return -1;
    if (!is_zero (buf, n) && write_all (fd, buf, n, offset) == -1)
      return -1;
  }
  return 0;
}

int
disk_copy (struct node *node, const char *file)
{
  const uint64_t size = node_size (node);
  CLEANUP_CLOSE int fd = open (file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC,
                               0600);
  struct extent e;

  if (fd == -1 || ftruncate (fd, size) == -1)
    return -1;
  for (uint64_t offset = 0; offset < size; offset += e.length) {
    if (node_extents (node, size - offset, offset, &e) == -1)
      return -1;
    if (!(e.flags & EXTENT_ZERO) &&
        copy_range (node, fd, e.length, offset) == -1)
      return -1;
  }
  return 0;
}
