#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The speed of what depends on the tables of an image, side by side with QEMU:
#
#     make bench            or: ./run bash tests/bench/tables.sh
#
# open:      until an image of 1 TiB with 8192 L2 tables, as many as the format
#            can have there, has told its size: "nbdkit qed" with nbdinfo
#            beside qemu-io; read-only
# crash:     the same for writing, when a crash has left the image in need of a
#            check (repair=auto)
# check:     of 16 GiB of data in 1 TiB, in pieces of a cluster (64 KiB) or of
#            1 MiB
# map:       of the same
#
# The data themselves are not read by any of these, so they are holes here.
# "none" is what the programs take for an empty image of 1 MiB.
#
# BENCH_ROUNDS    measurements of each cell (5)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

need nbdkit nbdinfo qemu-img qemu-io qed-img python3 time
lib=$(cd "$(dirname "$0")/../lib" && pwd)
make_folder tables-bench
cd "$dir"

# image NAME CLUSTER-SIZE TABLE-SIZE NUMBER RUN FEATURES: so many clusters all
# over 1 TiB, in runs.
image ()
{
  PYTHONPATH="$lib" python3 - "$@" <<'END'
import sys
import qed_format as qed
name, (size, table, number, run, features) = \
    sys.argv[1], map(int, sys.argv[2:])
step = (1 << 40) // size // (number // run)
qed.build(name, 1 << 40, size, table,
          {i * step + j: b"" for i in range(number // run)
           for j in range(run)}, features=features)
END
}

# take KEY COMMAND...: microseconds.  QEMU 7.2 sees leaks in files of many
# clusters, where none are.
take ()
{
  local key=$1 begin
  shift
  begin=$(date +%s%N)
  "$@" >/dev/null || [ $? -eq 3 ]
  results[$key]+=" $((($(date +%s%N) - begin) / 1000))"
}

# open_both KEY IMAGE READ-ONLY
open_both ()
{
  cp --sparse=always "$2" copy.qed
  # shellcheck disable=SC2016  # nbdkit sets $uri
  take "$1,ours" nbdkit ${3:+-r} -U - qed copy.qed --run 'nbdinfo --size "$uri"'
  cp --sparse=always "$2" copy.qed
  take "$1,qemu" qemu-io ${3:+-r} -f qed -c length copy.qed
}

# both KEY COMMAND ARGUMENT...
both ()
{
  local key=$1
  shift
  take "$key,ours" qed-img "$@"
  take "$key,qemu" qemu-img "$@"
}

qemu-img create -q -f qed none.qed 1M
image tables.qed 16384 4 8192 1 0
image crash.qed 16384 4 8192 1 2
image clusters.qed 65536 4 262144 1 0
image megabytes.qed 65536 4 262144 16 0

for ((round = 1; round <= rounds; round++)); do
  open_both open-none none.qed yes
  open_both open tables.qed yes
  open_both crash crash.qed ""
  both check-none check -q -f qed none.qed
  for name in clusters megabytes; do
    both "check-$name" check -q -f qed "$name.qed"
    both "map-$name" map -f qed "$name.qed"
  done
done

# line KEY TITLE TARGET
line ()
{
  medians "$1" ours qemu | awk -v title="$2" -v target="$3" '
    { printf "%-36s %10.1f %10.1f %10.2f   %s\n", title, $1 / 1000,
             $2 / 1000, $1 / $2, target }'
}

echo
echo "medians of $rounds rounds, images of 1 TiB in /dev/shm, milliseconds"
echo
printf '%-36s %10s %10s %10s   %s\n' "" ours qemu ours/qemu target
line open-none "open, none" ""
line open "open, 8192 tables" "below 0.1"
line crash "open after a crash, 8192 tables" "below 0.1"
line check-none "check, none" ""
line check-clusters "check 16 GiB, pieces of 64 KiB" "below 0.5"
line check-megabytes "check 16 GiB, pieces of 1 MiB" "below 0.5"
line map-clusters "map 16 GiB, pieces of 64 KiB" "below 0.5"
line map-megabytes "map 16 GiB, pieces of 1 MiB" "below 0.5"
echo
# Of 262144 clusters each takes a quarter of a byte.
tell_memory "qed-img check" "$(peak qed-img check -q clusters.qed)" $((8 + 1))
tell_memory "qed-img map" "$(peak qed-img map clusters.qed)" 41
