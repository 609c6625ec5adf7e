# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# No file is longer than a reader can keep in mind.

load ../lib/functions

@test "sources have 700 lines at most, and private headers 200" {
  run "$python" "$tests/arrows.py" "$srcdir" "$builddir"
  assert [ "$status" -le 1 ]
  assert_equal "$(grep ' lines, more than ' <<<"$output")" ""
}
