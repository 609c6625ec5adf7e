#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The speed of the qed plugin over backing images, side by side with QEMU's
# driver in qemu-storage-daemon:
#
#     make bench            or: ./run bash tests/bench/overlay.sh
#
# allocate:  4 KiB are written in clusters (64 KiB) that only the backing image
#            has, each once, in random order; what is around is copied.  The
#            backing image is a raw file of 1 GiB, which has data all over
#            ("full"), in one MiB of 16 ("sparse"), or in every second 4 KiB
#            ("fragments", 131072 extents); in memory, and on a disk, where
#            each write is flushed before the table entry that refers to it,
#            with as many threads as nbdkit has by itself (16), because they
#            wait for the disk, and share flushes.
#            "copy" is a loop in two threads that reads and writes clusters,
#            with nothing in between: what the file system can do.
# sequential: 1 MiB, whole clusters, beside "nbdkit file" on a new file, which is
#            what nbdkit can do
# copy-on-read: each cluster is read once, beside "copy" above, and then once
#            more, beside the same without copy-on-read
# chain:     4 KiB are read at random from 8 overlays, each of which has one
#            cluster in 9, over a raw file, beside "nbdkit file" on that
#            file, which is what nbdkit can do; and qed-img map of it beside
#            qemu-img map, and beside one SEEK_HOLE of the raw file, which both
#            ask for
#
# BENCH_ROUNDS   measurements of each cell (5)
# BENCH_SECONDS  duration of one measurement that is limited by time (2)
# BENCH_DISK     a folder on a disk (/var/tmp)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

threads=${BENCH_THREADS:-$((2 * $(nproc)))}
options=()
ours=qed
need nbdkit qemu-storage-daemon qemu-img qemu-io qed-img fio jq python3
make_folder overlay-bench
disk=$(mktemp -d "${BENCH_DISK:-/var/tmp}/overlay-bench.XXXXXX")
trap 'cleanup; rm -rf "$disk"' EXIT

# serve SERVER IMAGE [COPY-ON-READ], nbdkit with $options
serve ()
{
  local node=top
  local -a filter=()
  case $1 in
    file) start_nbdkit file "${options[@]}" file "$2"; return ;;
    qed)
      start_nbdkit qed "${options[@]}" qed "$2" "copy-on-read=${3:-off}"
      return ;;
  esac
  if [ "${3:-off}" = on ]; then
    node=image
    filter=(--blockdev "driver=copy-on-read,node-name=top,file=image")
  fi
  start qemu qemu-storage-daemon \
    --blockdev "driver=file,node-name=file,filename=$2" \
    --blockdev "driver=qed,node-name=$node,file=file" \
    "${filter[@]}" \
    --nbd-server "addr.type=unix,addr.path=$dir/sock" \
    --export type=nbd,id=export,node-name=top,name=,writable=on \
    --pidfile "$dir/pid"
}

# overlay BACKING: a new one is $top.
overlay ()
{
  top=$(dirname "$1")/top.qed
  rm -f "$top"
  qemu-img create -q -f qed -b "$1" -F raw "$top" 1G
}

# Take memory from the host, so that the first to use it does not wait.
warm_up ()
{
  head -c 1300M /dev/zero >"$dir/warm"
  rm "$dir/warm"
}

# copy BASE NUMBER: clusters a second.
copy ()
{
  python3 - "$1" "$(dirname "$1")/copy" "$2" <<'END'
import os, random, sys, threading, time
size = 65536
base = os.open(sys.argv[1], os.O_RDONLY)
copy = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT | os.O_TRUNC)
os.unlink(sys.argv[2])
places = random.sample(range(16384), int(sys.argv[3]))
def work(part):
    buf = bytearray(size)
    for i in range(part, len(places), 2):
        os.preadv(base, [buf], places[i] * size)
        os.pwrite(copy, buf, i * size)
start = time.monotonic()
threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(len(places) / (time.monotonic() - start))
END
}

# allocate KEY BASE NUMBER-QED NUMBER-QEMU
allocate ()
{
  local server number
  warm_up
  results[$1,copy]+=" $(copy "$2" "$3")"
  for server in qed qemu; do
    number=$3
    if [ "$server" = qemu ]; then number=$4; fi
    each_cluster write "$number" >"$dir/clusters.log"
    overlay "$2"
    warm_up
    serve "$server" "$top"
    results[$1,$server]+=" $(
      measure write.iops --read_iolog="$dir/clusters.log")"
    stop "$server"
  done
  rm "$top"
}

sequential ()
{
  local server
  for server in file qed qemu; do
    overlay "$dir/full.raw"
    if [ "$server" = file ]; then
      rm "$top"
      truncate -s 1G "$top"
    fi
    warm_up
    serve "$server" "$top"
    results[sequential,$server]+=" $(measure write.bw --rw=write --bs=1M \
                                             --size=1G)"
    stop "$server"
  done
  rm "$top"
}

