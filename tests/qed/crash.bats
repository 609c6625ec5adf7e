# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The death of the server loses nothing that was acknowledged, and damages
# nothing.  SEED and ROUNDS choose how long it is tried.

load ../lib/qed-functions

crash ()
{
  mkdir crash
  run "$python" "$tests/crash.py" "$1" "$tmp/crash"
  assert_success
}

@test "kill -9 during allocating writes loses no acknowledged write" {
  crash none
}

@test "kill -9 during writes over a backing image loses nothing either" {
  crash raw
}
