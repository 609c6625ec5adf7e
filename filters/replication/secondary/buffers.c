/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The two buffers of a secondary: their files, and emptying them together
 * (see secondary.c).
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "filters/replication/secondary/buffers.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Is there a file that is not empty? */
static bool
is_there (const char *name)
{
  struct stat st;

  return stat (name, &st) == 0 && !(S_ISREG (st.st_mode) && st.st_size == 0);
}

/* The folder in which a file is to be made, to be freed. */
static char *
folder_of (const char *name)
{
  CLEANUP_FREE char *copy = strdup (name);

  return copy ? realpath (dirname (copy), NULL) : NULL;
}

static int
check_folder (const char *name)
{
  CLEANUP_FREE char *folder = folder_of (name);

  if (folder && access (folder, W_OK) == 0)
    return 0;
  msg_error ("%s: the buffer cannot be created: %m", name);
  return -1;
}

static bool
is_same_file (const char *a, const char *b)
{
  CLEANUP_FREE char *folder_a = NULL;
  CLEANUP_FREE char *folder_b = NULL;
  const char *base_a, *base_b;
  struct stat st_a, st_b;

  if (stat (a, &st_a) == 0 && stat (b, &st_b) == 0)
    return st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino;
  folder_a = folder_of (a);
  folder_b = folder_of (b);
  base_a = strrchr (a, '/');
  base_b = strrchr (b, '/');
  return folder_a && folder_b && strcmp (folder_a, folder_b) == 0 &&
    strcmp (base_a ? base_a + 1 : a, base_b ? base_b + 1 : b) == 0;
}

/* Open a buffer if it is there; otherwise it must be possible to make
 * one.
 */
static int
open_if_there (const char *name, struct node **buffer)
{
  if (!is_there (name))
    return check_folder (name);
  *buffer = qed_buffer_open (name);
  return *buffer ? 0 : -1;
}

static int
check_size (const struct node *a, uint64_t size, const char *other)
{
  if (a == NULL || node_size (a) == size)
    return 0;
  errno = EINVAL;
  msg_error ("%s: the buffer has %" PRIu64 " bytes, but %s has %" PRIu64
             "; active buffer, hidden buffer and disk must have the same "
             "size", a->name, node_size (a), other, size);
  return -1;
}

static bool
hold_nothing (const struct secondary *s)
{
  return s->active && s->hidden && !s->active->read_only &&
    !s->hidden->read_only && qed_buffer_nr_held (s->active) == 0 &&
    qed_buffer_nr_held (s->hidden) == 0;
}

int
buffers_open (struct secondary *s)
{
  if (is_same_file (s->active_name, s->hidden_name)) {
    errno = EINVAL;
    msg_error ("%s: the active and the hidden buffer are the same file",
               s->active_name);
    return -1;
  }
  if (open_if_there (s->active_name, &s->active) == -1 ||
      open_if_there (s->hidden_name, &s->hidden) == -1)
    return -1;
  return s->hidden && !hold_nothing (s)
    ? check_size (s->active, node_size (s->hidden), s->hidden_name) : 0;
}

