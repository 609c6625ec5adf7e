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

/* Written by hand from the manual: what does a primary that remembers mine, or
 * nothing, do with a remote, without and with sync=full?
 */
static const struct {
  enum disk_kind kind;
  const struct history *history, *partner, *before;
  enum meeting met, never_met, full;
} cases[] = {
  { DISK_PLAIN, &none, &none, &none,
    MEETING_REFUSED, MEETING_FIRST, MEETING_OVERWRITE },
  { DISK_SECONDARY, &none, &none, &none,
    MEETING_REFUSED, MEETING_FIRST, MEETING_OVERWRITE },
  { DISK_SECONDARY, &mine, &none, &none,
    MEETING_IN_STEP, MEETING_FIRST, MEETING_OVERWRITE },
  { DISK_SECONDARY, &mine, &other, &none,
    MEETING_IN_STEP, MEETING_REFUSED, MEETING_OVERWRITE },
  { DISK_SECONDARY, &other, &none, &none,
    MEETING_REFUSED, MEETING_FIRST, MEETING_OVERWRITE },
  { DISK_SECONDARY, &other, &other, &none,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_OVERWRITE },
  { DISK_SECONDARY, &other, &other, &mine,
    MEETING_AGAIN, MEETING_REFUSED, MEETING_OVERWRITE },
  { DISK_SECONDARY, &none, &other, &none,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_OVERWRITE },
  { DISK_PROMOTED, &other, &none, &mine,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_REFUSED },
  { DISK_PROMOTED, &mine, &none, &none,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_REFUSED },
  { DISK_PROMOTED, &other, &other, &none,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_REFUSED },
  { DISK_GUEST, &none, &none, &none,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_REFUSED },
  { DISK_PRIMARY, &none, &none, &none,
    MEETING_REFUSED, MEETING_REFUSED, MEETING_REFUSED },
};

static void
test_every_meeting (void **state)
{
  (void) state;
  for (size_t i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    const struct disk_identity told = {
      .kind = cases[i].kind, .history = *cases[i].history,
      .partner = *cases[i].partner, .before = *cases[i].before
    };
    const enum meeting wanted[] = { cases[i].met, cases[i].never_met,
                                    cases[i].full, cases[i].full };
    struct disk_identity remote;
    char text[MEETING_TEXT];

    identity_describe (&told, text);
    identity_read (&remote, text);
    assert_int_equal (remote.kind, told.kind);
    assert_string_equal (remote.history.text, told.history.text);
    assert_string_equal (remote.partner.text, told.partner.text);
    for (unsigned j = 0; j < 4; ++j) {
      char why[MEETING_WHY] = "";
      const enum meeting m = meet_remote (j % 2 ? &none : &mine, &remote,
                                          j / 2, why);

      if (m != wanted[j])
        fail_msg ("case %zu, %u: %d instead of %d", i, j, m, wanted[j]);
      assert_int_equal (why[0] != '\0', m == MEETING_REFUSED);
    }
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
  };

  (void) state;
  for (size_t i = 0; i < sizeof names / sizeof names[0]; ++i) {
    struct history primary;
    bool synced;
    const bool is = export_is (names[i].name, names[i].export, &primary,
                               &synced);

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
