#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The speed of the blklogwrites filter over "nbdkit file", side by side with
# QEMU's driver in qemu-storage-daemon and with "nbdkit file" alone:
#
#     make bench            or: ./run bash tests/bench/blklogwrites.sh
#
# Disk (1 GiB, written before) and log are in memory (/dev/shm), so the
# servers' own work is what is measured.  fio's nbd engine asks, one
# connection, 16 requests deep.  The servers take turns in each round, each
# with a fresh log, and the medians of all rounds are printed.  "two writes"
# is a loop that writes each piece to the disk and, behind a sector, to a
# log, with nothing in between: what the memory can do with one thread.
#
# A log takes memory that nobody has used for a while, and in a virtual
# machine the host may have to find it first, which takes many times as long
# as to write to it.  So before each measurement as much as the log may need
# is used and given back: all find the same.
#
# The column "target" is what the project wants to reach; nothing fails
# here when it does not.
#
# BENCH_SECONDS   duration of one measurement (2)
# BENCH_ROUNDS    measurements of each cell (5)

set -e -o pipefail

seconds=${BENCH_SECONDS:-2}
rounds=${BENCH_ROUNDS:-5}
servers="file ours qemu"

for tool in nbdkit qemu-storage-daemon fio jq python3; do
  if ! type -P $tool >/dev/null; then
    echo "$0: $tool is missing" >&2
    exit 1
  fi
done

dir=$(mktemp -d /dev/shm/log-bench.XXXXXX)
server_pid=
memory=0
trap cleanup EXIT

cleanup ()
{
  if [ "$server_pid" ]; then
    kill -KILL "$server_pid" 2>/dev/null || true
  fi
  rm -rf "$dir"
}

# start SERVER: wait until it accepts connections.
start ()
{
  local server=$1 i
  rm -f "$dir/pid" "$dir/sock" "$dir/log"
  case $server in
    file)
      nbdkit -f -U "$dir/sock" -P "$dir/pid" file "$dir/disk" \
             2>"$dir/messages" &
      ;;
    ours)
      nbdkit -f -U "$dir/sock" -P "$dir/pid" --filter=blklogwrites \
             file "$dir/disk" "log=$dir/log" 2>"$dir/messages" &
      ;;
    qemu)
      : >"$dir/log"
      qemu-storage-daemon \
        --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
        --blockdev "driver=file,node-name=log,filename=$dir/log" \
        --blockdev driver=blklogwrites,node-name=top,file=disk,log=log \
        --nbd-server "addr.type=unix,addr.path=$dir/sock" \
        --export type=nbd,id=export,node-name=top,name=,writable=on \
        --pidfile "$dir/pid" 2>"$dir/messages" &
      ;;
  esac
  server_pid=$!
  for ((i = 0; i < 1000; i++)); do
    if [ -s "$dir/pid" ] && [ -S "$dir/sock" ]; then return; fi
    if ! kill -0 "$server_pid" 2>/dev/null; then break; fi
    sleep 0.02
  done
  cat "$dir/messages" >&2
  echo "$0: $server does not start" >&2
  exit 1
}

# A server that died after it had answered fio (nbdkit 1.32 may, when a
# client hangs up with requests in flight) has been measured all the same,
# but is worth a word.
stop ()
{
  local status=0 peak
  # The disk and the log are not mapped, so all of this is the server's.
  peak=$(awk '/VmHWM/ { print int ($2 / 1024) }' \
             "/proc/$server_pid/status" 2>/dev/null) || true
  if [ "$1" = ours ] && (( ${peak:-0} > memory )); then memory=$peak; fi
  kill "$server_pid" 2>/dev/null || true
  wait "$server_pid" || status=$?
  server_pid=
  if [ "$status" -ne 0 ]; then
    cat "$dir/messages" >&2
    echo "$0: $1 ended with status $status" >&2
  fi
}

# measure FIELD OPTION...: run fio, print a field of its report.
measure ()
{
  local field=$1
  shift
  fio --name=bench --ioengine=nbd --uri="nbd+unix:///?socket=$dir/sock" \
      --iodepth=16 --output-format=json --output="$dir/fio.json" \
      --randrepeat=0 --size=1G --time_based --runtime="$seconds" \
      "$@" >/dev/null
  # fio's engine prints lines of its own before the report.
  sed -n '/^{/,$p' "$dir/fio.json" | jq -r ".jobs[0].$field"
}

# two_writes SIZE PATTERN: pieces a second.
two_writes ()
{
  warm_up
  python3 - "$dir/disk" "$dir/log" "$1" "$2" "$seconds" <<'END'
import os, random, sys, time
size, seconds = int(sys.argv[3]), float(sys.argv[5])
disk = os.open(sys.argv[1], os.O_WRONLY)
log = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
data, header = os.urandom(size), bytes(512)
places = list(range(0, 1 << 30, size))
if sys.argv[4] == "random":
    random.shuffle(places)
n, at, start = 0, 512, time.monotonic()
while time.monotonic() - start < seconds:
    os.pwrite(disk, data, places[n % len(places)])
    at += os.pwritev(log, (header, data), at)
    n += 1
print(n / (time.monotonic() - start))
END
}

median ()
{
  tr ' ' '\n' | grep . | sort -g | awk '
    { v[NR] = $1 }
    END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# Use as much memory as a log may need, and give it back.
warm_up ()
{
  rm -f "$dir/log"
  head -c "$((seconds * 3))G" /dev/zero >"$dir/warm"
  rm "$dir/warm"
}

declare -A results

# in_turn KEY FIELD OPTION...: one measurement of each server.
in_turn ()
{
  local key=$1 server
  shift
  for server in $servers; do
    warm_up
    start "$server"
    results[$key,$server]+=" $(measure "$@")"
    stop "$server"
  done
}

head -c 1G /dev/urandom >"$dir/disk"

for ((round = 1; round <= rounds; round++)); do
  in_turn random write.iops --rw=randwrite --bs=4k
  results[random,loop]+=" $(two_writes 4096 random)"
  in_turn sequential write.bw --rw=write --bs=1M
  results[sequential,loop]+=" $(two_writes 1048576 sequential)"
done

# fio counts KiB/s.
for server in $servers; do
  results[sequential,$server]=$(
    tr ' ' '\n' <<<"${results[sequential,$server]}" |
      awk '/./ { print $1 / 1024 }')
done

# line KEY TITLE UNIT TARGET
line ()
{
  local key=$1 server
  for server in $servers loop; do
    median <<<"${results[$key,$server]}"
  done | paste -sd' ' | awk -v title="$2" -v unit="$3" -v target="$4" '
    { printf "%-24s %9.0f %9.0f %9.0f %10.0f  %-5s %8.2f %8.2f   %s\n", title,
             $1, $2, $3, $4, unit, $2 / $1, $2 / $3, target }'
}

echo
echo "medians of $rounds rounds of $seconds s, disk of 1 GiB in /dev/shm"
echo
printf '%-24s %9s %9s %9s %10s  %-5s %8s %8s   %s\n' "" file ours qemu \
       "two writes" "" /file /qemu target
line random "4 KiB random write" IOPS "0.45 file, 3 qemu"
line sequential "1 MiB sequential write" MiB/s "1.5 qemu"
echo
echo "peak resident memory of the server with the filter: $memory MiB" \
     "(target: 64 MiB)"
