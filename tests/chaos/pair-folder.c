/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The folders in which the files of a pair have their names, one on each
 * machine: changes of names fail as others do, and until the folder was
 * flushed a power loss takes the last of them back (see pair.h).
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/chaos/pair.h"
#include "tests/unit/unit.h"

char folders[MACHINES][32];
static char dir[] = "/tmp/pair-XXXXXX"; /* of the folders */

#define MAX_CHANGES 64
#define NAME_LEN 256

/* How to take a change back: the name is removed, or that of another file
 * becomes it again, or both.
 */
struct undo {
  unsigned machine;
  char made[NAME_LEN];          /* "": none */
  char back[NAME_LEN];          /* made, or what was lost, is to be this
                                   again; or "" */
  char lost[NAME_LEN];          /* another name of what was replaced or
                                   removed, or "" */
};

/* Since the folder was flushed, in order; nr_made counts them all. */
static struct undo undos[MAX_CHANGES];
static unsigned nr_undos, nr_made;

extern int __real_rename (const char *from, const char *to);
extern int __wrap_rename (const char *from, const char *to);
extern int __real_link (const char *from, const char *to);
extern int __wrap_link (const char *from, const char *to);
extern int __real_linkat (int from_fd, const char *from, int to_fd,
                          const char *to, int flags);
extern int __wrap_linkat (int from_fd, const char *from, int to_fd,
                          const char *to, int flags);
extern int __real_unlink (const char *name);
extern int __wrap_unlink (const char *name);
extern int __real_fsync (int fd);
extern int __wrap_fsync (int fd);

struct names {
  const char *from, *to;
  int from_fd, to_fd, flags;
};

static void
put_name (char into[NAME_LEN], const char *name)
{
  CHECK (snprintf (into, NAME_LEN, "%s", name) < NAME_LEN);
}

static bool
is_in (const char *name, unsigned machine)
{
  const char *const folder = folders[machine];

  return strncmp (name, folder, strlen (folder)) == 0;
}

/* The name is going to be changed: keep what has it under another one if it is
 * to be lost, and if there is anything.
 */
static struct undo *
begin_undo (const char *name, bool lost)
{
  struct undo *u = &undos[nr_undos];

  CHECK (nr_undos < MAX_CHANGES);
  *u = (struct undo) {
    .machine = is_in (name, OF_PRIMARY) ? OF_PRIMARY : OF_SECONDARY
  };
  CHECK (is_in (name, u->machine));
  snprintf (u->lost, NAME_LEN, "%s/lost-%d-%u", folders[u->machine],
            (int) getpid (), nr_made++);
  if (!lost || __real_link (name, u->lost) == -1)
    u->lost[0] = '\0';
  return u;
}

/* It was done, or not. */
static int
end_undo (struct undo *u, int r)
{
  if (r == 0)
    nr_undos++;
  else if (u->lost[0])
    __real_unlink (u->lost);
  return r;
}

static void
take_back (const struct undo *u)
{
  if (u->made[0] && u->back[0])
    CHECK (__real_rename (u->made, u->back) == 0);
  else if (u->made[0])
    CHECK (__real_unlink (u->made) == 0);
  if (u->lost[0])
    CHECK (__real_rename (u->lost, u->made[0] ? u->made : u->back) == 0);
}

static void
forget_undo (const struct undo *u)
{
  if (u->lost[0])
    __real_unlink (u->lost);
}

/* As a journal does it: all up to one of them stay. */
void
folder_lose (uint64_t number)
{
  const unsigned stay = random_below (&number, nr_undos + 1);

  for (unsigned i = nr_undos; i-- > 0;)
    if (i >= stay && loses_power (kind, undos[i].machine))
      take_back (&undos[i]);
    else
      forget_undo (&undos[i]);
  nr_undos = 0;
}

void
folders_make (void)
{
  static const char *const names[MACHINES] = { "primary", "secondary" };

  CHECK (mkdtemp (dir));
  for (unsigned i = 0; i < MACHINES; ++i) {
    snprintf (folders[i], sizeof folders[i], "%s/%s", dir, names[i]);
    CHECK (mkdir (folders[i], 0700) == 0);
  }
}

void
folders_empty (void)
{
  CLEANUP_FREE char *command = NULL;

  CHECK (asprintf (&command, "rm -f %s/*/*", dir) != -1);
  CHECK (system (command) == 0);
}

void
folders_remove (void)
{
  folders_empty ();
  for (unsigned i = 0; i < MACHINES; ++i)
    rmdir (folders[i]);
  rmdir (dir);
}

/* ---- Changes */

static int
run_rename (const void *opaque)
{
  const struct names *n = opaque;
  struct undo *u = begin_undo (n->to, true);

  put_name (u->made, n->to);
  put_name (u->back, n->from);
  return end_undo (u, __real_rename (n->from, n->to));
}

int
__wrap_rename (const char *from, const char *to)
{
  return change_folder (run_rename, &(struct names) { from, to });
}

static int
run_link (const void *opaque)
{
  const struct names *n = opaque;
  struct undo *u = begin_undo (n->to, false);

  put_name (u->made, n->to);
  return end_undo (u, __real_linkat (n->from_fd, n->from, n->to_fd, n->to,
                                     n->flags));
}

int
__wrap_link (const char *from, const char *to)
{
  return change_folder (run_link, &(struct names) {
      from, to, AT_FDCWD, AT_FDCWD, 0 });
}

int
__wrap_linkat (int from_fd, const char *from, int to_fd, const char *to,
               int flags)
{
  return change_folder (run_link, &(struct names) {
      from, to, from_fd, to_fd, flags });
}

static int
run_unlink (const void *opaque)
{
  const char *const name = opaque;
  struct undo *u = begin_undo (name, true);

  put_name (u->back, name);
  return end_undo (u, __real_unlink (name));
}

int
__wrap_unlink (const char *name)
{
  return change_folder (run_unlink, name);
}

static int
run_fsync (const void *opaque)
{
  const unsigned machine = *(const unsigned *) opaque;
  unsigned left = 0;

  for (unsigned i = 0; i < nr_undos; ++i)
    if (undos[i].machine == machine)
      forget_undo (&undos[i]);
    else
      undos[left++] = undos[i];
  nr_undos = left;
  return 0;
}

int
__wrap_fsync (int fd)
{
  struct stat st, folder;

  CHECK (fstat (fd, &st) == 0);
  for (unsigned i = 0; i < MACHINES; ++i) {
    CHECK (stat (folders[i], &folder) == 0);
    if (st.st_ino == folder.st_ino && st.st_dev == folder.st_dev)
      return change_folder (run_fsync, &i);
  }
  CHECK (!S_ISDIR (st.st_mode));
  return __real_fsync (fd);
}
