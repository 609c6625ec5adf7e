/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A small NBD server.
 *
 * Notes on the design
 *
 * One who tries a thousand disks wants a thousand servers, a few hundred a
 * second.  A process of nbdkit takes longer to start than the rest of a try,
 * and can be told what to serve only by an export name, in which a long list
 * does not fit.  So this serves a node as it is, in the process that has
 * it: the fixed newstyle handshake without TLS, structured replies for reads
 * and block status, and one request at a time a connection, of which there
 * may be many.
 *
 * Threads: one accepts, and one runs for each connection; serve_stop shuts
 * their sockets down and joins them all.
 *
 * Facts of the protocol are those of its public description (the NBD
 * project's doc/proto.md).
 */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "node/serve.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "utils/sockets.h"

#define MAX_REQUEST (32 * 1024 * 1024)
#define MAX_OPTION 8192
#define MAX_CONNECTIONS 128

/* The protocol. */
#define MAGIC UINT64_C (0x4e42444d41474943)
#define OPTION_MAGIC UINT64_C (0x49484156454f5054)
#define REPLY_MAGIC UINT64_C (0x3e889045565a9)
#define REQUEST_MAGIC 0x25609513
#define SIMPLE_MAGIC 0x67446698
#define CHUNK_MAGIC 0x668e33ef

enum { FIXED_NEWSTYLE = 1, NO_ZEROES = 2 };

enum {
  OPT_EXPORT_NAME = 1, OPT_ABORT, OPT_LIST, OPT_INFO = 6, OPT_GO,
  OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT
};

#define REP_ACK 1
#define REP_SERVER 2
#define REP_INFO 3
#define REP_META_CONTEXT 4
#define REP_ERR_UNSUP UINT32_C (0x80000001)
#define REP_ERR_INVALID UINT32_C (0x80000003)
#define REP_ERR_TOO_BIG UINT32_C (0x80000009)

enum { INFO_EXPORT = 0, INFO_BLOCK_SIZE = 3 };

/* HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, DF, MULTI_CONN, FAST_ZERO. */
#define EXPORT_FLAGS (1 | 4 | 8 | 32 | 64 | 128 | 256 | 2048)

enum {
  CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE,
  CMD_WRITE_ZEROES, CMD_BLOCK_STATUS
};

#define CMD_FLAG_REQ_ONE 8

enum { CHUNK_NONE = 0, CHUNK_DATA = 1, CHUNK_STATUS = 5 };
#define CHUNK_ERROR 0x8001
#define CHUNK_DONE 1

#define CONTEXT "base:allocation"
#define CONTEXT_ID 1
#define STATE_HOLE 1
#define STATE_ZERO 2
#define MAX_EXTENTS 256

struct connection {
  struct serve *serve;
  int fd;
  pthread_t thread;
  _Atomic bool ended;

  /* Used by its thread only. */
  bool no_zeroes, structured, status;
  uint8_t *buf;                 /* MAX_REQUEST, once it is needed */
};

struct serve {
  struct node *node;
  int listener;
  int stop;                     /* an eventfd */
  char *export;
  pthread_t thread;             /* accepts; the only one that uses what
                                   follows, until it has ended */
  struct connection *connections[MAX_CONNECTIONS];
};

/* ---- Bytes */

static int
receive (struct connection *c, void *buf, size_t count)
{
  return receive_all (c->fd, buf, count);
}

/* More follows at once? */
static int
transmit (struct connection *c, const void *buf, size_t count, bool more)
{
  return send_all (c->fd, buf, count, more ? MSG_MORE : 0);
}

/* Take in what a client should not have sent. */
static int
skip (struct connection *c, uint64_t count)
{
  char buf[4096];

  for (size_t n; count > 0; count -= n) {
    n = MIN (count, sizeof buf);
    if (receive (c, buf, n) == -1)
      return -1;
  }
  return 0;
}

static void *
buffer (struct connection *c)
{
  if (c->buf == NULL)
    c->buf = malloc (MAX_REQUEST);
  return c->buf;
}

static uint32_t
get32 (const uint8_t *p)
{
  uint32_t n;

  memcpy (&n, p, sizeof n);
  return be32toh (n);
}

/* ---- The handshake */

static int
reply (struct connection *c, uint32_t option, uint32_t type,
       const void *data, uint32_t len)
{
  struct {
    uint64_t magic;
    uint32_t option, type, len;
  } __attribute__ ((packed)) head = {
    htobe64 (REPLY_MAGIC), htobe32 (option), htobe32 (type), htobe32 (len)
  };

  if (transmit (c, &head, sizeof head, len > 0) == -1)
    return -1;
  return len > 0 ? transmit (c, data, len, false) : 0;
}

static int
reply_list (struct connection *c)
{
  const uint32_t len = strlen (c->serve->export);
  CLEANUP_FREE uint8_t *data = malloc (4 + len);
  const uint32_t len_be = htobe32 (len);

  if (data == NULL)
    return -1;
  memcpy (data, &len_be, 4);
  memcpy (data + 4, c->serve->export, len);
  if (reply (c, OPT_LIST, REP_SERVER, data, 4 + len) == -1)
    return -1;
  return reply (c, OPT_LIST, REP_ACK, NULL, 0);
}

static int
reply_info (struct connection *c, uint32_t option)
{
  const struct {
    uint16_t type;
    uint64_t size;
    uint16_t flags;
  } __attribute__ ((packed)) export = {
    htobe16 (INFO_EXPORT), htobe64 (node_size (c->serve->node)),
    htobe16 (EXPORT_FLAGS)
  };
  const struct {
    uint16_t type;
    uint32_t least, preferred, most;
  } __attribute__ ((packed)) block_size = {
    htobe16 (INFO_BLOCK_SIZE), htobe32 (1),
    htobe32 (c->serve->node->preferred), htobe32 (MAX_REQUEST)
  };

  if (reply (c, option, REP_INFO, &export, sizeof export) == -1 ||
      reply (c, option, REP_INFO, &block_size, sizeof block_size) == -1)
    return -1;
  return reply (c, option, REP_ACK, NULL, 0);
}

/* Is it the context that there is?  Lists may ask for all of "base:". */
static bool
is_context (const uint8_t *query, uint32_t len, bool list)
{
  if (list && len == strlen ("base:") && memcmp (query, "base:", len) == 0)
    return true;
  return len == strlen (CONTEXT) && memcmp (query, CONTEXT, len) == 0;
}

/* A name with its length before it, and so on: false if that is too short.
 */
static bool
take (const uint8_t **data, uint32_t *left, uint32_t *len)
{
  if (*left < 4)
    return false;
  *len = get32 (*data);
  *data += 4;
  *left -= 4;
  return *len <= *left;
}

static int
reply_context (struct connection *c, uint32_t option, const uint8_t *data,
               uint32_t left)
{
  const bool list = option == OPT_LIST_META_CONTEXT;
  uint8_t context[4 + sizeof CONTEXT - 1];
  const uint32_t id = htobe32 (list ? 0 : CONTEXT_ID);
  uint32_t len, nr;
  bool found;

  if (!take (&data, &left, &len))
    return reply (c, option, REP_ERR_INVALID, NULL, 0);
  data += len;
  left -= len;
  if (left < 4)
    return reply (c, option, REP_ERR_INVALID, NULL, 0);
  nr = get32 (data);
  data += 4;
  left -= 4;
  found = list && nr == 0;
  for (; nr > 0; --nr) {
    if (!take (&data, &left, &len))
      return reply (c, option, REP_ERR_INVALID, NULL, 0);
    if (is_context (data, len, list))
      found = true;
    data += len;
    left -= len;
  }
  if (!list) {
    if (!c->structured)
      return reply (c, option, REP_ERR_INVALID, NULL, 0);
    c->status = found;
  }
  memcpy (context, &id, 4);
  memcpy (context + 4, CONTEXT, sizeof CONTEXT - 1);
  if (found &&
      reply (c, option, REP_META_CONTEXT, context, sizeof context) == -1)
    return -1;
  return reply (c, option, REP_ACK, NULL, 0);
}

/* The old way, without an answer for mistakes. */
static int
reply_export_name (struct connection *c)
{
  struct {
    uint64_t size;
    uint16_t flags;
    uint8_t zeroes[124];
  } __attribute__ ((packed)) answer = {
    .size = htobe64 (node_size (c->serve->node)),
    .flags = htobe16 (EXPORT_FLAGS),
  };

  return transmit (c, &answer, c->no_zeroes ? 10 : sizeof answer, false);
}

/* 1: the handshake is over; 0: go on; -1: hang up. */
static int
answer_option (struct connection *c, uint32_t option, const uint8_t *data,
               uint32_t len)
{
  switch (option) {
  case OPT_EXPORT_NAME:
    return reply_export_name (c) == -1 ? -1 : 1;
  case OPT_ABORT:
    reply (c, option, REP_ACK, NULL, 0);
    return -1;
  case OPT_LIST:
    return reply_list (c);
  case OPT_INFO:
  case OPT_GO:
    if (reply_info (c, option) == -1)
      return -1;
    return option == OPT_GO;
  case OPT_STRUCTURED_REPLY:
    c->structured = true;
    return reply (c, option, REP_ACK, NULL, 0);
  case OPT_LIST_META_CONTEXT:
  case OPT_SET_META_CONTEXT:
    return reply_context (c, option, data, len);
  default:
    return reply (c, option, REP_ERR_UNSUP, NULL, 0);
  }
}

static int
negotiate (struct connection *c)
{
  const struct {
    uint64_t magic, options;
    uint16_t flags;
  } __attribute__ ((packed)) hello = {
    htobe64 (MAGIC), htobe64 (OPTION_MAGIC),
    htobe16 (FIXED_NEWSTYLE | NO_ZEROES)
  };
  struct {
    uint64_t magic;
    uint32_t option, len;
  } __attribute__ ((packed)) head;
  uint8_t data[MAX_OPTION];
  uint32_t flags;
  int r;

  if (transmit (c, &hello, sizeof hello, false) == -1 ||
      receive (c, &flags, sizeof flags) == -1)
    return -1;
  c->no_zeroes = be32toh (flags) & NO_ZEROES;
  do {
    uint32_t option, len;

    if (receive (c, &head, sizeof head) == -1 ||
        be64toh (head.magic) != OPTION_MAGIC)
      return -1;
    option = be32toh (head.option);
    len = be32toh (head.len);
    if (len > sizeof data) {
      r = skip (c, len) == -1 || option == OPT_EXPORT_NAME ? -1
        : reply (c, option, REP_ERR_TOO_BIG, NULL, 0);
      continue;
    }
    if (receive (c, data, len) == -1)
      return -1;
    r = answer_option (c, option, data, len);
  } while (r == 0);
  return r == 1 ? 0 : -1;
}

/* ---- Requests */

struct request {
  uint32_t magic;
  uint16_t flags, type;
  uint64_t handle, offset;
  uint32_t count;
} __attribute__ ((packed));

static uint32_t
error_of (int err)
{
  switch (err) {
  case 0: return 0;
  case EPERM: case EROFS: return 1;
  case ENOMEM: return 12;
  case EINVAL: return 22;
  case ENOSPC: case EFBIG: case EDQUOT: return 28;
  case ENOTSUP: return 95;
  default: return 5;
  }
}

static int
send_chunk (struct connection *c, const struct request *q, uint16_t type,
            const void *head, size_t head_len, const void *data, size_t len)
{
  const struct {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t handle;
    uint32_t len;
  } __attribute__ ((packed)) chunk = {
    htobe32 (CHUNK_MAGIC), htobe16 (CHUNK_DONE), htobe16 (type), q->handle,
    htobe32 (head_len + len)
  };

  if (transmit (c, &chunk, sizeof chunk, head_len + len > 0) == -1 ||
      transmit (c, head, head_len, len > 0) == -1)
    return -1;
  return transmit (c, data, len, false);
}

/* The answer to what has no data: done, or an error. */
static int
send_status (struct connection *c, const struct request *q, int err)
{
  const struct {
    uint32_t error;
    uint16_t len;
  } __attribute__ ((packed)) chunk = { htobe32 (error_of (err)), 0 };
  const struct {
    uint32_t magic, error;
    uint64_t handle;
  } __attribute__ ((packed)) simple = {
    htobe32 (SIMPLE_MAGIC), htobe32 (error_of (err)), q->handle
  };

  if (!c->structured)
    return transmit (c, &simple, sizeof simple, false);
  if (err == 0)
    return send_chunk (c, q, CHUNK_NONE, NULL, 0, NULL, 0);
  return send_chunk (c, q, CHUNK_ERROR, &chunk, sizeof chunk, NULL, 0);
}

static int
answer_read (struct connection *c, const struct request *q)
{
  const struct {
    uint32_t magic, error;
    uint64_t handle;
  } __attribute__ ((packed)) simple = { htobe32 (SIMPLE_MAGIC), 0, q->handle };
  const uint64_t offset_be = htobe64 (q->offset);

  if (buffer (c) == NULL)
    return send_status (c, q, ENOMEM);
  if (node_pread (c->serve->node, c->buf, q->count, q->offset) == -1)
    return send_status (c, q, errno);
  if (c->structured)
    return send_chunk (c, q, CHUNK_DATA, &offset_be, sizeof offset_be,
                       c->buf, q->count);
  if (transmit (c, &simple, sizeof simple, true) == -1)
    return -1;
  return transmit (c, c->buf, q->count, false);
}

static int
answer_block_status (struct connection *c, const struct request *q)
{
  const unsigned most = q->flags & CMD_FLAG_REQ_ONE ? 1 : MAX_EXTENTS;
  const uint32_t id = htobe32 (CONTEXT_ID);
  struct { uint32_t len, flags; } extents[MAX_EXTENTS];
  uint64_t offset = q->offset;
  const uint64_t end = offset + q->count;
  unsigned nr = 0;

  if (!c->status || q->count == 0)
    return send_status (c, q, EINVAL);
  for (; offset < end && nr < most; ++nr) {
    struct extent e;

    if (node_extents (c->serve->node, end - offset, offset, &e) == -1)
      return send_status (c, q, errno);
    extents[nr].len = htobe32 (e.length);
    extents[nr].flags = htobe32 ((e.flags & EXTENT_ZERO ? STATE_ZERO : 0) |
                                 (e.flags & EXTENT_HOLE ? STATE_HOLE : 0));
    offset += e.length;
  }
  return send_chunk (c, q, CHUNK_STATUS, &id, sizeof id, extents,
                     nr * sizeof extents[0]);
}

/* The data of a write follow it. */
static int
answer_write (struct connection *c, const struct request *q, bool inside)
{
  if (q->count > MAX_REQUEST || buffer (c) == NULL)
    return skip (c, q->count) == -1 ? -1 : send_status (c, q, ENOMEM);
  if (receive (c, c->buf, q->count) == -1)
    return -1;
  if (!inside)
    return send_status (c, q, ENOSPC);
  return send_status (c, q, node_pwrite (c->serve->node, c->buf, q->count,
                                         q->offset) == -1 ? errno : 0);
}

static int
answer (struct connection *c, const struct request *q)
{
  struct node *const n = c->serve->node;
  const bool inside = q->offset <= node_size (n) &&
    q->count <= node_size (n) - q->offset;

  if (q->type == CMD_WRITE)
    return answer_write (c, q, inside);
  if (q->type == CMD_FLUSH)
    return send_status (c, q, node_flush (n) == -1 ? errno : 0);
  if (!inside || (q->type == CMD_READ && q->count > MAX_REQUEST))
    return send_status (c, q, EINVAL);

  switch (q->type) {
  case CMD_READ:
    return answer_read (c, q);
  case CMD_TRIM:
    return send_status (c, q, node_discard (n, q->count, q->offset) == -1
                              ? errno : 0);
  case CMD_WRITE_ZEROES:
    return send_status (c, q, node_zero (n, q->count, q->offset,
                                         NODE_MAY_TRIM) == -1 ? errno : 0);
  case CMD_BLOCK_STATUS:
    return answer_block_status (c, q);
  default:
    return send_status (c, q, EINVAL);
  }
}

static void
serve_requests (struct connection *c)
{
  struct request q;

  do {
    if (receive (c, &q, sizeof q) == -1 || be32toh (q.magic) != REQUEST_MAGIC)
      return;
    q.flags = be16toh (q.flags);
    q.type = be16toh (q.type);
    q.offset = be64toh (q.offset);
    q.count = be32toh (q.count);
    if (q.type == CMD_DISC)
      return;
  } while (answer (c, &q) == 0);
}

/* ---- Connections */

static void *
connection_thread (void *opaque)
{
  struct connection *c = opaque;

  if (negotiate (c) == 0)
    serve_requests (c);
  shutdown (c->fd, SHUT_RDWR);
  atomic_store (&c->ended, true);
  return NULL;
}

static void
end_connection (struct connection *c)
{
  shutdown (c->fd, SHUT_RDWR);
  pthread_join (c->thread, NULL);
  close (c->fd);
  free (c->buf);
  free (c);
}

/* A place for a new one, from one that has ended if it must be. */
static struct connection **
free_place (struct serve *s)
{
  struct connection **place = NULL;

  for (size_t i = 0; i < MAX_CONNECTIONS; ++i) {
    if (s->connections[i] && atomic_load (&s->connections[i]->ended)) {
      end_connection (s->connections[i]);
      s->connections[i] = NULL;
    }
    if (place == NULL && s->connections[i] == NULL)
      place = &s->connections[i];
  }
  return place;
}

static void
begin_connection (struct serve *s, int fd)
{
  struct connection **place = free_place (s);
  struct connection *c = place ? calloc (1, sizeof *c) : NULL;
  int err;

  if (c == NULL) {
    msg_warning ("%s: too many connections, or out of memory",
                 s->node->name);
    close (fd);
    return;
  }
  c->serve = s;
  c->fd = fd;
  err = pthread_create (&c->thread, NULL, connection_thread, c);
  if (err) {
    errno = err;
    msg_warning ("%s: thread for a connection: %m", s->node->name);
    close (fd);
    free (c);
    return;
  }
  *place = c;
}

static void *
accept_thread (void *opaque)
{
  struct serve *s = opaque;
  struct pollfd fds[2] = {
    { .fd = s->listener, .events = POLLIN },
    { .fd = s->stop, .events = POLLIN },
  };

  for (;;) {
    if (poll (fds, 2, -1) == -1)
      continue;
    if (fds[1].revents)
      return NULL;
    if (fds[0].revents) {
      const int fd = accept4 (s->listener, NULL, NULL, SOCK_CLOEXEC);

      if (fd >= 0)
        begin_connection (s, fd);
    }
  }
}

struct serve *
serve_start (struct node *node, int listener, const char *export)
{
  struct serve *s = calloc (1, sizeof *s);
  int err;

  if (s == NULL)
    goto error;
  s->node = node;
  s->listener = listener;
  s->export = strdup (export);
  s->stop = eventfd (0, EFD_CLOEXEC);
  if (s->export == NULL || s->stop == -1)
    goto error;
  err = pthread_create (&s->thread, NULL, accept_thread, s);
  if (err == 0)
    return s;
  errno = err;

 error:
  msg_error ("%s: serve: %m", node->name);
  if (s) {
    if (s->stop >= 0)
      close (s->stop);
    free (s->export);
  }
  free (s);
  return NULL;
}

void
serve_stop (struct serve *s)
{
  const uint64_t one = 1;

  while (write (s->stop, &one, sizeof one) == -1 && errno == EINTR)
    ;
  pthread_join (s->thread, NULL);
  for (size_t i = 0; i < MAX_CONNECTIONS; ++i)
    if (s->connections[i])
      end_connection (s->connections[i]);
  close (s->stop);
  free (s->export);
  free (s);
}
