/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A listening Unix socket and the file that stands for it. */

#ifndef BLOCKDRIVERS_SOCKET_H
#define BLOCKDRIVERS_SOCKET_H

#include <stdbool.h>
#include <sys/stat.h>
#include <sys/un.h>

struct listener {
  int fd;                       /* listening, non-blocking */
  int directory;                /* of the file */
  char name[sizeof (((struct sockaddr_un *) NULL)->sun_path)]; /* in it */
  struct stat file;             /* as it was made */
};

/* Make a socket that only its owner may open, from its first moment on.
 * The file of a server that no longer answers is replaced; one that
 * answers, and what is no socket, is left alone.  -1 with errno after a
 * message.
 */
extern int listener_open (struct listener *l, const char *path);

/* Close it, and remove the file if it is still this one. */
extern void listener_close (struct listener *l);

/* Fill in the address of a socket.  -1 with errno after a message if the
 * path is too long for one, or empty.
 */
extern int socket_address (struct sockaddr_un *address, const char *path);

#endif /* BLOCKDRIVERS_SOCKET_H */
