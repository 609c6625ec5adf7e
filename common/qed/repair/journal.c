/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A repair decides by what it finds: where the file ends, what is leaked,
 * what a cluster holds.  Half of a repair changes all of this, so a
 * repair that is killed and run again could come to another result.
 * Therefore the repair works on a view of the file: what it changes is
 * held back in memory, by sectors, and only what it appends goes to the
 * file.  When it has come to its end, the changes are carried out:
 *
 * 1. The sectors are written behind the end of the image, as a journal.
 * 2. A record says that the journal is complete.
 * 3. The sectors are written to where they belong.
 * 4. The record is invalid, and the journal is cut off.
 *
 * Killed before 2, the next one cuts the file to the length that it had,
 * which the record has said since before it grew.  Killed after 2, the
 * next one goes on with 3.
 *
 * The record stands at the end of the header's clusters, where the format
 * has nothing, and is valid while a bit of autoclear_features is set.
 * Nobody else knows that bit, so everybody who opens the image for
 * writing clears it; then what we have noted is out of date.
 *
 * Where the end of the header's clusters is in use, or there is no room
 * for the journal, repairs change the image at once, and can be run again,
 * but not always with the same result.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "qed/repair/journal.h"
#include "utils/byteorder.h"
#include "utils/cleanup.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"

#define SECTOR QED_SECTOR

/* An entry of the journal: the offset of a sector, and its bytes. */
#define ENTRY_LEN (8 + SECTOR)
#define JOURNAL_PIECE 1024      /* entries that are written at once */

/* Sectors that are held back, about 600 bytes of memory each. */
#define MANY_SECTORS 65536

/* The record, in the order of the file. */
#define RECORD_LEN 32
#define RECORD_MAGIC "qedplan\n"

struct record {
  uint64_t size;                /* of the file before it grew, bytes */
  uint64_t journal;             /* its offset, or 0 if it is incomplete */
  uint64_t nr;                  /* its entries */
};

struct sector {
  uint64_t offset;
  uint8_t data[SECTOR];
};

struct journal {
  struct node node;             /* the view; its name is borrowed */
  struct qed *s;
  struct node *file;            /* borrowed from s */
  uint64_t end;                 /* before it, writes are held back */
  void *sectors;                /* a tree of struct sector */
  size_t nr;
  struct record record;
  bool begun;                   /* the record is in the file */
};

static struct journal *
journal_of_node (struct node *n)
{
  return (struct journal *) n;
}

/* ---- The record */

static uint64_t
record_place (const struct qed_header *h)
{
  return qed_header_bytes (h) - RECORD_LEN;
}

/* May the header's clusters hold a record? */
static bool
has_place (const struct node *file, const struct qed_header *h)
{
  const uint64_t place = record_place (h);

  if ((h->compat_features & ~(uint64_t) QED_KNOWN_COMPAT) ||
      h->l1_table_offset < place + RECORD_LEN ||
      node_size (file) < place + RECORD_LEN)
    return false;
  return !(h->features & QED_BACKING_FILE) ||
    h->backing_offset + (uint64_t) h->backing_len <= place;
}

static int
read_record (struct node *file, const struct qed_header *h,
             uint8_t buf[RECORD_LEN], struct record *record, bool *found)
{
  if (node_pread (file, buf, RECORD_LEN, record_place (h)) == -1)
    return -1;
  *found = memcmp (buf, RECORD_MAGIC, 8) == 0;
  *record = (struct record) {
    .size = get_le64 (buf + 8), .journal = get_le64 (buf + 16),
    .nr = get_le64 (buf + 24),
  };
  return 0;
}

static int
write_record (struct node *file, const struct qed_header *h,
              const struct record *record)
{
  uint8_t buf[RECORD_LEN] = RECORD_MAGIC;

  TRACE_META ("qed: repair: record size=%" PRIu64 " journal=%" PRIu64
              " nr=%" PRIu64, record->size, record->journal, record->nr);
  put_le64 (buf + 8, record->size);
  put_le64 (buf + 16, record->journal);
  put_le64 (buf + 24, record->nr);
  if (node_pwrite (file, buf, sizeof buf, record_place (h)) == -1)
    return -1;
  return node_flush (file);
}

/* Say whether the record is valid. */
static int
set_bit (struct node *file, const struct qed_header *header, bool valid)
{
  struct qed_header h = *header;
  uint8_t buf[QED_HEADER_LEN];

  h.autoclear_features = valid ? QED_REPAIRING : 0;
  qed_header_encode (&h, buf);
  if (node_pwrite (file, buf, sizeof buf, 0) == -1)
    return -1;
  return node_flush (file);
}

