#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The speed of the qed plugin, side by side with "nbdkit file" on a raw
# file and with "qemu-nbd -f qed", in one run on this machine:
#
#     make bench            or: ./run bash tests/bench/qed.sh
#
# All images are of 1 GiB and in memory (/dev/shm), so the servers' own work
# is what is measured.  fio's nbd engine asks, one connection, 16 requests
# deep.  The servers take turns in each round, the medians of all rounds are
# printed.  qemu-nbd runs with --cache=writeback, since that is what the
# other two do: writes go to the page cache.  An allocating write is one to
# a cluster (64 KiB) that was never written; each round has a fresh image, of
# which each cluster is written to once, in random order.  "table" is nbdkit
# file with a filter that writes 4 KiB of a table with each write
# (tests/bench/twice.c), the least that an image must do for a new cluster.
#
# The column "target" is what the project wants to reach; nothing fails
# here when it does not.
#
# BENCH_SECONDS   duration of one measurement (2)
# BENCH_ROUNDS    measurements of each cell (5)
# BENCH_THREADS   nbdkit -t for both (two for each processor, as the manual
#                 page recommends for large requests)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

threads=${BENCH_THREADS:-$((2 * $(nproc)))}
servers=(file qed qemu)
ours=qed
need nbdkit qemu-nbd qemu-img fio jq
make_folder qed-bench

# serve SERVER IMAGE
serve ()
{
  case $1 in
    file|qed)
      start_nbdkit "$1" -t "$threads" "$1" "$2" ;;
    table)
      start_nbdkit table -t "$threads" \
                   --filter="$PWD/tests/bench/.libs/twice.so" \
                   file "$2" "table=$dir/table" ;;
    qemu)
      start qemu qemu-nbd -t -e 16 -f qed --cache=writeback --discard=unmap \
            -k "$dir/sock" --pid-file="$dir/pid" "$2" ;;
  esac
}

# in_place KEY FIELD OPTION...: one measurement of each server.
in_place ()
{
  local key=$1 server
  shift
  for server in "${servers[@]}"; do
    serve "$server" "$dir/$server.disk"
    results[$key,$server]+=" $(measure "$@" --size=1G --time_based \
                                      --runtime="$seconds")"
    stop "$server"
  done
}

allocating ()
{
  local server
  each_cluster write 16384 >"$dir/clusters.log"
  for server in "${servers[@]}" table; do
    if [ "$server" = file ] || [ "$server" = table ]; then
      truncate -s 1G "$dir/fresh"
    else
      qemu-img create -q -f qed "$dir/fresh" 1G
    fi
    serve "$server" "$dir/fresh"
    results[allocate,$server]+=" $(
      measure write.iops --read_iolog="$dir/clusters.log")"
    stop "$server"
    rm "$dir/fresh"
  done
}

# Images with each cluster allocated.
nbdkit -U - pattern 1G --run "nbdcopy \"\$uri\" '$dir/file.disk'"
qemu-img convert -f raw -O qed -S 0 "$dir/file.disk" "$dir/qed.disk"
cp "$dir/qed.disk" "$dir/qemu.disk"

for ((round = 1; round <= rounds; round++)); do
  in_place randread read.iops --rw=randread --bs=4k
  in_place randwrite write.iops --rw=randwrite --bs=4k
  in_place seqread read.bw --rw=read --bs=1M
  in_place seqwrite write.bw --rw=write --bs=1M
  allocating
done

for server in "${servers[@]}"; do
  in_mib "seqread,$server"
  in_mib "seqwrite,$server"
done

# line KEY TITLE UNIT TARGET
line ()
{
  medians "$1" "${servers[@]}" | awk -v title="$2" -v unit="$3" -v target="$4" '
    { printf "%-28s %9.0f %9.0f %9.0f  %-5s %8.2f %8.2f   %s\n", title, $1,
             $2, $3, unit, $2 / $1, $2 / $3, target }'
}

echo
echo "medians of $rounds rounds of $seconds s, image of 1 GiB in /dev/shm," \
     "$threads threads"
echo
printf '%-28s %9s %9s %9s  %-5s %8s %8s   %s\n' "" file qed qemu-nbd "" \
       qed/file qed/qemu target
line randread "4 KiB random read" IOPS "0.90 file, 2.5 qemu"
line randwrite "4 KiB random write in place" IOPS "0.90 file, 2.5 qemu"
line seqread "1 MiB sequential read" MiB/s "0.90 file, 2.5 qemu"
line seqwrite "1 MiB sequential write" MiB/s "0.90 file, 2.5 qemu"
line allocate "4 KiB random allocating" IOPS "0.90 file, 20 qemu"
medians allocate file table qed | awk '
  { printf "\nlimit: nbdkit file that writes 4 KiB of a table with each " \
           "write has %.2f of nbdkit file; we have %.2f of that\n",
           $2 / $1, $3 / $2 }'
echo
# nbdkit and its requests of 1 MiB, libraries and tables.
tell_memory "nbdkit qed" "$memory" $((5 + threads + 3 + 33))
