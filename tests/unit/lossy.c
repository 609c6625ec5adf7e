/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A library that is preloaded into a server, and makes the regular files of
 * a folder like disks with a volatile cache: what was replaced since a file
 * was last flushed is kept in FILE.undo, so that a power loss can be played
 * when the process has been killed (tests/lib/lossy.py does that).  It can
 * also kill the process before a change of such a file, or make changes fail,
 * before or after they were done.
 *
 * LOSSY_FOLDER is the folder; LOSSY_CONTROL a file with a struct control,
 * which the test maps, too.  LOSSY_BOOT is a file that is read as the boot's
 * identifier.
 */

#include <config.h>

#include "tests/lib/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512

#define EXPORT __attribute__ ((visibility ("default")))

enum mode {
  ONCE_BEFORE, ONCE_AFTER, FEW_BEFORE, FEW_AFTER, ALWAYS_BEFORE, ALWAYS_AFTER
};
#define FEW 4                   /* in a row */

struct control {
  _Atomic uint64_t changes;     /* so far; calls that change or flush a file */
  _Atomic uint64_t kill_at;     /* the number of the call before which the
                                   process is killed; 0: none */
  _Atomic uint64_t fail_at;     /* the first that fails; 0: none */
  _Atomic uint64_t mode;
};

/* What stands before each piece of an undo file. */
struct undo {
  uint64_t offset;
  uint64_t length;              /* of the old bytes that follow */
  uint64_t size;                /* of the file before */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* one change at a
                                                            time, and its
                                                            undo record */
static struct control *control;
static char folder[PATH_MAX];

static void __attribute__ ((constructor))
begin (void)
{
  const char *const name = getenv ("LOSSY_FOLDER");
  const char *const file = getenv ("LOSSY_CONTROL");
  int fd;

  if (name == NULL || file == NULL || realpath (name, folder) == NULL)
    return;
  fd = open64 (file, O_RDWR | O_CLOEXEC);
  if (fd == -1)
    return;
  control = mmap64 (NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED,
                  fd, 0);
  close (fd);
  if (control == MAP_FAILED)
    control = NULL;
}

/* The name of a file of the folder, with room for more. */
static bool
is_ours (int fd, char name[PATH_MAX], struct stat64 *st)
{
  char self[64];
  ssize_t len;

  if (control == NULL)
    return false;
  snprintf (self, sizeof self, "/proc/self/fd/%d", fd);
  len = readlink (self, name, PATH_MAX - 16);
  if (len <= 0)
    return false;
  name[len] = '\0';
  return strncmp (name, folder, strlen (folder)) == 0 &&
    name[strlen (folder)] == '/' && fstat64 (fd, st) == 0 &&
    S_ISREG (st->st_mode) && st->st_nlink > 0;
}

static void
must (bool ok)
{
  if (!ok) {
    perror ("lossy");
    abort ();
  }
}

/* Note what these bytes, in whole sectors, and the length of the file are. */
static void
note_old (int fd, const char *name, uint64_t offset, uint64_t count,
          uint64_t size)
{
  char path[PATH_MAX];
  const uint64_t start = offset / SECTOR * SECTOR;
  uint64_t end = (offset + count + SECTOR - 1) / SECTOR * SECTOR;
  char *buf;
  int undo;

  if (end > size)
    end = size;
  if (end < start)
    end = start;

  struct undo head = { start, end - start, size };

  snprintf (path, sizeof path, "%.*s.undo", PATH_MAX - 8, name);
  undo = open64 (path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  must (undo >= 0);
  buf = malloc (sizeof head + head.length);
  must (buf != NULL);
  memcpy (buf, &head, sizeof head);
  must (pread64 (fd, buf + sizeof head, head.length, start)
        == (ssize_t) head.length);
  must (write (undo, buf, sizeof head + head.length)
        == (long) (sizeof head + head.length));
  free (buf);
  close (undo);
}

/* Does this call fail, and does it do its work? */
static bool
fails (bool *works)
{
  const uint64_t nr = atomic_fetch_add (&control->changes, 1) + 1;
  const uint64_t at = atomic_load (&control->fail_at);
  const enum mode mode = atomic_load (&control->mode);
  const uint64_t n =
    mode >= ALWAYS_BEFORE ? UINT64_MAX - at : mode >= FEW_BEFORE ? FEW : 1;
  const bool fail = at && nr >= at && nr < at + n;

  if (nr == atomic_load (&control->kill_at)) {
    kill (getpid (), SIGKILL);
    pause ();
  }
  *works = !fail || mode % 2 == ONCE_AFTER;
  return fail;
}

/* A change of a range of a file of ours; of the length alone if count is 0. */
#define CHANGE(fd, offset, count, call)                                 \
  do {                                                                  \
    char name[PATH_MAX];                                                \
    struct stat64 st;                                                     \
    bool works, fail;                                                   \
    long r = -1;                                                        \
                                                                        \
    if (!is_ours (fd, name, &st))                                       \
      return (call);                                                    \
    pthread_mutex_lock (&lock);                                         \
    fail = fails (&works);                                              \
    if (works && fstat64 (fd, &st) == 0) {                                \
      note_old (fd, name, offset, count, st.st_size);                   \
      r = (call);                                                       \
    }                                                                   \
    pthread_mutex_unlock (&lock);                                       \
    if (fail) {                                                         \
      errno = EIO;                                                      \
      return -1;                                                        \
    }                                                                   \
    return r;                                                           \
  } while (0)

EXPORT ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  CHANGE (fd, offset, count, NEXT (pwrite64) (fd, buf, count, offset));
}
ALSO_AS (ssize_t, pwrite, (int, const void *, size_t, off_t))

static size_t
length_of (const struct iovec *iov, int iovcnt)
{
  size_t length = 0;

  for (int i = 0; i < iovcnt; ++i)
    length += iov[i].iov_len;
  return length;
}

EXPORT ssize_t
pwritev64 (int fd, const struct iovec *iov, int iovcnt, off64_t offset)
{
  CHANGE (fd, offset, length_of (iov, iovcnt),
          NEXT (pwritev64) (fd, iov, iovcnt, offset));
}
ALSO_AS (ssize_t, pwritev, (int, const struct iovec *, int, off_t))

EXPORT int
ftruncate64 (int fd, off64_t length)
{
  /* What is cut off. */
  CHANGE (fd, length, UINT64_C (1) << 40, NEXT (ftruncate64) (fd, length));
}
ALSO_AS (int, ftruncate, (int, off_t))

EXPORT int
fallocate64 (int fd, int how, off64_t offset, off64_t length)
{
  CHANGE (fd, offset, length, NEXT (fallocate64) (fd, how, offset, length));
}
ALSO_AS (int, fallocate, (int, int, off_t, off_t))

/* What is flushed cannot be lost any more. */
static int
flush (int fd)
{
  char name[PATH_MAX], path[PATH_MAX];
  struct stat64 st;
  bool works, fail;

  if (!is_ours (fd, name, &st))
    return 0;
  pthread_mutex_lock (&lock);
  fail = fails (&works);
  snprintf (path, sizeof path, "%.*s.undo", PATH_MAX - 8, name);
  if (works)
    unlink (path);
  pthread_mutex_unlock (&lock);
  if (fail)
    errno = EIO;
  return fail ? -1 : 0;
}

EXPORT int
fdatasync (int fd)
{
  return flush (fd);
}

EXPORT int
fsync (int fd)
{
  return flush (fd);
}

EXPORT FILE *
fopen64 (const char *path, const char *mode)
{
  const char *const boot = getenv ("LOSSY_BOOT");

  if (boot && strcmp (path, "/proc/sys/kernel/random/boot_id") == 0)
    path = boot;
  return NEXT (fopen64) (path, mode);
}
ALSO_AS (FILE *, fopen, (const char *, const char *))
