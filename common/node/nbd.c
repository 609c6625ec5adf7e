/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The node of an NBD export, through libnbd.
 *
 * Notes on the design
 *
 * A request becomes one or more asynchronous libnbd commands, all on
 * the same connection.  Each command's completion callback posts the
 * semaphore of the request, and the caller waits there.  So any number
 * of threads can have requests in flight on one connection.
 *
 * Something has to move the connection while they wait.  From
 * node_start on, this is one driver thread a connection, which polls
 * its socket and an eventfd.  libnbd usually sends a command at once, in
 * the thread that issues it; the eventfd is for the other case, that
 * the socket was full and the driver must now wait for room as well.
 * Before node_start there may be no threads (the server is going to
 * fork), and so the caller itself polls until its request is complete.
 *
 * Driver threads end in two ways.  When its connection dies the driver
 * writes down the cause and returns; it is joined by whoever connects
 * again, or by close.  On close the driver is told to stop through the
 * eventfd and joined, then the connection is shut down and freed.
 *
 * When a connection dies libnbd completes every command in flight with
 * ENOTCONN, so nobody is left waiting.  Of a read-only node a dead
 * connection is then opened again by the next request that is given it.
 * A writable node stays dead as a whole: a server that comes back may
 * have lost what was written since the last flush, and going on as if
 * nothing had happened would be the one thing that cannot be repaired.
 *
 * A server that is cut off since it does not answer still has our
 * requests, in its socket if nowhere else, and executes them when it
 * goes on.  On another connection newer writes could be overtaken by
 * these.  So of a connection that is cut only our direction is shut
 * down, and its socket lingers: there is no new connection to the same
 * URI before the server has closed it, which servers do when they have
 * dealt with all that came.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "utils/cleanup.h"
#include "utils/message.h"
#include "node/node.h"
#include "utils/rounding.h"

/* Connections, if the server allows several. */
#define MAX_CONNS 4

/* The longest commands, with data (libnbd's own limit is 64 MiB) and
 * without (a length has 32 bits).
 */
#define MAX_DATA (32 * 1024 * 1024)
#define MAX_RANGE (UINT32_MAX - 65535)

/* Parts of a vector from this size on are sent as commands of their
 * own, shorter ones are collected in a buffer: up to there copying
 * costs less than another command.
 */
#define DIRECT_SIZE (64U * 1024)
#define BOUNCE_SIZE (UINT64_C (1024) * 1024)

/* Block status of a read-only node is asked for this far ahead, and so
 * many extents of the reply are kept.
 */
#define STATUS_AHEAD (UINT64_C (64) * 1024 * 1024)
#define STATUS_ENTRIES 4096

/* Nanoseconds from a failed attempt to connect to the next one. */
#define RETRY_DELAY INT64_C (1000000000)

#define CAUSE_LEN 256

enum conn_state { CONN_OPEN, CONN_DEAD, CONN_CONNECTING };

struct conn {
  struct nbd_node *node;
  struct nbd_handle *nbd;       /* NULL only while dead; changed only
                                   while connecting without users */
  int fd;                       /* its socket; libnbd closes it when the
                                   connection dies */
  int own_fd;                   /* the same socket, ours to close, or -1;
                                   guarded by node->lock */
  int wake;                     /* eventfd for the driver, or -1 */
  atomic_bool stop;             /* the driver shall end */
  atomic_bool cut;              /* the driver shall find that nothing can
                                   be sent any more */
  bool has_driver;              /* as nbd */
  pthread_t driver;

  /* Guarded by node->lock. */
  enum conn_state state;
  unsigned users;               /* requests that use nbd */
  char cause[CAUSE_LEN];        /* why it is dead */
};

/* A reply to a block status command: extents one behind the other. */
struct status {
  uint64_t offset;
  size_t nr, max;
  struct { uint32_t length, flags; } entries[];
};

struct nbd_node {
  struct node node;
  char *uri;                    /* to connect to; node.name is as given */
  bool from_file;
  unsigned timeout;             /* as in struct node_open_options */
  int cancel;
  void (*lost_callback) (void *opaque);
  void *lost_opaque;
  bool started;                 /* there are drivers */

  /* What the server can do, constant. */
  bool can_flush, can_trim, can_zero, can_cache, can_status, multi_conn;
  uint32_t max_data;            /* longest command with data */

