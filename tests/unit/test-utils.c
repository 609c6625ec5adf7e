/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* The small things: messages, sizes (with qemu-img as the judge), sets
 * of numbers, zero buffers, rounding.
 */

#include <config.h>

#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "utils/bitmap.h"
#include "utils/iszero.h"
#include "utils/message.h"
#include "utils/rounding.h"
#include "utils/sizes.h"
#include "tests/unit/unit.h"

#define NELEMENTS(array) (sizeof (array) / sizeof (array)[0])

/* The first line of what a command prints on standard output, without
 * its end.  Returns its exit status.
 */
static int
output_of (const char *command, char line[256])
{
  FILE *fp = popen (command, "r");
  char rest[256];

  assert_non_null (fp);
  if (fgets (line, 256, fp) == NULL)
    line[0] = '\0';
  line[strcspn (line, "\n")] = '\0';
  while (fgets (rest, sizeof rest, fp))
    ;
  return pclose (fp);
}

/* Messages. */

static void
say_all (void)
{
  errno = ENOSPC;
  msg_error ("%s: write at offset %d: %m", "disk", 42);
  assert_int_equal (errno, ENOSPC);
  msg_warning ("%d%% full", 99);
  assert_int_equal (errno, ENOSPC);
  msg_debug ("never seen");
  assert_int_equal (errno, ENOSPC);
}

static void
test_messages_go_to_standard_error (void **state)
{
  char text[512], expected[512];
  int fds[2], saved = dup (STDERR_FILENO);
  ssize_t len;

  (void) state;
  assert_int_equal (pipe (fds), 0);
  assert_int_equal (dup2 (fds[1], STDERR_FILENO), STDERR_FILENO);
  say_all ();
  assert_int_equal (dup2 (saved, STDERR_FILENO), STDERR_FILENO);
  close (saved);
  close (fds[1]);
  len = read (fds[0], text, sizeof text - 1);
  close (fds[0]);
  assert_true (len > 0);
  text[len] = '\0';

  snprintf (expected, sizeof expected,
            "%s: disk: write at offset 42: No space left on device\n"
            "%s: warning: 99%% full\n",
            program_invocation_short_name, program_invocation_short_name);
  assert_string_equal (text, expected);
}

static char handled[512];

static void __attribute__ ((format (printf, 2, 0)))
handle_message (enum msg_level level, const char *fs, va_list args)
{
  static const char letters[] = { 'E', 'W', 'D' };
  char *end = handled + strlen (handled);
  const int err = errno;

  *end++ = letters[level];
  *end++ = ' ';
  errno = err;
  end += vsprintf (end, fs, args);
  strcpy (end, "\n");
  errno = EINTR;                /* must not show */
}

static void
test_messages_go_to_the_handler (void **state)
{
  (void) state;
  msg_set_handler (handle_message);
  say_all ();
  msg_set_handler (collect_message);
  assert_string_equal (handled,
                       "E disk: write at offset 42: No space left on device\n"
                       "W 99% full\n"
                       "D never seen\n");
}

/* Sizes. */

