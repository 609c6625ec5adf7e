# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Storage of fixed size that is as large as qed-img measure says, where what
# was measured fits, and not into less; and storage whose size is no multiple
# of 512.

load ../lib/qed-img-functions

# measured FIELD ARGUMENT...
measured ()
{
  local field=$1
  shift
  qed-img measure --output=json "$@" | jq ".[\"$field\"]"
}

# store BYTES: an export of zeroes.
store ()
{
  start_nbdkit memory "$1"
}

# sound: QEMU finds no errors, and takes what is free for leaks.
sound ()
{
  run qemu-img check -q -f qed "$uri"
  [ "$((status % 3))" = 0 ]
  run -0 qed-img check -q "$uri"
}

# same_content SOURCE: QEMU reads in the store what stands in SOURCE.
same_content ()
{
  qemu-img compare -q -f raw -F qed "$1" "$uri"
  sound
}

# try_to_write: a byte to the image in the store.
try_to_write ()
{
  run nbdkit -U - qed "$uri" \
      --run "$python -m nbd -u \"\$uri\" -c 'h.pwrite(b\"x\", 0)'"
}

# fits OPTIONS FIELD SOURCE [ARGUMENT...]: a copy of SOURCE needs what was
# measured for it, and then can be emptied; with a cluster less it does not
# fit.
fits ()
{
  local options=$1 field=$2 source=$3 bytes cluster
  shift 3
  bytes=$(measured "$field" -o "$options" -f raw "$source")
  cluster=$(numfmt --from=iec "$(sed 's/.*cluster_size=\([0-9kM]*\).*/\U\1/' \
                                     <<<"$options")")
  store "$bytes"
  run -0 qed-img convert -f raw -O qed -o "$options" "$@" "$source" "$uri"
  same_content "$source"
  run -0 qed-img empty "$uri"
  sound
  stop_nbdkit

  store "$((bytes - cluster))"
  run -1 qed-img convert -f raw -O qed -o "$options" "$@" "$source" "$uri"
  assert_output --partial 'no room for another cluster'
  stop_nbdkit
}

make_sparse ()
{
  truncate -s 40M sparse.raw
  qemu_io sparse.raw 'write -P 1 0 100k' 'write -P 2 9M 1M' \
          'write -P 3 16383k 2k' 'write -P 4 39M 1M' >/dev/null
}

@test "a copy fits into an export of the required size" {
  make_sparse
  fits cluster_size=4k required sparse.raw
  fits cluster_size=4k,table_size=2 required sparse.raw -W -m 16
  fits cluster_size=64k required sparse.raw -W
  fits cluster_size=1M required sparse.raw
}

@test "a full copy fits into an export of the fully allocated size" {
  head -c 20M /dev/urandom >full.raw
  fits cluster_size=4k fully-allocated full.raw -S 0 -W
  fits cluster_size=64k fully-allocated full.raw
  fits cluster_size=1M fully-allocated full.raw -W -m 16
  # Zeroes that are to be written take as much.
  truncate -s 5000k holes.raw
  fits cluster_size=4k,table_size=2 fully-allocated holes.raw -S 0
}

@test "every byte of a disk can be written in an export of the fully allocated size" {
  local options
  for options in cluster_size=4k cluster_size=64k cluster_size=1M; do
    store "$(measured fully-allocated -o "$options" --size 10M)"
    run -0 qed-img create -q -o "$options" "$uri" 10M
    assert_output ''
    nbdkit -U - qed "$uri" --run 'nbdcopy -- [ nbdkit pattern 10M ] "$uri"'
    nbdkit -U - pattern 10M --run "qemu-img compare -q -f raw -F qed \$uri $uri"
    stop_nbdkit
  done
}

@test "zeroes that hide a backing image are measured, too" {
  truncate -s 40M base.raw
  qemu_io base.raw 'write -P 1 0 40M' >/dev/null
  truncate -s 40M zeroes.raw
  store "$(measured required -o cluster_size=4k,backing_file=base.raw \
                    -f raw zeroes.raw)"
  run -0 qed-img convert -f raw -O qed -o cluster_size=4k -B "$PWD/base.raw" \
      -F raw zeroes.raw "$uri"
  nbdkit -U - qed "$uri" --run "qemu-img compare -q -f raw -F raw \
    zeroes.raw \"\$uri\""
}

