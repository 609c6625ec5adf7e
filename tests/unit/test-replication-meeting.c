/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The table of meetings, each pair of states, and the names by which both
 * sides tell who they are.
 */

#include <config.h>

#include "filters/replication/meeting.h"
#include "tests/unit/unit.h"

static const struct history none = { "" };
static const struct history mine = { "0123456789abcdef0123456789abcdef" };
static const struct history other = { "fedcba9876543210fedcba9876543210" };

static const struct pairing no_pair = { { "" }, { "" } };
static const struct pairing ours = {
  { "00000000000000000000000000000001" },
  { "00000000000000000000000000000002" }
};
static const struct pairing ours_before = {
  { "00000000000000000000000000000001" },
  { "00000000000000000000000000000003" }
};
static const struct pairing theirs = {
  { "00000000000000000000000000000004" },
  { "00000000000000000000000000000002" }
};

/* What a primary knows. */
enum { MET, EQUAL, UNKNOWN, PARTED, NR_KNOWN };

static const struct known_remote knowledge[NR_KNOWN] = {
  [MET] = { .history = { "0123456789abcdef0123456789abcdef" },
            .equal = true },
  [EQUAL] = { .equal = true },
  [UNKNOWN] = { .equal = false },
  [PARTED] = {
    .parted = { { "00000000000000000000000000000001" },
                { "00000000000000000000000000000002" } },
    .equal = true
  },
};

#define IN_STEP MEETING_IN_STEP
#define FIRST MEETING_FIRST
#define AGAIN MEETING_AGAIN
#define ALL MEETING_ALL
#define APART MEETING_PARTED
#define REFUSED MEETING_REFUSED
#define OVERWRITE MEETING_OVERWRITE

/* Written by hand from the manual: what does a primary that knows this do with
 * a remote, without and with sync=full?
 */
static const struct {
  enum disk_kind kind;
  const struct history *history, *partner, *before;
  const struct pairing *former;
  enum meeting wanted[NR_KNOWN], full;
} cases[] = {
  { DISK_PLAIN, &none, &none, &none, &no_pair,
    { REFUSED, FIRST, REFUSED, REFUSED }, OVERWRITE },
  { DISK_SECONDARY, &none, &none, &none, &no_pair,
    { REFUSED, FIRST, ALL, ALL }, OVERWRITE },
  { DISK_SECONDARY, &mine, &none, &none, &no_pair,
    { IN_STEP, FIRST, ALL, ALL }, OVERWRITE },
  { DISK_SECONDARY, &mine, &other, &none, &no_pair,
    { IN_STEP, REFUSED, REFUSED, REFUSED }, OVERWRITE },
  { DISK_SECONDARY, &other, &none, &none, &no_pair,
    { REFUSED, FIRST, ALL, ALL }, OVERWRITE },
  { DISK_SECONDARY, &other, &other, &none, &no_pair,
    { REFUSED, REFUSED, REFUSED, REFUSED }, OVERWRITE },
  { DISK_SECONDARY, &other, &other, &mine, &no_pair,
    { AGAIN, REFUSED, REFUSED, REFUSED }, OVERWRITE },
  { DISK_SECONDARY, &none, &other, &none, &no_pair,
    { REFUSED, REFUSED, REFUSED, REFUSED }, OVERWRITE },
  { DISK_SECONDARY, &other, &none, &none, &ours,
    { REFUSED, REFUSED, REFUSED, APART }, OVERWRITE },
  { DISK_SECONDARY, &mine, &none, &none, &ours,
    { IN_STEP, REFUSED, REFUSED, APART }, OVERWRITE },
  { DISK_SECONDARY, &other, &none, &none, &ours_before,
    { REFUSED, REFUSED, REFUSED, ALL }, OVERWRITE },
  { DISK_SECONDARY, &other, &none, &none, &theirs,
    { REFUSED, REFUSED, REFUSED, REFUSED }, OVERWRITE },
  { DISK_SECONDARY, &other, &other, &none, &ours,
    { REFUSED, REFUSED, REFUSED, REFUSED }, OVERWRITE },
  { DISK_PROMOTED, &other, &none, &mine, &no_pair,
    { REFUSED, REFUSED, REFUSED, REFUSED }, REFUSED },
  { DISK_PROMOTED, &mine, &none, &none, &no_pair,
    { REFUSED, REFUSED, REFUSED, REFUSED }, REFUSED },
  { DISK_PROMOTED, &other, &other, &none, &ours,
    { REFUSED, REFUSED, REFUSED, REFUSED }, REFUSED },
  { DISK_GUEST, &none, &none, &none, &no_pair,
    { REFUSED, REFUSED, REFUSED, REFUSED }, REFUSED },
  { DISK_PRIMARY, &none, &none, &none, &no_pair,
    { REFUSED, REFUSED, REFUSED, REFUSED }, REFUSED },
};

static void
must_meet (size_t i, int known, const struct disk_identity *remote, bool full)
{
  char why[MEETING_WHY] = "";
  const enum meeting m = meet_remote (&knowledge[known], remote, full, why);

  if (m != (full ? cases[i].full : cases[i].wanted[known]))
    fail_msg ("case %zu, %d, %d: %d", i, known, full, m);
  assert_int_equal (why[0] != '\0', m == MEETING_REFUSED);
  /* The way out is whole. */
  if (why[0] && cases[i].full == OVERWRITE)
    assert_non_null (strstr (why, "replication-start sync=full copies this "
                             "disk over the remote's"));
}