  struct conn conns[MAX_CONNS];
  unsigned nr_conns;            /* constant once started */
  atomic_uint turn;             /* of the connections */

  pthread_mutex_t lock;         /* protects the state of connections and
                                   what follows; a leaf lock, never held
                                   during a call of libnbd */
  pthread_cond_t changed;       /* state or users of a connection */
  bool lost;                    /* a connection of a writable node died */
  bool was_cut;                 /* by node_cut */
  int64_t retry_after;          /* when to try to connect again */

  pthread_mutex_t status_lock;  /* protects status; a leaf lock */
  struct status *status;        /* last reply, if read-only, or NULL */
};

/* One request, on its caller's stack. */
struct request {
  struct nbd_node *n;
  struct conn *conn;
  const char *what;
  uint64_t count, offset;
  unsigned pending;             /* commands issued and not waited for */
  _Atomic int error;            /* of the first command that failed */
  sem_t done;                   /* posted by each command */
};

/* A socket that was cut and that the server has not closed yet. */
struct lingering {
  struct lingering *next;
  int fd;
  char uri[];
};

static pthread_mutex_t lingering_lock = PTHREAD_MUTEX_INITIALIZER;
static struct lingering *all_lingering; /* protected by the lock above, a
                                           leaf lock */

static const char *
libnbd_cause (void)
{
  const char *text = nbd_get_error ();
  const char *colon;

  if (text == NULL)
    return "unknown error";
  /* "nbd_connect_uri: connect: ..."; the name tells people nothing. */
  colon = strstr (text, ": ");
  return strncmp (text, "nbd_", 4) == 0 && colon ? colon + 2 : text;
}

static int
libnbd_errno (void)
{
  const int err = nbd_get_errno ();

  return err ? err : EIO;
}

static bool
is_finished (struct nbd_handle *nbd)
{
  return nbd_aio_is_dead (nbd) == 1 || nbd_aio_is_closed (nbd) == 1;
}

static int64_t
now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return ts.tv_sec * INT64_C (1000000000) + ts.tv_nsec;
}

/* Note that a connection is dead, after the libnbd call that found it
 * so has failed in this thread (or, with failed == false, without any).
 */
static void
note_death (struct conn *c, bool failed)
{
  struct nbd_node *n = c->node;
  const int err = failed ? nbd_get_errno () : 0;
  const char *cause = libnbd_cause ();
  bool tell = false;

  /* EINVAL: another thread, issuing a command, has found it before us. */
  if (err == 0 || err == ENOTCONN || err == ECONNRESET || err == EPIPE ||
      err == EINVAL)
    cause = "server closed the connection";

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
    if (c->state != CONN_OPEN)
      return;
    c->state = CONN_DEAD;
    if (!n->node.read_only) {
      tell = !n->lost && n->lost_callback;
      n->lost = true;
    }
    snprintf (c->cause, sizeof c->cause, "%s",
              n->was_cut ? "server does not answer" : cause);
    pthread_cond_broadcast (&n->changed);
  }
  if (tell)
    n->lost_callback (n->lost_opaque);
}

static struct pollfd
socket_events (struct conn *c)
{
  const unsigned direction = nbd_aio_get_direction (c->nbd);
  struct pollfd fd = { .fd = c->fd };

  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fd.events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fd.events |= POLLOUT;
  return fd;
}

/* Tell libnbd what poll has said.  Returns -1 if that killed the
 * connection.  libnbd accepts a read in all states of a connection, and
 * finds its end there.
 */
static int
notify (struct conn *c, short revents)
{
  /* One of the two only, since the first can change the direction. */
  if (revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL))
    return nbd_aio_notify_read (c->nbd);
  if (revents & POLLOUT)
    return nbd_aio_notify_write (c->nbd);
  return 0;
}

/* Nothing can be sent any more; let libnbd find that out.  Only if it is
 * in the middle of an answer it does not try to send, and must be told
 * that nothing comes either; then the end of the connection at the
 * server goes unseen.
 */
static int
find_cut (struct conn *c)
{
  int r;

  if (nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE)
    r = nbd_aio_notify_write (c->nbd);
  else
    r = nbd_aio_flush (c->nbd, NBD_NULL_COMPLETION, 0) == -1 ? -1 : 0;
  if (!is_finished (c->nbd))
    shutdown (c->fd, SHUT_RDWR);
  return r;
}