@test "create warns if not one cluster can be written" {
  local options bytes
  for options in cluster_size=4k cluster_size=64k cluster_size=1M; do
    # The first cluster with its table.
    head -c 512 /dev/urandom >one.raw
    bytes=$(measured required -o "$options" -f raw one.raw)
    store "$bytes"
    run -0 --separate-stderr qed-img create -o "$options" "$uri" 1G
    assert_equal "$stderr" ''
    try_to_write
    assert_success
    stop_nbdkit

    store "$((bytes - 512))"
    run -0 --separate-stderr qed-img create -o "$options" "$uri" 1G
    assert_regex "$stderr" 'nothing can be written to this image'
    assert_regex "$stderr" "needs storage of $bytes bytes"
    try_to_write
    assert_failure
    assert_output --partial 'no room for another cluster'
    # A disk without a byte needs none.
    run -0 --separate-stderr qed-img create -o "$options" "$uri" 0
    assert_equal "$stderr" ''
    stop_nbdkit
  done
}

# ---- A raw base that ends within a sector

# odd_base: 1000001 bytes, and a copy of them.
odd_base ()
{
  head -c 1000001 /dev/urandom >odd.raw
  cp odd.raw before.raw
}

# committed DISK: the base has what the disk had.
committed ()
{
  cmp -n 1000001 "$1" odd.raw
}

@test "commit: nothing lengthens a raw base that ends within a sector" {
  odd_base
  qed-img create -q -b odd.raw -F raw top.qed
  run -0 qed-img commit top.qed
  cmp odd.raw before.raw

  qemu_io_qed top.qed 'write -P 7 100k 64k' >/dev/null
  qemu-img convert -f qed -O raw top.qed disk.raw
  run -0 qed-img commit -d top.qed
  committed disk.raw
  # The last cluster is written as a whole.
  qemu_io_qed top.qed 'write -P 8 970000 1' 'write -P 9 999999 1' >/dev/null
  qemu-img convert -f qed -O raw top.qed disk.raw
  run -0 qed-img commit top.qed
  committed disk.raw
  assert_equal "$(stat -c %s odd.raw)" 1000001
  qemu-img compare -q -f qed -F raw top.qed disk.raw

  # Past the page cache too, where blocks are written.
  qemu_io_qed top.qed 'write -P 8 970000 29000' >/dev/null
  qemu-img convert -f qed -O raw top.qed disk.raw
  run -0 qed-img commit -t none top.qed
  committed disk.raw
  assert_equal "$(stat -c %s odd.raw)" 1000001

  # Also by zeroes, and with the base named by hand.
  qemu_io_qed top.qed 'write -z 900000 100448' >/dev/null
  qemu-img create -q -f qed -b top.qed -F qed upper.qed
  run -0 qed-img commit -b odd.raw upper.qed
  run -0 qed-img commit top.qed
  assert_equal "$(stat -c %s odd.raw)" 1000001
  cmp -n 900000 disk.raw odd.raw
  cmp -n 100001 -i 900000:0 odd.raw /dev/zero
}

@test "commit: what stands behind the end of a raw base lengthens it" {
  odd_base
  qed-img create -q -b odd.raw -F raw top.qed
  qemu_io_qed top.qed 'write -P 7 1000000 448' >/dev/null
  qemu-img convert -f qed -O raw top.qed disk.raw
  run -0 qed-img commit top.qed
  cmp disk.raw odd.raw
}

@test "commit: into storage of fixed size that ends within a sector" {
  odd_base
  start_nbdkit file odd.raw
  qed-img create -q -b "$uri" -F raw top.qed
  run -0 qed-img commit top.qed
  qemu_io_qed top.qed 'write -P 7 100k 64k' 'write -P 9 999999 2' >/dev/null
  qemu-img convert -f qed -O raw top.qed disk.raw
  run -0 qed-img commit top.qed
  committed disk.raw
  assert_equal "$(stat -c %s odd.raw)" 1000001

  # Only bytes that would be lost are refused, and the disk stays.
  qemu_io_qed top.qed 'write -P 7 1000001 1' >/dev/null
  qemu-img convert -f qed -O raw top.qed disk.raw
  run -1 qed-img commit top.qed
  assert_output --partial 'bytes behind offset 1000001'
  assert_output --partial 'not zero'
  qemu-img compare -q -f qed -F raw top.qed disk.raw
  cmp -n 1000001 disk.raw odd.raw
}

@test "convert -n: into storage that ends within the last sector of a disk" {
  odd_base
  qed-img convert -f raw -O qed odd.raw copy.qed
  start_nbdkit memory 1000001
  run -0 qed-img convert -n -f qed -O raw copy.qed "$uri"
  qemu-img compare -q -f raw -F raw odd.raw "$uri"
  qemu_io_qed copy.qed 'write -P 7 1000001 1' >/dev/null
  run -1 qed-img convert -n -f qed -O raw copy.qed "$uri"
  assert_output --partial 'bytes behind offset 1000001'
}
