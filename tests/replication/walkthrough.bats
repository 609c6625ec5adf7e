# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The walk-through of nbdkit-replication-filter(1) works, word by word: its
# commands are taken from the manual page.  Between them stands what a reader
# would see.

load ../lib/replication-functions

page=$srcdir/man/nbdkit-replication-filter.pod

# commands HEADING: the verbatim lines below this =head2.
commands ()
{
  awk -v heading="=head2 $1" '
    /^=head/ { inside = $0 == heading }
    inside && /^ / { print substr ($0, 2) }' "$page"
}

# play HEADING: run them, in a shell of their own.  Every one must succeed.
play ()
{
  local script
  script=$(commands "$1")
  if [ -z "$script" ]; then
    fail "the manual page has no commands below \"$1\""
  fi
  printf -- '--- %s\n%s\n' "$1" "$script"
  bash -euo pipefail -c "$script" </dev/null 3>&-
}

# The servers of the walk-through are in the background.  nbdkit ends when
# its clients have gone, so clients come last here, and are ended first.
teardown ()
{
  local name
  for name in checkpoints third secondary second primary front; do
    if [ -s "$tmp/$name.pid" ]; then
      remember "$(cat "$tmp/$name.pid")"
    fi
  done
  # Why there were no more of them, if the test waited in vain.
  if [ -s "$tmp/checkpoints.log" ]; then
    tail "$tmp/checkpoints.log"
  fi
  teardown_test
}

# assert_letter URI-OR-FILE WORD: the file system is sound, and so is its
# file.
assert_letter ()
{
  local copy=$1
  if [[ $1 == nbd* ]]; then
    copy=letter.img
    nbdcopy "$1" $copy
  fi
  e2fsck -f -n "$copy"
  run -0 --separate-stderr debugfs -R "cat /letter" "$copy"
  assert_output "$2"
}

guest="nbd+unix:///guest?socket=secondary.sock"

run_pair ()
{
  play "The primary and its guest"
  play "The secondary"
  play "First copy"
}

@test "first copy, checkpoints, death, failover, promotion" {
  require_tool mke2fs debugfs e2fsck nbdcopy blkctl jq
  run_pair
  assert_equal "$(status_of primary.ctl dirty-bytes)" 0
  assert_same_disk primary.img secondary.img
  assert_letter "$guest" first

  play "A checkpoint every second"
  assert_letter "$guest" second
  assert_same_disk primary.img secondary.img
  stage_is secondary.ctl running
  stage_is primary.ctl running

  play "The primary dies"
  # It is told; no checkpoint drops what comes now.
  wait_until 60 grep -q primary.ctl checkpoints.log
  qemu_io "$guest" "write -P 7 60M 1000k"

  play "Failover"
  qemu_io "$guest" "read -P 7 60M 1000k"
  assert_letter "$guest" second
  assert_letter secondary.img second
  # The disk is the guest's, and closed to an old primary.
  run qemu_io "nbd+unix:///?socket=secondary.sock" "write -P 9 0 64k"
  assert_failure

  play "The secondary becomes a primary"
  assert_letter "nbd+unix:///?socket=second.sock" second
  assert_letter "nbd+unix:///guest?socket=third.sock" second
  qemu_io "nbd+unix:///guest?socket=third.sock" "read -P 7 60M 1000k"

  # The new pair is a pair.
  qemu_io "nbd+unix:///?socket=second.sock" "write -P 8 50M 1000k" flush
  blkctl second.ctl third.ctl replication-checkpoint
  qemu_io "nbd+unix:///guest?socket=third.sock" "read -P 8 50M 1000k"
  assert_same_disk secondary.img third.img
}

@test "what the primary writes between checkpoints is not seen" {
  run_pair
  blkctl primary.ctl secondary.ctl replication-checkpoint
  qemu_io "nbd+unix:///?socket=primary.sock" "write -P 5 0 32M" flush
  assert_letter "$guest" first
  # Nor after a failover.
  kill -9 "$(cat primary.pid)"
  play "Failover"
  assert_letter "$guest" first
}

# A command to the guest that CLIENT is, which must answer that it has done it.
say ()
{
  local line
  echo "$1" >&"${CLIENT[1]}"
  while read -r -t 60 line <&"${CLIENT[0]}"; do
    echo "guest: $line"
    if [[ $line == *" ops; "* ]]; then return 0; fi
    if [[ $line == *rror* ]]; then return 1; fi
  done
  return 1
}

@test "the same without an interruption" {
  run_pair
  play "The same without an interruption"
  local front="nbd+unix:///?socket=front.sock"
  blkctl primary.ctl secondary.ctl replication-checkpoint
  # One connection from before the failover to after the promotion.
  coproc CLIENT { qemu-io -f raw "$front" 2>&1 3>&-; }
  remember "$CLIENT_PID"
  say "write -P 7 60M 64k"
  play "The primary dies"
  say "write -P 7 61M 64k"
  play "Failover"
  say "write -P 7 62M 64k"

  truncate -s 64M third.img
  nbdkit -t 1 -U third.sock -P third.pid \
         --filter=replication file third.img \
         replication-mode=secondary \
         replication-active=active3.qed replication-hidden=hidden3.qed \
         replication-top-id=guest replication-control=third.ctl 3>&-
  blkctl front.ctl replication-start sync=full
  blkctl front.ctl replication-checkpoint
  blkctl third.ctl replication-start
  say "write -P 7 63M 64k"
  end_process "$CLIENT_PID" || true
  blkctl front.ctl third.ctl replication-checkpoint
  qemu_io "nbd+unix:///guest?socket=third.sock" "read -P 7 60M 64k" \
          "read -P 7 61M 64k" "read -P 7 62M 64k" "read -P 7 63M 64k"
  assert_letter "nbd+unix:///guest?socket=third.sock" first
  assert_same_disk secondary.img third.img
}
