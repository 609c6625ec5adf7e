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
# log, with nothing in between: what the memory can do with one thread; and
# "twice" is nbdkit with a filter that does the same (tests/bench/twice.c): what
# a log in nbdkit can do at best.
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

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

servers=(file ours qemu twice)
ours=ours
need nbdkit qemu-storage-daemon fio jq python3
make_folder log-bench

# serve SERVER
serve ()
{
  rm -f "$dir/log"
  case $1 in
    file)
      start_nbdkit file file "$dir/disk" ;;
    ours)
      start_nbdkit ours --filter=blklogwrites file "$dir/disk" \
                   "log=$dir/log" ;;
    twice)
      start_nbdkit twice --filter="$PWD/tests/bench/.libs/twice.so" \
                   file "$dir/disk" "twice=$dir/log" ;;
    qemu)
      : >"$dir/log"
      start qemu qemu-storage-daemon \
        --blockdev "driver=file,node-name=disk,filename=$dir/disk" \
        --blockdev "driver=file,node-name=log,filename=$dir/log" \
        --blockdev driver=blklogwrites,node-name=top,file=disk,log=log \
        --nbd-server "addr.type=unix,addr.path=$dir/sock" \
        --export type=nbd,id=export,node-name=top,name=,writable=on \
        --pidfile "$dir/pid" ;;
  esac
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

# Use as much memory as a log may need, and give it back.
warm_up ()
{
  rm -f "$dir/log"
  head -c "$((seconds * 3))G" /dev/zero >"$dir/warm"
  rm "$dir/warm"
}

# in_turn KEY FIELD OPTION...: one measurement of each server.
in_turn ()
{
  local key=$1 server
  shift
  for server in "${servers[@]}"; do
    warm_up
    serve "$server"
    results[$key,$server]+=" $(measure "$@" --size=1G --time_based \
                                      --runtime="$seconds")"
    stop "$server"
  done
}

head -c 1G /dev/urandom >"$dir/disk"

for ((round = 1; round <= rounds; round++)); do
  in_turn random write.iops --rw=randwrite --bs=4k
  results[random,loop]+=" $(two_writes 4096 random)"
  in_turn sequential write.bw --rw=write --bs=1M
  results[sequential,loop]+=" $(two_writes 1048576 sequential)"
  in_turn flushes write.iops --rw=randwrite --bs=4k --fsync=32
done

for server in "${servers[@]}"; do
  in_mib "sequential,$server"
done

# line KEY TITLE UNIT TARGET
line ()
{
  local columns=(file ours qemu)
  if [ "${results[$1,loop]}" ]; then columns+=(loop); fi
  medians "$1" "${columns[@]}" | awk -v title="$2" -v unit="$3" -v target="$4" '
    { printf "%-24s %9.0f %9.0f %9.0f %10s  %-5s %8.2f %8.2f %8s   %s\n",
             title, $1, $2, $3, (NF > 3 ? sprintf ("%.0f", $4) : ""), unit,
             $2 / $1, $2 / $3, (NF > 3 ? sprintf ("%.2f", $2 / $4) : ""),
             target }'
}

echo
echo "medians of $rounds rounds of $seconds s, disk of 1 GiB in /dev/shm"
echo
printf '%-24s %9s %9s %9s %10s  %-5s %8s %8s %8s   %s\n' "" file ours qemu \
       "two writes" "" /file /qemu /writes target
line random "4 KiB random write" IOPS "0.7 file, 3 qemu"
line flushes "4 KiB, a flush every 32" IOPS "3 qemu"
line sequential "1 MiB sequential write" MiB/s "0.9 two writes"
echo
for key in random flushes sequential; do
  medians "$key" file qemu twice ours | awk -v key="$key" '
    { printf "limit (%s): nbdkit file, which writes no log, is %.2f " \
             "times as fast as QEMU; what writes all twice has %.2f of " \
             "that, and we have %.2f of what writes twice\n",
             key, $1 / $2, $3 / $1, $4 / $3 }'
done
echo
# nbdkit and its 16 requests of 1 MiB, and the filter.
tell_memory "nbdkit with blklogwrites" "$memory" $((5 + 16 + 4))