static void *
driver_thread (void *vp)
{
  struct conn *c = vp;
  bool failed = false;

  while (!is_finished (c->nbd)) {
    struct pollfd fds[2] = {
      socket_events (c), { .fd = c->wake, .events = POLLIN },
    };
    uint64_t kicks;

    if (poll (fds, 2, -1) == -1)
      continue;                 /* EINTR or ENOMEM, which passes */
    if (fds[1].revents)
      (void) !read (c->wake, &kicks, sizeof kicks);
    if (atomic_load (&c->stop))
      return NULL;
    failed = atomic_exchange (&c->cut, false) ? find_cut (c) == -1
      : notify (c, fds[0].revents) == -1;
  }
  note_death (c, failed);
  return NULL;
}

static void
kick (struct conn *c)
{
  const uint64_t one = 1;

  (void) !write (c->wake, &one, sizeof one);
}

static int
start_driver (struct conn *c)
{
  int err;

  atomic_store (&c->stop, false);
  if (c->wake == -1)
    c->wake = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (c->wake == -1)
    return -1;
  err = pthread_create (&c->driver, NULL, driver_thread, c);
  if (err) {
    errno = err;
    return -1;
  }
  pthread_setname_np (c->driver, "nbd");
  c->has_driver = true;
  return 0;
}

/* A server that is gone ends its connection some time, too. */
static void
watch_peer (int fd, unsigned timeout)
{
  const int yes = 1, idle = 10, interval = 5, count = 4;

  /* All of these fail on a Unix socket, whose peer is never gone. */
  setsockopt (fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt (fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
  setsockopt (fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
}

/* Let the socket of a connection that was cut linger. */
static void
linger (const struct nbd_node *n, int fd)
{
  struct lingering *l = malloc (sizeof *l + strlen (n->uri) + 1);

  if (l == NULL) {
    close (fd);
    return;
  }
  watch_peer (fd, n->timeout);
  l->fd = fd;
  strcpy (l->uri, n->uri);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lingering_lock);
  l->next = all_lingering;
  all_lingering = l;
}

/* Has the server closed it?  What it answered is thrown away. */
static bool
is_at_end (int fd)
{
  char buf[4096];
  ssize_t r;

  do
    r = recv (fd, buf, sizeof buf, MSG_DONTWAIT);
  while (r > 0 || (r == -1 && errno == EINTR));
  return r == 0 || errno != EAGAIN;
}

/* Forget sockets that are at their end.  Returns one that lingers on to
 * the same URI, or -1.
 */
static int
find_lingering (const char *uri)
{
  struct lingering **p = &all_lingering;
  int fd = -1;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&lingering_lock);
  while (*p) {
    struct lingering *l = *p;

    if (is_at_end (l->fd)) {
      *p = l->next;
      close (l->fd);
      free (l);
      continue;
    }
    if (strcmp (l->uri, uri) == 0)
      fd = l->fd;
    p = &l->next;
  }
  return fd;
}

/* Wait until the server has closed what was cut.  -1 with errno after
 * deadline, or when we are told to give up.
 */
static int
wait_for_lingering (const struct nbd_node *n, int64_t deadline)
{
  int fd;

  while ((fd = find_lingering (n->uri)) >= 0) {
    struct pollfd fds[2] = {
      { .fd = fd, .events = POLLIN }, { .fd = n->cancel, .events = POLLIN },
    };
    const int64_t left = n->timeout ? MAX (deadline - now (), 0) : -1;
    const int r = poll (fds, n->cancel ? 2 : 1,
                        left > 0 ? left / 1000000 + 1 : left);

    if (r == 0 || (r > 0 && fds[1].revents)) {
      errno = ETIMEDOUT;
      return -1;
    }
  }
  return 0;
}

/* End the driver and free the handle.  There are no users. */
static void
disconnect (struct conn *c)
{
  if (c->has_driver) {
    atomic_store (&c->stop, true);
    kick (c);
    pthread_join (c->driver, NULL);
    c->has_driver = false;
  }
  /* Say good-bye, but do not wait for a server that may hang. */
  if (c->nbd && !is_finished (c->nbd))
    nbd_aio_disconnect (c->nbd, 0);
  nbd_close (c->nbd);
  c->nbd = NULL;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->node->lock);
  if (c->own_fd >= 0 && c->node->was_cut)
    linger (c->node, c->own_fd);
  else if (c->own_fd >= 0)
    close (c->own_fd);
  c->own_fd = -1;
}

