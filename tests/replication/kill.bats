# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The death of either side of a replication costs the other side's guest
# nothing, and a restart brings back what it promises.  SEED and ROUNDS
# choose how long it is tried.

load ../lib/qed-functions

killed ()
{
  mkdir kill
  run "$python" "$tests/kill.py" "$1" "$tmp/kill"
  assert_success
}

@test "a secondary that was killed has the last checkpoint, or all writes" {
  killed running
}

@test "a secondary that was killed in a failover finishes it" {
  killed failover
}

@test "a secondary that was killed in its recovery recovers" {
  killed recovery
}

@test "a primary that was killed brings its remote up to date" {
  killed primary
}

@test "of a pair, the guest of the side that survives loses nothing" {
  killed pair
}
