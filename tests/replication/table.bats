# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The tables of stages and commands in nbdkit-replication-filter(1) are true,
# entry by entry; see table.py.

load ../lib/replication-functions

table ()
{
  "$python" "$tests/table.py" "$@"
}

@test "each export of a secondary does in each stage what the table says" {
  table io secondary
}

@test "each export of a primary does in each stage what the table says" {
  table io remote
  table io forwarder
}

@test "each command does what the table says: secondary, none and running" {
  table commands secondary none running
}

@test "each command does what the table says: secondary, failover" {
  table commands secondary failover failover-failed
}

@test "each command does what the table says: secondary, done" {
  table commands secondary stopped promoted
}

@test "each command does what the table says: primary with its own disk" {
  table commands remote
}

@test "each command does what the table says: forwarder" {
  table commands forwarder
}