copy_on_read ()
{
  local server
  each_cluster read 16384 >"$dir/clusters.log"
  for server in qed qemu; do
    overlay "$dir/full.raw"
    warm_up
    serve "$server" "$top" on
    results[cor-first,$server]+=" $(
      measure read.iops --read_iolog="$dir/clusters.log")"
    # A server may have died, as functions.bash says.
    stop "$server"
    serve "$server" "$top" on
    results[cor-second,$server]+=" $(
      measure read.iops --rw=randread --bs=4k --size=1G --time_based \
              --runtime="$seconds")"
    stop "$server"
  done
  serve qed "$top"
  results[cor-second,plain]+=" $(
    measure read.iops --rw=randread --bs=4k --size=1G --time_based \
            --runtime="$seconds")"
  stop qed
  rm "$top"
}

make_chain ()
{
  local i below=full.raw format=raw
  for ((i = 1; i <= 8; i++)); do
    qemu-img create -q -f qed -b "$below" -F "$format" "$dir/chain$i" 1G
    seq "$i" 9 16383 | awk '{ print "write -P 7", $1 * 65536, 65536 }' |
      qemu-io -f qed --cache=unsafe "$dir/chain$i" >/dev/null
    below=chain$i format=qed
  done
}

# take KEY COMMAND...: milliseconds.
take ()
{
  local key=$1 begin
  shift
  begin=$(date +%s%N)
  "$@" >/dev/null
  results[$key]+=" $((($(date +%s%N) - begin) / 1000000))"
}

chain ()
{
  local server
  for server in file qed qemu; do
    if [ "$server" = file ]; then
      serve file "$dir/full.raw"
    else
      serve "$server" "$dir/chain8"
    fi
    results[chain,$server]+=" $(
      measure read.iops --rw=randread --bs=4k --size=1G --time_based \
              --runtime="$seconds")"
    stop "$server"
  done
  take map,qed qed-img map --output=json -f qed "$dir/chain8"
  results[map,hole]+=" $(python3 -c '
import os, sys, time
fd = os.open (sys.argv[1], os.O_RDONLY)
begin = time.monotonic ()
os.lseek (fd, 0, os.SEEK_HOLE)
print ((time.monotonic () - begin) * 1000)' "$dir/full.raw")"
  take map,qemu qemu-img map --output=json -f qed "$dir/chain8"
}

# Bases, in both places.
python3 - "$dir" "$disk" <<'END'
import os, sys
for folder in sys.argv[1:]:
    data = os.urandom(1 << 20)
    for name in "full", "sparse", "fragments":
        fd = os.open(f"{folder}/{name}.raw", os.O_CREAT | os.O_WRONLY)
        os.truncate(fd, 1 << 30)
        step = {"full": 1 << 20, "sparse": 16 << 20, "fragments": 8192}[name]
        size = min(step, 1 << 20) if name != "fragments" else 4096
        for at in range(0, 1 << 30, step):
            os.pwrite(fd, data[:size], at)
        os.fsync(fd)
        os.close(fd)
END
make_chain

for ((round = 1; round <= rounds; round++)); do
  for base in full sparse fragments; do
    options=(-t "$threads")
    allocate "memory-$base" "$dir/$base.raw" 16384 8192
    options=()
    allocate "disk-$base" "$disk/$base.raw" 4096 256
  done
  options=(-t "$threads")
  sequential
  copy_on_read
  chain
done

results[cor-first,copy]=${results[memory-full,copy]}
for server in file qed qemu; do
  in_mib "sequential,$server"
done

# line KEY TITLE UNIT TARGET LIMIT
line ()
{
  local limit=
  if [ "$5" ]; then limit=$(medians "$1" "$5"); fi
  medians "$1" qed qemu |
    awk -v title="$2" -v unit="$3" -v target="$4" -v limit="$limit" '
      { printf "%-42s %9s %9.0f %9.0f  %-5s %8s %9.2f   %s\n", title,
               limit == "" ? "" : sprintf ("%.0f", limit), $1, $2, unit,
               limit == "" ? "" : sprintf ("%.2f", $1 / limit),
               unit == "ms" ? $2 / $1 : $1 / $2, target }'
}

echo
echo "medians of $rounds rounds, raw backing file of 1 GiB, $threads threads," \
     "16 on disk"
echo
printf '%-42s %9s %9s %9s  %-5s %8s %9s   %s\n' "" limit qed qemu "" \
       qed/limit qed:qemu target
for base in full sparse fragments; do
  line "memory-$base" "4 KiB allocating, $base, in memory" IOPS "5 qemu" copy
  line "disk-$base" "4 KiB allocating, $base, on disk" IOPS "5 qemu" copy
done
line sequential "1 MiB sequential allocating, in memory" MiB/s "3 qemu" file
line cor-first "4 KiB copy-on-read, first pass" IOPS "3 qemu" copy
line cor-second "4 KiB copy-on-read, second pass" IOPS "3 qemu, 1 plain" plain
line chain "4 KiB random read of 8 overlays" IOPS "5 qemu, 1 file" file
line map "map of 8 overlays" ms "5 qemu" hole
echo
# nbdkit and its requests of 1 MiB, libraries and tables, and copies in 16
# threads.
tell_memory "nbdkit qed" "$memory" $((5 + threads + 3 + 33 + 16 / 4))
