/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See pair.h. */

#include <config.h>

#include <dirent.h>
#include <errno.h>

#include "filters/replication/secondary/note.h"
#include "tests/chaos/chaos.h"
#include "tests/chaos/divert.h"
#include "tests/chaos/pair.h"
#include "tests/chaos/wire.h"
#include "utils/rounding.h"

struct account *account;

/* ---- The machine */

static struct world world;
struct medium *disks[MACHINES];
struct secondary *secondary;

enum kind kind;
uint64_t at, seed;
static bool armed;

bool
is_power_loss (enum kind k)
{
  return k <= POWER_OF_SECONDARY;
}

bool
loses_power (enum kind k, unsigned machine)
{
  return k == POWER ||
    k == (machine == OF_PRIMARY ? POWER_OF_PRIMARY : POWER_OF_SECONDARY);
}

static unsigned
machine_of (const struct medium *m)
{
  const char *const folder = folders[OF_PRIMARY];

  return m == disks[OF_PRIMARY] ||
    strncmp (m->name, folder, strlen (folder)) == 0 ? OF_PRIMARY
    : OF_SECONDARY;
}

void
keep_media (bool lose)
{
  if (lose)
    folder_lose (seed);
  account->nr_media = world.nr_media;
  for (unsigned i = 0; i < world.nr_media; ++i) {
    struct kept *k = &account->media[i];
    const unsigned machine = machine_of (world.media[i]);
    struct content c = lose && loses_power (kind, machine)
      ? medium_lose (world.media[i], seed) : medium_now (world.media[i]);

    CHECK (c.len <= MEDIUM_BYTES);
    k->machine = machine;
    k->ino = world.media[i]->ino;
    k->len = c.len;
    k->size = c.size;
    memcpy (k->data, c.data, c.len);
    free (c.data);
  }
}

/* After each change, under the world's lock. */
static void *
maybe_die (struct world *w)
{
  (void) w;
  if (armed && is_power_loss (kind) && account->changes == at) {
    keep_media (true);
    _exit (KILLED);
  }
  return NULL;
}

/* The same before it. */
static enum medium_fault
count_change (struct world *w, const struct medium *m)
{
  (void) w;
  (void) m;
  if (!armed)
    return FAULT_NONE;
  account->changes++;
  if (is_power_loss (kind) || at == 0 || account->changes < at ||
      (account->changes > at && kind < ALWAYS_BEFORE))
    return FAULT_NONE;
  return kind == ONCE_BEFORE || kind == ALWAYS_BEFORE
    ? FAULT_BEFORE : FAULT_AFTER;
}

int
change_folder (int (*run) (const void *opaque), const void *opaque)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&world.lock);
  const enum medium_fault fault = count_change (&world, NULL);
  int r = -1;

  if (fault != FAULT_BEFORE)
    r = run (opaque);
  if (fault != FAULT_NONE) {
    errno = EIO;
    r = -1;
  }

  const int err = errno;

  maybe_die (&world);
  errno = err;
  return r;
}

void
arm (bool on)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&world.lock);
  armed = on;
}

void
begin_world (void)
{
  static const struct content empty = { .size = DISK_SIZE };

  world_init (&world, seed);
  for (unsigned i = 0; i < MAX (account->nr_media, (unsigned) MACHINES); ++i) {
    const struct kept *k = &account->media[i];
    const struct content c = {
      .data = (uint8_t *) k->data, .len = k->len, .size = k->size
    };
    struct medium *m = medium_new (
      &world, i == OF_PRIMARY ? "primary's disk"
      : i == OF_SECONDARY ? "secondary's disk" : folders[k->machine],
      account->nr_media ? &c : &empty, i < MACHINES);

    m->ino = k->ino;
    if (i < MACHINES)
      disks[i] = m;
  }
  world.losses = 1;
  world.snapshot = maybe_die;
  world.fault_of = count_change;
  divert_to (&world);
}

static void
adjust_files_of (const char *folder)
{
  DIR *d = opendir (folder);
  const struct dirent *e;

  CHECK (d);
  while ((e = readdir (d)) != NULL)
    for (unsigned i = MACHINES; i < account->nr_media; ++i)
      if (e->d_ino == account->media[i].ino) {
        CLEANUP_FREE char *path = NULL;

        CHECK (asprintf (&path, "%s/%s", folder, e->d_name) != -1);
        CHECK (truncate (path, account->media[i].size) == 0);
      }
  closedir (d);
}

void
adjust_files (void)
{
  for (unsigned i = 0; i < MACHINES; ++i)
    adjust_files_of (folders[i]);
}

/* ---- Which machine asks for its boot: the note is the secondary's. */

#define ON_SECONDARY(call)                      \
  ({                                            \
    int r_;                                     \
                                                \
    divert_host = OF_SECONDARY;                 \
    r_ = call;                                  \
    divert_host = OF_PRIMARY;                   \
    r_;                                         \
  })

extern __typeof__ (note_read) __real_note_read, __wrap_note_read;
extern __typeof__ (note_put) __real_note_put, __wrap_note_put;
extern __typeof__ (note_settle) __real_note_settle, __wrap_note_settle;

int
__wrap_note_read (struct note *note, struct node *hidden, bool *same_boot)
{
  return ON_SECONDARY (__real_note_read (note, hidden, same_boot));
}

int
__wrap_note_put (struct note *note, struct node *hidden,
                 const struct note_change *change)
{
  return ON_SECONDARY (__real_note_put (note, hidden, change));
}

int
__wrap_note_settle (struct note *note, struct node *hidden)
{
  return ON_SECONDARY (__real_note_settle (note, hidden));
}

/* ---- The way from one to the other */

static void
disconnect (struct node *end)
{
  secondary_disconnect (secondary, end);
}

/* Who says that it is somebody, and is it in step? */
static struct node *
connect_wire (const char *uri, const struct node_open_options *options)
{
  const char *const who = strstr (uri, "primary%3D");
  const unsigned tried = wire_try ();
  struct history self = { "" };
  struct disk_identity identity;
  struct node *end = NULL;
  char text[MEETING_TEXT];

  if (who)
    history_set (&self, who + strlen ("primary%3D"));
  if (tried > 0 &&
      (strstr (uri, "synced") == NULL ||
       secondary_synced (secondary, &self) == 0))
    end = secondary_connect (secondary, &self);
  if (end) {
    secondary_identity (secondary, &identity);
    identity_describe (&identity, text);
  }
  return wire_open (uri, options, tried, end, text, disconnect);
}

extern struct node *__real_node_open (
  const char *name, const struct node_open_options *options);
extern struct node *__wrap_node_open (
  const char *name, const struct node_open_options *options);

struct node *
__wrap_node_open (const char *name, const struct node_open_options *options)
{
  return node_is_uri (name) ? connect_wire (name, options)
    : __real_node_open (name, options);
}
