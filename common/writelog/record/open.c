/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Opening a log by its name. */

#include <config.h>

#include "node/align.h"
#include "writelog/record/writer.h"

struct writelog *
writelog_open (const char *name, const struct writelog_options *options)
{
  const struct node_open_options node_options = { .lock = NODE_LOCK_IMAGE };
  struct node *node;

  if (node_is_uri (name))
    node = align_open (name, &node_options);
  else
    node = node_create_file (name, false);
  if (node == NULL)
    return NULL;
  return writelog_open_node (node, options);
}
