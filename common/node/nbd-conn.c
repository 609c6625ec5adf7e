/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The life of the connections of an NBD node.
 *
 * Notes on the design
 *
 * Something has to move a connection while requests wait for it.  From
 * node_start on, this is one driver thread a connection, which polls its
 * socket and an eventfd.  libnbd usually sends a command at once, in the
 * thread that issues it; the eventfd is for the other case, that the
 * socket was full and the driver must now wait for room as well.  Before
 * node_start there may be no threads (the server is going to fork), and
 * so the caller itself polls until its request is complete.
 *
 * Driver threads end in two ways.  When its connection dies the driver
 * writes down the cause and returns; it is joined by whoever connects
 * again, or by close.  On close the driver is told to stop through the
 * eventfd and joined, then the connection is shut down and freed.
 *
 * When a connection dies libnbd completes every command in flight with
 * ENOTCONN, so nobody is left waiting.  Of a read-only node a dead
 * connection is then opened again by the next request that is given it.
 * A server that ends in an orderly way first says so, ESHUTDOWN, to all
 * requests, and waits for the connections to end.  So they are ended, and
 * the requests made again when the server is back, as far as that is soon;
 * sooner, if it has hung up without a word, and is dead perhaps.
 *
 * A writable node stays dead as a whole: a server that comes back may
 * have lost what was written since the last flush, and going on as if
 * nothing had happened would be the one thing that cannot be repaired.
 *
 * Of a connection that is cut, since the server does not answer, only our
 * direction is shut down, and its socket lingers (nbd-linger.h).
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "node/nbd-conn.h"
#include "node/nbd-handle.h"
#include "node/nbd-linger.h"
#include "utils/cleanup.h"
#include "utils/clock.h"
#include "utils/message.h"
#include "utils/rounding.h"

/* Milliseconds from a failed attempt to connect to the next one. */
#define RETRY_DELAY 1000

/* Milliseconds that a server may take to be started again which has ended
 * in an orderly way, or has just hung up, and a pause between attempts.
 */
#define RESTART_TIME 10000
#define LOSS_TIME 2000
#define RESTART_PAUSE 50

const char *
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

int
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

/* ---- Driving */

/* Connections up to this one are gone, and the server may come back within
 * this time, which is no longer for one that is still gone.  With the lock.
 */
static void
expect_restart (struct conns *cs, uint64_t number, int64_t time)
{
  if (!atomic_exchange (&cs->restarting, true))
    cs->restart_began = clock_ms ();
  cs->restart_until = MAX (cs->restart_until, cs->restart_began + time);
  cs->hung_up = MAX (cs->hung_up, number);
}

/* Note that a connection is dead, after the libnbd call that found it
 * so has failed in this thread (or, with failed == false, without any).
 */
static void
note_death (struct conn *c, bool failed)
{
  struct conns *cs = c->conns;
  const int err = failed ? nbd_get_errno () : 0;
  const char *cause = libnbd_cause ();
  bool tell = false;

  /* EINVAL: another thread, issuing a command, has found it before us. */
  if (err == 0 || err == ENOTCONN || err == ECONNRESET || err == EPIPE ||
      err == EINVAL)
    cause = "server closed the connection";

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
    /* Who has started this driver is about to say that it is open. */
    while (c->state == CONN_STARTING)
      pthread_cond_wait (&cs->changed, &cs->lock);
    if (c->state != CONN_OPEN)
      return;
    c->state = CONN_DEAD;
    if (!cs->node->read_only) {
      tell = !cs->lost && cs->lost_callback;
      cs->lost = true;
    }
    else if (!cs->was_cut)
      expect_restart (cs, c->number, LOSS_TIME);
    snprintf (c->cause, sizeof c->cause, "%s",
              cs->was_cut ? "server does not answer" : cause);
    pthread_cond_broadcast (&cs->changed);
  }
  if (tell)
    cs->lost_callback (cs->lost_opaque);
}

static struct pollfd
socket_events (struct nbd_handle *nbd, int fd)
{
  const unsigned direction = nbd_aio_get_direction (nbd);
  struct pollfd p = { .fd = fd };

  if (direction & LIBNBD_AIO_DIRECTION_READ)
    p.events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    p.events |= POLLOUT;
  return p;
}

/* Tell libnbd what poll has said.  Returns -1 if that killed the
 * connection.  libnbd accepts a read in all states of a connection, and
 * finds its end there.
 */
