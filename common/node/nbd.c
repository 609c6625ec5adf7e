/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The node of an NBD export, through libnbd: its requests.
 *
 * A request becomes one or more asynchronous libnbd commands, all on the same
 * connection.  The last one to complete posts the semaphore of the request,
 * where the caller waits, so he is woken once.  Any number of threads can have
 * requests in flight.  Who moves the connection meanwhile: see nbd-conn.c.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <libnbd.h>

#include "node/nbd-conn.h"
#include "node/nbd-status.h"
#include "node/nbd-vector.h"
#include "node/node.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* The longest command with data (libnbd's own limit is 64 MiB). */
#define MAX_DATA (32 * 1024 * 1024)

/* Block status is asked for this far ahead. */
#define STATUS_AHEAD (UINT64_C (64) * 1024 * 1024)

struct nbd_node {
  struct node node;
  struct conns conns;

  /* What the server can do, constant. */
  bool can_flush, can_trim, can_zero, can_cache, can_status, multi_conn;
  uint32_t max_data;            /* longest command with data */

  struct kept_status kept;
};

/* One request, on its caller's stack. */
struct request {
  struct nbd_node *n;
  struct conn *conn;
  const char *what;
  uint64_t count, offset;
  int nr_issued;                /* commands, since the last wait */
  _Atomic int balance;          /* what is waited for, less what is done */
  bool again;                   /* it failed, without a message, and shall
                                   be made again */
  _Atomic int error;            /* of the first command that failed */
  sem_t done;                   /* posted when none is left to wait for */
};

/* The one place which reports that a request failed. */
static void
report (const struct request *r, const char *cause)
{
  char range[80] = "";

  if (r->count > 0)
    snprintf (range, sizeof range, " of %" PRIu64 " bytes at offset "
              "%" PRIu64, r->count, r->offset);
  msg_error ("%s: %s%s: %s", r->n->node.name, r->what, range, cause);
}

static void
report_dead (const struct request *r, const char *cause)
{
  char text[CAUSE_LEN + 128];

  if (r->n->conns.lost_callback)      /* who has been told will say it */
    return;
  snprintf (text, sizeof text, "%s%s", cause, r->n->node.read_only ? "" :
            " (not connecting again, since writes after the last flush "
            "may be lost)");
  report (r, text);
}

/* Begin a request.  Unless -1 is returned (after a message), issue its
 * commands and end it with end_request.
 */
static int
begin_request (struct request *r, struct nbd_node *n, const char *what,
               uint64_t count, uint64_t offset)
{
  char cause[CAUSE_LEN];

  *r = (struct request) {
    .n = n, .what = what, .count = count, .offset = offset,
  };
  r->conn = conn_get (&n->conns, cause);
  if (r->conn == NULL) {
    r->again = conns_await_restart (&n->conns);
    if (!r->again)
      report_dead (r, cause);
    errno = EIO;
    return -1;
  }
  sem_init (&r->done, 0, 0);
  return 0;
}

static void
set_error (struct request *r, int err)
{
  int none = 0;

  atomic_compare_exchange_strong (&r->error, &none, err);
}

/* Called by libnbd, with the handle locked. */
static int
command_completed (void *vp, int *error)
{
  struct request *r = vp;

  if (*error)
    set_error (r, *error);
  if (atomic_fetch_sub (&r->balance, 1) == 1)
    sem_post (&r->done);        /* r may be gone after either */
  return 1;                     /* the command need not be retired */
}

static nbd_completion_callback
completion (struct request *r)
{
  return (nbd_completion_callback) {
    .callback = command_completed, .user_data = r,
  };
}

/* Take note of a command that has just been issued, or could not be.
 * Returns -1 if it makes no sense to issue more.
 */
static int
issued (struct request *r, int64_t cookie)
{
  if (cookie == -1)
    set_error (r, conn_is_finished (r->conn) ? ENOTCONN : libnbd_errno ());
  else
    r->nr_issued++;
  conn_kick (r->conn);
  return atomic_load (&r->error) ? -1 : 0;
}

