/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What file.c and new-file.c share: the node of a local file, and the
 * steps of opening one.  For these two only.
 */

#ifndef BLOCKDRIVERS_FILE_H
#define BLOCKDRIVERS_FILE_H

#include <pthread.h>

#include "node/known-data.h"
#include "node/node.h"

struct file_node {
  struct node node;
  int fd;
  dev_t dev;                    /* identity */
  ino_t ino;
  bool is_block_device;
  bool direct;                  /* O_DIRECT */
  pthread_mutex_t length_lock;  /* held to change the file's length, and
                                   while a write does it for a moment;
                                   I/O happens under it */
  struct known_data known;
  char *created;                /* the place of a new file that nobody has
                                   said to keep, or NULL */
  _Atomic int flush_errno;      /* of the flush that failed, or 0 */
  atomic_bool no_zero_range;    /* the file system cannot do it */
  atomic_bool no_punch_hole;
};

/* A fifo would wait for its other end without O_NONBLOCK. */
#define FILE_OPEN_FLAGS (O_CLOEXEC | O_NOCTTY | O_NONBLOCK)

/* A node without a file; NULL after a message. */
extern struct file_node *file_node_new (const char *name, bool read_only);

/* Open what is there by its name. */
extern int file_node_open_file (struct file_node *f);

/* Look what was opened, and take the locks: the rest of opening. */
extern int file_node_settle (struct file_node *f, enum node_lock lock);

/* Close and free; keeps errno and returns NULL. */
extern struct node *file_node_give_up (struct file_node *f);

/* The file that a node is another way to, or NULL. */
extern struct file_node *file_node_of (const struct node *n);

#endif /* BLOCKDRIVERS_FILE_H */