static int
notify (struct nbd_handle *nbd, short revents)
{
  /* One of the two only, since the first can change the direction. */
  if (revents & (POLLIN | POLLHUP | POLLERR | POLLNVAL))
    return nbd_aio_notify_read (nbd);
  if (revents & POLLOUT)
    return nbd_aio_notify_write (nbd);
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
      socket_events (c->nbd, c->fd), { .fd = c->wake, .events = POLLIN },
    };
    uint64_t kicks;

    if (poll (fds, 2, -1) == -1)
      continue;                 /* EINTR or ENOMEM, which passes */
    if (fds[1].revents)
      (void) !read (c->wake, &kicks, sizeof kicks);
    if (atomic_load (&c->stop))
      return NULL;
    failed = atomic_exchange (&c->cut, false) ? find_cut (c) == -1
      : notify (c->nbd, fds[0].revents) == -1;
  }
  note_death (c, failed);
  return NULL;
}

static void
wake_driver (struct conn *c)
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

bool
conn_is_finished (struct conn *c)
{
  return is_finished (c->nbd);
}

void
conn_kick (struct conn *c)
{
  if (c->conns->started &&
      (conn_is_finished (c) ||
       (nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE)))
    wake_driver (c);
}

void
conn_drive (struct conn *c)
{
  struct pollfd fd = socket_events (c->nbd, c->fd);

  if (is_finished (c->nbd))
    note_death (c, false);
  else if (poll (&fd, 1, -1) == 1 && notify (c->nbd, fd.revents) == -1)
    note_death (c, true);
}

/* ---- Connecting */

/* Poll for events on fd, until deadline if there is one and until we are
 * told to give up: then -1 with ETIMEDOUT.
 */
static int
poll_until (const struct conns *cs, struct pollfd *fd, int64_t deadline)
{
  struct pollfd fds[2] = { *fd, { .fd = cs->cancel, .events = POLLIN } };
  const int64_t left = cs->timeout ? MAX (deadline - clock_ms (), 0) : -1;
  const int r = poll (fds, cs->cancel ? 2 : 1, left);

  if (r == 0 || (r > 0 && fds[1].revents)) {
    errno = ETIMEDOUT;
    return -1;
  }
  fd->revents = r > 0 ? fds[0].revents : 0;
  return 0;
}

/* Wait until the server has closed what was cut.  -1 with errno after
 * deadline, or when we are told to give up.
 */
static int
wait_for_lingering (const struct conns *cs, int64_t deadline)
{
  struct lingering *l;
  int r = 0;

  while (r == 0 && (l = linger_find (cs->uri))) {
    struct pollfd fd = { .fd = l->fd, .events = POLLIN };

    r = poll_until (cs, &fd, deadline);
    linger_leave (l);
  }
  return r;
}

/* End the driver and free the handle.  There are no users. */
static void
disconnect (struct conn *c)
{
  struct conns *cs = c->conns;
  bool was_cut;
  int fd;

  if (c->has_driver) {
    atomic_store (&c->stop, true);
    wake_driver (c);
    pthread_join (c->driver, NULL);
    c->has_driver = false;
  }
  /* Say good-bye, but do not wait for a server that may hang. */
  if (c->nbd && !is_finished (c->nbd))
    nbd_aio_disconnect (c->nbd, 0);
  nbd_close (c->nbd);
  c->nbd = NULL;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
    fd = c->fd;
    c->fd = -1;
    was_cut = cs->was_cut;
  }
  if (fd >= 0 && was_cut)
    linger_begin (cs->uri, fd, cs->timeout);
  else if (fd >= 0)
    close (fd);
}

/* Drive a handle that is connecting until it is connected, or until
 * deadline.
 */
static int
finish_connecting (const struct conns *cs, struct nbd_handle *nbd,
                   int64_t deadline, char cause[CAUSE_LEN])
{
  int r = 0;

  while (r == 0 && nbd_aio_is_connecting (nbd) == 1) {
    struct pollfd fd = socket_events (nbd, nbd_aio_get_fd (nbd));

    if (poll_until (cs, &fd, deadline) == -1) {
      snprintf (cause, CAUSE_LEN, "server does not answer");
      return -1;
    }
    r = notify (nbd, fd.revents);
  }
  if (r == 0 && nbd_aio_is_ready (nbd) == 1)
    return 0;
  errno = libnbd_errno ();
  snprintf (cause, CAUSE_LEN, "%s", libnbd_cause ());
  return -1;
}

