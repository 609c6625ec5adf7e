# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Images that QEMU made read the same through the plugin as through QEMU,
# and block status says the same.

load ../lib/qed-functions

# Compare what the plugin serves with qemu-img convert and map.
# same_as_qemu IMAGE [PARAMETER...]
same_as_qemu ()
{
  local disk=$1
  shift
  qemu-img convert -f qed -O raw "$disk" expected.raw
  start_nbdkit -r qed "$disk" "$@"
  nbdcopy "$uri" served.raw
  assert_same expected.raw served.raw
  nbdinfo --map --json "$uri" | nbd_runs >served.map
  stop_nbdkit
  qemu-img map -f qed --output=json "$disk" | qemu_runs >expected.map
  assert_same expected.map served.map
  rm expected.raw served.raw
}

# Both maps as runs of "reads as zeroes" and "data"; neighbours of one kind
# are joined.
join_runs='
  reduce .[] as $run ([];
    if length > 0 and .[-1].zero == $run.zero
    then .[-1].length += $run.length
    else . + [$run] end)
  | .[] | "\(.offset) \(.length) \(.zero)"'

nbd_runs ()
{
  jq -r "[.[] | {offset, length, zero: (.type >= 2)}] | $join_runs"
}

qemu_runs ()
{
  jq -r "[.[] | {offset: .start, length, zero}] | $join_runs"
}

# Data, zero clusters and nothing, with borders inside of clusters.
fill ()
{
  local disk=$1 size=$2
  qemu_io_qed "$disk" \
    "write -P 1 0 1k" \
    "write -P 2 $((size / 3 / 512 * 512)) $((size / 16 / 512 * 512))" \
    "write -P 3 $((size / 2 / 512 * 512 + 512)) 12k" \
    "write -z $((size / 3 / 512 * 512 + 4096)) $((size / 40 / 512 * 512))" \
    "write -z $((size * 3 / 4 / 512 * 512)) $((size / 8 / 512 * 512))" \
    "write -P 4 $((size - 512)) 512" >/dev/null
}

@test "images of each geometry read as QEMU reads them" {
  local cluster table
  # QEMU itself cannot open an image with a table size of 1.
  for cluster in 4096 8192 65536 1048576 2097152; do
    for table in 2 4 16; do
      # QEMU does not create this one: its tables map more than 64 bits.
      if [ "$cluster$table" = 209715216 ]; then continue; fi
      create 23003648 -o "cluster_size=$cluster,table_size=$table"
      fill disk.qed 23003648
      same_as_qemu disk.qed
    done
  done
}

@test "an empty image reads as zeroes" {
  create 100M
  same_as_qemu disk.qed
}

@test "geometries that QEMU cannot open read as their tables say" {
  local geometry
  # A table size of 1; and tables that map more than 64 bits.
  for geometry in "4096 1" "65536 1" "2097152 1" "2097152 16" "67108864 2"; do
    # shellcheck disable=SC2086
    image build disk.qed 140000256 $geometry 0=1 1=zero 2=7
    image content disk.qed expected.raw
    start_nbdkit -r qed disk.qed
    nbdcopy "$uri" served.raw
    assert_same expected.raw served.raw
    stop_nbdkit
    rm expected.raw served.raw
  done
}

@test "an image that qemu-img convert made reads as QEMU reads it" {
  truncate -s 20M source.raw
  qemu_io source.raw "write -P 5 1M 3M" "write -P 6 10M 100k"
  qemu-img convert -f raw -O qed -o cluster_size=8192 source.raw disk.qed
  same_as_qemu disk.qed
  start_nbdkit -r qed disk.qed
  nbdcopy "$uri" served.raw
  assert_same source.raw served.raw
}

@test "several L2 tables with gaps between them read as QEMU reads them" {
  create 64M -o cluster_size=4096,table_size=2
  qemu_io_qed disk.qed "write -P 1 0 4k" "write -P 2 4190208 8k" \
              "write -P 3 32M 64k" "write -z 50M 1M" "write -P 4 62910464 8k"
  same_as_qemu disk.qed
}

@test "a chain of four images reads as QEMU reads it" {
  qemu-img create -q -f raw a.raw 16M
  qemu_io a.raw "write -P 10 0 5M" "write -P 11 9M 1M"
  qemu-img create -q -f qed -b a.raw -F raw -o cluster_size=4096 b.qed 16M
  qemu_io_qed b.qed "write -P 20 1M 1M" "write -z 3M 64k"
  qemu-img create -q -f qed -b b.qed -F qed c.qed 16M
  qemu_io_qed c.qed "write -P 30 1536k 1M" "write -z 9M 512k"
  create 16M -b c.qed -F qed -o cluster_size=1M
  qemu_io_qed disk.qed "write -P 40 2000k 3k" "write -z 8M 1M"
  same_as_qemu disk.qed
}

@test "a chain of twelve images reads as QEMU reads it" {
  local i
  qemu-img create -q -f qed 0.qed 4M
  for i in $(seq 1 12); do
    qemu-img create -q -f qed -b $((i - 1)).qed -F qed $i.qed 4M
    qemu_io_qed $i.qed "write -P $i ${i}00k 150k" >/dev/null
  done
  same_as_qemu 12.qed
}

