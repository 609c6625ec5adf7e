#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The speed of qed-img, side by side with qemu-img in one run on this machine:
#
#     make bench            or: ./run bash tests/bench/qed-img.sh
#
# commit:  1 GiB of data in an image of 1 TiB, in pieces of 1 MiB or of one
#          cluster (64 KiB) all over the disk, is written into an empty
#          backing image.  qemu-img leaves the data in the image (its QED
#          driver cannot empty one), qed-img empties it.
# rebase:  the same image over one with 256 MiB elsewhere; only once, since
#          qemu-img takes long.
# convert: 1 GiB of data, in pieces of 1 MiB all over a raw file of 16 GiB, to QED
#          and back, beside qemu-img convert with and without -W; and nbdcopy
#          from "nbdkit file" to "nbdkit qed", and the other way.
# empty:   nothing of qemu-img's does this; the times show that they do not
#          depend on what the image holds, save what the file system takes to
#          free it.
#
# All images are in memory (/dev/shm), where they take 4 GiB at most.  The
# programs take turns in each round, medians are printed.
#
# BENCH_ROUNDS    measurements of each cell (5)

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

need qed-img qemu-img qemu-io nbdkit nbdcopy time
make_folder qed-img-bench
cd "$dir"

# fill IMAGE PIECE-KIB NUMBER SHIFT-KIB: write pieces all over 1 TiB.
fill ()
{
  local step=$(((1 << 30) / $3))
  seq 0 $(($3 - 1)) |
    awk -v step="$step" -v piece="$2" -v shift="$4" '
      { printf "write -P %d %dk %dk\n", $1 % 255 + 1, $1 * step + shift,
               piece }' |
    qemu-io -f qed --cache=writeback "$1" >/dev/null
}

# take KEY COMMAND...: measure one run, in microseconds.  In a virtual machine
# the host may have to find memory first that nobody has used for a while; so
# all find some that was used and given back just now.
take ()
{
  local key=$1 begin end
  shift
  head -c 2G /dev/zero >warm
  rm warm
  begin=$(date +%s%N)
  "$@" >/dev/null
  end=$(date +%s%N)
  results[$key]+=" $(((end - begin) / 1000))"
}

# fresh IMAGE: top.qed is a copy of it, base.qed is empty.
fresh ()
{
  rm -f base.qed top.qed
  cp --sparse=always empty-base.qed base.qed
  cp --sparse=always "$1" top.qed
}

# img PROGRAM COMMAND ARGUMENT...
img ()
{
  local program=$1 command=$2
  shift 2
  "$program" "$command" -q -f qed "$@"
}

both ()
{
  local key=$1 image=$2 program programs="qed-img qemu-img"
  shift 2
  if ((round % 2)); then programs="qemu-img qed-img"; fi
  for program in $programs; do
    fresh "$image"
    take "$key,$program" img "$program" "$@" top.qed
  done
}

qemu-img create -q -f qed empty-base.qed 1T
cp --sparse=always empty-base.qed base.qed
for name in megabytes clusters few; do
  qemu-img create -q -f qed -b base.qed -F qed $name.qed
done
fill megabytes.qed 1024 1024 0
fill clusters.qed 64 16384 0
fill few.qed 64 1024 0
qemu-img create -q -f qed other.qed 1T
fill other.qed 1024 256 4096

# Whoever is the first to use memory that the machine has not used before
# pays for it; so this is not counted.
round=0
both commit-megabytes megabytes.qed commit
results=()

# What a file system lets one program do: it writes 1 GiB to a new file, as
# writes to one file come after each other.
write_alone ()
{
  rm -f base.qed top.qed
  take limit python3 -c 'import os
fd = os.open ("alone", os.O_WRONLY | os.O_CREAT)
data = os.urandom (1 << 20)
for i in range (1024):
    os.pwrite (fd, data, i << 24)'
  rm alone
}

for ((round = 1; round <= rounds; round++)); do
  write_alone
  both commit-megabytes megabytes.qed commit
  both commit-clusters clusters.qed commit
  for name in few clusters megabytes; do
    fresh $name.qed
    take "empty-$name" img qed-img empty top.qed
  done
done