/* Connect.  On failure returns NULL. */
static struct nbd_handle *
connect_handle (const struct conns *cs, char cause[CAUSE_LEN])
{
  const int64_t deadline = clock_ms () + cs->timeout;
  struct nbd_handle *nbd = nbd_handle_new (cs->from_file);
  int err;

  if (wait_for_lingering (cs, deadline) == -1) {
    err = errno;
    snprintf (cause, CAUSE_LEN, "server does not answer");
  }
  else if (nbd == NULL || nbd_aio_connect_uri (nbd, cs->uri) == -1) {
    err = libnbd_errno ();
    snprintf (cause, CAUSE_LEN, "%s", libnbd_cause ());
  }
  else if (finish_connecting (cs, nbd, deadline, cause) == -1)
    err = errno;
  else
    return nbd;

  nbd_close (nbd);
  errno = err;
  return NULL;
}

/* Connect.  The socket needs a descriptor of our own, without which the
 * server could not be cut off.
 */
static int
conn_open (struct conn *c, char cause[CAUSE_LEN])
{
  struct nbd_handle *nbd = connect_handle (c->conns, cause);
  int fd, err;

  if (nbd == NULL)
    return -1;
  fd = fcntl (nbd_aio_get_fd (nbd), F_DUPFD_CLOEXEC, 0);
  if (fd == -1) {
    err = errno;
    snprintf (cause, CAUSE_LEN, "another descriptor of the socket: %m");
    nbd_close (nbd);
    errno = err;
    return -1;
  }
  c->nbd = nbd;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->conns->lock);
  c->fd = fd;
  c->number = ++c->conns->last_number;
  c->ending = false;
  return 0;
}

/* Connect to the export that the node is, which must look the same. */
static int
connect_again (struct conn *c, char cause[CAUSE_LEN])
{
  const uint64_t expected = node_size (c->conns->node);
  char why[CAUSE_LEN];
  int64_t size;

  if (conn_open (c, why) == -1) {
    snprintf (cause, CAUSE_LEN, "cannot connect: %.200s", why);
    return -1;
  }
  size = nbd_get_size (c->nbd);
  if (size != (int64_t) expected) {
    snprintf (cause, CAUSE_LEN, "the export's size has changed from "
              "%" PRIu64 " to %" PRIi64 " bytes", expected, size);
    disconnect (c);
    return -1;
  }
  return 0;
}

/* The same, and start a driver. */
static int
replace_connection (struct conn *c, char cause[CAUSE_LEN])
{
  struct conns *cs = c->conns;

  disconnect (c);
  if (connect_again (c, cause) == -1)
    return -1;
  if (!cs->started)
    return 0;

  {
    ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
    c->state = CONN_STARTING;
  }
  if (start_driver (c) == 0)
    return 0;
  snprintf (cause, CAUSE_LEN, "starting a thread: %m");
  return -1;
}

/* Replace a dead connection of a read-only node.  Called and returns
 * with the lock, which is not held while it connects; c->state tells the
 * result.
 */
static void
revive (struct conn *c)
{
  struct conns *cs = c->conns;
  char cause[CAUSE_LEN];
  int r;

  c->state = CONN_CONNECTING;
  while (c->users > 0)
    pthread_cond_wait (&cs->changed, &cs->lock);
  pthread_mutex_unlock (&cs->lock);
  r = replace_connection (c, cause);
  pthread_mutex_lock (&cs->lock);

  c->state = r == 0 ? CONN_OPEN : CONN_DEAD;
  if (r == -1) {
    strcpy (c->cause, cause);
    cs->retry_after = clock_ms ();
    cs->retry_after += cs->retry_after < cs->restart_until ? RESTART_PAUSE
                                                           : RETRY_DELAY;
  }
  pthread_cond_broadcast (&cs->changed);
}

static void
conn_init (struct conn *c, struct conns *cs)
{
  *c = (struct conn) { .conns = cs, .fd = -1, .wake = -1 };
}

int
conns_open (struct conns *cs, const struct node *node,
            const struct node_open_options *options, char cause[CAUSE_LEN])
{
  *cs = (struct conns) {
    .node = node, .from_file = options->from_file,
    .timeout = options->timeout, .cancel = options->cancel,
    .lost_callback = options->lost, .lost_opaque = options->opaque,
  };
  pthread_mutex_init (&cs->lock, NULL);
  clock_cond_init (&cs->changed);
  cs->uri = node_absolute_uri (node->name);
  if (cs->uri == NULL) {
    snprintf (cause, CAUSE_LEN, "%s", strerror (errno));
    return -1;
  }
  cs->nr = 1;
  conn_init (&cs->conn[0], cs);
  return conn_open (&cs->conn[0], cause);
}