/* Drive a handle that is connecting until it is connected, or until
 * deadline.  On failure says why, and sets errno.
 */
static int
finish_connecting (struct nbd_node *n, struct nbd_handle *nbd,
                   int64_t deadline, char cause[CAUSE_LEN])
{
  int r = 0;

  while (r == 0 && nbd_aio_is_connecting (nbd) == 1) {
    struct conn c = { .nbd = nbd, .fd = nbd_aio_get_fd (nbd) };
    struct pollfd fds[2] = {
      socket_events (&c), { .fd = n->cancel, .events = POLLIN },
    };
    const int64_t left = n->timeout ? MAX (deadline - now (), 0) : -1;

    r = poll (fds, n->cancel ? 2 : 1, left > 0 ? left / 1000000 + 1 : left);
    if (r == 0 || (r > 0 && fds[1].revents)) {
      snprintf (cause, CAUSE_LEN, "server does not answer");
      errno = ETIMEDOUT;
      return -1;
    }
    r = r > 0 ? notify (&c, fds[0].revents) : 0;
  }
  if (r == 0 && nbd_aio_is_ready (nbd) == 1)
    return 0;
  errno = libnbd_errno ();
  snprintf (cause, CAUSE_LEN, "%s", libnbd_cause ());
  return -1;
}

/* Connect.  On failure returns NULL with errno, and says why. */
static struct nbd_handle *
connect_handle (struct nbd_node *n, char cause[CAUSE_LEN])
{
  const int64_t deadline = now () + n->timeout * INT64_C (1000000);
  struct nbd_handle *nbd = nbd_create ();
  int err;

  if (wait_for_lingering (n, deadline) == -1) {
    err = errno;
    snprintf (cause, CAUSE_LEN, "server does not answer");
  }
  else if (nbd == NULL ||
      nbd_add_meta_context (nbd, LIBNBD_CONTEXT_BASE_ALLOCATION) == -1 ||
      nbd_set_uri_allow_local_file (nbd, !n->from_file) == -1 ||
      nbd_set_full_info (nbd, true) == -1 || /* for the description */
      nbd_aio_connect_uri (nbd, n->uri) == -1) {
    err = libnbd_errno ();
    snprintf (cause, CAUSE_LEN, "%s", libnbd_cause ());
  }
  else if (finish_connecting (n, nbd, deadline, cause) == -1)
    err = errno;
  else
    return nbd;

  nbd_close (nbd);
  errno = err;
  return NULL;
}

/* Take over a connected handle. */
static void
set_handle (struct conn *c, struct nbd_handle *nbd)
{
  c->nbd = nbd;
  c->fd = nbd_aio_get_fd (nbd);

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->node->lock);
  c->own_fd = fcntl (c->fd, F_DUPFD_CLOEXEC, 0);
}

/* Connect to the export that the node is, which must look the same.  On
 * failure says why.
 */
static int
connect_again (struct conn *c, char cause[CAUSE_LEN])
{
  struct nbd_node *n = c->node;
  char why[CAUSE_LEN];
  struct nbd_handle *nbd = connect_handle (n, why);
  int64_t size;

  if (nbd == NULL) {
    snprintf (cause, CAUSE_LEN, "cannot connect: %.200s", why);
    return -1;
  }
  set_handle (c, nbd);
  size = nbd_get_size (c->nbd);
  if (size != (int64_t) node_size (&n->node)) {
    snprintf (cause, CAUSE_LEN, "the export's size has changed from "
              "%" PRIu64 " to %" PRIi64 " bytes",
              node_size (&n->node), size);
    disconnect (c);
    return -1;
  }
  return 0;
}

/* Replace a dead connection of a read-only node.  Called and returns
 * with the lock; c->state tells the result.
 */
static void
revive (struct conn *c)
{
  struct nbd_node *n = c->node;
  char cause[CAUSE_LEN];
  int r;

  c->state = CONN_CONNECTING;
  while (c->users > 0)
    pthread_cond_wait (&n->changed, &n->lock);
  pthread_mutex_unlock (&n->lock);
  disconnect (c);
  r = connect_again (c, cause);
  pthread_mutex_lock (&n->lock);

  /* Under the lock, so that the new driver cannot note the death of a
   * connection before it is open.
   */
  if (r == 0 && n->started && start_driver (c) == -1) {
    snprintf (cause, sizeof cause, "starting a thread: %s",
              strerror (errno));
    r = -1;
  }
  c->state = r == 0 ? CONN_OPEN : CONN_DEAD;
  if (r == -1) {
    strcpy (c->cause, cause);
    n->retry_after = now () + RETRY_DELAY;
  }
  pthread_cond_broadcast (&n->changed);
}