static const struct {
  const char *str;
  int64_t size;                 /* or -1 */
  int err;
  bool newer;                   /* qemu-img came to this later */
} sizes[] = {
  { "0", 0, 0 },
  { "1", 1, 0 },
  { "1000", 1000, 0 },
  { "010", 10, 0 },
  { "+5", 5, 0 },
  { " 5", 5, 0 },
  { "0x10", 16, 0 },
  { "0x1E", 30, 0 },
  { "0x1b", 27, 0 },
  { "1b", 1, 0 },
  { "1B", 1, 0 },
  { "1.0", 1, 0 },
  { "1.", 1, 0 },
  { "1k", 1024, 0 },
  { "1K", 1024, 0 },
  { "1.k", 1024, 0 },
  { "1.5k", 1536, 0 },
  { "1.1k", 1126, 0 },
  { "0.0001k", 0, 0 },
  { "1.9999k", 2048, 0 },
  { "0.3M", 314573, 0 },
  { "5.5g", INT64_C (5905580032), 0 },
  { "1.25t", INT64_C (1374389534720), 0 },
  { "2P", INT64_C (2251799813685248), 0 },
  { "8191P", INT64_C (9222246136947933184), 0 },
  { "8388607T", INT64_C (9223370937343148032), 0 },
  { "1e", INT64_C (1152921504606846976), 0 },
  { "7.5E", INT64_C (8646911284551352320), 0 },
  { "9223372036854775295", INT64_C (9223372036854775295), 0 },
  { "8E", -1, ERANGE },
  { "8388608T", -1, ERANGE },
  { "9223372036854775808", -1, ERANGE },
  { "18446744073709551615", -1, ERANGE },
  { "18446744073709551616", -1, ERANGE },
  { "99999999999999999999k", -1, ERANGE },
  { "", -1, EINVAL },
  { ".", -1, EINVAL },
  { "k", -1, EINVAL },
  { "..5k", -1, EINVAL },
  { ".k", -1, EINVAL },
  { ".5", -1, EINVAL },
  { ".5k", 512, 0, .newer = true },
  { "+.25M", 262144, 0, .newer = true },
  { ".0", 0, 0, .newer = true },
  { "1.5", -1, EINVAL },
  { "1.5b", -1, EINVAL },
  { "1kb", -1, EINVAL },
  { "1z", -1, EINVAL },
  { "1..5k", -1, EINVAL },
  { "5 ", -1, EINVAL },
  { "5 k", -1, EINVAL },
  { "-1", -1, EINVAL },
  { "-0", -1, EINVAL },
  { "- 1", -1, EINVAL },
  { "+-1", -1, EINVAL },
  { "1e3", -1, EINVAL },
  { "1e3k", -1, EINVAL },
  { "1.5e1k", -1, EINVAL },
  { "0x", -1, EINVAL },
  { "0x1.8k", -1, EINVAL },
  { "0x7k", -1, EINVAL, .newer = true },
  { "0x7T", -1, EINVAL, .newer = true },
  { "0x.8", -1, EINVAL },
  { "0x1p3", -1, EINVAL },
  { "nan", -1, EINVAL },
  { "inf", -1, EINVAL },
};

static void
test_parse_size (void **state)
{
  (void) state;
  for (size_t i = 0; i < NELEMENTS (sizes); ++i) {
    errno = 0;
    if (parse_size (sizes[i].str) != sizes[i].size || errno != sizes[i].err)
      fail_msg ("%s: %" PRIi64 ", %s", sizes[i].str,
                parse_size (sizes[i].str), strerror (errno));
  }
}

/* qemu-img measure says how long a raw image of a size is, in sectors; -1
 * if it takes it for no size.
 */
static int64_t
measured_by_qemu_img (const char *size)
{
  char command[256], line[256];
  int64_t theirs;

  snprintf (command, sizeof command,
            "qemu-img measure -O raw --size='%s' 2>/dev/null", size);
  if (output_of (command, line) != 0)
    return -1;
  assert_int_equal (sscanf (line, "required size: %" SCNi64, &theirs), 1);
  return theirs;
}

/* An old one takes a suffix behind hexadecimal digits, and no number
 * that starts with a point.
 */
static void
test_parse_size_as_qemu_img_does (void **state)
{
  const bool is_old = measured_by_qemu_img ("0x7k") == 7168;

  (void) state;
  for (size_t i = 0; i < NELEMENTS (sizes); ++i) {
    const int64_t size = parse_size (sizes[i].str);
    const int64_t theirs = measured_by_qemu_img (sizes[i].str);

    if (sizes[i].newer && is_old)
      assert_true ((size == -1) != (theirs == -1));
    else
      assert_int_equal (size == -1 ? -1 : (int64_t) round_up (size, 512),
                        theirs);
  }
}

static const struct {
  uint64_t size;
  const char *text;
} human_sizes[] = {
  { 0, "0 B" },
  { 1, "1 B" },
  { 512, "512 B" },
  { 999, "999 B" },
  { 1000, "0.977 KiB" },
  { 1024, "1 KiB" },
  { 1536, "1.5 KiB" },
  { 260 * 1024, "260 KiB" },
  { 999 * 1024, "999 KiB" },
  { 1000 * 1024, "0.977 MiB" },
  { 1023 * 1024, "0.999 MiB" },
  { 1024 * 1024, "1 MiB" },
  { 1025 * 1024, "1 MiB" },
  { UINT64_C (1001) << 20, "0.978 GiB" },
  { UINT64_C (1) << 30, "1 GiB" },
  { UINT64_C (3) << 29, "1.5 GiB" },
  { UINT64_C (10730976256), "9.99 GiB" },
  { UINT64_C (10732049920), "10 GiB" },
  { UINT64_C (1073312327680), "1e+03 GiB" },
  { UINT64_C (2144047674368), "1.95 TiB" },
  { UINT64_C (1) << 50, "1 PiB" },
  { UINT64_MAX / 2, "8 EiB" },
  { UINT64_MAX, "16 EiB" },
};