@test "backing names are relative to the folder of the image" {
  mkdir -p one/two three
  qemu-img create -q -f raw three/base.raw 4M
  qemu_io three/base.raw "write -P 9 0 1M"
  (cd one/two &&
     qemu-img create -q -f qed -b ../../three/base.raw -F raw middle.qed)
  (cd one/two && qemu_io_qed middle.qed "write -P 8 512k 64k")
  qemu-img create -q -f qed -b two/middle.qed -F qed one/top.qed
  same_as_qemu one/top.qed
  cd three
  same_as_qemu ../one/top.qed
}

@test "a backing name with file: is relative to the current folder" {
  mkdir one
  head -c 1M /dev/urandom >base.raw
  head -c 1M /dev/zero >one/base.raw
  qemu-img create -q -f qed -u -b file:base.raw -F raw one/disk.qed 1M
  same_as_qemu one/disk.qed
  qemu-img rebase -u -f qed -b "file:$tmp/base.raw" -F raw one/disk.qed
  same_as_qemu one/disk.qed
}

@test "an absolute backing name, and one with odd characters, are found" {
  qemu-img create -q -f raw "$tmp/a base, with 100% & #.raw" 4M
  qemu_io "$tmp/a base, with 100% & #.raw" "write -P 9 0 1M"
  qemu-img create -q -f qed -b "$tmp/a base, with 100% & #.raw" -F raw \
           disk.qed
  same_as_qemu disk.qed
  qemu-img rebase -u -f qed -b "a base, with 100% & #.raw" -F raw disk.qed
  same_as_qemu disk.qed
}

@test "an image reached through a symbolic link finds its backing image" {
  # QEMU looks in the folder of the name that it was given.
  mkdir sub
  qemu-img create -q -f raw base.raw 4M
  qemu_io base.raw "write -P 9 0 1M"
  create 4M -b base.raw -F raw
  ln -s disk.qed link.qed
  same_as_qemu link.qed
}

@test "an image takes the new name after qemu-img rebase -u" {
  qemu-img create -q -f raw old.raw 4M
  qemu-img create -q -f qed new.qed 4M
  qemu_io old.raw "write -P 1 0 4M"
  qemu_io_qed new.qed "write -P 2 1M 1M"
  create 4M -b old.raw -F raw
  same_as_qemu disk.qed
  qemu-img rebase -u -f qed -b new.qed -F qed disk.qed
  same_as_qemu disk.qed
  qemu-img rebase -u -f qed -b "" disk.qed
  same_as_qemu disk.qed
}

@test "a shorter backing image is continued by zeroes" {
  local size
  for size in 512 65024 65536 66048 1000448; do
    rm -f base.raw
    qemu-img create -q -f raw base.raw $size
    qemu_io base.raw "write -P 9 0 $size"
    create 4M -b base.raw -F raw
    qemu_io_qed disk.qed "write -P 1 64000 1024" "write -P 2 2M 512"
    same_as_qemu disk.qed
  done
}

@test "a longer backing image is cut" {
  qemu-img create -q -f raw base.raw 8M
  qemu_io base.raw "write -P 9 0 8M"
  create 3M -b base.raw -F raw
  qemu_io_qed disk.qed "write -P 1 3145216 512"
  same_as_qemu disk.qed
}

@test "zero clusters hide the backing image" {
  qemu-img create -q -f raw base.raw 4M
  qemu_io base.raw "write -P 9 0 4M"
  create 4M -b base.raw -F raw
  qemu_io_qed disk.qed "write -z 64k 128k" "write -z 1000k 100k"
  same_as_qemu disk.qed
}

@test "a raw backing file is raw even if it looks like something else" {
  qemu-img create -q -f qed inner.qed 1M
  qemu_io_qed inner.qed "write -P 3 0 64k"
  create 1M -b inner.qed -F raw
  same_as_qemu disk.qed
}

@test "a backing image without a format is probed" {
  qemu-img create -q -f qed inner.qed 1M
  qemu_io_qed inner.qed "write -P 3 0 64k"
  head -c 1M /dev/urandom >inner.raw
  # The header only ever says "raw" or nothing.
  create 1M -b inner.qed -F qed
  same_as_qemu disk.qed
  create 1M -b inner.raw -F raw
  image set disk.qed "features=features & ~4"
  same_as_qemu disk.qed
}

@test "a backing image may be an NBD URI" {
  head -c 3M /dev/urandom >base.raw
  start_nbdkit -r file base.raw
  create 4M -u -b "$uri" -F raw
  qemu_io_qed disk.qed "write -P 3 1M 100k"
  same_as_qemu disk.qed
}

@test "a backing image at an NBD URI may be QED" {
  qemu-img create -q -f qed base.qed 4M
  qemu_io_qed base.qed "write -P 4 1M 1M"
  start_nbdkit -r file base.qed
  create 4M -u -b "$uri" -F qed
  qemu_io_qed disk.qed "write -P 3 1536k 100k"
  same_as_qemu disk.qed
}