/* Wait for all commands issued so far. */
static void
wait_request (struct request *r)
{
  const int nr = r->nr_issued;

  r->nr_issued = 0;
  if (atomic_fetch_add (&r->balance, nr) + nr == 0)
    return;
  if (r->n->conns.started)
    while (sem_wait (&r->done) == -1)
      ;                         /* EINTR */
  else
    while (sem_trywait (&r->done) == -1)
      conn_drive (r->conn);
}

/* The connection is dead: a server cannot send ENOTCONN. */
static int
no_answer (struct request *r)
{
  char cause[CAUSE_LEN];

  conn_cause (r->conn, cause);
  conn_put (r->conn);
  r->again = conns_await_restart (&r->n->conns);
  if (!r->again)
    report_dead (r, cause);
  errno = EIO;
  return -1;
}

/* The server ends, and has not done it.  To our own clients ESHUTDOWN would
 * say that we end.
 */
static int
server_ends (struct request *r)
{
  if (r->n->node.read_only || r->n->conns.lost_callback)
    conn_hang_up (r->conn);
  conn_put (r->conn);
  r->again = conns_await_restart (&r->n->conns);
  if (!r->again)
    report (r, strerror (ESHUTDOWN));
  errno = EIO;
  return -1;
}

/* Wait for the request, report its error and return it as -1 and errno.
 * ENOTSUP is left to the caller, and so is a request to be made again.
 */
static int
end_request (struct request *r)
{
  int err;

  wait_request (r);
  sem_destroy (&r->done);
  err = atomic_load (&r->error);
  if (err == ENOTCONN)
    return no_answer (r);
  if (err == ESHUTDOWN)
    return server_ends (r);

  conn_answered (r->conn);
  conn_put (r->conn);
  if (err == 0)
    return 0;
  if (err == EOPNOTSUPP)
    err = ENOTSUP;
  else
    report (r, strerror (err));
  errno = err;
  return -1;
}

/* The same for a request which has no way out if the server cannot do
 * what it promised.
 */
static int
end_strict_request (struct request *r)
{
  const int ret = end_request (r);

  if (ret == -1 && errno == ENOTSUP) {
    report (r, strerror (ENOTSUP));
    errno = ENOTSUP;
  }
  return ret;
}

static int
try_read (struct request *r, struct nbd_node *n, void *buf, size_t count,
          uint64_t offset)
{
  if (begin_request (r, n, "read", count, offset) == -1)
    return -1;
  for (size_t done = 0, len; done < count; done += len) {
    len = MIN (count - done, n->max_data);
    if (issued (r, nbd_aio_pread (r->conn->nbd, (char *) buf + done, len,
                                  offset + done, completion (r), 0)) == -1)
      break;
  }
  return end_strict_request (r);
}

static int
nbd_node_pread (struct node *node, void *buf, size_t count, uint64_t offset)
{
  struct request r = { .again = true };
  int ret = 0;

  if (count == 0)
    return 0;
  while (r.again)
    ret = try_read (&r, (struct nbd_node *) node, buf, count, offset);
  return ret;
}

/* Send a vector: long parts directly, short ones through the buffer,
 * which can be used again when all commands before have completed.
 */
static void
send_vector (struct request *r, const struct iovec *iov, char *buf,
             size_t size)
{
  struct vector v = {
    .at = { .iov = iov }, .left = r->count, .align = r->n->node.align,
    .longest = r->n->max_data, .buf = buf, .size = size,
  };
  uint64_t offset = r->offset;

  while (v.left > 0) {
    const char *from;
    size_t len;

    if (vector_is_full (&v)) {
      wait_request (r);
      v.used = 0;
    }
    from = vector_next (&v, &len);
    if (issued (r, nbd_aio_pwrite (r->conn->nbd, from, len, offset,
                                   completion (r), 0)) == -1)
      return;
    offset += len;
  }
}