# convert_all KEY FROM-FORMAT FROM TO-FORMAT: by each program in turn.
convert_all ()
{
  local key=$1 from_format=$2 from=$3 to_format=$4 program
  for program in qed-img qemu-img; do
    rm -f copy
    take "$key,$program" "$program" convert -f "$from_format" \
         -O "$to_format" "$from" copy
    rm -f copy
    take "$key-W,$program" "$program" convert -W -f "$from_format" \
         -O "$to_format" "$from" copy
  done
}

# nbdcopy_all KEY SOURCE-PLUGIN FROM TARGET-PLUGIN: between two servers of ours.
nbdcopy_all ()
{
  local key=$1 from_plugin=$2 from=$3 to_plugin=$4
  rm -f copy
  if [ "$to_plugin" = qed ]; then
    qemu-img create -q -f qed copy 16G
  else
    truncate -s 16G copy
  fi
  take "$key,nbdcopy" nbdcopy --destination-is-zero \
       -- [ nbdkit --exit-with-parent -r "$from_plugin" "$from" ] \
       [ nbdkit --exit-with-parent "$to_plugin" copy ]
}

truncate -s 16G source.raw
seq 0 1023 | awk '{ printf "write -P %d %dk 1M\n", $1 % 255 + 1, $1 * 16384 }' |
  qemu-io -f raw --cache=writeback source.raw >/dev/null
qemu-img convert -f raw -O qed source.raw source.qed
for ((round = 1; round <= rounds; round++)); do
  convert_all to-qed raw source.raw qed
  nbdcopy_all to-qed file source.raw qed
  convert_all to-raw qed source.qed raw
  nbdcopy_all to-raw qed source.qed file
done
rm copy
convert_memory=$(peak qed-img convert -f raw -O qed source.raw copy)
rm source.raw source.qed copy

both rebase megabytes.qed rebase -b other.qed -F qed

fresh megabytes.qed
rebase_memory=$(peak qed-img rebase -b other.qed -F qed top.qed)
fresh clusters.qed
commit_memory=$(peak qed-img commit -q top.qed)

# line KEY TITLE TARGET
line ()
{
  medians "$1" qed-img qemu-img | awk -v title="$2" -v target="$3" '
    { printf "%-36s %10.1f %10.1f %10.2f   %s\n", title, $1 / 1000,
             $2 / 1000, $1 / $2, target }'
}

echo
echo "medians of $rounds rounds, images of 1 TiB in /dev/shm, milliseconds"
echo
printf '%-36s %10s %10s %10s   %s\n' "" qed-img qemu-img ours/qemu target
line commit-megabytes "commit 1 GiB, pieces of 1 MiB" "below 0.5"
line commit-clusters "commit 1 GiB, pieces of 64 KiB" "below 0.5"
line rebase "rebase over 256 MiB elsewhere" "below 0.5"
printf '\nlimit: a loop that writes 1 GiB to a new file takes %.1f\n\n' \
       "$(median <<<"${results[limit]}" | awk '{ print $1 / 1000 }')"
for name in few:"64 MiB, pieces of 64 KiB" clusters:"1 GiB, pieces of 64 KiB" \
            megabytes:"1 GiB, pieces of 1 MiB"; do
  printf '%-36s %10.1f\n' "empty ${name#*:}" \
         "$(median <<<"${results[empty-${name%%:*}]}" |
              awk '{ print $1 / 1000 }')"
done

echo
echo "copies of 1 GiB in a disk of 16 GiB, milliseconds"
echo
printf '%-20s %10s %10s %10s %10s %10s\n' "" qed-img "qed-img -W" qemu-img \
       "qemu-img -W" nbdcopy
for key in to-qed to-raw; do
  printf '%-20s' "$key"
  for cell in "$key,qed-img" "$key-W,qed-img" "$key,qemu-img" \
              "$key-W,qemu-img" "$key,nbdcopy"; do
    printf ' %10.0f' "$(median <<<"${results[$cell]}" |
                          awk '{ print $1 / 1000 }')"
  done
  printf '\n'
done

echo
tell_memory "qed-img commit" "$commit_memory" 78
tell_memory "qed-img convert" "$convert_memory" 82
tell_memory "qed-img rebase" "$rebase_memory" 111
