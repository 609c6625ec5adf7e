/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See module.h. */

#include <config.h>

#include <dlfcn.h>
#include <link.h>
#include <string.h>

/* Nothing here is about plugins: filters have the same functions. */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "utils/message.h"
#include "module/module.h"
#include "node/node.h"

static void
to_nbdkit (enum msg_level level, const char *fs, va_list args)
{
  if (level == MSG_DEBUG)
    nbdkit_vdebug (fs, args);
  else
    nbdkit_verror (fs, args);   /* nbdkit has no warnings */
}

void
module_load (void)
{
  msg_set_handler (to_nbdkit);
}

void
module_keep_all (void)
{
  void *const program = dlopen (NULL, RTLD_LAZY);
  const struct link_map *m;

  if (program == NULL || dlinfo (program, RTLD_DI_LINKMAP, &m) == -1) {
    nbdkit_error ("modules may be unloaded while they are in use: %s",
                  dlerror ());
    return;
  }
  /* The program itself has no name. */
  for (; m; m = m->l_next)
    if (*m->l_name)
      dlopen (m->l_name, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

static int
check_name (const char *name, const char *key, const char *value)
{
  if (name) {
    nbdkit_error ("%s was given twice", key);
    return -1;
  }
  if (*value == 0) {
    nbdkit_error ("%s is empty", key);
    return -1;
  }
  return 0;
}

int
module_set_path (char **name, const char *key, const char *value)
{
  if (check_name (*name, key, value) == -1)
    return -1;
  *name = nbdkit_absolute_path (value);
  return *name ? 0 : -1;
}

/* Take over a new copy of a name, which is NULL if there is no memory. */
static int
set_copy (char **name, const char *key, char *copy)
{
  *name = copy;
  if (*name == NULL) {
    nbdkit_error ("%s: %m", key);
    return -1;
  }
  return 0;
}

int
module_set_socket (char **name, const char *key, const char *value)
{
  if (check_name (*name, key, value) == -1)
    return -1;
  return set_copy (name, key, strdup (value));
}

int
module_set_image (char **name, const char *key, const char *value)
{
  if (!node_is_uri (value))
    return module_set_path (name, key, value);
  if (check_name (*name, key, value) == -1)
    return -1;
  return set_copy (name, key, node_absolute_uri (value));
}

int
module_set_size (int64_t *size, const char *key, const char *value)
{
  const int64_t n = nbdkit_parse_size (value);

  if (n == -1) {
    nbdkit_error ("%s=%s: not a size", key, value);
    return -1;
  }
  *size = n;
  return 0;
}

int
module_set_bool (bool *flag, const char *key, const char *value)
{
  const int r = nbdkit_parse_bool (value);

  if (r == -1) {
    nbdkit_error ("%s=%s: not a boolean", key, value);
    return -1;
  }
  *flag = r;
  return 0;
}

int
module_choose (const char *key, const char *value, const char *const words[])
{
  for (int i = 0; words[i]; ++i)
    if (strcmp (value, words[i]) == 0)
      return i;
  nbdkit_error ("%s=%s: unknown value; it can be %s%s%s or %s", key, value,
                words[0], words[2] ? ", " : "", words[2] ? words[1] : "",
                words[2] ? words[2] : words[1]);
  return -1;
}