/* Give the request its connection, in turn.  Returns -1 if that is
 * dead, with its cause copied.
 */
static int
get_conn (struct request *r, char cause[CAUSE_LEN])
{
  struct nbd_node *n = r->n;
  struct conn *c = &n->conns[n->nr_conns > 1 ?
                             atomic_fetch_add (&n->turn, 1) % n->nr_conns :
                             0];

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  if (c->state == CONN_DEAD && n->node.read_only && now () >= n->retry_after)
    revive (c);
  while (c->state == CONN_CONNECTING)
    pthread_cond_wait (&n->changed, &n->lock);
  if (c->state == CONN_DEAD || n->lost) {
    /* The one that died first knows why. */
    for (unsigned i = 0; c->state != CONN_DEAD; ++i)
      c = &n->conns[i];
    strcpy (cause, c->cause);
    return -1;
  }
  c->users++;
  r->conn = c;
  return 0;
}

static void
put_conn (struct request *r)
{
  struct nbd_node *n = r->n;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  if (--r->conn->users == 0 && r->conn->state != CONN_OPEN)
    pthread_cond_broadcast (&n->changed);
}

/* Why did the connection die?  Waits for who has seen it to say so. */
static void
get_cause (struct conn *c, char cause[CAUSE_LEN])
{
  struct nbd_node *n = c->node;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  while (c->state == CONN_OPEN)
    pthread_cond_wait (&n->changed, &n->lock);
  strcpy (cause, c->cause);
}

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

  if (r->n->lost_callback)      /* who has been told will say it */
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
  if (get_conn (r, cause) == -1) {
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
  sem_post (&r->done);          /* r may be gone after this */
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
  struct conn *c = r->conn;
  const bool finished = is_finished (c->nbd);

  if (cookie == -1)
    set_error (r, finished ? ENOTCONN : libnbd_errno ());
  else
    r->pending++;

  if (r->n->started &&
      (finished ||
       (nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE)))
    kick (c);
  return atomic_load (&r->error) ? -1 : 0;
}

/* Be the driver, until one command has completed. */
static void
drive_until_done (struct request *r)
{
  struct conn *c = r->conn;

  while (sem_trywait (&r->done) == -1) {
    struct pollfd fd = socket_events (c);

    if (poll (&fd, 1, -1) == 1 && notify (c, fd.revents) == -1)
      note_death (c, true);
  }
}

/* Wait for all commands issued so far. */
static void
wait_request (struct request *r)
{
  for (; r->pending > 0; r->pending--) {
    if (!r->n->started)
      drive_until_done (r);
    else
      while (sem_wait (&r->done) == -1)
        ;                       /* EINTR */
  }
}

/* End all connections, as a server that is about to end waits for that
 * and answers nothing else until then.  The drivers find their end, and
 * the next requests connect again.
 */
static void
hang_up (struct nbd_node *n)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  for (unsigned i = 0; i < n->nr_conns; ++i)
    if (n->conns[i].own_fd >= 0)
      shutdown (n->conns[i].own_fd, SHUT_RDWR);
}

/* Wait for the request, report its error and return it as -1 and errno.
 * ENOTSUP is left to the caller.
 */
