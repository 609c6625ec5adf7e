/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* To be preloaded: one call of a kind fails, or some in a row, of those that
 * are made by our own code.
 *
 *   FAULT_OBJECT   part of the name of the program or module that calls
 *   FAULT_KIND     a function, as in the table below; "" only counts
 *   FAULT_NR       which call of this kind, from 1
 *   FAULT_ROW      how many (1)
 *   FAULT_ERRNO    a number; 0 for a count that is too short
 *   FAULT_LATE     1: it does its work all the same
 *   FAULT_REPORT   a file that has, at the end (or SIGUSR2, where calls are
 *                  counted), a line "KIND CALLS" for each kind, and at once
 *                  "fired" if a call is made to fail
 */

#include <config.h>

#include "tests/lib/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define KINDS(X)                                                        \
  X (pread) X (pwrite) X (pwritev) X (fsync) X (fdatasync)              \
  X (fallocate) X (ftruncate) X (fcntl) X (openat) X (stat) X (lseek)   \
  X (mmap) X (malloc) X (calloc) X (realloc) X (strdup)                 \
  X (pthread_create) X (socket) X (connect) X (send) X (recv)            \
  X (bind) X (listen) X (accept4) X (rename) X (link) X (unlink) X (asprintf)

#define ENUM(name) KIND_##name,
enum kind { KINDS (ENUM) NR_KINDS };
#define NAME(name) #name,
static const char *const names[] = { KINDS (NAME) };

static atomic_ulong calls[NR_KINDS];
static bool ready;
static const char *object, *report;
static int wanted_kind = -1, wanted_errno;
static unsigned long wanted_nr, wanted_row;
static bool late;

static void end (void);

/* Who would go on to the end of its program is ended here. */
static void
end_at_once (int signal)
{
  end ();
  _exit (0);
}

static __attribute__ ((constructor)) void
begin (void)
{
  const char *kind = getenv ("FAULT_KIND");

  object = getenv ("FAULT_OBJECT");
  report = getenv ("FAULT_REPORT");
  if (object == NULL || kind == NULL)
    return;
  for (int i = 0; i < NR_KINDS; ++i)
    if (strcmp (kind, names[i]) == 0)
      wanted_kind = i;
  wanted_nr = getenv ("FAULT_NR") ? strtoul (getenv ("FAULT_NR"), NULL, 10)
    : 0;
  wanted_row = getenv ("FAULT_ROW") ? strtoul (getenv ("FAULT_ROW"), NULL, 10)
    : 1;
  wanted_errno = getenv ("FAULT_ERRNO") ? atoi (getenv ("FAULT_ERRNO")) : EIO;
  late = getenv ("FAULT_LATE") && *getenv ("FAULT_LATE") == '1';
  ready = true;
  if (*kind == '\0')
    signal (SIGUSR2, end_at_once);
}

static bool
is_ours (const void *caller)
{
  Dl_info info;

  return dladdr (caller, &info) && info.dli_fname &&
    strstr (info.dli_fname, object);
}

static __attribute__ ((destructor)) void
end (void)
{
  char line[64];
  unsigned long all = 0;
  int fd;

  for (int i = 0; i < NR_KINDS; ++i)
    all += calls[i];
  if (!ready || report == NULL || all == 0)
    return;
  ready = false;
  fd = open64 (report, O_WRONLY | O_CREAT | O_APPEND, 0600);
  for (int i = 0; i < NR_KINDS; ++i)
    if (calls[i] > 0) {
      snprintf (line, sizeof line, "%s %lu\n", names[i],
                (unsigned long) calls[i]);
      (void) !write (fd, line, strlen (line));
    }
  close (fd);
}

/* Who is killed afterwards does not come to its end. */
static void
report_fired (void)
{
  const int fd = report ? open64 (report, O_WRONLY | O_CREAT | O_APPEND, 0600)
    : -1;

  if (fd >= 0) {
    (void) !write (fd, "fired\n", 6);
    close (fd);
  }
}

/* Does this call fail? */
static bool
fails (enum kind kind, const void *caller)
{
  if (!ready || !is_ours (caller))
    return false;
  const unsigned long nr = atomic_fetch_add (&calls[kind], 1) + 1;

  if ((int) kind != wanted_kind || nr < wanted_nr ||
      nr - wanted_nr >= wanted_row)
    return false;
  report_fired ();
  return true;
}

#define CALLER __builtin_return_address (0)

/* A call that returns -1 when it fails.  half is what it does when its count
 * is too short.
 */
