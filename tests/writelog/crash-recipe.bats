# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The recipe of nbdkit-logreplay-plugin's manual: an ext4 that a virtual
# machine makes and uses is whole after a power loss at any moment, and that
# of a disk which drops flushes is not.

load ../lib/functions

# Before all tests, one machine uses both disks.  good.log holds an ext4 from its making on;
# bad.log begins with the whole one in before.img, and between the guest and
# the log there is a filter that acknowledges flushes and drops them.
setup_file ()
{
  require_tool guestfish mke2fs
  setup_test
  truncate -s 64M good.img
  mke2fs -q -t ext4 -b 4096 before.img 64M
  cp --sparse=always before.img bad.img
  # Whatever fails here, nobody calls teardown for this.
  start_nbdkit --exit-with-parent --filter=blklogwrites file good.img \
               log=good.log log-sector-size=4096 log-control="$tmp/good.ctl"
  local good=$sock
  start_nbdkit --exit-with-parent --filter=fua --filter=blklogwrites \
               file bad.img fuamode=discard log=bad.log log-sector-size=4096

  if ! run_guest "$good" "$sock"; then
    teardown_test
    fail "guestfish failed"
  fi
  end_servers
  cp --sparse=always good.img good.log before.img bad.log \
     "$BATS_FILE_TMPDIR"
  teardown_test
}

run_guest ()
{
  {
    echo "run"
    echo "mkfs ext4 /dev/sda blocksize:4096"
    echo "sync"
    echo "! blkctl $tmp/good.ctl log-mark name=mkfs"
    use_disk /dev/sda good
    echo "! blkctl $tmp/good.ctl log-mark name=used"
    use_disk /dev/sdb bad
  } >script
  guestfish --format=raw -a "nbd://?socket=$1" \
            --format=raw -a "nbd://?socket=$2" <script
}

# Print what guestfish is to do: files come, move and go, and a sync follows.
use_disk ()
{
  local i
  echo "mkmountpoint /$2"
  echo "mount $1 /$2"
  for i in {1..6}; do
    echo "mkdir /$2/d$i"
    echo "fill 97 300000 /$2/d$i/long"
    echo "fill-pattern abcdef 5000 /$2/d$i/short"
    echo "mv /$2/d$i/long /$2/long$i"
    if [ "$i" -gt 2 ]; then
      echo "rm-rf /$2/d$((i - 2))"
    fi
    echo "sync"
  done
  echo "umount /$2"
}

setup ()
{
  setup_test
  logs=$BATS_FILE_TMPDIR
}

check ()
{
  run bash "$tests/crash-check.sh" "$@"
}

@test "the log leads to the disk that the guest left" {
  logwrites verify "$logs/good.log" "$logs/good.img"
}

@test "an ext4 is whole after a power loss at any flush and behind each" {
  check -m mkfs -s 2 "$logs/good.log"
  assert_success
  assert_line --regexp '^[0-9]+ moments tried, 0 bad$'
  [[ ${lines[-1]} =~ ^([0-9]+) ]]
  [ "${BASH_REMATCH[1]}" -gt 60 ]
}

@test "what was synced is there after a power loss" {
  # At the mark "used" the disk is unmounted; go on from its last flush.
  check -m used -s 4 -c '
    e2fsck -p "$1" && debugfs -R "dump /long6 long6" "$1" &&
    [ "$(tr -d a <long6 | wc -c) $(wc -c <long6)" = "0 300000" ]' \
        "$logs/good.log"
  assert_success
}

@test "a disk that drops flushes is found out" {
  check -b "$logs/before.img" "$logs/bad.log"
  assert_failure 1
  assert_line --regexp '^24 moments tried, [1-9][0-9]* bad$'
  assert_line --regexp '^--- crash/0/[1-9][0-9]*$'

  # At the start and at the end there is nothing wrong with it.
  local name
  for name in entry/0 ''; do
    nbdkit -U - -e "$name" logreplay "$logs/bad.log" \
           base="$logs/before.img" --run 'nbdcopy "$uri" disk.img'
    e2fsck -p disk.img
    e2fsck -fn disk.img
  done
}

@test "what could not be tried is not called good or bad" {
  check -m nonsense "$logs/good.log"
  assert_failure 2
  check missing.log
  assert_failure 2
  check -b missing.img "$logs/bad.log"
  assert_failure 2
}
