#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Does a file system survive a power loss at any moment of a write log?
#
#     crash-check.sh [-b BASE] [-m MARK] [-s SEEDS] [-c COMMAND] LOG
#
# Takes the disk as it was at each flush of the log, and SEEDS possible disks
# after a power loss behind each (3, or more of them if there are few
# flushes), and runs COMMAND on it, which must succeed.
#
#   -b BASE      the disk before the first entry; zeroes without it
#   -m MARK      begin at the last flush before this mark, not at the start
#   -s SEEDS     power losses to try behind each flush
#   -c COMMAND   run by bash; "$1" in it is the disk, a file that it may write
#                to.  By default the journal of an ext4 is replayed, as a
#                mount would do it, and then e2fsck must find nothing wrong
#
# What is written goes to a layer above the moment (nbdkit's cow filter) and
# is dropped.  Prints the moments that failed, with what COMMAND said, and
# at the end how many there were.  Exit status 0 if all passed, 1 if not, 2
# if it could not be tried.

set -euo pipefail

# What try runs beside a server.  nbdfuse shows its disk as a file.  The
# status is 100 if the command fails; any other one but 0 is a failure of
# this script or the server.
with_disk='
  nbdfuse -P "$crash_dir/pid" "$crash_dir/mnt/disk" "$uri" & fuse=$!
  until [ -s "$crash_dir/pid" ]; do
    kill -0 $fuse || exit 1
    sleep 0.01
  done
  status=0
  bash -c "$crash_command" crash-check "$crash_dir/mnt/disk" || status=100
  fusermount3 -u "$crash_dir/mnt" || exit 1
  wait $fuse || exit 1
  exit $status'

# try MOMENT: run the command on it.  A cow layer is shared by all who
# connect to it, whatever export they ask for, so each moment has a server
# of its own.
try ()
{
  local status=0
  rm -f "$dir/pid"
  nbdkit -U - -e "$1" --filter=cow logreplay "$log" "${base[@]}" \
         --run "$with_disk" >"$dir/output" 2>&1 || status=$?
  tried=$((tried + 1))
  case $status in
    0)   return ;;
    100) bad=$((bad + 1))
         echo "--- $1" ;;
    *)   echo "crash-check.sh: $1 could not be tried:" >&2
         cat "$dir/output" >&2
         exit 2 ;;
  esac
  cat "$dir/output"
}

# Print the number of flushes up to the mark, and that of all flushes.
count_flushes ()
{
  logwrites list --output=json "$log" |
    jq -er --arg mark "$mark" '
      (if $mark == "" then 0
       else first (.[] | select (.mark == $mark)).entry end) as $start |
      map (select (.flags | index ("flush")).entry) |
      "\(map (select (. < $start)) | length) \(length)"'
}

clean_up ()
{
  fusermount3 -u -z "$dir/mnt" 2>/dev/null || true
  rm -rf "$dir"
}

base=() mark='' seeds=
command='e2fsck -p "$1" && e2fsck -fn "$1"'
while getopts b:m:s:c: option; do
  case $option in
    b) base=("base=$OPTARG") ;;
    m) mark=$OPTARG ;;
    s) seeds=$OPTARG ;;
    c) command=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
if [ $# -ne 1 ]; then
  echo "usage: crash-check.sh [-b BASE] [-m MARK] [-s SEEDS]" \
       "[-c COMMAND] LOG" >&2
  exit 2
fi
log=$1

dir=$(mktemp -d)
trap clean_up EXIT
mkdir "$dir/mnt"
export crash_dir=$dir crash_command=$command

if ! counts=$(count_flushes); then
  echo "crash-check.sh: $log: no log, or it has no mark '$mark'" >&2
  exit 2
fi
read -r first last <<<"$counts"

# A fault shows up in a part of the possible disks only, so without a number
# there are $least of them at least.
least=24 intervals=$((last - first + 1))
if [ -z "$seeds" ]; then
  seeds=$(((least + intervals - 1) / intervals))
  if [ "$seeds" -lt 3 ]; then seeds=3; fi
fi

tried=0 bad=0
for ((n = first; n <= last; n++)); do
  if [ "$n" -gt 0 ]; then
    try "flush/$n"
  fi
  for ((seed = 1; seed <= seeds; seed++)); do
    try "crash/$n/$seed"
  done
done
echo "$tried moments tried, $bad bad"
[ "$bad" -eq 0 ]
