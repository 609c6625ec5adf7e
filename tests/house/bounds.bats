# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the manual pages say of memory is the most that is taken, where it
# could run away (bounds.py).

load ../lib/functions

# bounded CASE
bounded ()
{
  require_tool time
  "$python" "$tests/bounds.py" "$1"
}

@test "qed: a cache of 4 MiB, or 32, for 73 MiB of tables of 1 TiB" {
  bounded qed_server
}

@test "qed-img: check, map, measure, convert, rebase, commit of 8192 tables" {
  bounded qed_img
}

@test "qed-img check: bytes a cluster, side by side and alone" {
  bounded lone_clusters
}

@test "qed-img check -r all: 32000 clusters that are in use twice" {
  bounded repair
}

@test "primary: the map of a disk of 4 TiB, clean and dirty" {
  bounded primary
}

@test "forwarder: the queue for a secondary that stands still" {
  bounded forwarder
}

@test "secondary: writes all over a disk of 8 TiB" {
  bounded secondary
}

@test "logwrites and logreplay: a log of 100000 entries" {
  bounded logs
}

@test "blklogwrites: held writes, and notes of 65000 trims" {
  bounded held
}

@test "blkctl: answers of 16 MB and of many values" {
  bounded answers
}
