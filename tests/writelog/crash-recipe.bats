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

# explore STATUS OPTION... LOG [COMMAND]: by the manual's check.
explore ()
{
  local wanted=$1
  shift
  run "-$wanted" logwrites explore --disk "$@"
}

whole='e2fsck -p "$disk" && e2fsck -fn "$disk"'

@test "the log leads to the disk that the guest left" {
  logwrites verify "$logs/good.log" "$logs/good.img"
}

@test "an ext4 is whole after a crash at any moment" {
  explore 0 --from=mark/mkfs --limit=150 "$logs/good.log" -- "$whole"
  assert_line --regexp \
    '^[0-9]+ states, [0-9]+ distinct of which 150 .*: 150 good, 0 bad$'
}

@test "what was synced is there after a crash" {
  # At the mark "used" the disk is unmounted.
  explore 0 --from=mark/used "$logs/good.log" -- '
    e2fsck -p "$disk" &&
    [ "$(debugfs -R "cat /long6" "$disk" | tr -d a | wc -c)" = 0 ] &&
    [ "$(debugfs -R "cat /long6" "$disk" | wc -c)" = 300000 ]'
}

@test "a disk that drops flushes is found out" {
  explore 2 --base="$logs/before.img" --states=only,random:24 --limit=60 \
          --shrink=30 "$logs/bad.log" -- "$whole"
  assert_line --regexp '^finding 1: [0-9]+ bad state'
  assert_line --regexp '^lost: entry [0-9]+, a '

  # Its line shows the same disk again.
  local repeat
  repeat=$(sed -n 's/^repeat: //p' <<<"$output" | head -n 1)
  run bash -c "$repeat"
  assert_failure

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
  explore 1 --from=mark/nonsense "$logs/good.log" -- true
  explore 1 missing.log -- true
  explore 1 --base=missing.img "$logs/bad.log" -- true
}
