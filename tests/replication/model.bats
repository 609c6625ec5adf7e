# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A secondary's guest sees the last checkpoint and its own writes, and a
# primary's remote is equal at each checkpoint, whatever is in flight.  SEED,
# ROUNDS and OPERATIONS choose how long it is tried.

load ../lib/qed-functions

model ()
{
  mkdir model
  run "$python" "$tests/model.py" "$1" "$tmp/model"
  assert_success
}

@test "a secondary does what the model says, and ends by failover" {
  model failover
}

@test "a secondary does what the model says, and ends by a stop" {
  model stop
}

@test "a primary's remote, which comes and goes, is equal at checkpoints" {
  model primary
}
