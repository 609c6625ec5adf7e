/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Locks and conditions of images are destroyed once if they have been
 * initialised, and not otherwise, however opening ends.  The functions of
 * the C library are replaced by ones that keep a list.
 */

#include <config.h>

#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "qed/format.h"
#include "qed/qed.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "tests/lib/next.h"
#include "tests/unit/folder.h"
#include "tests/unit/unit.h"

#define CLUSTER 4096
#define DISK (UINT64_C (4) * 1024 * 1024)

/* ---- The list */

static void *live[4096];        /* NULL: not in use */
static atomic_flag list_flag = ATOMIC_FLAG_INIT;
static bool watching;

static void
replace (void *old, void *new, bool *found)
{
  *found = false;
  while (atomic_flag_test_and_set (&list_flag))
    ;
  for (size_t i = 0; i < sizeof live / sizeof live[0] && !*found; ++i)
    if (live[i] == old) {
      live[i] = new;
      *found = true;
    }
  atomic_flag_clear (&list_flag);
}

static void
initialised (void *object)
{
  bool found;

  if (watching) {
    replace (NULL, object, &found);
    CHECK (found);
  }
}

static void
destroyed (void *object)
{
  bool found;

  if (watching) {
    replace (object, NULL, &found);
    CHECK (found);
  }
}

int
pthread_mutex_init (pthread_mutex_t *m, const pthread_mutexattr_t *attr)
{
  initialised (m);
  return NEXT (pthread_mutex_init) (m, attr);
}

int
pthread_mutex_destroy (pthread_mutex_t *m)
{
  destroyed (m);
  return NEXT (pthread_mutex_destroy) (m);
}

int
pthread_cond_init (pthread_cond_t *c, const pthread_condattr_t *attr)
{
  initialised (c);
  return NEXT (pthread_cond_init) (c, attr);
}

int
pthread_cond_destroy (pthread_cond_t *c)
{
  destroyed (c);
  return NEXT (pthread_cond_destroy) (c);
}

static void
assert_balanced (void)
{
  for (size_t i = 0; i < sizeof live / sizeof live[0]; ++i)
    assert_null (live[i]);
}

/* ---- Ways to open an image */

static void
create (const char *name, const char *backing)
{
  const struct qed_create_options options = {
    .size = DISK, .cluster_size = CLUSTER, .table_size = 2,
    .backing = backing
  };

  unlink (name);
  assert_int_equal (qed_create (name, &options), 0);
}

static void
set_u64 (const char *name, uint64_t value, uint64_t offset)
{
  CLEANUP_CLOSE int fd = open (name, O_RDWR);
  uint8_t buf[8];

  put_le64 (buf, value);
  assert_int_equal (pwrite (fd, buf, sizeof buf, offset), sizeof buf);
}

/* Open, with threads or without, write, and close. */
static void
open_and_close (const char *name, bool start, bool opens)
{
  struct qed_options options = QED_DEFAULT_OPTIONS;
  struct node *n;
  uint8_t buf[512] = "x";

  watching = true;
  n = qed_open (name, &options);
  assert_int_equal (n != NULL, opens);
  if (n && start)
    assert_int_equal (node_start (n), 0);
  if (n && !n->read_only)
    assert_int_equal (node_pwrite (n, buf, sizeof buf, 0), 0);
  node_close (n);
  watching = false;
  assert_balanced ();
}

static void
test_opening (void **state)
{
  static const uint64_t bad[][2] = { /* value, offset in the header */
    { 12345, 40 }, { 513, 48 }, { 64, 16 }
  };

  (void) state;
  for (int start = 0; start < 2; ++start) {
    create ("a.qed", NULL);
    open_and_close ("a.qed", start, true);
    create ("b.qed", "a.qed");
    open_and_close ("b.qed", start, true);
    /* One that is damaged is served for reading. */
    set_u64 ("a.qed", 12345, CLUSTER);
    open_and_close ("a.qed", start, true);
    open_and_close ("b.qed", start, true);
    /* No file, no backing image. */
    unlink ("a.qed");
    open_and_close ("a.qed", start, false);
    open_and_close ("b.qed", start, false);
  }
  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; ++i) {
    create ("a.qed", NULL);
    create ("b.qed", "a.qed");
    set_u64 ("a.qed", bad[i][0], bad[i][1]);
    open_and_close ("a.qed", false, false);
    open_and_close ("b.qed", false, false);
  }
}

static void
test_operations (void **state)
{
  const struct qed_commit_options commit = { .keep = false };
  const struct qed_rebase_options rebase = { .backing = "" };
  struct qed_check_result result;

  (void) state;
  create ("a.qed", NULL);
  create ("b.qed", "a.qed");
  watching = true;
  assert_int_equal (qed_commit ("b.qed", &commit), 0);
  assert_int_equal (qed_commit ("a.qed", &commit), -1);
  assert_int_equal (qed_rebase ("b.qed", &rebase), 0);
  assert_int_equal (qed_empty_image ("b.qed", false), 0);
  assert_int_equal (qed_check ("b.qed", QED_FIX_ALL, false,
                               NODE_CACHE_WRITEBACK, NULL, NULL, &result), 0);
  watching = false;
  assert_balanced ();
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_opening),
    cmocka_unit_test (test_operations),
  };

  msg_set_handler (collect_message);
  return cmocka_run_group_tests_name ("qed locks", tests, make_folder,
                                      remove_folder);
}
