# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A disk, a buffer or a remote that fails costs a replication no more than
# it must, and is told of.  SEED and ROUNDS choose how long it is tried.

load ../lib/qed-functions

setup ()
{
  setup_test
  mkdir -p work/small
  mount -t tmpfs -o size=8m tmpfs work/small
}

teardown ()
{
  end_servers
  umount "$tmp/work/small"
  teardown_test
}

faults ()
{
  run "$python" "$tests/faults.py" "$1" "$tmp/work"
  assert_success
}

@test "the primary's guest does not notice that the remote dies" {
  faults cut
}

@test "the primary's guest does not notice that the remote stands still" {
  faults stopped
}

@test "the primary's guest does not see the remote's errors" {
  faults errors
}

@test "the primary's guest does not notice that the remote is full" {
  faults full
}

@test "the quorum over a forwarder does not see that the remote dies" {
  faults forwarder
}

@test "the quorum over a forwarder does not wait for one that hangs" {
  ROUNDS=${ROUNDS:-1} faults hung
}

@test "a secondary's disk that cannot be written fails the primary's writes" {
  faults disk-write
}

@test "a secondary's disk that cannot be read keeps its old content" {
  faults disk-read
}

@test "a full hidden buffer fails the primary's writes, and nothing else" {
  faults hidden-full
}

@test "a full active buffer fails the guest's writes, and nothing else" {
  faults active-full
}

@test "a failover that fails leaves the guest all that it had" {
  faults failover
}