static int
end_request (struct request *r)
{
  char cause[CAUSE_LEN];
  int err;

  wait_request (r);
  sem_destroy (&r->done);
  err = atomic_load (&r->error);

  /* A server cannot send ENOTCONN, so it means that the connection is
   * dead; without a driver perhaps nobody has noted that yet.
   */
  if (err == ENOTCONN) {
    if (!r->n->started)
      note_death (r->conn, false);
    get_cause (r->conn, cause);
    report_dead (r, cause);
    err = EIO;
  }
  else if (err == EOPNOTSUPP)
    err = ENOTSUP;
  else if (err) {
    report (r, strerror (err));
    if (err == ESHUTDOWN) {
      /* To our own clients it would say that we end. */
      err = EIO;
      if (r->n->node.read_only)
        hang_up (r->n);
    }
  }

  put_conn (r);
  if (err == 0)
    return 0;
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
nbd_node_pread (struct node *node, void *buf, size_t count, uint64_t offset)
{
  struct nbd_node *n = (struct nbd_node *) node;
  struct request r;

  if (count == 0)
    return 0;
  if (begin_request (&r, n, "read", count, offset) == -1)
    return -1;
  for (size_t done = 0, len; done < count; done += len) {
    len = MIN (count - done, n->max_data);
    if (issued (&r, nbd_aio_pread (r.conn->nbd, (char *) buf + done, len,
                                   offset + done, completion (&r), 0)) == -1)
      break;
  }
  return end_strict_request (&r);
}

/* A place in a vector. */
struct cursor {
  const struct iovec *iov;
  size_t skip;                  /* bytes of it that are done */
};

static size_t
in_element (const struct cursor *at)
{
  return at->iov->iov_len - at->skip;
}

static void
advance (struct cursor *at, size_t len)
{
  at->skip += len;
}

/* Go on to an element that has something left.  There must be one. */
static void
skip_empty (struct cursor *at)
{
  while (in_element (at) == 0) {
    at->iov++;
    at->skip = 0;
  }
}

/* How much can be sent from here without copying?  0 if it is too
 * little to be worth it.  The longest command always is, so a vector of
 * one part needs no buffer.
 */
static size_t
direct_length (const struct nbd_node *n, struct cursor *at, size_t left)
{
  size_t len;

  skip_empty (at);
  len = round_down (MIN (in_element (at), n->max_data), n->node.align);
  return len >= MIN (DIRECT_SIZE, n->max_data) || len == left ? len : 0;
}

/* Collect what is too little to be sent directly.  Returns the length,
 * a multiple of the alignment.
 */
static size_t
collect (const struct nbd_node *n, struct cursor *at, size_t left,
         char *buf, size_t size)
{
  const uint32_t align = n->node.align;
  size_t fill = 0;

  size = MIN (size, left);
  while (fill < size) {
    size_t len;

    if (fill > 0 && is_aligned (fill, align) &&
        direct_length (n, at, left - fill) > 0)
      break;
    skip_empty (at);
    len = MIN (in_element (at), size - fill);
    /* Of a long element take what aligns the rest of it. */
    if (!is_aligned (fill, align) && in_element (at) >= DIRECT_SIZE)
      len = MIN (len, align - (fill & (align - 1)));
    memcpy (buf + fill, (char *) at->iov->iov_base + at->skip, len);
    advance (at, len);
    fill += len;
  }
  return fill;
}

/* Send a vector: long parts directly, short ones through the buffer,
 * which can be used again when all commands before have completed.
 */
static void
send_vector (struct request *r, const struct iovec *iov, char *buf,
             size_t size)
{
  struct cursor at = { .iov = iov };
  size_t used = 0;
  uint64_t done = 0;

  while (done < r->count) {
    size_t len = direct_length (r->n, &at, r->count - done);
    const char *from;

    if (len > 0) {
      from = (char *) at.iov->iov_base + at.skip;
      advance (&at, len);
    }
    else {
      if (used == size) {
        wait_request (r);
        used = 0;
      }
      from = buf + used;
      len = collect (r->n, &at, r->count - done, buf + used, size - used);
      used += len;
    }
    if (issued (r, nbd_aio_pwrite (r->conn->nbd, from, len,
                                   r->offset + done, completion (r),
                                   0)) == -1)
      return;
    done += len;
  }
}

static int
nbd_node_pwritev (struct node *node, const struct iovec *iov, int iovcnt,
                  size_t count, uint64_t offset)
{
  struct nbd_node *n = (struct nbd_node *) node;
  const size_t size = MIN (count, MIN (BOUNCE_SIZE, n->max_data));
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

/* A command without data, in pieces. */
typedef int64_t (*range_command) (struct nbd_handle *nbd, uint64_t count,
                                  uint64_t offset,
                                  nbd_completion_callback completion,
                                  uint32_t flags);

static int
send_range (struct nbd_node *n, const char *what, range_command command,
            uint64_t piece, uint64_t count, uint64_t offset, uint32_t flags)
{
  struct request r;

  if (begin_request (&r, n, what, count, offset) == -1)
    return -1;
  for (uint64_t done = 0, len; done < count; done += len) {
    len = MIN (count - done, piece);
    if (issued (&r, command (r.conn->nbd, len, offset + done,
                             completion (&r), flags)) == -1)
      break;
  }
  return end_request (&r);
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
    const uint64_t len = MIN (count, MAX_RANGE);

    if (send_range (n, "zero", nbd_aio_zero, MAX_RANGE, len, offset,
                    no_hole | LIBNBD_CMD_FLAG_FAST_ZERO) == -1)
      return -1;
    count -= len;
    offset += len;
  }
  if (count == 0)
    return 0;
  return send_range (n, "zero", nbd_aio_zero, MAX_RANGE, count, offset,
                     no_hole);
}

static int
nbd_node_discard (struct node *node, uint64_t count, uint64_t offset)
{
  struct nbd_node *n = (struct nbd_node *) node;
  int r;

  if (!n->can_trim || count == 0)
    return 0;
  r = send_range (n, "discard", nbd_aio_trim, MAX_RANGE, count, offset, 0);
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

/* Called by libnbd with what the server knows. */
static int
status_received (void *vp, const char *context, uint64_t offset,
                 uint32_t *entries, size_t nr_entries, int *error)
{
  struct status *s = vp;

  (void) context;               /* there is one only */
  (void) error;
  s->offset = offset;
  s->nr = MIN (nr_entries / 2, s->max);
  for (size_t i = 0; i < s->nr; ++i) {
    s->entries[i].length = entries[2 * i];
    s->entries[i].flags = entries[2 * i + 1];
  }
  return 0;
}

static struct status *
status_new (const struct nbd_node *n)
{
  const size_t max = n->node.read_only ? STATUS_ENTRIES : 1;
  struct status *s = malloc (sizeof *s + max * sizeof s->entries[0]);

  if (s == NULL) {
    msg_error ("%s: block status: %m", n->node.name);
    return NULL;
  }
  *s = (struct status) { .max = max };
  return s;
}

/* Ask the server.  The reply begins at offset. */
static int
query_status (struct nbd_node *n, uint64_t count, uint64_t offset,
              struct status *s)
{
  struct request r;

  /* More than was asked for is of use only if it is kept. */
  if (n->node.read_only)
    count = MIN (MAX (count, STATUS_AHEAD),
                 round_down (node_size (&n->node) - offset, n->node.align));
  count = MIN (count, MAX_RANGE);

  if (begin_request (&r, n, "block status", count, offset) == -1)
    return -1;
  issued (&r, nbd_aio_block_status (r.conn->nbd, count, offset,
                                    (nbd_extent_callback) {
                                      .callback = status_received,
                                      .user_data = s,
                                    },
                                    completion (&r),
                                    n->node.read_only ? 0 :
                                    LIBNBD_CMD_FLAG_REQ_ONE));
  if (end_strict_request (&r) == -1)
    return -1;
  if (s->nr == 0 || s->offset != offset || s->entries[0].length == 0) {
    report (&r, "server sent an invalid reply");
    errno = EIO;
    return -1;
  }
  return 0;
}

/* Look an offset up in a reply.  Returns false if it is not there. */
static bool
find_status (const struct status *s, uint64_t offset, struct extent *ret)
{
  uint64_t end = s->offset;

  if (offset < s->offset)
    return false;
  for (size_t i = 0; i < s->nr; ++i) {
    end += s->entries[i].length;
    if (offset < end) {
      ret->length = end - offset;
      if (s->entries[i].flags & LIBNBD_STATE_HOLE)
        ret->flags |= EXTENT_HOLE;
      if (s->entries[i].flags & LIBNBD_STATE_ZERO)
        ret->flags |= EXTENT_ZERO;
      return true;
    }
  }
  return false;
}

static bool
find_kept_status (struct nbd_node *n, uint64_t offset, struct extent *ret)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->status_lock);

  return n->status && find_status (n->status, offset, ret);
}

