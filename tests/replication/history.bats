# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A primary learns when the disk of its secondary is not as it was left, and
# copies nothing without need.  See the stories in history.py.

load ../lib/replication-functions

story ()
{
  "$python" "$tests/history.py" "$1"
}

@test "a primary notices that its secondary was rolled back" {
  story rollback_is_noticed
}

@test "a primary with a bitmap notices it after a restart" {
  story rollback_is_noticed_after_restart
}

@test "a primary that is killed meanwhile does not forget it" {
  story killed_primary
}

@test "a secondary that is restarted is not copied again" {
  story ordinary_restarts
}

@test "a failover, its guest and a new buffer begin a new history" {
  story other_writers
}

@test "a bitmap without a history is trusted, and gets one" {
  story old_bitmap
}

@test "a full copy is no error, and makes the disk known" {
  story full_copy
}
