# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# QEMU's replication and ours work together, in both directions.  SEED and
# ROUNDS choose how long it is tried.

load ../lib/qed-functions

# replicate PRIMARY SECONDARY END
replicate ()
{
  require_tool qemu-system-x86_64
  mkdir disks
  run "$python" "$tests/qemu.py" "$@" "$tmp/disks"
  assert_success
}

# What the others are measured by.  (QEMU 7.2 cannot stop a secondary
# without failover: its command fails.)
@test "QEMU replicates to QEMU, which fails over" {
  replicate qemu qemu failover
}

@test "QEMU replicates to us, and we fail over" {
  replicate qemu ours failover
}

@test "QEMU replicates to us, and we stop" {
  replicate qemu ours stop
}

@test "our forwarder under QEMU's quorum replicates to QEMU" {
  replicate forwarder qemu failover
}

@test "our forwarder under QEMU's quorum replicates to us" {
  replicate forwarder ours stop
}

@test "our primary replicates its own disk to QEMU" {
  replicate ours qemu failover
}

@test "our primary replicates its own disk to us, and we fail over" {
  replicate ours ours failover
}

@test "our primary replicates its own disk to us, and we stop" {
  replicate ours ours stop
}