/* Make its name durable, so that a power loss does not take it back. */
static int
sync_folder (const char *name)
{
  CLEANUP_FREE char *folder = folder_of (name);
  const int fd = folder ? open (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    : -1;
  int r, err;

  if (fd == -1)
    return -1;
  r = fsync (fd);
  err = errno;
  close (fd);
  errno = err;
  return r;
}

/* Is this file at the name?  A rename that failed may have been done. */
static bool
is_at (const struct stat *file, const char *name)
{
  const int err = errno;
  struct stat st;
  const bool is = stat (name, &st) == 0 && st.st_dev == file->st_dev &&
    st.st_ino == file->st_ino;

  errno = err;
  return is;
}

static int
rename_file (const char *new, const char *name)
{
  struct stat file;

  if (stat (new, &file) == -1)
    return -1;
  return rename (new, name) == 0 || is_at (&file, name) ? 0 : -1;
}

/* Give a new file the name at which nothing is, or another file, whose owner
 * and mode it then takes on.
 */
static int
rename_new (const char *new, const char *name)
{
  struct stat st;

  if (stat (name, &st) == 0 &&
      (chmod (new, st.st_mode & 07777) == -1 ||
       (chown (new, st.st_uid, st.st_gid) == -1 && errno != EPERM)))
    return -1;
  return rename_file (new, name);
}

int
buffers_sync_names (struct secondary *s)
{
  if (sync_folder (s->active_name) == 0 && sync_folder (s->hidden_name) == 0)
    return 0;
  msg_error ("flushing the folder of the buffers %s and %s: %m",
             s->active_name, s->hidden_name);
  return -1;
}

/* Another name in the same folder, to be freed; NULL with errno after a
 * message.
 */
static char *
name_beside (const char *name, const char *what, const struct history *id)
{
  CLEANUP_FREE char *real = realpath (name, NULL);
  char *beside;

  if (asprintf (&beside, "%s.%s-%.8s", real ? real : name, what, id->text)
      != -1)
    return beside;
  errno = ENOMEM;
  msg_error ("%s: %m", name);
  return NULL;
}

/* Make a buffer under another name, which is returned, to be freed. */
static char *
create_beside (const char *name, uint64_t size)
{
  struct history unique;
  char *new;

  if (history_make (&unique) == -1)
    return NULL;
  new = name_beside (name, "new", &unique);
  if (new == NULL || qed_buffer_create (new, size) == 0)
    return new;
  free (new);
  return NULL;
}

static void
remove_file (const char *name)
{
  const int err = errno;

  unlink (name);
  errno = err;
}

/* A crash leaves no file or a whole one: it is made under another name.  What
 * is left under that is of no use to anybody.
 */
static int
create_buffer (const char *name, uint64_t size)
{
  CLEANUP_FREE char *real = realpath (name, NULL);
  CLEANUP_FREE char *new = create_beside (name, size);

  if (new == NULL)
    return -1;
  if (rename_new (new, real ? real : name) == 0 && sync_folder (name) == 0)
    return 0;
  msg_error ("%s: giving the new buffer %s its name: %m", name, new);
  remove_file (new);
  return -1;
}

/* QED images have whole sectors; what is behind the disk's end in the
 * last one reads as zeroes and is never written.
 */
static int
need_buffer (struct secondary *s, const char *name, struct node **buffer)
{
  const uint64_t size = round_up (node_size (s->disk), 512);

  if (*buffer == NULL) {
    if (create_buffer (name, size) == -1)
      return -1;
    *buffer = qed_buffer_open (name);
    if (*buffer == NULL)
      return -1;
  }
  return check_size (*buffer, size, "the disk");
}

/* Were they in use here, and hold nothing, so that they may be made anew when
 * the disk has become another size?  Others are perhaps not meant.
 */
static bool
are_replaceable (const struct secondary *s)
{
  return hold_nothing (s) && s->note.text.history.text[0] &&
    (s->left == BUFFERS_UNUSED || s->left == BUFFERS_OBSOLETE);
}

/* Put a new one in place of this one, with the same note. */
static int
make_anew (struct node **buffer, const char *name, uint64_t size)
{
  CLEANUP_FREE char *real = realpath (name, NULL);
  CLEANUP_FREE char *new = create_beside (name, size);
  struct node *n = new ? qed_buffer_open (new) : NULL;
  uint8_t note[QED_NOTE_LEN];

  if (n && real && qed_buffer_get_note (*buffer, note) == 0 &&
      qed_buffer_put_note (n, note, true) == 0 &&
      rename_new (new, real) == 0) {
    node_close (n);
    node_close (*buffer);
    *buffer = qed_buffer_open (name);
    if (sync_folder (name) == 0)
      return *buffer ? 0 : -1;
    n = NULL;
  }
  msg_error ("%s: making the buffer anew, for a disk of %" PRIu64 " bytes: %m",
             name, size);
  node_close (n);
  if (new)
    remove_file (new);
  return -1;
}

static int
fit_buffers (struct secondary *s)
{
  const uint64_t size = round_up (node_size (s->disk), 512);

  if (!are_replaceable (s))
    return 0;
  if (node_size (s->active) != size &&
      make_anew (&s->active, s->active_name, size) == -1)
    return -1;
  return node_size (s->hidden) == size ? 0
    : make_anew (&s->hidden, s->hidden_name, size);
}

int
buffers_make (struct secondary *s)
{
  if (fit_buffers (s) == -1)
    return -1;
  return need_buffer (s, s->active_name, &s->active) == -1 ? -1
    : need_buffer (s, s->hidden_name, &s->hidden);
}

int
buffers_empty_prepare (struct secondary *s)
{
  return qed_buffer_empty_prepare (s->active) == -1 ? -1
    : qed_buffer_empty_prepare (s->hidden);
}

/* Change both buffers, or neither. */
static int
change_both (struct node *first, struct node *second,
             int (*change) (struct node *n))
{
  int err;

  if (change (first) == -1)
    return -1;
  if (change (second) == 0)
    return 0;
  err = errno;
  qed_buffer_empty_undo (first);
  errno = err;
  return -1;
}

int
buffers_empty_switch (struct secondary *s)
{
  return change_both (s->active, s->hidden, qed_buffer_empty_switch);
}

/* The hidden one has what belongs to the disk, so it comes first. */
int
buffers_empty_back (struct secondary *s)
{
  return change_both (s->hidden, s->active, qed_buffer_empty_back);
}

void
buffers_empty_finish (struct secondary *s)
{
  qed_buffer_empty_finish (s->active);
  qed_buffer_empty_finish (s->hidden);
}

/* ---- Keeping the checkpoint before */

static void
set_buffer (struct secondary *s, struct node **buffer, struct node *n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->buffers_lock);

  *buffer = n;
}