static void
test_human_size (void **state)
{
  char buf[HUMAN_SIZE_LEN];

  (void) state;
  for (size_t i = 0; i < NELEMENTS (human_sizes); ++i) {
    assert_ptr_equal (human_size (buf, human_sizes[i].size), buf);
    assert_string_equal (buf, human_sizes[i].text);
  }
}

/* What qemu-img info calls the virtual size of a sparse file. */
static void
compare_with_qemu_img (const char *file, uint64_t size)
{
  char command[256], line[256], expected[256], buf[HUMAN_SIZE_LEN];

  assert_int_equal (truncate (file, size), 0);
  snprintf (command, sizeof command,
            "qemu-img info -f raw %s | grep '^virtual size:'", file);
  assert_int_equal (output_of (command, line), 0);
  snprintf (expected, sizeof expected, "virtual size: %s (%" PRIu64 " bytes)",
            human_size (buf, size), size);
  assert_string_equal (line, expected);
}

static void
test_human_size_as_qemu_img_does (void **state)
{
  const uint64_t limit = UINT64_C (1) << 43; /* of common file systems */
  char file[] = "/tmp/test-utils-XXXXXX";
  uint64_t seed = 99;
  int fd = mkstemp (file);

  (void) state;
  assert_true (fd >= 0);
  close (fd);
  for (size_t i = 0; i < NELEMENTS (human_sizes); ++i)
    if (is_aligned (human_sizes[i].size, 512) && human_sizes[i].size < limit)
      compare_with_qemu_img (file, human_sizes[i].size);
  for (unsigned i = 0; i < 100; ++i)
    compare_with_qemu_img (file,
                           round_down (random_below (&seed, limit) >>
                                       random_below (&seed, 35), 512));
  unlink (file);
}

/* Sets of numbers. */

static void
test_bitmap_basics (void **state)
{
  static const uint64_t numbers[] = {
    0, 1, 63, 64, 32767, 32768, 1000000, UINT64_MAX - 1, UINT64_MAX
  };
  struct bitmap b = BITMAP_EMPTY;

  (void) state;
  assert_false (bitmap_has (&b, 0));
  bitmap_remove (&b, 0);
  for (size_t i = 0; i < NELEMENTS (numbers); ++i) {
    assert_false (bitmap_has (&b, numbers[i]));
    assert_int_equal (bitmap_add (&b, numbers[i]), 0);
    assert_int_equal (bitmap_add (&b, numbers[i]), 1);
    assert_true (bitmap_has (&b, numbers[i]));
    assert_int_equal (b.members, i + 1);
  }
  assert_false (bitmap_has (&b, 2));
  assert_int_equal (b.nr_pages, 5);

  for (size_t i = 0; i < NELEMENTS (numbers); ++i) {
    bitmap_remove (&b, numbers[i]);
    bitmap_remove (&b, numbers[i]);
    assert_false (bitmap_has (&b, numbers[i]));
    assert_int_equal (b.members, NELEMENTS (numbers) - i - 1);
  }
  assert_int_equal (b.nr_pages, 0);
  bitmap_free (&b);
  assert_null (b.slots);
  assert_int_equal (bitmap_add (&b, 7), 0);
  bitmap_free (&b);
}

/* Against one flag for each number that can come up: few to a page, on
 * many pages, so that pages come and go all the time.
 */
#define NR_NUMBERS 6000

static uint64_t
number (unsigned i)
{
  return (uint64_t) i / 3 * (i % 2 ? 32768 : UINT64_C (0x100000000)) + i % 3;
}

static void
test_bitmap_against_model (void **state)
{
  struct bitmap b = BITMAP_EMPTY;
  static bool model[NR_NUMBERS];
  uint64_t seed = 5, members = 0;

  (void) state;
  for (unsigned round = 0; round < 400000; ++round) {
    const unsigned i = random_below (&seed, NR_NUMBERS);
    /* Grow for a while, then shrink. */
    const bool add = random_below (&seed, 100) <
      (round / 50000 % 2 ? 20 : 80);

    assert_int_equal (bitmap_has (&b, number (i)), model[i]);
    if (add) {
      assert_int_equal (bitmap_add (&b, number (i)), model[i]);
      members += !model[i];
    }
    else {
      bitmap_remove (&b, number (i));
      members -= model[i];
    }
    model[i] = add;
    assert_int_equal (b.members, members);
  }
  for (unsigned i = 0; i < NR_NUMBERS; ++i)
    assert_int_equal (bitmap_has (&b, number (i)), model[i]);
  assert_true (b.nr_pages <= members);
  assert_true (b.nr_slots >= 2 * b.nr_pages);
  bitmap_free (&b);
}

