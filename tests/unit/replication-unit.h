/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* A secondary over a disk in memory, for the unit tests of replication. */

#ifndef BLOCKDRIVERS_REPLICATION_UNIT_H
#define BLOCKDRIVERS_REPLICATION_UNIT_H

#include "tests/unit/folder.h"
#include "tests/unit/memory-node.h"
#include "tests/unit/unit.h"

#include "qed/qed.h"
#include "filters/replication/secondary/secondary.h"

#define ACTIVE "active.qed"
#define HIDDEN "hidden.qed"

struct bench {
  struct memory_node *disk;
  struct secondary *s;
  struct node *primary, *guest; /* the exports */
  struct replication_refusal refusal;
  struct replication_status status;
};

/* A secondary on the disk that the bench has. */
static inline int
bench_begin (struct bench *b, enum secondary_recover recover)
{
  const struct secondary_options options = {
    .active = ACTIVE, .hidden = HIDDEN, .recover = recover
  };

  b->s = secondary_open (&options);
  if (b->s == NULL)
    return -1;
  if (secondary_begin (b->s, &b->disk->node) == -1) {
    secondary_close (b->s);
    b->s = NULL;
    return -1;
  }
  b->primary = secondary_connect (b->s, &(struct history) { "" });
  CHECK (b->primary);
  b->guest = secondary_guest_node (b->s);
  return 0;
}

/* A clean end, of what bench_begin has begun. */
static inline void
bench_end (struct bench *b)
{
  if (b->s && b->primary)
    secondary_disconnect (b->s, b->primary);
  secondary_close (b->s);
  b->s = NULL;
}

/* New buffers over a new disk of zeroes. */
static inline void
bench_open (struct bench *b, uint64_t size, enum secondary_recover recover)
{
  unlink (ACTIVE);
  unlink (HIDDEN);
  b->disk = memory_node_new (size);
  CHECK (bench_begin (b, recover) == 0);
}

static inline void
bench_close (struct bench *b)
{
  bench_end (b);
  CHECK (node_close (&b->disk->node) == 0);
}

static inline void
fill_disk (struct bench *b, uint8_t byte)
{
  memset (b->disk->data, byte, node_size (&b->disk->node));
}

static inline void
write_byte (struct node *n, uint8_t byte, uint64_t count, uint64_t offset)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  memset (buf, byte, count);
  if (node_pwrite (n, buf, count, offset) == -1)
    fail_msg ("%s", messages.last);
}

/* Does all of a range read as this byte? */
static inline bool
reads_byte (struct node *n, uint8_t byte, uint64_t count, uint64_t offset)
{
  CLEANUP_FREE uint8_t *buf = malloc (count);

  if (node_pread (n, buf, count, offset) == -1)
    return false;
  for (uint64_t i = 0; i < count; ++i)
    if (buf[i] != byte) {
      print_error ("at offset %lu: 0x%02x instead of 0x%02x\n",
                   (unsigned long) (offset + i), buf[i], byte);
      return false;
    }
  return true;
}

#define assert_byte(n, byte, count, offset) \
  assert_true (reads_byte (n, byte, count, offset))

#define assert_status(b, wanted, wanted_error)                  \
  do {                                                          \
    secondary_query ((b)->s, &(b)->status);                     \
    assert_int_equal ((b)->status.stage, (wanted));             \
    assert_int_equal ((b)->status.error, (wanted_error));       \
  } while (0)

/* The buffers are valid images without leaks. */
static inline void
assert_clean_buffers (void)
{
  static const char *const names[] = { ACTIVE, HIDDEN };

  for (size_t i = 0; i < 2; ++i) {
    struct qed_check_result result;

    assert_int_equal (qed_check (names[i], QED_FIX_NONE, false,
                                 NODE_CACHE_WRITEBACK, NULL, NULL, &result),
                      0);
    assert_int_equal (result.corruptions, 0);
    assert_int_equal (result.leaks, 0);
    assert_int_equal (result.allocated_clusters, 0);
  }
}

/* Wait until a failover has come to an end. */
static inline void
await_failover (struct bench *b)
{
  do {
    usleep (1000);
    secondary_query (b->s, &b->status);
  } while (b->status.stage == REPLICATION_FAILOVER);
}

#endif /* BLOCKDRIVERS_REPLICATION_UNIT_H */
