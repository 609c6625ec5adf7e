/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The export of a primary: the requests of its guest (replication.md,
 * "Stages"; see primary.c).
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "filters/replication/primary/requests.h"
#include "filters/replication/primary/state.h"
#include "utils/message.h"

/* A request that the stage does not allow. */
static int
refuse_request (struct primary *p, const char *what, uint64_t offset)
{
  unsigned long more;

  errno = EIO;
  if (replication_may_tell (&p->refusals, &more))
    msg_error ("%s: %s at offset %" PRIu64 ": not possible on a replication "
               "primary without a disk of its own (stage %s)%s", p->node.name,
               what, offset, replication_stage_name (stage_of (p)),
               more ? ", nor were others before, which were not told" : "");
  return -1;
}

/* A change of the disk by the guest. */
struct change {
  const char *what;
  uint64_t offset;
  bool tracked;
  struct claim claim;           /* if tracked */
};

/* Note that its range differs from now on.  A bitmap that fails says that it
 * is not to be trusted, and the guest goes on; but where it cannot even be
 * made to say that, who is killed would leave one that is believed.
 */
static int
track_change (struct primary *p, struct change *c, uint64_t count)
{
  unsigned long more;
  int err;

  claim_acquire (&p->claims, &c->claim, c->offset, count, CLAIM_SHARED);
  if (dirty_mark (&p->dirty, c->offset, count) == 0)
    return 0;
  err = errno;
  replication_error_set (&p->error, "writing the bitmap: %s", strerror (err));
  if (!dirty_is_wrong (&p->dirty))
    return 0;
  claim_release (&p->claims, &c->claim);
  if (replication_may_tell (&p->refusals, &more))
    msg_error ("%s: %s at offset %" PRIu64 ": not possible while the bitmap "
               "can neither note it nor be marked as incomplete: %s%s",
               p->node.name, c->what, c->offset, strerror (err),
               more ? "; others before were refused, too" : "");
  errno = EIO;
  return -1;
}

/* Begin it.  After 0 end it with end_change. */
static int
begin_change (struct primary *p, struct change *c, const char *what,
              uint64_t count, uint64_t offset)
{
  enum replication_stage stage;

  request_begin (&p->drain);
  stage = stage_of (p);
  *c = (struct change) { .what = what, .offset = offset };

  if (!p->remote && stage != REPLICATION_RUNNING) {
    refuse_request (p, what, offset);
    request_end (&p->drain);
    return -1;
  }
  c->tracked = p->remote && count > 0 && atomic_load (&p->tracking);
  if (c->tracked && track_change (p, c, count) == -1) {
    const int err = errno;

    request_end (&p->drain);
    errno = err;
    return -1;
  }
  return 0;
}

/* The change returned r with errno.  Returns what the guest shall see.
 * Whoever has cut the forwarder off knows it.
 */
static int
end_change (struct primary *p, struct change *c, int r)
{
  const int err = errno;

  if (c->tracked)
    claim_release (&p->claims, &c->claim);
  if (!p->remote && r == -1 && err != ENOTSUP) {
    if (err != ECANCELED)
      replication_error_set (&p->error, "forwarding a %s at offset %" PRIu64
                             ": %s", c->what, c->offset, strerror (err));
    r = 0;
  }
  request_end (&p->drain);
  if (c->tracked)
    mirror_kick (p->mirror);
  errno = err;
  return r;
}

static int
primary_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct primary *p = (struct primary *) n;

  if (!p->remote)
    return refuse_request (p, "read", offset);
  return node_pread (p->disk, buf, count, offset);
}

static int
primary_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                 size_t count, uint64_t offset)
{
  struct primary *p = (struct primary *) n;
  struct change c;

  if (begin_change (p, &c, "write", count, offset) == -1)
    return -1;
  return end_change (p, &c, p->forward
                     ? forward_pwritev (p->forward, iov, iovcnt, count,
                                        offset)
                     : node_pwritev (p->disk, iov, iovcnt, offset));
}

static int
primary_zero (struct node *n, uint64_t count, uint64_t offset,
              unsigned flags)
{
  struct primary *p = (struct primary *) n;
  struct change c;

  if (begin_change (p, &c, "zero", count, offset) == -1)
    return -1;
  return end_change (p, &c, p->forward
                     ? forward_zero (p->forward, count, offset, flags)
                     : node_zero (p->disk, count, offset, flags));
}

static int
primary_discard (struct node *n, uint64_t count, uint64_t offset)
{
  struct primary *p = (struct primary *) n;
  struct change c;

  if (begin_change (p, &c, "discard", count, offset) == -1)
    return -1;
  return end_change (p, &c, p->forward
                     ? forward_discard (p->forward, count, offset)
                     : node_discard (p->disk, count, offset));
}

static int
primary_flush (struct node *n)
{
  struct primary *p = (struct primary *) n;
  struct change c;

  if (p->remote)
    return node_flush (p->disk);
  if (begin_change (p, &c, "flush", 0, 0) == -1)
    return -1;
  return end_change (p, &c, forward_flush (p->forward));
}

static int
primary_extents (struct node *n, uint64_t count, uint64_t offset,
                 struct extent *ret)
{
  struct primary *p = (struct primary *) n;

  if (!p->remote && stage_of (p) != REPLICATION_RUNNING)
    return refuse_request (p, "block status", offset);
  if (!p->remote) {
    /* Nothing can be said about what cannot be read. */
    *ret = (struct extent) {
      .length = count, .flags = EXTENT_MAPPED, .where = n, .offset = offset,
    };
    return 0;
  }
  return node_extents (p->disk, count, offset, ret);
}

static int
primary_cache (struct node *n, uint64_t count, uint64_t offset)
{
  struct primary *p = (struct primary *) n;

  if (!p->remote)
    return refuse_request (p, "cache", offset);
  return node_cache (p->disk, count, offset);
}

static int64_t
primary_allocated_size (struct node *n)
{
  return node_allocated_size (((struct primary *) n)->disk);
}

static int
primary_node_close (struct node *n)
{
  (void) n;                     /* it goes with its primary */
  return 0;
}

const struct node_ops primary_ops = {
  .type = "replication-primary",
  .close = primary_node_close,
  .pread = primary_pread,
  .pwritev = primary_pwritev,
  .flush = primary_flush,
  .extents = primary_extents,
  .zero = primary_zero,
  .discard = primary_discard,
  .cache = primary_cache,
  .allocated_size = primary_allocated_size,
};