static int
forget_record (struct node *file, const struct qed_header *h)
{
  const uint8_t zeroes[RECORD_LEN] = { 0 };

  if (set_bit (file, h, false) == -1)
    return -1;
  return node_pwrite (file, zeroes, sizeof zeroes, record_place (h));
}

/* ---- Holding back */

static int
compare_sectors (const void *a, const void *b)
{
  const struct sector *x = a, *y = b;

  return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static struct sector *
find_sector (struct journal *p, uint64_t offset)
{
  const struct sector key = { .offset = offset };
  void *found = tfind (&key, &p->sectors, compare_sectors);

  return found ? *(struct sector **) found : NULL;
}

/* The sector that begins at offset, as it is now; NULL after a
 * message.
 */
static struct sector *
hold_sector (struct journal *p, uint64_t offset)
{
  struct sector *sector = find_sector (p, offset);

  if (sector)
    return sector;
  sector = malloc (sizeof *sector);
  if (sector == NULL) {
    msg_error ("%s: repair: %m", p->node.name);
    return NULL;
  }
  sector->offset = offset;
  if (node_pread (p->file, sector->data, SECTOR, offset) == -1) {
    free (sector);
    return NULL;
  }
  if (tsearch (sector, &p->sectors, compare_sectors) == NULL) {
    free (sector);
    errno = ENOMEM;
    msg_error ("%s: repair: %m", p->node.name);
    return NULL;
  }
  p->nr++;
  return sector;
}

/* For each part of a range that lies in one sector: its length, at most
 * count.
 */
static size_t
part_of_sector (size_t count, uint64_t offset)
{
  return MIN (count, SECTOR - offset % SECTOR);
}

static int
hold_back (struct journal *p, const uint8_t *buf, size_t count,
           uint64_t offset)
{
  for (size_t n; count > 0; buf += n, offset += n, count -= n) {
    struct sector *sector = hold_sector (p, round_down (offset, SECTOR));

    n = part_of_sector (count, offset);
    if (sector == NULL)
      return -1;
    memcpy (sector->data + offset % SECTOR, buf, n);
  }
  return 0;
}

static void
forget_sectors (struct journal *p)
{
  tdestroy (p->sectors, free);
  p->sectors = NULL;
  p->nr = 0;
}

/* Before the file grows. */
static int
begin (struct journal *p)
{
  if (p->begun)
    return 0;
  p->record = (struct record) { .size = node_size (p->file) };
  if (write_record (p->file, &p->s->header, &p->record) == -1 ||
      set_bit (p->file, &p->s->header, true) == -1)
    return -1;
  p->begun = true;
  return 0;
}

/* ---- The view */

static int
journal_pread (struct node *n, void *buf, size_t count, uint64_t offset)
{
  struct journal *p = journal_of_node (n);
  uint8_t *to = buf;

  if (node_pread (p->file, buf, count, offset) == -1)
    return -1;
  if (p->nr == 0)
    return 0;
  for (size_t len; count > 0; to += len, offset += len, count -= len) {
    const struct sector *sector =
      find_sector (p, round_down (offset, SECTOR));

    len = part_of_sector (count, offset);
    if (sector)
      memcpy (to, sector->data + offset % SECTOR, len);
  }
  return 0;
}

static int
journal_pwritev (struct node *n, const struct iovec *iov, int iovcnt,
              size_t count, uint64_t offset)
{
  struct journal *p = journal_of_node (n);

  if (offset >= p->end)
    return begin (p) == -1 ? -1
      : node_pwritev (p->file, iov, iovcnt, offset);
  for (int i = 0; i < iovcnt; ++i) {
    if (hold_back (p, iov[i].iov_base, iov[i].iov_len, offset) == -1)
      return -1;
    offset += iov[i].iov_len;
  }
  return 0;
}

/* Nothing that the file has is held back as anything but zeroes where the
 * file has a hole: entries are changed, never added.
 */
static int
journal_extents (struct node *n, uint64_t count, uint64_t offset,
              struct extent *ret)
{
  return node_extents (journal_of_node (n)->file, count, offset, ret);
}

static int
journal_flush (struct node *n)
{
  return node_flush (journal_of_node (n)->file);
}

static int
journal_resize (struct node *n, uint64_t size)
{
  struct journal *p = journal_of_node (n);

  if (begin (p) == -1 || node_resize (p->file, size) == -1)
    return -1;
  atomic_store (&n->size, node_size (p->file));
  return 0;
}

static const struct node_ops journal_ops = {
  .type = "journal",
  .pread = journal_pread,
  .pwritev = journal_pwritev,
  .flush = journal_flush,
  .extents = journal_extents,
  .resize = journal_resize,
};

int
journal_new (struct qed *s, struct journal **journal)
{
  uint8_t buf[RECORD_LEN];
  struct record record;
  struct journal *p;
  bool found;

  *journal = NULL;
  if (!has_place (s->file, &s->header))
    return 0;
  if (read_record (s->file, &s->header, buf, &record, &found) == -1)
    return -1;
  if (!found && !is_zero (buf, sizeof buf))
    return 0;

  p = calloc (1, sizeof *p);
  if (p == NULL) {
    msg_error ("%s: repair: %m", s->node.name);
    return -1;
  }
  p->node.ops = &journal_ops;
  p->node.name = s->file->name;
  p->node.fixed_size = s->file->fixed_size;
  p->node.align = 1;
  p->node.preferred = s->file->preferred;
  atomic_init (&p->node.size, node_size (s->file));
  p->s = s;
  p->file = s->file;
  p->end = UINT64_MAX;
  s->file = &p->node;
  *journal = p;
  return 0;
}

void
journal_set_end (struct journal *p, uint64_t end)
{
  if (p && p->end == UINT64_MAX)
    p->end = end;
}

bool
journal_is_large (const struct journal *p)
{
  return p && p->nr >= MANY_SECTORS;
}

/* ---- Carrying out */

/* Where the journal is being written. */
struct writing {
  struct journal *journal;
  uint8_t *buf;                 /* JOURNAL_PIECE entries */
  size_t nr;                    /* of these are filled */
  uint64_t offset;              /* where they will stand */
  int r;
};

static void
write_piece (struct writing *w)
{
  const size_t len = w->nr * ENTRY_LEN;

  if (w->r == 0 && len > 0)
    w->r = node_pwrite (w->journal->file, w->buf, len, w->offset);
  w->offset += len;
  w->nr = 0;
}

static void
add_to_journal (const void *node, VISIT which, void *opaque)
{
  const struct sector *sector = *(struct sector *const *) node;
  struct writing *w = opaque;
  uint8_t *entry = w->buf + w->nr * ENTRY_LEN;

  if (which != postorder && which != leaf)
    return;
  put_le64 (entry, sector->offset);
  memcpy (entry + 8, sector->data, SECTOR);
  if (++w->nr == JOURNAL_PIECE)
    write_piece (w);
}

/* Write the journal behind the end of the image, make it durable, and
 * say that it is there.
 */
static int
write_journal (struct journal *p)
{
  const uint64_t len = p->nr * (uint64_t) ENTRY_LEN;
  CLEANUP_FREE uint8_t *buf = malloc (JOURNAL_PIECE * ENTRY_LEN);
  struct writing w = { .journal = p, .buf = buf, .offset = p->s->end };
  struct record record = p->record;

  if (buf == NULL) {
    msg_error ("%s: repair: %m", p->node.name);
    return -1;
  }
  if (!p->file->fixed_size) {
    if (node_resize (p->file, w.offset + len) == -1)
      return -1;
  }
  else if (len > node_size (p->file) - w.offset) {
    errno = ENOSPC;             /* go_without_journal says so */
    return -1;
  }
  twalk_r (p->sectors, add_to_journal, &w);
  write_piece (&w);
  if (w.r == -1 || node_flush (p->file) == -1)
    return -1;
  record.journal = p->s->end;
  record.nr = p->nr;
  if (write_record (p->file, &p->s->header, &record) == -1)
    return -1;
  p->record = record;
  return 0;
}

static void
apply_sector (const void *node, VISIT which, void *opaque)
{
  const struct sector *sector = *(struct sector *const *) node;
  struct writing *w = opaque;

  if ((which == postorder || which == leaf) && w->r == 0)
    w->r = node_pwrite (w->journal->file, sector->data, SECTOR,
                        sector->offset);
}

static int
apply_all (struct journal *p)
{
  struct writing w = { .journal = p };

  twalk_r (p->sectors, apply_sector, &w);
  return w.r == -1 ? -1 : node_flush (p->file);
}

/* One sector is changed as a whole anyway. */
static bool
needs_journal (const struct journal *p)
{
  return p->begun || p->nr > 1;
}

/* The repair has been carried out or was taken back: the file ends here
 * now.
 */
static int
end_record (struct node *file, const struct qed_header *h, uint64_t end)
{
  if (!file->fixed_size && node_size (file) != end &&
      node_resize (file, end) == -1)
    return -1;
  return node_flush (file) == -1 ? -1 : forget_record (file, h);
}

/* A full disk must not keep an image from being repaired.  What the file
 * has grown by stays, so the record, which would cut it, goes first.
 */
static int
go_without_journal (struct journal *p, uint64_t end)
{
  if (errno != ENOSPC && errno != EDQUOT && errno != EFBIG)
    return -1;
  msg_warning ("%s: repair: there is no room for a journal, so do not "
               "interrupt this", p->node.name);
  if (p->begun && forget_record (p->file, &p->s->header) == -1)
    return -1;
  p->begun = false;
  return node_size (p->file) == end ? 0 : node_resize (p->file, end);
}

int
journal_carry_out (struct journal *p)
{
  uint64_t end;

  if (p == NULL || p->nr == 0)
    return 0;
  end = node_size (p->file);
  if (needs_journal (p) && (begin (p) == -1 || write_journal (p) == -1) &&
      go_without_journal (p, end) == -1)
    return -1;
  if (apply_all (p) == -1)
    return -1;
  forget_sectors (p);
  if (!p->begun)
    return 0;
  p->begun = false;
  return end_record (p->file, &p->s->header, end);
}

/* A journal that is complete is left for the next attempt. */
static int
take_back (struct journal *p)
{
  if (!p->begun || p->record.journal)
    return 0;
  return end_record (p->file, &p->s->header, p->record.size);
}

int
journal_finish (struct journal *p, int r)
{
  int err;

  if (p == NULL)
    return r;
  if (r == 0)
    r = journal_carry_out (p);
  err = errno;
  if (r == -1 || p->begun)
    take_back (p);
  forget_sectors (p);
  p->s->file = p->file;
  free (p);
  errno = err;
  return r;
}

/* ---- Going on after a crash */

/* Can this have been written by us? */
static bool
is_sensible (const struct node *file, const struct qed_header *h,
             const struct record *record)
{
  const uint64_t size = node_size (file);
  const uint64_t least = h->l1_table_offset + qed_table_bytes (h);

  if (record->size < least || record->size > size)
    return false;
  return record->journal == 0 ||
    (record->journal >= least && record->journal <= size &&
     record->nr <= (size - record->journal) / ENTRY_LEN);
}

static int
read_entry (struct node *file, const struct record *record, uint64_t i,
            uint8_t entry[ENTRY_LEN])
{
  return node_pread (file, entry, ENTRY_LEN, record->journal + i * ENTRY_LEN);
}

/* A journal is followed only if all of it is about sectors of the image:
 * half of what a damaged one says is worth nothing.
 */
static int
check_journal (struct node *file, const struct record *record, bool *sound)
{
  uint8_t entry[ENTRY_LEN];

  for (uint64_t i = 0; *sound && i < record->nr; ++i) {
    if (read_entry (file, record, i, entry) == -1)
      return -1;
    *sound = get_le64 (entry) >= SECTOR &&
      get_le64 (entry) <= record->journal - SECTOR;
  }
  return 0;
}

/* Do what the journal says. */
static int
replay (struct node *file, const struct record *record)
{
  uint8_t entry[ENTRY_LEN];

  for (uint64_t i = 0; i < record->nr; ++i)
    if (read_entry (file, record, i, entry) == -1 ||
        node_pwrite (file, entry + 8, SECTOR, get_le64 (entry)) == -1)
      return -1;
  return node_flush (file);
}

static int
find_record (struct node *file, struct qed_header *h, struct record *record,
             bool *found)
{
  uint8_t buf[QED_HEADER_LEN], record_buf[RECORD_LEN];

  *found = false;
  if (node_size (file) < QED_HEADER_LEN)
    return 0;
  if (node_pread (file, buf, QED_HEADER_LEN, 0) == -1)
    return -1;
  if (qed_header_decode (buf, NULL, h) == -1 ||
      !(h->autoclear_features & QED_REPAIRING) || !has_place (file, h))
    return 0;
  if (read_record (file, h, record_buf, record, found) == -1)
    return -1;
  *found = *found && is_sensible (file, h, record);
  return record->journal ? check_journal (file, record, found) : 0;
}

int
journal_resume (struct node *file)
{
  struct qed_header h;
  struct record record;
  bool found;

  if (file->read_only)
    return 0;
  if (find_record (file, &h, &record, &found) == -1)
    return -1;
  if (!found)
    return 0;
  msg_warning ("%s: a repair that was interrupted is %s", file->name,
               record.journal ? "completed" : "taken back");
  if (record.journal && replay (file, &record) == -1)
    return -1;
  return end_record (file, &h, record.journal ? record.journal
                     : record.size);
}
