/* nbdkit-blockdrivers
 * Copyright the nbdkit-blockdrivers authors
 * SPDX-License-Identifier: BSD-3-Clause
 */

/* Notes on the design
 *
 * A size is a whole number, perhaps a fraction, and perhaps a suffix.
 * The whole part is scaled in integers, so that every byte count comes
 * out exactly; only the fraction, which is less than one unit, goes
 * through floating point and is rounded to the nearest byte.
 *
 * Either part may be missing, but not both.
 *
 * Hexadecimal numbers may be whole only, and have no suffix: their
 * digits include the letters of two, B and E.
 */

#include <config.h>

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "utils/sizes.h"

/* Parse ".DIGITS", which may lack digits.  Anything else that strtod
 * would take (exponents, "nan") is left as trailing text.
 */
static double
parse_fraction (const char **p)
{
  double value = 0, place = 1;

  if (**p != '.')
    return 0;
  for (++*p; isdigit ((unsigned char) **p); ++*p) {
    place /= 10;
    value += place * (**p - '0');
  }
  return value;
}

/* The exponent of the unit that a suffix names, 0 for none; -1 if there
 * is anything but one suffix.
 */
static int
parse_suffix (const char *p)
{
  static const char letters[] = "bkmgtpe";
  const char *found;

  if (*p == '\0')
    return 0;
  found = strchr (letters, tolower ((unsigned char) *p));
  if (found == NULL || p[1] != '\0')
    return -1;
  return 10 * (found - letters);
}

int64_t
parse_size (const char *str)
{
  const char *p = str;
  char *end;
  bool is_hex;
  uint64_t whole, part;
  double fraction = 0;
  int shift, err;

  while (isspace ((unsigned char) *p))
    p++;
  if (*p == '+')
    p++;
  if (!isdigit ((unsigned char) p[*p == '.'])) {
    errno = EINVAL;
    return -1;
  }

  is_hex = p[0] == '0' && (p[1] == 'x' || p[1] == 'X');
  if (is_hex && !isxdigit ((unsigned char) p[2])) {
    errno = EINVAL;
    return -1;
  }
  errno = 0;
  whole = 0;
  end = (char *) p;
  if (*p != '.')
    whole = strtoull (p, &end, is_hex ? 16 : 10);
  err = errno;
  p = end;
  if (!is_hex)
    fraction = parse_fraction (&p);
  shift = is_hex && *p ? -1 : parse_suffix (p);
  if (shift == -1 || (shift == 0 && fraction > 0)) {
    errno = EINVAL;
    return -1;
  }

  part = (uint64_t) (fraction * (UINT64_C (1) << shift) + 0.5);
  if (err == ERANGE || whole > (uint64_t) INT64_MAX >> shift ||
      part > INT64_MAX - (whole << shift)) {
    errno = ERANGE;
    return -1;
  }
  return (whole << shift) + part;
}

/* qemu-img changes to the next unit at 1000, not at 1024, so that there
 * are never more than three digits before the point: 1000 KiB is
 * "0.977 MiB".
 */
char *
human_size (char buf[HUMAN_SIZE_LEN], uint64_t size)
{
  static const char *const units[] = {
    "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"
  };
  const size_t last = sizeof units / sizeof units[0] - 1;
  size_t unit = 0;

  while (unit < last && (size >> (10 * unit)) >= 1000)
    unit++;
  snprintf (buf, HUMAN_SIZE_LEN, "%.3g %s",
            (double) size / (UINT64_C (1) << (10 * unit)), units[unit]);
  return buf;
}
