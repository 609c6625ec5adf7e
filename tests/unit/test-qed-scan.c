/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What an image costs to open follows from what is in its file, not from
 * what its header and L1 table say: what is read, and asked, is counted.
 */

#include <config.h>

#include <fcntl.h>

#include "node/align.h"
#include "qed/open.h"
#include "utils/byteorder.h"
#include "utils/rounding.h"
#include "tests/unit/unit.h"

#define CLUSTER UINT64_C (65536)
#define MIB (UINT64_C (1) << 20)

static char path[] = "/tmp/test-qed-scan-XXXXXX";

/* ---- A node over a file that counts */

struct counting {
  struct node node;
  struct node *file;
  uint64_t bytes, reads, questions;
};

static struct counting *
counting_of (struct node *n)
{
  return (struct counting *) n;
}

static int
counting_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  counting_of (n)->bytes += count;
  counting_of (n)->reads++;
  return node_pread (counting_of (n)->file, buf, count, offset);
}

static int
counting_zeroes (struct node *n, uint64_t count, uint64_t offset,
                 uint64_t *length)
{
  counting_of (n)->questions++;
  return node_zeroes (counting_of (n)->file, count, offset, length);
}

static int
counting_extents (struct node *n, uint64_t count, uint64_t offset,
                  struct extent *e)
{
  counting_of (n)->questions++;
  return node_extents (counting_of (n)->file, count, offset, e);
}

static int
counting_close (struct node *n)
{
  node_close (counting_of (n)->file);
  free (n->name);
  return 0;
}

static const struct node_ops counting_ops = {
  .type = "counting",
  .close = counting_close,
  .pread = counting_pread,
  .zeroes = counting_zeroes,
  .extents = counting_extents,
};

static void
counting_open (struct counting *c)
{
  const struct node_open_options options = { .read_only = true };

  *c = (struct counting) { .file = align_open (path, &options) };
  CHECK (c->file);
  c->node.ops = &counting_ops;
  c->node.name = strdup ("counting");
  c->node.read_only = true;
  c->node.align = c->node.zero_align = 1;
  c->node.preferred = 4096;
  atomic_init (&c->node.size, node_size (c->file));
}

/* ---- Files */

/* An image with so many L2 tables, of which each has an entry of data for
 * every step-th; others are holes.
 */
static void
make_image (uint32_t table_size, uint64_t nr_tables, uint64_t step)
{
  const uint64_t bytes = table_size * CLUSTER;
  const uint64_t entries = bytes / QED_ENTRY_LEN;
  const struct qed_header h = {
    .cluster_size = CLUSTER, .table_size = table_size, .header_size = 1,
    .l1_table_offset = CLUSTER,
    .image_size = MIN (nr_tables * entries * CLUSTER, UINT64_C (1) << 62)
  };
  CLEANUP_CLOSE int fd = open (path, O_RDWR | O_TRUNC);
  uint8_t buf[QED_HEADER_LEN], entry[QED_ENTRY_LEN];

  qed_header_encode (&h, buf);
  CHECK (pwrite (fd, buf, sizeof buf, 0) == sizeof buf);
  CHECK (ftruncate (fd, CLUSTER + (1 + nr_tables) * bytes) == 0);
  for (uint64_t i = 0; i < nr_tables; ++i) {
    const uint64_t table = CLUSTER + (1 + i) * bytes;

    put_le64 (entry, table);
    CHECK (pwrite (fd, entry, sizeof entry, CLUSTER + i * QED_ENTRY_LEN) ==
           sizeof entry);
    put_le64 (entry, QED_ZERO);
    if (step && i % step == 0)
      CHECK (pwrite (fd, entry, sizeof entry, table + bytes / 2) ==
             sizeof entry);
  }
}

static void
open_image_here (struct counting *c)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;

  counting_open (c);
  options.read_only = true;
  n = open_image (&c->node, &options, NULL);
  CHECK (n);
  CHECK (node_close (n) == 0);
}

static void
test_tables_that_are_holes (void **state)
{
  struct counting c;

  (void) state;
  for (uint32_t table_size = 1; table_size <= 16; table_size *= 4) {
    make_image (table_size, 4000, 0);
    open_image_here (&c);
    assert_within (c.bytes, 1, MIB);
    assert_within (c.questions, 1, 16);
  }
}

static void
test_tables_with_little_in_them (void **state)
{
  struct counting c;

  (void) state;
  make_image (16, 4000, 40);
  open_image_here (&c);
  assert_within (c.bytes, 1, 100 * MIB / 4 + MIB);
  assert_within (c.questions, 1, 500);
}

static int
setup (void **state)
{
  const int fd = mkstemp (path);

  return fd == -1 ? -1 : close (fd);
}

static int
teardown (void **state)
{
  return unlink (path);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_tables_that_are_holes),
    cmocka_unit_test (test_tables_with_little_in_them),
  };

  msg_set_handler (collect_message);
  return cmocka_run_group_tests_name ("qed scan", tests, setup, teardown);
}