void
conns_close (struct conns *cs)
{
  for (unsigned i = 0; i < cs->nr; ++i) {
    disconnect (&cs->conn[i]);
    if (cs->conn[i].wake >= 0)
      close (cs->conn[i].wake);
  }
  pthread_cond_destroy (&cs->changed);
  pthread_mutex_destroy (&cs->lock);
  free (cs->uri);
}

/* Open the other connections. */
static void
add_connections (struct conns *cs)
{
  char cause[CAUSE_LEN];

  while (cs->nr < MAX_CONNS) {
    struct conn *c = &cs->conn[cs->nr];

    conn_init (c, cs);
    if (connect_again (c, cause) == -1) {
      /* It wants fewer clients, and we can do with fewer. */
      msg_debug ("%s: connection %u: %s", cs->node->name, cs->nr + 1, cause);
      return;
    }
    cs->nr++;
  }
}

int
conns_start (struct conns *cs, bool several)
{
  if (several)
    add_connections (cs);
  cs->started = true;
  for (unsigned i = 0; i < cs->nr; ++i)
    if (cs->conn[i].nbd && start_driver (&cs->conn[i]) == -1)
      return -1;
  return 0;
}

/* ---- For requests */

struct conn *
conn_get (struct conns *cs, char cause[CAUSE_LEN])
{
  struct conn *c = &cs->conn[cs->nr > 1 ?
                             atomic_fetch_add (&cs->turn, 1) % cs->nr : 0];

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  /* A request would only meet the end. */
  while (c->ending && c->state == CONN_OPEN && cs->started &&
         clock_ms () < cs->restart_until)
    clock_wait (&cs->changed, &cs->lock, cs->restart_until);
  if (c->state == CONN_DEAD && cs->node->read_only &&
      clock_ms () >= cs->retry_after)
    revive (c);
  while (c->state == CONN_CONNECTING || c->state == CONN_STARTING)
    pthread_cond_wait (&cs->changed, &cs->lock);
  if (c->state == CONN_DEAD || cs->lost) {
    /* The one that died first knows why. */
    for (unsigned i = 0; c->state != CONN_DEAD; ++i)
      c = &cs->conn[i];
    strcpy (cause, c->cause);
    return NULL;
  }
  c->users++;
  return c;
}

void
conn_put (struct conn *c)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&c->conns->lock);
  if (--c->users == 0 && c->state != CONN_OPEN)
    pthread_cond_broadcast (&c->conns->changed);
}

void
conn_cause (struct conn *c, char cause[CAUSE_LEN])
{
  struct conns *cs = c->conns;

  if (!cs->started)             /* perhaps nobody has noted it yet */
    note_death (c, false);
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  while (c->state == CONN_OPEN)
    pthread_cond_wait (&cs->changed, &cs->lock);
  strcpy (cause, c->cause);
}

/* Only our direction is shut down, so that what is in flight is answered.
 * The server ends the other one.
 */
void
conn_hang_up (struct conn *c)
{
  struct conns *cs = c->conns;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  expect_restart (cs, c->number, RESTART_TIME);
  for (unsigned i = 0; i < cs->nr; ++i) {
    struct conn *other = &cs->conn[i];

    if (other->fd >= 0 && other->number <= c->number && !other->ending) {
      other->ending = true;
      shutdown (other->fd, SHUT_WR);
    }
  }
}

bool
conns_await_restart (struct conns *cs)
{
  const int64_t now = clock_ms (), until = cs->restart_until;

  if (!cs->node->read_only || now >= until)
    return false;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  clock_wait (&cs->changed, &cs->lock, MIN (now + RESTART_PAUSE, until));
  return true;
}

void
conn_answered (struct conn *c)
{
  struct conns *cs = c->conns;

  if (!atomic_load_explicit (&cs->restarting, memory_order_relaxed))
    return;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  if (c->number > cs->hung_up)
    atomic_store (&cs->restarting, false);
}

/* The drivers then find that their connections have ended. */
void
conns_cut (struct conns *cs, bool half)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  if (!cs->lost)
    cs->was_cut = true;
  for (unsigned i = 0; i < cs->nr; ++i) {
    struct conn *c = &cs->conn[i];

    if (c->fd < 0)
      continue;
    shutdown (c->fd, half ? SHUT_WR : SHUT_RDWR);
    atomic_store (&c->cut, half);
    wake_driver (c);
  }
}

bool
conns_are_lost (struct conns *cs, char *cause, size_t size)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&cs->lock);
  if (!cs->lost)
    return false;
  for (unsigned i = 0; i < cs->nr && cause; ++i)
    if (cs->conn[i].state == CONN_DEAD) {
      snprintf (cause, size, "%s", cs->conn[i].cause);
      break;
    }
  return true;
}