static int
nbd_node_pwritev (struct node *node, const struct iovec *iov, int iovcnt,
                  size_t count, uint64_t offset)
{
  struct nbd_node *n = (struct nbd_node *) node;
  const size_t size = MIN (count, MIN (VECTOR_BUFFER, n->max_data));
  CLEANUP_FREE char *buf = NULL;
  struct request r;

  if (count == 0)
    return 0;
  if (iovcnt > 1 && (buf = malloc (size)) == NULL) {
    msg_error ("%s: write of %zu bytes at offset %" PRIu64 ": %m",
               node->name, count, offset);
    return -1;
  }
  if (begin_request (&r, n, "write", count, offset) == -1)
    return -1;
  send_vector (&r, iov, buf, size);
  return end_strict_request (&r);
}

static int
nbd_node_pwrite_many (struct node *node, const struct node_write *writes,
                      size_t nr)
{
  struct nbd_node *n = (struct nbd_node *) node;
  struct request r;
  bool stop = false;

  if (nr == 0)
    return 0;
  if (begin_request (&r, n, "write", writes[0].count,
                     writes[0].offset) == -1)
    return -1;
  for (size_t i = 0; i < nr && !stop; ++i) {
    for (size_t done = 0, len; done < writes[i].count && !stop; done += len) {
      len = MIN (writes[i].count - done, n->max_data);
      stop = issued (&r, nbd_aio_pwrite (r.conn->nbd,
                                         (char *) writes[i].buf + done, len,
                                         writes[i].offset + done,
                                         completion (&r), 0)) == -1;
    }
  }
  return end_strict_request (&r);
}

static int
nbd_node_flush (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;
  struct request r;

  if (!n->can_flush)
    return 0;
  /* Multi-conn means that a flush on one connection is for all. */
  if (begin_request (&r, n, "flush", 0, 0) == -1)
    return -1;
  issued (&r, nbd_aio_flush (r.conn->nbd, completion (&r), 0));
  return end_strict_request (&r);
}

/* A command without data, in pieces of at most this length. */
typedef int64_t (*range_command) (struct nbd_handle *nbd, uint64_t count,
                                  uint64_t offset,
                                  nbd_completion_callback completion,
                                  uint32_t flags);

static int
try_range (struct request *r, struct nbd_node *n, const char *what,
           range_command command, uint64_t piece, uint64_t count,
           uint64_t offset, uint32_t flags)
{
  if (begin_request (r, n, what, count, offset) == -1)
    return -1;
  piece = MIN (piece, longest_range (r->conn->nbd));
  for (uint64_t done = 0, len; done < count; done += len) {
    len = MIN (count - done, piece);
    if (issued (r, command (r->conn->nbd, len, offset + done,
                            completion (r), flags)) == -1)
      break;
  }
  return end_request (r);
}

static int
send_range (struct nbd_node *n, const char *what, range_command command,
            uint64_t piece, uint64_t count, uint64_t offset, uint32_t flags)
{
  struct request r = { .again = true };
  int ret = 0;

  while (r.again)
    ret = try_range (&r, n, what, command, piece, count, offset, flags);
  if (command != nbd_aio_cache)
    status_change (&n->kept, count, offset);
  return ret;
}

static int
nbd_node_zero (struct node *node, uint64_t count, uint64_t offset,
               unsigned flags)
{
  struct nbd_node *n = (struct nbd_node *) node;
  const uint32_t no_hole =
    flags & NODE_MAY_TRIM ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;

  if (count == 0)
    return 0;
  if (!n->can_zero || ((flags & NODE_FAST) && !node->can_fast_zero)) {
    errno = ENOTSUP;
    return -1;
  }
  /* "Not fast" must come before anything has changed, so the first
   * piece decides for all.
   */
  if (flags & NODE_FAST) {
    const uint64_t len = MIN (count, SHORT_RANGE);

    if (send_range (n, "zero", nbd_aio_zero, len, len, offset,
                    no_hole | LIBNBD_CMD_FLAG_FAST_ZERO) == -1)
      return -1;
    count -= len;
    offset += len;
  }
  return count == 0 ? 0
    : send_range (n, "zero", nbd_aio_zero, count, count, offset, no_hole);
}

