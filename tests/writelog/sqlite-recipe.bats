# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The recipe of logwrites' manual for a database: what SQLite has committed is
# there after a crash at any moment, unless it is told not to flush, or the
# disk ignores flushes.

load ../lib/functions

setup ()
{
  setup_test
  require_tool sqlite3 nbdfuse fusermount3 mke2fs e2fsck debugfs
  mkdir fuse mnt
}

teardown ()
{
  umount "$tmp/mnt" 2>/dev/null || true
  fusermount3 -u -z "$tmp/fuse" 2>/dev/null || true
  teardown_test
}

# record JOURNAL SYNCHRONOUS [FILTER-OPTION...] [-- PARAMETER...]: five commits,
# each with a mark.
record ()
{
  local journal=$1 synchronous=$2 options=() fuse i
  shift 2
  while [ $# -gt 0 ] && [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  start_nbdkit "${options[@]}" --filter=blklogwrites memory 8M log=disk.log \
               log-sector-size=4096 log-control=disk.ctl "${@:2}"
  nbdfuse -P fuse.pid fuse/disk "$uri" 3>&- &
  fuse=$!
  remember $fuse
  wait_until 60 test -s fuse.pid
  mke2fs -q -F -t ext4 -b 4096 fuse/disk
  mount -o loop fuse/disk mnt
  sqlite3 mnt/db "pragma journal_mode=$journal; create table t (n integer)"
  sync -f mnt
  blkctl disk.ctl log-mark name=commit-0
  {
    echo "pragma synchronous=$synchronous;"
    for i in 1 2 3 4 5; do
      echo "insert into t values ($i);"
      echo ".shell blkctl disk.ctl log-mark name=commit-$i"
    done
  } | sqlite3 mnt/db
  umount mnt
  # The loop device lets go of the file a moment later.
  wait_until 60 fusermount3 -u fuse 2>/dev/null
  end_process $fuse || true
  stop_nbdkit
}

explore ()
{
  run "-$1" logwrites explore --disk --timeout=60 --from=mark/commit-0 disk.log -- '
    cd "$(mktemp -d)" || exit 125
    e2fsck -p "$disk"; e2fsck -fn "$disk" || exit 2
    debugfs -R "dump db db" "$disk"
    for part in wal journal; do
      debugfs -R "dump db-$part db-$part" "$disk"
    done
    set -- $(sqlite3 db "pragma integrity_check; select max(n) from t")
    rm -r "$PWD"
    echo "committed: ${mark#commit-}, found: $2"
    [ "$1" = ok ] && [ "${2:-0}" -ge "${mark#commit-}" ]'
}

@test "what SQLite has committed is there after a crash at any moment" {
  record wal full
  explore 0
  assert_line --regexp '^[0-9]+ states, [0-9]+ distinct: [0-9]+ good, 0 bad$'
  [[ ${lines[-1]} =~ ([0-9]+)\ good ]]
  [ "${BASH_REMATCH[1]}" -gt 40 ]
}

@test "without flushes of its own SQLite is found out" {
  record wal off
  explore 2
  assert_line --regexp 'committed: 5, found:( [0-4])?$'
}

@test "a disk that ignores flushes is found out" {
  record wal full --filter=fua -- fuamode=discard
  explore 2
  assert_line --regexp 'committed: [1-5], found:( [0-4])?$'
}

# A commit ends there with the removal of a file, and only "extra" flushes the
# folder: so SQLite's manual says of "full", and so it is.
@test "with a rollback journal commits of synchronous=full can be lost" {
  record delete full
  explore 2
  assert_line --regexp 'committed: [1-5], found: [0-4]$'
}

@test "with a rollback journal commits of synchronous=extra are there" {
  record delete extra
  explore 0
  assert_line --regexp '^[0-9]+ states, [0-9]+ distinct: [0-9]+ good, 0 bad$'
}
