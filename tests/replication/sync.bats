# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# How far a copy is, how fast it may be, and whether both disks are equal
# (nbdkit-replication-filter(1), replication-sync-rate, replication-verify).

load ../lib/replication-functions

start_pair ()
{
  truncate -s 4M primary.img disk.img
  start_secondary
  secondary_pid=$pid
  start_primary "$uri" "$@"
  primary_uri=$uri
}

sync_of ()
{
  blkctl primary.ctl query-replication | jq -r ".sync.\"$1\""
}

verify_of ()
{
  blkctl primary.ctl query-replication | jq -r ".verify.\"$1\""
}

sync_is ()
{
  [ "$(sync_of "$1")" = "$2" ]
}

verify_is ()
{
  [ "$(verify_of "$1")" = "$2" ]
}

@test "a first copy says how far it is, and when it is complete" {
  start_pair
  qemu_io "$primary_uri" "write -P 0x61 0 4M"
  assert_equal "$(sync_of running)" false
  blkctl primary.ctl replication-start sync=full
  blkctl primary.ctl replication-checkpoint
  wait_until 60 sync_is running false
  assert_equal "$(sync_of total)" $((4 << 20))
  assert_equal "$(sync_of "done")" $((4 << 20))
  assert [ "$(sync_of rate)" -gt 0 ]
  assert_same_disk primary.img disk.img
}

something_is_sent ()
{
  [ "$(sync_of "done")" -gt 0 ]
}

@test "a first copy goes no faster than it may" {
  start_pair replication-sync-rate=1K
  qemu_io "$primary_uri" "write -P 0x61 0 4M"
  blkctl primary.ctl replication-start sync=full
  wait_until 60 something_is_sent
  assert_equal "$(sync_of running)" true
  assert [ "$(sync_of seconds-left)" -gt 0 ]
  # Once the one area of each of the senders is there nothing follows soon.
  assert [ "$(status_of primary.ctl dirty-bytes)" -ge $((3 << 20)) ]
  qemu_io "$primary_uri" "write -P 0x62 0 64k" "read -P 0x62 0 64k"
}

@test "bad rates are refused" {
  truncate -s 4M primary.img
  local bad
  for bad in 0 -1 x ""; do
    refused "rate|size|parse" -- file primary.img replication-mode=primary \
            replication-remote="nbd+unix:///?socket=$tmp/none" \
            replication-sync-rate="$bad"
  done
  refused "replication-remote" -- file primary.img replication-mode=primary \
          replication-sync-rate=1M
}

@test "a comparison finds what differs, and it is copied again" {
  start_pair
  run blkctl primary.ctl replication-verify
  assert_failure
  assert_output --partial "not running"
  blkctl primary.ctl replication-start
  blkctl secondary.ctl replication-start
  qemu_io "$primary_uri" "write -P 0x61 0 4M"
  blkctl primary.ctl secondary.ctl replication-checkpoint
  blkctl primary.ctl replication-verify
  wait_until 60 verify_is running false
  assert_equal "$(verify_of different-bytes)" 0
  assert_equal "$(verify_of "done")" $((4 << 20))
  # Somebody else writes to the disk, in two areas.
  printf zz | dd of=disk.img bs=1 seek=65535 conv=notrunc status=none
  blkctl primary.ctl replication-verify
  wait_until 60 verify_is running false
  assert_equal "$(verify_of different-bytes)" 131072
  blkctl primary.ctl secondary.ctl replication-checkpoint
  assert_same_disk primary.img disk.img
  run blkctl secondary.ctl replication-verify
  assert_failure
  assert_output --partial "for a primary"
}

@test "a comparison ends when the remote goes, and says so" {
  start_pair
  blkctl primary.ctl replication-start
  kill -STOP "$secondary_pid"
  blkctl primary.ctl replication-verify
  run blkctl primary.ctl replication-verify
  assert_failure
  kill -KILL "$secondary_pid"
  wait "$secondary_pid" || true
  wait_until 60 verify_is running false
  run verify_of desc
  assert_output --partial "the remote"
  run blkctl primary.ctl replication-verify
  assert_failure
  assert_output --partial "not connected"
  qemu_io "$primary_uri" "write 0 64k"
}