static int
nbd_node_discard (struct node *node, uint64_t count, uint64_t offset)
{
  struct nbd_node *n = (struct nbd_node *) node;
  int r;

  if (!n->can_trim || count == 0)
    return 0;
  r = send_range (n, "discard", nbd_aio_trim, count, count, offset, 0);
  return r == -1 && errno == ENOTSUP ? 0 : r;
}

static int
nbd_node_cache (struct node *node, uint64_t count, uint64_t offset)
{
  struct nbd_node *n = (struct nbd_node *) node;
  int r;

  if (!n->can_cache || count == 0)
    return 0;
  r = send_range (n, "cache", nbd_aio_cache, n->max_data, count, offset, 0);
  return r == -1 && errno == ENOTSUP ? 0 : r;
}

static int
try_status (struct request *r, struct nbd_node *n, uint64_t count,
            uint64_t offset, struct status *s)
{
  if (begin_request (r, n, "block status", count, offset) == -1)
    return -1;
  count = MIN (count, longest_range (r->conn->nbd));
  issued (r, status_ask (r->conn->nbd, s, round_down (count, n->node.align),
                         offset, completion (r), n->node.read_only ? 0 :
                         LIBNBD_CMD_FLAG_REQ_ONE));
  return end_strict_request (r);
}

/* Ask the server.  The reply begins at offset. */
static int
query_status (struct nbd_node *n, uint64_t count, uint64_t offset,
              struct status *s)
{
  struct request r = { .again = true };
  int ret = 0;

  count = MIN (MAX (count, STATUS_AHEAD), node_size (&n->node) - offset);
  while (r.again)
    ret = try_status (&r, n, count, offset, s);
  if (ret == -1)
    return -1;
  if (s->nr == 0 || s->offset != offset || s->entries[0].length == 0) {
    report (&r, "server sent an invalid reply");
    errno = EIO;
    return -1;
  }
  return 0;
}

static int
nbd_node_extents (struct node *node, uint64_t count, uint64_t offset,
                  struct extent *ret)
{
  struct nbd_node *n = (struct nbd_node *) node;
  struct status *s;

  *ret = (struct extent) {
    .length = count, .where = node, .offset = offset, .flags = EXTENT_MAPPED,
  };
  if (!n->can_status)
    return 0;

  if (!status_kept (&n->kept, offset, ret)) {
    s = status_new (node->read_only);
    if (s == NULL) {
      msg_error ("%s: block status: %m", node->name);
      return -1;
    }
    if (query_status (n, count, offset, s) == -1) {
      free (s);
      return -1;
    }
    status_find (s, offset, ret);
    status_keep (&n->kept, s, node->read_only);
  }
  ret->length = MIN (ret->length, count);
  return 0;
}

/* To ask the server may take longer than to read. */
static int
nbd_node_zeroes (struct node *node, uint64_t count, uint64_t offset,
                 uint64_t *length)
{
  *length = status_zeroes (&((struct nbd_node *) node)->kept, count, offset);
  return 0;
}

static int
nbd_node_start (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;

  if (conns_start (&n->conns, n->multi_conn) == 0)
    return 0;
  msg_error ("%s: starting a thread: %m", node->name);
  return -1;
}

static int
nbd_node_close (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;

  conns_close (&n->conns);
  kept_status_destroy (&n->kept);
  free (node->description);
  free (node->name);
  free (n);
  return 0;
}

static void
nbd_node_cut (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;

  conns_cut (&n->conns, n->can_flush);
}

static bool
nbd_node_is_lost (struct node *node, char *cause, size_t size)
{
  struct nbd_node *n = (struct nbd_node *) node;

  return conns_are_lost (&n->conns, cause, size);
}

static const struct node_ops nbd_ops = {
  .type = "nbd",
  .start = nbd_node_start,
  .close = nbd_node_close,
  .pread = nbd_node_pread,
  .pwritev = nbd_node_pwritev,
  .flush = nbd_node_flush,
  .extents = nbd_node_extents,
  .zeroes = nbd_node_zeroes,
  .zero = nbd_node_zero,
  .discard = nbd_node_discard,
  .cache = nbd_node_cache,
  .pwrite_many = nbd_node_pwrite_many,
  .cut = nbd_node_cut,
  .is_lost = nbd_node_is_lost,
};