/* Keep a reply if nobody can change what it says. */
static void
keep_status (struct nbd_node *n, struct status *s)
{
  if (n->node.read_only) {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->status_lock);
    free (n->status);
    n->status = s;
  }
  else
    free (s);
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

  if (!find_kept_status (n, offset, ret)) {
    s = status_new (n);
    if (s == NULL)
      return -1;
    if (query_status (n, count, offset, s) == -1) {
      free (s);
      return -1;
    }
    find_status (s, offset, ret);
    keep_status (n, s);
  }
  ret->length = MIN (ret->length, count);
  return 0;
}

/* Open the other connections, if the server allows that. */
static void
add_connections (struct nbd_node *n)
{
  char cause[CAUSE_LEN];

  if (!n->multi_conn)
    return;
  while (n->nr_conns < MAX_CONNS) {
    struct conn *c = &n->conns[n->nr_conns];

    *c = (struct conn) {
      .node = n, .fd = -1, .own_fd = -1, .wake = -1
    };
    if (connect_again (c, cause) == -1) {
      /* It wants fewer clients, and we can do with fewer. */
      msg_debug ("%s: connection %u: %s", n->node.name, n->nr_conns + 1,
                 cause);
      return;
    }
    n->nr_conns++;
  }
}

static int
nbd_node_start (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;

  add_connections (n);
  n->started = true;
  for (unsigned i = 0; i < n->nr_conns; ++i) {
    if (n->conns[i].nbd && start_driver (&n->conns[i]) == -1) {
      msg_error ("%s: starting a thread: %m", node->name);
      return -1;
    }
  }
  return 0;
}

