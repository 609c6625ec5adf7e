/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See divert.h. */

#include <config.h>

#include <string.h>

#include "node/file.h"
#include "tests/chaos/divert.h"
#include "tests/unit/unit.h"
#include "utils/bootid.h"

static struct world *diverted;  /* NULL: none are */
static unsigned boots[MACHINES];
_Thread_local unsigned divert_host;

extern struct node *__real_file_node_open (
  const char *name, const struct node_open_options *options);
extern struct node *__wrap_file_node_open (
  const char *name, const struct node_open_options *options);
extern struct node *__real_node_create_file (const char *name, bool no_lock);
extern struct node *__wrap_node_create_file (const char *name, bool no_lock);
extern void __wrap_boot_id_read (void *id);

void
divert_to (struct world *w)
{
  diverted = w;
}

void
divert_boot (unsigned machine)
{
  boots[machine]++;
}

/* The number may have been that of a file that is gone: then this one is
 * empty.
 */
static struct medium *
medium_of_inode (const char *name, ino_t ino, bool is_empty)
{
  struct medium *m = NULL;

  for (unsigned i = 0; i < diverted->nr_media; ++i)
    if (diverted->media[i]->ino == ino)
      m = diverted->media[i];
  if (m == NULL) {
    m = medium_new (diverted, name, &(struct content) { .size = 0 }, false);
    m->ino = ino;
  }
  else if (is_empty && m->size > 0)
    medium_set (m, &(struct content) { .size = 0 });
  return m;
}

static struct node *
divert (const char *name, struct node *real)
{
  dev_t dev;
  ino_t ino;

  if (real == NULL || diverted == NULL)
    return real;
  CHECK (node_identity (real, &dev, &ino));
  return medium_open_over (medium_of_inode (name, ino, node_size (real) == 0),
                           real);
}

struct node *
__wrap_file_node_open (const char *name,
                       const struct node_open_options *options)
{
  return divert (name, __real_file_node_open (name, options));
}

struct node *
__wrap_node_create_file (const char *name, bool no_lock)
{
  return divert (name, __real_node_create_file (name, no_lock));
}

/* Another one after each power loss. */
void
__wrap_boot_id_read (void *id)
{
  memset (id, 'a' + boots[divert_host] % 26, BOOT_ID_LEN);
}
