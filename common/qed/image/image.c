/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Opening an image alone, and all changes of its header.
 *
 * A write of the header that has failed may have been done, wholly or not
 * at all: it is one sector.  Then the file decides otherwise than memory
 * about where the tables are, how large the disk is, and whether a repair
 * is needed.  So the old header is written again, and until that is durable
 * nothing is done that relies on it.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "qed/image/file.h"
#include "qed/image/image.h"
#include "utils/cleanup.h"
#include "utils/message.h"
#include "utils/rounding.h"

__attribute__ ((visibility ("default"))) int qed_debug_io;
__attribute__ ((visibility ("default"))) int qed_debug_meta;

static bool
is_inside (const struct qed *s, uint64_t length, uint64_t offset)
{
  const uint64_t size = node_size (s->file);

  return is_aligned (offset, s->cluster_size) &&
    offset >= qed_header_bytes (&s->header) &&
    offset <= size && length <= size - offset;
}

bool
image_cluster_ok (const struct qed *s, uint64_t offset)
{
  return is_inside (s, s->cluster_size, offset);
}

bool
image_table_ok (const struct qed *s, uint64_t offset)
{
  return is_inside (s, qed_table_bytes (&s->header), offset);
}

int
image_flush (struct qed *s)
{
  flusher_written (&s->flusher);
  return flusher_flush (&s->flusher);
}

/* ---- Opening */

static int
flush_file (void *opaque)
{
  struct node *file = opaque;

  return node_flush (file);
}

static struct qed *
image_new (struct node *file)
{
  struct qed *s = calloc (1, sizeof *s);

  if (s == NULL || (s->node.name = strdup (file->name)) == NULL) {
    msg_error ("Could not open '%s': %m", file->name);
    free (s);
    return NULL;
  }
  s->file = file;
  s->node.align = s->node.zero_align = 1;
  s->node.fixed_size = true;
  s->node.can_fast_zero = true;
  s->node.read_only = file->read_only;
  pthread_mutex_init (&s->header_lock, NULL);
  pthread_mutex_init (&s->table_lock, NULL);
  pthread_mutex_init (&s->update_lock, NULL);
  pthread_mutex_init (&s->space_lock, NULL);
  pthread_mutex_init (&s->scratch_lock, NULL);
  drain_init (&s->requests);
  drain_init (&s->updates);
  claims_init (&s->claims);
  flusher_init (&s->flusher, flush_file, file);
  return s;
}

void
image_free (struct qed *s)
{
  if (s == NULL)
    return;
  node_close (s->file);
  free ((void *) s->l1);
  free (s->freed);
  free (s->node.name);
  pthread_mutex_destroy (&s->header_lock);
  pthread_mutex_destroy (&s->table_lock);
  pthread_mutex_destroy (&s->update_lock);
  pthread_mutex_destroy (&s->space_lock);
  pthread_mutex_destroy (&s->scratch_lock);
  drain_destroy (&s->requests);
  drain_destroy (&s->updates);
  claims_destroy (&s->claims);
  flusher_destroy (&s->flusher);
  free (s);
}

static void
use_header (struct qed *s)
{
  s->cluster_size = s->header.cluster_size;
  s->cluster_bits = log_2 (s->cluster_size);
  s->table_entries = qed_table_entries (&s->header);
  s->table_bits = log_2 (s->table_entries);
  s->node.preferred = MIN (s->cluster_size, UINT64_C (32) << 20);
  atomic_init (&s->node.size, s->header.image_size);
  atomic_init (&s->need_check, s->header.features & QED_NEED_CHECK);
}

struct qed *
image_view (struct node *file, const struct qed_header *header)
{
  struct qed *s = calloc (1, sizeof *s);

  if (s == NULL) {
    msg_error ("%s: repair: %m", file->name);
    return NULL;
  }
  s->node.name = file->name;
  s->file = file;
  s->header = *header;
  use_header (s);
  return s;
}

static int
read_header (struct qed *s)
{
  uint8_t buf[QED_HEADER_LEN];

  if (node_size (s->file) < sizeof buf) {
    errno = EINVAL;
    msg_error ("Could not open '%s': Image not in QED format", s->node.name);
    return -1;
  }
  if (node_pread (s->file, buf, sizeof buf, 0) == -1 ||
      qed_header_decode (buf, s->node.name, &s->header) == -1)
    return -1;
  use_header (s);
  return 0;
}

int
image_read_l1 (struct qed *s)
{
  const uint64_t bytes = s->nr_l1 * QED_ENTRY_LEN;
  CLEANUP_FREE uint8_t *buf = malloc (bytes + 1);

  if (buf == NULL) {
    msg_error ("%s: reading the L1 table of %" PRIu64 " bytes: %m",
               s->node.name, bytes);
    return -1;
  }
  if (node_pread (s->file, buf, bytes, s->header.l1_table_offset) == -1)
    return -1;
  for (uint64_t i = 0; i < s->nr_l1; ++i)
    atomic_store (&s->l1[i], qed_entry_get (buf, i));
  return 0;
}

