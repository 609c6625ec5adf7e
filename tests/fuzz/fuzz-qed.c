/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fuzzing QED images: any file is opened, checked, repaired, written to,
 * grown, rebased, committed and emptied, and holds what a model says (qed.md,
 * invariants 1, 6 and 7).
 */

#include <config.h>

#include "node/node.h"
#include "qed/qed.h"
#include "tests/fuzz/fuzz.h"
#include "utils/rounding.h"

#define IMAGE "image.qed"
#define BASE_IMAGE "base.raw"

/* The part of the disk that is looked at. */
#define WINDOW (UINT64_C (160) * 1024)

struct model {
  uint64_t len;                 /* bytes of the window that the disk has */
  uint8_t bytes[WINDOW];
};

static struct qed_options
options (bool read_only)
{
  struct qed_options o = QED_DEFAULT_OPTIONS;

  o.backing = "none";           /* nothing but the file is opened */
  o.read_only = read_only;
  o.l2_cache_size = 65536;
  return o;
}

/* Read the window, in pieces since some may be damaged; false if so. */
static bool
read_window (struct node *n, struct model *model)
{
  bool good = true;

  model->len = MIN (node_size (n), WINDOW);
  for (uint64_t at = 0; at < model->len; at += 4096) {
    const size_t count = MIN (model->len - at, UINT64_C (4096));

    if (node_pread (n, model->bytes + at, count, at) == -1)
      good = false;
  }
  return good;
}

static void
want_window (struct node *n, const struct model *model)
{
  static struct model now;

  WANT (read_window (n, &now) && now.len >= model->len);
  WANT (memcmp (now.bytes, model->bytes, model->len) == 0);
}

static void
want_image (const struct model *model)
{
  struct qed_options o = options (true);
  struct node *n = qed_open (IMAGE, &o);

  WANT (n);
  want_window (n, model);
  WANT (node_close (n) == 0);
}

static int
check (enum qed_fix fix, struct qed_check_result *result)
{
  return qed_check (IMAGE, fix, true, NODE_CACHE_UNSAFE, NULL, NULL, result);
}

/* What it is before anybody changes it: nothing of it may crash. */
static bool
look (struct model *model)
{
  struct qed_options o = options (true);
  struct qed_check_result result;
  struct qed_info info;
  struct node *n;
  bool good;

  if (qed_get_info (IMAGE, true, &info) == -1)
    return false;
  qed_info_free (&info);
  check (QED_FIX_NONE, &result);
  n = qed_open (IMAGE, &o);
  if (n == NULL)
    return false;
  for (uint64_t at = 0; at < MIN (node_size (n), WINDOW);) {
    struct extent e;

    if (node_extents (n, MIN (node_size (n), WINDOW) - at, at, &e) == -1)
      break;
    WANT (e.length > 0);
    at += e.length;
  }
  good = read_window (n, model);
  WANT (node_close (n) == 0);
  return good;
}

static void
request (struct node *n, struct model *model, struct script *script)
{
  const unsigned kind = fuzz_byte (script);
  const uint64_t offset = (fuzz_byte (script) << 8 | fuzz_byte (script)) * 3 %
    MAX (model->len, UINT64_C (1));
  const uint64_t count = MIN ((uint64_t) fuzz_byte (script) * 97 + 1,
                              model->len - offset);
  static uint8_t buf[32768];

  memset (buf, kind, count);
  switch (kind % 4) {
  case 0:
    memset (buf, 0, count);
    if (node_zero (n, count, offset, NODE_MAY_TRIM) == -1)
      return;
    break;
  case 1:
    if (node_discard (n, count, offset) == -1 ||
        node_pread (n, buf, count, offset) == -1)
      return;
    break;
  default:
    if (node_pwrite (n, buf, count, offset) == -1)
      return;
  }
  memcpy (model->bytes + offset, buf, count);
}

/* Whatever was in it, a repaired image takes requests and keeps them. */
static void
requests (struct model *model, struct script *script)
{
  struct qed_options o = options (false);
  struct node *n = qed_open (IMAGE, &o);

  WANT (n && !n->read_only && read_window (n, model));
  while (fuzz_more (script))
    request (n, model, script);
  want_window (n, model);
  if (node_size (n) < UINT64_C (1) << 30)
    node_resize (n, node_size (n) + 512 * 7);
  want_window (n, model);
  WANT (node_close (n) == 0);
  want_image (model);
}

static void
rebase_and_commit (const struct model *model)
{
  static uint8_t base[4096];
  const struct qed_rebase_options rebase = {
    .backing = BASE_IMAGE, .backing_format = QED_FORMAT_RAW, .unsafe = true,
    .no_lock = true, .no_image_lock = true, .cache = NODE_CACHE_UNSAFE,
  };
  const struct qed_commit_options commit = {
    .no_lock = true, .cache = NODE_CACHE_UNSAFE
  };
  struct qed_options o = { .l2_cache_size = 65536, .no_lock = true };
  static struct model above;
  struct node *n;

  fuzz_write (BASE_IMAGE, base, sizeof base);
  if (qed_rebase (IMAGE, &rebase) == -1)
    return;
  want_image (model);
  n = qed_open (IMAGE, &o);     /* over a base of zeroes: as before */
  WANT (n);
  want_window (n, model);
  if (node_size (n) > UINT64_C (1) << 28) {
    node_close (n);
    return;
  }
  WANT (read_window (n, &above) && node_close (n) == 0);
  if (qed_commit (IMAGE, &commit) == -1)
    return;
  n = qed_open (IMAGE, &o);
  WANT (n);
  want_window (n, &above);
  WANT (node_close (n) == 0);
}

static void
empty (void)
{
  static struct model zeroes;
  struct qed_options o = options (true);
  struct qed_check_result result;
  struct node *n;

  if (qed_empty_image (IMAGE, true) == -1)
    return;
  WANT (check (QED_FIX_NONE, &result) == 0 && result.corruptions == 0);
  WANT (result.allocated_clusters == 0);
  n = qed_open (IMAGE, &o);
  WANT (n);
  zeroes.len = MIN (node_size (n), WINDOW);
  want_window (n, &zeroes);
  WANT (node_close (n) == 0);
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  struct script script = fuzz_script (data, size);
  struct qed_check_result result;
  static struct model model;

  fuzz_begin ();
  fuzz_write (IMAGE, data, size);
  look (&model);
  /* Not each one can be repaired, but what was is good. */
  if (check (QED_FIX_ALL, &result) == -1 || result.corruptions > 0 ||
      result.check_errors > 0) {
    empty ();
    return 0;
  }
  WANT (check (QED_FIX_NONE, &result) == 0 && result.corruptions == 0);
  requests (&model, &script);
  WANT (check (QED_FIX_NONE, &result) == 0 && result.corruptions == 0);
  rebase_and_commit (&model);
  empty ();
  return 0;
}
