/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* See request.h. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "filters/replication/secondary/request.h"
#include "utils/message.h"
#include "utils/rounding.h"

enum replication_stage
request_enter (struct secondary *s)
{
  request_begin (&s->requests);
  return atomic_load_explicit (&s->stage, memory_order_acquire);
}

void
request_leave (struct secondary *s)
{
  request_end (&s->requests);
}

int
request_refuse (struct node *n, const char *what,
                enum replication_stage stage)
{
  unsigned long more;

  errno = EIO;
  if (replication_may_tell (&export_of (n)->s->refusals, &more))
    msg_error ("%s: %s refused in stage \"%s\"%s", n->name, what,
               replication_stage_name (stage),
               more ? ", and others before, which were not told" : "");
  errno = EIO;
  return -1;
}

const char *
change_name (const struct change *c)
{
  static const char *const names[] = {
    [WRITE] = "write", [ZERO] = "zero", [DISCARD] = "discard",
  };

  return names[c->kind];
}

int
change_apply (struct node *to, const struct change *c)
{
  switch (c->kind) {
  case WRITE: return node_pwritev (to, c->iov, c->iovcnt, c->offset);
  case ZERO: return node_zero (to, c->count, c->offset, c->flags);
  case DISCARD: return node_discard (to, c->count, c->offset);
  }
  abort ();
}

void
export_init (struct export *e, struct secondary *s,
             const struct node_ops *ops, const char *name,
             int (*change) (struct node *n, const struct change *c))
{
  e->s = s;
  e->change = change;
  e->node = (struct node) {
    .ops = ops, .name = (char *) name, .read_only = s->disk->read_only,
    .fixed_size = true, .can_fast_zero = s->disk->can_fast_zero,
    .zero_align = s->disk->zero_align, .align = s->disk->align,
    .preferred = MAX (s->disk->preferred, 4096u)
  };
  atomic_init (&e->node.size, node_size (s->disk));
}

int
export_close (struct node *n)
{
  (void) n;
  return 0;
}

int
change_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
                size_t count, uint64_t offset)
{
  const struct change c = {
    .kind = WRITE, .iov = iov, .iovcnt = iovcnt,
    .count = count, .offset = offset
  };

  return count > 0 ? export_of (n)->change (n, &c) : 0;
}

int
change_zero (struct node *n, uint64_t count, uint64_t offset, unsigned flags)
{
  const struct change c = {
    .kind = ZERO, .count = count, .offset = offset, .flags = flags
  };

  return count > 0 ? export_of (n)->change (n, &c) : 0;
}

int
change_discard (struct node *n, uint64_t count, uint64_t offset)
{
  const struct change c = {
    .kind = DISCARD, .count = count, .offset = offset
  };

  return count > 0 ? export_of (n)->change (n, &c) : 0;
}