/* A disk that was changed by others proves nothing. */
static void
must_not_meet_changed (const struct disk_identity *remote, enum meeting full)
{
  for (int i = 0; i < NR_KNOWN; ++i) {
    struct known_remote known = knowledge[i];
    char why[MEETING_WHY];

    known.changed = true;
    assert_int_equal (meet_remote (&known, remote, false, why), REFUSED);
    assert_int_equal (meet_remote (&known, remote, true, why), full);
  }
}

static void
test_every_meeting (void **state)
{
  (void) state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    const struct disk_identity told = {
      .kind = cases[i].kind, .history = *cases[i].history,
      .partner = *cases[i].partner, .before = *cases[i].before,
      .former = *cases[i].former
    };
    struct disk_identity remote;
    char text[MEETING_TEXT];

    identity_describe (&told, text);
    identity_read (&remote, text);
    assert_int_equal (remote.kind, told.kind);
    assert_string_equal (remote.history.text, told.history.text);
    assert_string_equal (remote.partner.text, told.partner.text);
    assert_string_equal (remote.former.primary.text,
                         told.former.primary.text);
    assert_string_equal (remote.former.remote.text, told.former.remote.text);
    for (int known = 0; known < NR_KNOWN; ++known)
      for (int full = 0; full < 2; ++full)
        must_meet (i, known, &remote, full);
    must_not_meet_changed (&remote, cases[i].full);
  }
}

static void
test_descriptions_of_others (void **state)
{
  static const char *const texts[] = {
    NULL, "", "a disk", "replication", "; history 0123",
    "my replication secondary: for the primary's writes",
  };
  struct disk_identity id;

  (void) state;
  for (size_t i = 0; i < sizeof texts / sizeof texts[0]; ++i) {
    identity_read (&id, texts[i]);
    assert_int_equal (id.kind, DISK_PLAIN);
    assert_string_equal (id.history.text, "");
  }
  identity_read (&id, "replication secondary: for the primary's writes; "
                 "history 0123456789abcdeX0123456789abcdef");
  assert_int_equal (id.kind, DISK_SECONDARY);
  assert_string_equal (id.history.text, "");

  /* There is no map of nobody's. */
  identity_read (&id, "replication secondary: for the primary's writes; "
                 "was primary 9abcd; "
                 "with a map for 0123456789abcdef0123456789abcdef");
  assert_string_equal (id.former.primary.text, "");
  assert_string_equal (id.former.remote.text, "");
}

static void
test_names_of_exports (void **state)
{
#define ID "0123456789abcdef0123456789abcdef"
  static const struct {
    const char *name, *export;
    bool is, synced;
    const char *primary;
  } names[] = {
    { "", "", true, false, "" },
    { "a", "a", true, false, "" },
    { "a", "", false, false, "" },
    { "", "a", false, false, "" },
    { "?primary=" ID, "", true, false, ID },
    { "a?primary=" ID, "a", true, false, ID },
    { "a?primary=" ID "&synced", "a", true, true, ID },
    { "a?primary=" ID "&", "a", false, false, "" },
    { "a?primary=", "a", false, false, "" },
    { "a?primary=0123", "a", false, false, "" },
    { "ab?primary=" ID, "a", false, false, "" },
    { "a?map", "a", false, false, "" },
  };

  (void) state;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
    struct history primary;
    bool synced;
    const bool is = export_is (names[i].name, names[i].export, &primary,
                               &synced);

    assert_int_equal (export_is_map (names[i].name, names[i].export),
                      strcmp (names[i].name, "a?map") == 0);
    if (is != names[i].is)
      fail_msg ("%s is %s", names[i].name, is ? "accepted" : "refused");
    if (is) {
      assert_int_equal (synced, names[i].synced);
      assert_string_equal (primary.text, names[i].primary);
    }
  }
}

static void
test_suffixes_of_uris (void **state)
{
  static const char *const uris[][2] = {
    { "nbd://host", "nbd://host/%3Fa%3Db" },
    { "nbd://host:10809/", "nbd://host:10809/%3Fa%3Db" },
    { "nbds://u@host/x?tls-psk-file=/k?", "nbds://u@host/x%3Fa%3Db"
      "?tls-psk-file=/k?" },
    { "nbd+unix:///?socket=/s", "nbd+unix:///%3Fa%3Db?socket=/s" },
    { "nbd+unix://?socket=/s/t", "nbd+unix:///%3Fa%3Db?socket=/s/t" },
    { "nbd+unix:///x%20y?socket=/s#f", "nbd+unix:///x%20y%3Fa%3Db?socket=/s#f"
    },
  };

  (void) state;
  for (size_t i = 0; i < sizeof uris / sizeof uris[0]; ++i) {
    CLEANUP_FREE char *uri = uri_with_suffix (uris[i][0], "?a=b");

    assert_non_null (uri);
    assert_string_equal (uri, uris[i][1]);
  }
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_every_meeting),
    cmocka_unit_test (test_descriptions_of_others),
    cmocka_unit_test (test_names_of_exports),
    cmocka_unit_test (test_suffixes_of_uris),
  };

  return cmocka_run_group_tests (tests, NULL, NULL);
}
