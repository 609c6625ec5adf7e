/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* What the tests of NBD nodes share: a server, nbdkit with its own plugins
 * and filters, which also tells, by its log, what was asked of it.
 */

#ifndef BLOCKDRIVERS_NBD_UNIT_H
#define BLOCKDRIVERS_NBD_UNIT_H

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "node/align.h"
#include "node/node.h"
#include "utils/cleanup.h"
#include "utils/rounding.h"
#include "tests/unit/server.h"
#include "tests/unit/unit.h"

#define MIB (UINT64_C (1024) * 1024)
#define GIB (1024 * MIB)

static char dir[] = "/tmp/test-nbd-XXXXXX";
static char disk[64], logfile[64], log_option[80];
static struct server server;

#define start_server(...) server_start (&server, __VA_ARGS__)
#define end_server(sig) server_end (&server, (sig))

static inline struct node *
open_node (bool read_only)
{
  const struct node_open_options options = { .read_only = read_only };
  struct node *n = align_open (server.uri, &options);

  assert_non_null (n);
  assert_int_equal (n->align, 1);
  return n;
}

#define nr_requests(kind) server_nr_requests (logfile, (kind))

static inline int
setup (void **state)
{
  (void) state;
  forget_messages ();
  return 0;
}

static inline int
teardown (void **state)
{
  (void) state;
  /* It would wait for a node that a failed test has left open. */
  end_server (SIGKILL);
  unlink (disk);
  unlink (logfile);
  return 0;
}

static inline void
fill_random (char *buf, size_t count, uint64_t seed)
{
  for (size_t i = 0; i + 8 <= count; i += 8) {
    next_random (&seed);
    memcpy (buf + i, &seed, 8);
  }
}

/* Longer than a command may be, in few and in many parts. */
static inline void
start_slow_server (const char *size)
{
  start_server ("--filter=log", "--filter=delay", "memory", size, log_option,
                "delay-read=60", "delay-write=60", "delay-zero=60",
                "delay-extents=60", NULL);
}

static inline int
make_folder (void **state)
{
  (void) state;
  if (mkdtemp (dir) == NULL)
    return -1;
  server_init (&server, dir);
  snprintf (disk, sizeof disk, "%s/disk", dir);
  snprintf (logfile, sizeof logfile, "%s/log", dir);
  snprintf (log_option, sizeof log_option, "logfile=%s", logfile);
  msg_set_handler (collect_message);
  alarm (HANG_SECONDS);
  return 0;
}

static inline int
remove_folder (void **state)
{
  (void) state;
  return rmdir (dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown (f, setup, teardown)

#endif /* BLOCKDRIVERS_NBD_UNIT_H */
