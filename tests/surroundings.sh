#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Modules in odd surroundings: below each of nbdkit's filters that changes
# requests, with one thread, from a descriptor, on a loop device, on disks of no
# and of nearly endless size, and on a file system that gets full.  Prints a
# line for each; exit status 1 after what failed.  For "make soak"; by hand:
#
#     ./run bash tests/surroundings.sh

set -u

tmp=$(mktemp -d) || exit 1
device=''
mounted=''
# shellcheck disable=SC2317,SC2329 # by the trap
end ()
{
  cd / || exit
  if [ "$mounted" ]; then umount "$tmp/small"; fi
  if [ "$device" ]; then losetup -d "$device"; fi
  rm -rf "$tmp"
}
trap end EXIT
cd "$tmp" || exit 1
failed=0

# served NAME ARGUMENT...: what a client writes it reads again.
served ()
{
  local name=$1 value=$((RANDOM % 250 + 1))
  shift
  if timeout 120 nbdkit -U - "$@" --run "qemu-io -f raw \
       -c 'write -P $value 3k 70k' -c 'write -z 20k 9k' -c flush \
       -c 'read -P $value 3k 17k' -c 'read -P 0 20k 9k' \
       -c 'read -P $value 29k 44k' \$uri" >out 2>&1 &&
     ! grep -qi 'failed' out; then
    echo "ok $name"
  else
    echo "not ok $name"
    cat out
    failed=1
  fi
}

good ()
{
  local name=$1
  shift
  if "$@" >out 2>&1; then
    echo "ok $name"
  else
    echo "not ok $name"
    cat out
    failed=1
  fi
}

image ()
{
  rm -f disk.qed disk.raw disk.log
  qed-img create -q disk.qed 1M
  truncate -s 1M disk.raw
}

stacks=(
  "cow" "cache cache=writethrough" "readahead"
  "blocksize minblock=4k" "retry" "delay rdelay=1ms wdelay=1ms"
  "error error-pread-rate=0"
)
for stack in "${stacks[@]}"; do
  read -ra words <<<"$stack"
  image
  served "qed below $stack" --filter="${words[0]}" qed disk.qed \
         "${words[@]:1}"
  good "and its image" qed-img check -q disk.qed
  image
  served "blklogwrites below $stack" --filter="${words[0]}" \
         --filter=blklogwrites file disk.raw log=disk.log "${words[@]:1}"
  if [ "${words[0]}" != cow ]; then
    good "and its log" logwrites verify disk.log disk.raw
  fi
done

# A partition that begins at 64 KiB, in a table that Python writes.
image
python3 - disk.raw <<'END'
import struct
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(446)
    file.write(struct.pack("<8xII", 128, 1024))
    file.seek(450)
    file.write(b"\x83")
    file.seek(510)
    file.write(b"\x55\xaa")
END
served "blklogwrites below partition" --filter=partition \
       --filter=blklogwrites file disk.raw log=disk.log partition=1
image
served "qed with one thread" -t 1 qed disk.qed
image
exec 9<>disk.qed
served "qed from a descriptor" qed /dev/fd/9
exec 9>&-
good "and its image" qed-img check -q disk.qed

# Of no size, and of the greatest.
qed-img create -q empty.qed 0
# shellcheck disable=SC2016 # it is for nbdkit's shell
good "a disk of no size" nbdkit -U - qed empty.qed \
     --run 'test "$(nbdinfo --size $uri)" = 0'
nbdkit -U - --filter=blklogwrites memory 9223372036854774784 log=big.log \
  --run "qemu-io -f raw -c 'write -P 7 9223372036854710272 4k' \
           -c 'read -P 7 9223372036854710272 4k' \$uri" >out 2>&1
good "a disk of 63 bits" test -s big.log
good "and its log" logwrites info big.log

if [ "$(id -u)" -eq 0 ]; then
  mkdir small
  if mount -t tmpfs -o size=512k none small 2>/dev/null; then
    mounted=yes
    qed-img create -q small/disk.qed 4M
    timeout 120 nbdkit -U - qed small/disk.qed --run \
      "qemu-io -f raw -c 'write -P 5 0 128k' -c flush -c 'write -P 6 1M 3M' \
         \$uri" >out 2>&1
    cp out told
    good "a full disk is told" grep -qi 'no space left' told
    good "and its image" qed-img check -q small/disk.qed
    good "and its data" nbdkit -U - -r qed small/disk.qed --run \
         "qemu-io -r -f raw -c 'read -P 5 0 128k' \$uri"
  fi
  image
  if device=$(losetup -f --show disk.raw 2>/dev/null); then
    served "blklogwrites on a loop device" --filter=blklogwrites file \
           "$device" log=disk.log
    good "and its log" logwrites verify disk.log "$device"
  fi
fi
exit "$failed"