/* The file takes the place of the hidden buffer, which is left under the other
 * name.  A crash in between leaves it under both.
 */
static int
exchange_hidden (struct secondary *s, const char *new, const char *kept)
{
  CLEANUP_FREE char *real = realpath (s->hidden_name, NULL);
  struct stat file;

  if (real && stat (real, &file) == 0) {
    if (link (real, kept) == 0 && rename_new (new, real) == 0)
      return 0;
    /* What was there before, or is another file, is of somebody else. */
    if (errno != EEXIST && is_at (&file, kept))
      remove_file (kept);
  }
  msg_error ("%s: keeping it as %s: %m", s->hidden_name, kept);
  return -1;
}

/* Open the file as a hidden buffer that says what the other one says. */
static struct node *
open_beside (struct secondary *s, const char *new)
{
  uint8_t text[QED_NOTE_LEN];
  struct node *n = qed_buffer_open (new);

  if (n == NULL)
    return NULL;
  qed_buffer_set_backing (n, s->disk, true);
  if (qed_buffer_get_note (s->hidden, text) == 0 &&
      qed_buffer_put_note (n, text, true) == 0 && node_start (n) == 0)
    return n;
  node_close (n);
  return NULL;
}

/* Make a new hidden buffer and exchange it. */
static struct node *
replace_hidden (struct secondary *s, const char *kept)
{
  CLEANUP_FREE char *new =
    create_beside (s->hidden_name, node_size (s->hidden));
  struct node *n;

  if (new == NULL)
    return NULL;
  n = open_beside (s, new);
  if (n && exchange_hidden (s, new, kept) == 0)
    return n;
  node_close (n);
  remove_file (new);
  return NULL;
}

void
buffers_drop_kept (struct secondary *s)
{
  struct node *const old = s->kept;

  if (old == NULL)
    return;
  set_buffer (s, &s->kept, NULL);
  remove_file (s->kept_name);
  node_close (old);
  free (s->kept_name);
  s->kept_name = NULL;
}


int
buffers_keep (struct secondary *s, const struct history *id)
{
  struct node *const old = s->hidden;
  char *const kept = name_beside (s->hidden_name, "before", id);
  struct node *const n = kept ? replace_hidden (s, kept) : NULL;
  int r;

  if (n == NULL) {
    buffers_empty_finish (s);
    free (kept);
    return -1;
  }
  /* If this fails both are empty, and the new one is as good. */
  r = qed_buffer_empty_back (old);
  qed_buffer_set_backing (old, n, false);
  qed_buffer_set_backing (s->active, n, false);
  qed_buffer_empty_finish (s->active);
  set_buffer (s, &s->hidden, n);
  set_buffer (s, &s->kept, old);
  s->kept_name = kept;
  if (r == -1)
    buffers_drop_kept (s);
  return r;
}

int
buffers_use_kept (struct secondary *s)
{
  static const uint8_t no_note[QED_NOTE_LEN];
  CLEANUP_FREE char *real = realpath (s->active_name, NULL);
  struct node *old;

  if (real == NULL || qed_buffer_put_note (s->kept, no_note, true) == -1 ||
      rename_file (s->kept_name, real) == -1) {
    msg_error ("%s: taking the place of %s: %m", s->kept_name,
               s->active_name);
    return -1;
  }
  old = s->active;
  set_buffer (s, &s->active, s->kept);
  node_close (old);
  set_buffer (s, &s->kept, NULL);
  free (s->kept_name);
  s->kept_name = NULL;
  return 0;
}

void
buffers_forget_kept (struct secondary *s, const struct history *id)
{
  CLEANUP_FREE char *kept = name_beside (s->hidden_name, "before", id);

  if (kept)
    unlink (kept);
}