static int
make_l1 (struct qed *s)
{
  const uint64_t l1 = s->header.l1_table_offset;

  if (!image_table_ok (s, l1)) {
    errno = EINVAL;
    msg_error ("Could not open '%s': QED header: l1_table_offset is %" PRIu64
               ", but a table of %" PRIu64 " bytes there goes beyond the "
               "end of the file at %" PRIu64, s->node.name, l1,
               qed_table_bytes (&s->header), node_size (s->file));
    return -1;
  }
  s->nr_l1 = div_round_up (s->header.image_size,
                           s->table_entries << s->cluster_bits);
  s->l1 = malloc (s->nr_l1 * sizeof *s->l1 + 1);
  if (s->l1 == NULL) {
    msg_error ("%s: memory for the L1 table: %m", s->node.name);
    return -1;
  }
  return image_read_l1 (s);
}

struct qed *
image_open (struct node *file)
{
  struct qed *s = image_new (file);

  if (s == NULL) {
    node_close (file);
    return NULL;
  }
  if (read_header (s) == -1 || make_l1 (s) == -1) {
    const int err = errno;

    image_free (s);
    errno = err;
    return NULL;
  }
  return s;
}

/* ---- The header */

int
header_backing_name (struct node *file, const struct qed_header *h,
                     char **name)
{
  char *str;

  *name = NULL;
  if (!(h->features & QED_BACKING_FILE) || h->backing_len == 0)
    return 0;
  str = calloc (1, h->backing_len + 1);
  if (str == NULL) {
    msg_error ("%s: backing name: %m", file->name);
    return -1;
  }
  if (node_pread (file, str, h->backing_len, h->backing_offset) == -1) {
    free (str);
    return -1;
  }
  if (memchr (str, 0, h->backing_len) != NULL) {
    errno = EINVAL;
    msg_error ("%s: QED header: the backing name at offset %" PRIu32
               " has a zero byte in it", file->name, h->backing_offset);
    free (str);
    return -1;
  }
  *name = str;
  return 0;
}

static void
apply (struct qed_header *h, const struct header_edit *edit)
{
  h->features = (h->features | edit->set) & ~edit->clear;
  h->autoclear_features &= QED_KNOWN_AUTOCLEAR;
  if (edit->l1_table_offset)
    h->l1_table_offset = edit->l1_table_offset;
  if (edit->image_size)
    h->image_size = edit->image_size;
  if (edit->new_name) {
    h->backing_offset = edit->backing_offset;
    h->backing_len = edit->backing_len;
  }
}

/* Under header_lock. */
static int
write_header (struct qed *s, const struct qed_header *h, bool flush)
{
  uint8_t buf[QED_HEADER_LEN];

  TRACE_META ("qed: header features=0x%" PRIx64 " l1_table_offset=%" PRIu64
              " image_size=%" PRIu64, h->features, h->l1_table_offset,
              h->image_size);
  qed_header_encode (h, buf);
  if (file_pwrite (s, buf, sizeof buf, 0) == -1)
    return -1;
  return flush ? flusher_flush (&s->flusher) : 0;
}

/* Make the header in the file the one in memory.  Under header_lock. */
static int
restore_header (struct qed *s)
{
  if (!atomic_load (&s->header_unknown))
    return 0;
  if (write_header (s, &s->header, true) == -1)
    return -1;
  atomic_store (&s->header_unknown, false);
  return 0;
}

int
header_change (struct qed *s, const struct header_edit *edit)
{
  struct qed_header h;
  int err;

  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->header_lock);
  if (restore_header (s) == -1)
    return -1;
  h = s->header;
  apply (&h, edit);
  if (write_header (s, &h, edit->flush) == 0) {
    /* Only what is changed: other threads read the geometry meanwhile. */
    apply (&s->header, edit);
    return 0;
  }
  err = errno;
  atomic_store (&s->header_unknown, true);
  if (restore_header (s) == -1)
    msg_error ("%s: the header could neither be changed nor be restored; "
               "nothing is written to the image until it can be",
               s->node.name);
  errno = err;
  return -1;
}

int
header_undo (struct qed *s, const struct header_edit *edit)
{
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->header_lock);
  apply (&s->header, edit);
  atomic_store (&s->header_unknown, true);
  return restore_header (s);
}

int
header_known (struct qed *s)
{
  if (!atomic_load (&s->header_unknown))
    return 0;
  ACQUIRE_LOCK_FOR_CURRENT_SCOPE (&s->header_lock);
  return restore_header (s);
}

int
header_clear_unknown (struct qed *s)
{
  if (s->node.read_only || s->options.untouched ||
      (s->header.autoclear_features & ~(uint64_t) QED_KNOWN_AUTOCLEAR) == 0)
    return 0;
  return header_change (s, &(struct header_edit) { .set = 0 });
}
