# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Several disks of one guest: they are made equal to their primaries at one
# moment, and failed over at one moment (nbdkit-replication-filter(1),
# "Checkpoints of both sides, and of several disks").  See the stories in
# joint.py.

load ../lib/replication-functions

story ()
{
  "$python" "$tests/joint.py" "$1"
}

@test "a joint checkpoint is all or nothing, wherever its client dies" {
  story every_death
}

@test "a disk that is ahead does not go back behind its guest's writes" {
  story one_commits
}

@test "the next joint checkpoint ends all doubt" {
  story in_doubt_again
}

@test "disks at different checkpoints are not failed over together" {
  story different_checkpoints
}

@test "a failover of all does not wait for a client that stands still" {
  story stopped_client
}

@test "there is no joint checkpoint with a promoted disk" {
  story promoted_member
}

@test "after a rollback it is known of which checkpoint a disk is" {
  story killed_servers
}
