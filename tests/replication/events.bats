# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the control sockets tell unasked, and what blkctl makes of it: --watch
# and --metrics.  See the stories in events.py.

load ../lib/replication-functions

story ()
{
  "$python" "$tests/events.py" "$1"
}

@test "stages and the link are told on both sides, in order" {
  story life
}

@test "a remote that goes, is refused, and comes back is told, and why" {
  story link
}

@test "an error and a checkpoint that fails are told, with their reasons" {
  story errors
}

@test "a client that does not read delays nobody" {
  story deaf
}

@test "a log that can log no more tells it" {
  story log_error
}

@test "blkctl --watch prints a line an event, over the end of a server" {
  story watch
}

@test "blkctl --watch wants all its sockets at first, and ends when told to" {
  story watch_ends
}

@test "blkctl --metrics keeps the rules of Prometheus' text" {
  story metrics
}

@test "blkctl --metrics knows what the servers tell, and nothing else" {
  export srcdir
  story every_family
}
