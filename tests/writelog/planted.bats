# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# logwrites explore finds the mistakes that programs make about power losses,
# names the very write that has to be lost, and passes the same programs
# without the mistake.

load ../lib/qed-functions

@test "14 programs with a mistake are found out, and pass without it" {
  "$python" "$tests/planted.py" >table
  sed 's/^/# /' table >&3
  assert_equal "$(grep -c ' fault ' table) $(grep -c ' fixed ' table)" "14 14"
}
