# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The replication filter's control socket: bad input, checkpoints in two
# steps, of several disks and of both sides, and the end of the server.  See
# the stories in control.py.

load ../lib/replication-functions

story ()
{
  "$python" "$tests/control.py" "$1"
}

@test "whatever is sent is answered by an error, and the server goes on" {
  story bad_input
}

@test "a client that does not read its answers stops only itself" {
  story deaf_client
}

@test "a prepared checkpoint holds guests, and keeps other commands out" {
  story two_steps
}

@test "a client that is stopped cannot hold a guest for ever" {
  story late_commit
}

@test "a client that disconnects gives up what it has prepared" {
  story lost_client
}

@test "a failover does not wait for a checkpoint that is prepared" {
  story failover_while_held
}

@test "several sockets make a checkpoint of all disks, or of none" {
  story two_disks
}

@test "a disk that is slow to prepare does not split a checkpoint" {
  story slow_disk
}

@test "a checkpoint of both sides is one moment of the primary's guest" {
  story both_sides
}

@test "the end of a server while running is a stop, and leaves nothing" {
  story clean_end
}

@test "a prepared checkpoint does not keep a server from ending" {
  story end_while_held
}

@test "a checkpoint that waits does not keep a server from ending" {
  story end_while_waiting
}

@test "a command that is refused for a checkpoint is told what ends that" {
  story what_is_held
}

@test "a failover and a query do not wait for a checkpoint that waits" {
  story failover_while_waiting
}

@test "the socket lists the commands of the manual" {
  local page=$srcdir/man/nbdkit-replication-filter.pod name
  start_nbdkit --filter=replication memory 1M replication-mode=primary \
               replication-control=primary.ctl
  run -0 blkctl primary.ctl query-commands
  for name in $(jq -r '.[].name' <<<"$output" | grep -e replication -e colo)
  do
    grep -q "^=item B<$name>" "$page" || fail "$name is not in the manual"
  done
  for name in $(sed -n 's/^=item B<\([a-z-]*\)>.*/\1/p' "$page" |
                grep -e '-.*-' -e query -e stop -e checkpoint |
                grep -v '^replication-\(top\|start=\)')
  do
    jq -e --arg n "$name" 'any(.name == $n)' <<<"$output" ||
      fail "the socket has no $name"
  done
}
