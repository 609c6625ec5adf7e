# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Both sides notice that the other one is gone, without a write of a guest
# (nbdkit-replication-filter(1), replication-timeout).

load ../lib/replication-functions

link_is ()
{
  [ "$(status_of "$1" link)" = "$2" ]
}

start_pair ()
{
  truncate -s 4M primary.img disk.img
  start_secondary replication-timeout=1
  secondary_pid=$pid
  blkctl secondary.ctl replication-start
  assert_equal "$(status_of secondary.ctl link)" none
  assert_equal "$(status_of secondary.ctl last-heard)" null
  start_primary "$uri" replication-timeout=1
  primary_pid=$pid
  blkctl primary.ctl replication-start
  wait_until 60 link_is secondary.ctl connected
}

@test "each side says that the other stands still, and that it is back" {
  start_pair
  kill -STOP "$primary_pid"
  wait_until 60 link_is secondary.ctl lost
  run status_of secondary.ctl link-desc
  assert_output --regexp "not heard of for [0-9.]+ seconds"
  kill -CONT "$primary_pid"
  wait_until 60 link_is secondary.ctl connected
  kill -STOP "$secondary_pid"
  wait_until 60 link_is primary.ctl lost
  kill -CONT "$secondary_pid"
  wait_until 60 link_is primary.ctl connected
  assert [ "$(status_of primary.ctl last-heard | cut -d. -f1)" -le 60 ]
}

@test "a secondary says that its primary was killed, until there is another" {
  start_pair
  kill -KILL "$primary_pid"
  wait "$primary_pid" || true
  wait_until 60 link_is secondary.ctl lost
  run status_of secondary.ctl link-desc
  assert_output --partial "the primary has gone"
  blkctl secondary.ctl replication-stop
  assert_equal "$(status_of secondary.ctl link)" none
}

@test "bad times are refused" {
  truncate -s 4M primary.img
  local bad
  for bad in 0 -1 x 100000 ""; do
    refused replication-timeout -- file primary.img \
            replication-mode=primary replication-timeout="$bad"
  done
}

# Prepare again and again, until this is refused.
hold_for_ever ()
{
  "$python" - "$tmp/secondary.ctl" <<'EOF'
import sys
from qmp_client import Qmp, QmpError
client = Qmp(sys.argv[1])
try:
    while True:
        client.command("replication-checkpoint-prepare")
except QmpError as error:
    assert "is given up" in str(error), error
EOF
}

@test "a guest is not held for ever by a checkpoint that is prepared anew" {
  truncate -s 4M disk.img
  start_secondary replication-timeout=1
  blkctl secondary.ctl replication-start
  hold_for_ever
  qemu_io "$guest_uri" "write 0 64k" flush
}
