/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Fuzzing names and numbers that people and other programs give us: URIs,
 * json: names, backing names, names of exports and moments, sizes,
 * descriptions of exports.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>

#include "filters/replication/meeting.h"
#include "node/node.h"
#include "qed/names.h"
#include "tests/fuzz/fuzz.h"
#include "utils/sizes.h"

static void
try_names (const char *name)
{
  static const char *const images[] = {
    "image.qed", "/a/b/image.qed", "nbd://host/export", "json:{}"
  };
  struct qed_name parsed;

  if (qed_parse_name (name, NULL, &parsed) == 0) {
    WANT (parsed.file);
    free (parsed.file);
  }
  for (unsigned i = 0; i < 4; ++i) {
    enum qed_format format = QED_FORMAT_PROBE;
    char *full = NULL;

    if (qed_backing_full_name (images[i], name, &full) == 0)
      free (full);
    free (qed_backing_path (images[i], name, i % 2, &format));
  }
}

static void
try_uris (const char *name)
{
  if (!node_is_uri (name))
    return;

  CLEANUP_FREE char *absolute = node_absolute_uri (name);
  CLEANUP_FREE char *longer = uri_with_suffix (name, "?primary=0123");

  if (absolute)
    WANT (node_is_uri (absolute));
}

static void
try_exports (const char *name)
{
  struct history primary;
  struct disk_identity id, again;
  char text[MEETING_TEXT], why[MEETING_WHY];
  bool synced;

  export_is (name, "", &primary, &synced);
  export_is (name, "export", &primary, &synced);
  identity_read (&id, name);
  identity_describe (&id, text);
  identity_read (&again, text);
  WANT (again.kind == id.kind);
  WANT (strcmp (again.history.text, id.history.text) == 0);
  WANT (strcmp (again.partner.text, id.partner.text) == 0);
  WANT (strcmp (again.former.remote.text, id.former.remote.text) == 0);
  for (int i = 0; i < 8; ++i) {
    const struct known_remote known = {
      .history = i & 1 ? id.history : id.partner,
      .parted = i & 2 ? id.former : (struct pairing) { .primary.text = "" },
    };

    meet_remote (&known, &id, i & 4, why);
  }
}

/* Plain numbers, which a simple reader understands as well. */
static void
try_sizes (const char *text)
{
  const int64_t size = parse_size (text);
  size_t digits = strspn (text, "0123456789");
  char buf[HUMAN_SIZE_LEN];

  if (size >= 0)
    WANT (strlen (human_size (buf, size)) < HUMAN_SIZE_LEN);
  if (digits == 0 || digits > 15 || text[digits] != '\0')
    return;
  WANT (size == strtoll (text, NULL, 10));
}

int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  CLEANUP_FREE char *text = malloc (size + 1);

  fuzz_begin ();
  WANT (text);
  if (size > 0)
    memcpy (text, data, size);
  text[size] = '\0';
  try_names (text);
  try_uris (text);
  try_exports (text);
  try_sizes (text);
  return 0;
}