static int
nbd_node_close (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;

  for (unsigned i = 0; i < n->nr_conns; ++i) {
    disconnect (&n->conns[i]);
    if (n->conns[i].wake >= 0)
      close (n->conns[i].wake);
  }
  pthread_cond_destroy (&n->changed);
  pthread_mutex_destroy (&n->lock);
  pthread_mutex_destroy (&n->status_lock);
  free (n->status);
  free (node->description);
  free (node->name);
  free (n->uri);
  free (n);
  return 0;
}

/* The drivers then find that their connections have ended. */
static void
nbd_node_cut (struct node *node)
{
  struct nbd_node *n = (struct nbd_node *) node;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  if (!n->lost)
    n->was_cut = true;
  for (unsigned i = 0; i < n->nr_conns; ++i) {
    struct conn *c = &n->conns[i];

    if (c->own_fd < 0)
      continue;
    shutdown (c->own_fd, n->can_flush ? SHUT_WR : SHUT_RDWR);
    atomic_store (&c->cut, n->can_flush);
    kick (c);
  }
}

static bool
nbd_node_is_lost (struct node *node, char *cause, size_t size)
{
  struct nbd_node *n = (struct nbd_node *) node;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&n->lock);
  if (!n->lost)
    return false;
  for (unsigned i = 0; i < n->nr_conns && cause; ++i)
    if (n->conns[i].state == CONN_DEAD) {
      snprintf (cause, size, "%s", n->conns[i].cause);
      break;
    }
  return true;
}

static const struct node_ops nbd_ops = {
  .type = "nbd",
  .start = nbd_node_start,
  .close = nbd_node_close,
  .pread = nbd_node_pread,
  .pwritev = nbd_node_pwritev,
  .flush = nbd_node_flush,
  .extents = nbd_node_extents,
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
  struct conn *c = &n->conns[0];
  char cause[CAUSE_LEN];
  struct nbd_handle *nbd;

  *c = (struct conn) { .node = n, .fd = -1, .own_fd = -1, .wake = -1 };
  n->nr_conns = 1;
  nbd = connect_handle (n, cause);
  if (nbd == NULL)
    return open_failed (n, options, "%.200s", cause);
  set_handle (c, nbd);
  return set_properties (n, nbd, options);
}

struct node *
nbd_node_open (const char *uri, const struct node_open_options *options)
{
  struct nbd_node *n = calloc (1, sizeof *n);

  if (n == NULL || (n->node.name = strdup (uri)) == NULL ||
      (n->uri = node_absolute_uri (uri)) == NULL) {
    msg_error ("Could not open '%s': %m", uri);
    if (n)
      free (n->node.name);
    free (n);
    return NULL;
  }
  n->node.ops = &nbd_ops;
  n->node.read_only = options->read_only;
  n->node.fixed_size = true;
  n->from_file = options->from_file;
  n->timeout = options->timeout;
  n->cancel = options->cancel;
  n->lost_callback = options->lost;
  n->lost_opaque = options->opaque;
  pthread_mutex_init (&n->lock, NULL);
  pthread_mutex_init (&n->status_lock, NULL);
  pthread_cond_init (&n->changed, NULL);

  if (open_export (n, options) == -1) {
    const int err = errno;

    nbd_node_close (&n->node);
    errno = err;
    return NULL;
  }
  return &n->node;
}