/* The one place which reports that the export cannot be opened: to
 * whoever asked for the cause, or else to people.  Keeps errno.
 */
static int __attribute__ ((format (printf, 3, 4)))
open_failed (const struct nbd_node *n, const struct node_open_options *options,
             const char *fs, ...)
{
  const int err = errno;
  char cause[CAUSE_LEN];
  va_list args;

  va_start (args, fs);
  vsnprintf (cause, sizeof cause, fs, args);
  va_end (args);
  if (options->cause)
    snprintf (options->cause, options->cause_size, "%s", cause);
  else
    msg_error ("Could not open '%s': %s", n->node.name, cause);
  errno = err;
  return -1;
}

/* Take over the block sizes that the server wants, each 0 if it has not
 * said.
 */
static int
set_block_sizes (struct nbd_node *n, struct nbd_handle *nbd,
                 const struct node_open_options *options)
{
  const int64_t min = nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  const int64_t preferred = nbd_get_block_size (nbd, LIBNBD_SIZE_PREFERRED);
  const int64_t max = nbd_get_block_size (nbd, LIBNBD_SIZE_MAXIMUM);
  const int64_t align = MAX (min, 1);

  if (!is_power_of_2 (align) || align > 65536 || (max > 0 && max < align)) {
    errno = EINVAL;
    return open_failed (n, options, "server asks for requests of at least "
                        "%" PRIi64 " and at most %" PRIi64 " bytes",
                        min, max);
  }
  n->node.align = n->node.zero_align = align;
  n->node.preferred = is_power_of_2 (preferred) && preferred <= MAX_DATA ?
    preferred : MAX (align, 4096);
  n->max_data = round_down (max > 0 ? MIN (max, MAX_DATA) : MAX_DATA, align);
  return 0;
}

/* Take over what the server says about the export. */
static int
set_properties (struct nbd_node *n, struct nbd_handle *nbd,
                const struct node_open_options *options)
{
  const int64_t size = nbd_get_size (nbd);

  if (size == -1) {
    errno = libnbd_errno ();
    return open_failed (n, options, "size of the export: %s",
                        libnbd_cause ());
  }
  if (!n->node.read_only && nbd_is_read_only (nbd) != 0) {
    errno = EROFS;
    return open_failed (n, options,
                        "open for writing: the export is read-only");
  }
  atomic_init (&n->node.size, size);
  n->can_flush = nbd_can_flush (nbd) == 1;
  n->can_trim = nbd_can_trim (nbd) == 1;
  n->can_zero = nbd_can_zero (nbd) == 1;
  n->can_cache = nbd_can_cache (nbd) == 1;
  n->can_status =
    nbd_can_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
  n->multi_conn = nbd_can_multi_conn (nbd) == 1;
  n->node.can_fast_zero = n->can_zero && nbd_can_fast_zero (nbd) == 1;
  n->node.description = nbd_get_export_description (nbd);
  return set_block_sizes (n, nbd, options);
}

/* Open the first connection. */
static int
open_export (struct nbd_node *n, const struct node_open_options *options)
{
  char cause[CAUSE_LEN];

  if (conns_open (&n->conns, &n->node, options, cause) == -1)
    return open_failed (n, options, "%.200s", cause);
  return set_properties (n, n->conns.conn[0].nbd, options);
}

struct node *
nbd_node_open (const char *uri, const struct node_open_options *options)
{
  struct nbd_node *n = calloc (1, sizeof *n);

  if (n == NULL || (n->node.name = strdup (uri)) == NULL) {
    msg_error ("%s: open: %m", uri);
    free (n);
    return NULL;
  }
  n->node.ops = &nbd_ops;
  n->node.read_only = options->read_only;
  n->node.fixed_size = true;
  n->node.keeps_flush_error = !options->rewrites;
  kept_status_init (&n->kept);

  if (open_export (n, options) == -1) {
    const int err = errno;

    nbd_node_close (&n->node);
    errno = err;
    return NULL;
  }
  return &n->node;
}
