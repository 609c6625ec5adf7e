# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# After a failover both sides change their roles, and only what differs is
# copied.  See the stories in fail_back.py.

load ../lib/replication-functions

story ()
{
  "$python" "$tests/fail_back.py" "$@"
}

@test "failing back copies what either side has changed, and nothing else" {
  story copies_only_that
}

@test "however both sides ended, and to and fro" {
  story whatever_ended_how
}

@test "of an old primary without a map everything is copied" {
  story no_map
}

@test "of one that has lost it everything is copied" {
  story new_map
}

@test "a torn map is refused" {
  story torn_map
}

@test "of one that lost power everything is copied" {
  story unknown_map
}

@test "so it is when the promoted one lost power" {
  story unknown_own_map
}

@test "the disk of another pair is not overwritten" {
  story map_of_another
}

@test "the map of another disk is not believed" {
  story map_of_another_disk
}

@test "nor is that of a disk that was restored" {
  story restored_disk
}

@test "a map is void when others have written to the disk" {
  story stranger_writes
}

@test "a map is void when the disk's own guest has written" {
  story guest_of_the_old_one_writes
}

@test "a map is void when a run did without it" {
  story run_without_map
}

@test "the map goes on over restarts in either role" {
  story promoted_for_long
}

@test "either side may be killed while failing back" {
  story killed_while_copying
}

@test "a failover that was interrupted has a map" {
  story interrupted_failover
}

@test "after any order of writes and ends the disks are equal again" {
  local seed
  for seed in ${SEEDS:-1 2}; do
    story any_order "$seed"
  done
}