static void
read_bitmap (struct unit_thread *t)
{
  const struct bitmap *b = t->opaque;

  for (uint64_t i = 0; i < 20000; ++i)
    CHECK (bitmap_has (b, i * 1000) == (i % 2 == 0));
}

static void
test_bitmap_is_read_by_many (void **state)
{
  struct bitmap b = BITMAP_EMPTY;

  (void) state;
  for (uint64_t i = 0; i < 20000; i += 2)
    assert_int_equal (bitmap_add (&b, i * 1000), 0);
  run_threads (4, read_bitmap, &b);
  bitmap_free (&b);
}

/* The rest. */

static void
test_is_zero (void **state)
{
  char buf[300] = "";

  (void) state;
  assert_true (is_zero (buf, 0));
  for (size_t size = 1; size < 200; ++size) {
    buf[size] = 'x';            /* just behind it */
    assert_true (is_zero (buf, size));
    buf[size] = 0;
    for (size_t i = 0; i < size; ++i) {
      buf[i] = 1;
      assert_false (is_zero (buf, size));
      buf[i] = 0;
    }
  }
}

static void
test_rounding (void **state)
{
  uint64_t seed = 3;

  (void) state;
  assert_false (is_power_of_2 (0));
  assert_false (is_power_of_2 (UINT64_MAX));
  for (unsigned i = 0; i < 64; ++i) {
    const uint64_t n = UINT64_C (1) << i;

    assert_true (is_power_of_2 (n));
    assert_int_equal (is_power_of_2 (n + 1), n == 1);
    assert_int_equal (log_2 (n), i);
    for (unsigned j = 0; j < 100; ++j) {
      const uint64_t v = next_random (&seed) >> random_below (&seed, 64);

      assert_int_equal (round_down (v, n), v / n * n);
      assert_int_equal (is_aligned (v, n), v % n == 0);
      if (v <= UINT64_MAX - n)
        assert_int_equal (round_up (v, n), (v + n - 1) / n * n);
      assert_int_equal (div_round_up (v, n), v / n + (v % n > 0));
    }
  }
  for (unsigned i = 0; i < 1000; ++i) {
    const uint64_t total = next_random (&seed) >> random_below (&seed, 64);
    const uint64_t n = 1 + random_below (&seed, UINT32_MAX);
    const uint64_t at = random_below (&seed, n);
    const uint64_t begin = part_begins (at, n, total);

    /* Parts follow one another, and their lengths differ by one at most. */
    assert_int_equal (part_begins (0, n, total), 0);
    assert_int_equal (part_begins (n, n, total), total);
    assert_within (part_begins (at + 1, n, total) - begin,
                   total / n, div_round_up (total, n));
    if (total <= UINT32_MAX)
      assert_int_equal (begin, at * total / n);
  }
  assert_int_equal (div_round_up (10, 3), 4);
  assert_int_equal (div_round_up (UINT64_MAX, 10), UINT64_MAX / 10 + 1);
  assert_int_equal (MIN (3, 4), 3);
  assert_int_equal (MAX (3, 4), 4);
}

int
main (void)
{
  const struct CMUnitTest tests[] = {
    cmocka_unit_test (test_messages_go_to_standard_error),
    cmocka_unit_test (test_messages_go_to_the_handler),
    cmocka_unit_test (test_parse_size),
    cmocka_unit_test (test_parse_size_as_qemu_img_does),
    cmocka_unit_test (test_human_size),
    cmocka_unit_test (test_human_size_as_qemu_img_does),
    cmocka_unit_test (test_bitmap_basics),
    cmocka_unit_test (test_bitmap_against_model),
    cmocka_unit_test (test_bitmap_is_read_by_many),
    cmocka_unit_test (test_is_zero),
    cmocka_unit_test (test_rounding),
  };

  alarm (HANG_SECONDS);
  return cmocka_run_group_tests_name ("utils", tests, NULL, NULL);
}