#define CALL(kind, call, half)                          \
  do {                                                  \
    if (!fails (KIND_##kind, CALLER))                   \
      return call;                                      \
    if (wanted_errno == 0)                              \
      return half;                                      \
    if (late)                                           \
      (void) !(call);                                   \
    errno = wanted_errno;                               \
    return -1;                                          \
  } while (0)

#define PREAD(count) NEXT (pread64) (fd, buf, count, offset)
ssize_t
pread64 (int fd, void *buf, size_t count, off64_t offset)
{
  CALL (pread, PREAD (count), PREAD ((count + 1) / 2));
}
ALSO_AS (ssize_t, pread, (int, void *, size_t, off_t))

#define PWRITE(count) NEXT (pwrite64) (fd, buf, count, offset)
ssize_t
pwrite64 (int fd, const void *buf, size_t count, off64_t offset)
{
  CALL (pwrite, PWRITE (count), PWRITE ((count + 1) / 2));
}
ALSO_AS (ssize_t, pwrite, (int, const void *, size_t, off_t))

ssize_t
pwritev64 (int fd, const struct iovec *iov, int iovcnt, off64_t offset)
{
  CALL (pwritev, NEXT (pwritev64) (fd, iov, iovcnt, offset),
        NEXT (pwrite64) (fd, iov->iov_base, (iov->iov_len + 1) / 2, offset));
}
ALSO_AS (ssize_t, pwritev, (int, const struct iovec *, int, off_t))

int
fsync (int fd)
{
  CALL (fsync, NEXT (fsync) (fd), NEXT (fsync) (fd));
}

int
fdatasync (int fd)
{
  CALL (fdatasync, NEXT (fdatasync) (fd), NEXT (fdatasync) (fd));
}

#define FALLOCATE NEXT (fallocate64) (fd, mode, offset, length)
int
fallocate64 (int fd, int mode, off64_t offset, off64_t length)
{
  CALL (fallocate, FALLOCATE, FALLOCATE);
}
ALSO_AS (int, fallocate, (int, int, off_t, off_t))

#define FTRUNCATE NEXT (ftruncate64) (fd, length)
int
ftruncate64 (int fd, off64_t length)
{
  CALL (ftruncate, FTRUNCATE, FTRUNCATE);
}
ALSO_AS (int, ftruncate, (int, off_t))

#define FCNTL NEXT (fcntl64) (fd, what, argument)
int
fcntl64 (int fd, int what, ...)
{
  va_list args;
  void *argument;

  va_start (args, what);
  argument = va_arg (args, void *);
  va_end (args);
  if (what == F_GETFD)          /* fails for no reason but EBADF */
    return FCNTL;
  CALL (fcntl, FCNTL, FCNTL);
}
ALSO_AS (int, fcntl, (int, int, ...))

#define OPEN NEXT (open64) (path, flags, mode)
int
open64 (const char *path, int flags, ...)
{
  va_list args;
  unsigned mode;

  va_start (args, flags);
  mode = va_arg (args, unsigned);
  va_end (args);
  CALL (openat, OPEN, OPEN);
}
ALSO_AS (int, open, (const char *, int, ...))

#define MKOSTEMP NEXT (mkostemp64) (template, flags)
int
mkostemp64 (char *template, int flags)
{
  CALL (openat, MKOSTEMP, MKOSTEMP);
}
ALSO_AS (int, mkostemp, (char *, int))

#define FSTAT NEXT (fstat64) (fd, st)
int
fstat64 (int fd, struct stat64 *st)
{
  CALL (stat, FSTAT, FSTAT);
}
ALSO_AS (int, fstat, (int, struct stat *))

#define FSTATAT NEXT (fstatat64) (folder, path, st, flags)
int
fstatat64 (int folder, const char *path, struct stat64 *st, int flags)
{
  CALL (stat, FSTATAT, FSTATAT);
}
ALSO_AS (int, fstatat, (int, const char *, struct stat *, int))

#define STAT NEXT (stat64) (path, st)
int
stat64 (const char *path, struct stat64 *st)
{
  CALL (stat, STAT, STAT);
}
ALSO_AS (int, stat, (const char *, struct stat *))

#define LSEEK NEXT (lseek64) (fd, offset, whence)
off64_t
lseek64 (int fd, off64_t offset, int whence)
{
  CALL (lseek, LSEEK, LSEEK);
}
ALSO_AS (off_t, lseek, (int, off_t, int))

void *
mmap64 (void *addr, size_t length, int prot, int flags, int fd,
        off64_t offset)
{
  if (fails (KIND_mmap, CALLER)) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return NEXT (mmap64) (addr, length, prot, flags, fd, offset);
}
ALSO_AS (void *, mmap, (void *, size_t, int, int, int, off_t))

/* ---- Names */

#define RENAME NEXT (rename) (old, new)
int
rename (const char *old, const char *new)
{
  CALL (rename, RENAME, RENAME);
}

#define RENAMEAT NEXT (renameat) (from, old, to, new)
int
renameat (int from, const char *old, int to, const char *new)
{
  CALL (rename, RENAMEAT, RENAMEAT);
}

#define LINK NEXT (link) (old, new)
int
link (const char *old, const char *new)
{
  CALL (link, LINK, LINK);
}

#define LINKAT NEXT (linkat) (from, old, to, new, flags)
int
linkat (int from, const char *old, int to, const char *new, int flags)
{
  CALL (link, LINKAT, LINKAT);
}

#define UNLINK NEXT (unlink) (name)
int
unlink (const char *name)
{
  CALL (unlink, UNLINK, UNLINK);
}

#define UNLINKAT NEXT (unlinkat) (folder, name, flags)
int
unlinkat (int folder, const char *name, int flags)
{
  CALL (unlink, UNLINKAT, UNLINKAT);
}

/* ---- Memory */

extern void *__libc_malloc (size_t size);
extern void *__libc_calloc (size_t n, size_t size);
extern void *__libc_realloc (void *old, size_t size);

void *
malloc (size_t size)
{
  if (fails (KIND_malloc, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_malloc (size);
}

void *
calloc (size_t n, size_t size)
{
  if (fails (KIND_calloc, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_calloc (n, size);
}

void *
realloc (void *old, size_t size)
{
  if (fails (KIND_realloc, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return __libc_realloc (old, size);
}

void *
reallocarray (void *old, size_t n, size_t size)
{
  if (fails (KIND_realloc, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return NEXT (reallocarray) (old, n, size);
}

int
posix_memalign (void **block, size_t align, size_t size)
{
  return fails (KIND_malloc, CALLER) ? ENOMEM
    : NEXT (posix_memalign) (block, align, size);
}

void *
aligned_alloc (size_t align, size_t size)
{
  if (fails (KIND_malloc, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return NEXT (aligned_alloc) (align, size);
}

/* A copy of the first characters of a text. */
static char *
copy_text (const char *text, size_t len)
{
  char *copy = __libc_malloc (len + 1);

  if (copy == NULL)
    return NULL;
  copy[len] = '\0';
  return memcpy (copy, text, len);
}

char *
strdup (const char *text)
{
  if (fails (KIND_strdup, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return copy_text (text, strlen (text));
}

char *
strndup (const char *text, size_t max)
{
  if (fails (KIND_strdup, CALLER)) {
    errno = ENOMEM;
    return NULL;
  }
  return copy_text (text, strnlen (text, max));
}

int
vasprintf (char **ret, const char *format, va_list args)
{
  if (fails (KIND_asprintf, CALLER)) {
    errno = ENOMEM;
    return -1;
  }
  return NEXT (vasprintf) (ret, format, args);
}

int
asprintf (char **ret, const char *format, ...)
{
  va_list args;
  int r;

  if (fails (KIND_asprintf, CALLER)) {
    errno = ENOMEM;
    return -1;
  }
  va_start (args, format);
  r = NEXT (vasprintf) (ret, format, args);
  va_end (args);
  return r;
}

/* ---- Threads and sockets */

int
pthread_create (pthread_t *thread, const pthread_attr_t *attr,
                void *(*run) (void *), void *opaque)
{
  return fails (KIND_pthread_create, CALLER) ? EAGAIN
    : NEXT (pthread_create) (thread, attr, run, opaque);
}

int
socket (int domain, int type, int protocol)
{
  CALL (socket, NEXT (socket) (domain, type, protocol),
        NEXT (socket) (domain, type, protocol));
}

int
connect (int fd, const struct sockaddr *address, socklen_t len)
{
  CALL (connect, NEXT (connect) (fd, address, len),
        NEXT (connect) (fd, address, len));
}

ssize_t
send (int fd, const void *buf, size_t count, int flags)
{
  CALL (send, NEXT (send) (fd, buf, count, flags),
        NEXT (send) (fd, buf, (count + 1) / 2, flags));
}

ssize_t
recv (int fd, void *buf, size_t count, int flags)
{
  CALL (recv, NEXT (recv) (fd, buf, count, flags),
        NEXT (recv) (fd, buf, (count + 1) / 2, flags));
}

int
bind (int fd, const struct sockaddr *address, socklen_t len)
{
  CALL (bind, NEXT (bind) (fd, address, len),
        NEXT (bind) (fd, address, len));
}

int
listen (int fd, int backlog)
{
  CALL (listen, NEXT (listen) (fd, backlog),
        NEXT (listen) (fd, backlog));
}

int
accept4 (int fd, struct sockaddr *address, socklen_t *len, int flags)
{
  CALL (accept4, NEXT (accept4) (fd, address, len, flags),
        NEXT (accept4) (fd, address, len, flags));
}
