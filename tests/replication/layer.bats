# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The replication filter works over any plugin and any other filter: whatever
# the layer below cannot do, or wants in blocks, or one at a time.

load ../lib/replication-functions

layer ()
{
  "$python" "$tests/layer.py" "$@"
}

@test "over a plugin that can do everything" {
  layer 4194304 memory %SIZE%
}

@test "over a disk of an odd size" {
  layer 3145829 memory %SIZE%
}

@test "over a layer that wants whole blocks, and not too many" {
  layer 4194304 memory %SIZE% --filter=blocksize-policy \
        blocksize-minimum=4096 blocksize-preferred=16k \
        blocksize-maximum=64k blocksize-error-policy=error
  layer 4194304 memory %SIZE% --filter=blocksize-policy \
        blocksize-minimum=512 blocksize-preferred=512 \
        blocksize-maximum=4M blocksize-error-policy=error
}

@test "over a plugin whose requests must not overlap" {
  layer 4194304 memory %SIZE% --filter=noparallel serialize=all-requests
  layer 4194304 memory %SIZE% --filter=noparallel serialize=requests
}

@test "over a layer without zero requests" {
  layer 4194304 memory %SIZE% --filter=nozero
  layer 4194304 memory %SIZE% --filter=nozero zeromode=emulate
}

@test "over a layer without block status" {
  layer 4194304 memory %SIZE% --filter=noextents
}

@test "over a plugin that can read and write and nothing else" {
  local disk=$tmp/disk.img
  truncate -s 1M "$disk"
  ROUNDS=1 layer 1048576 eval get_size="echo %SIZE%" \
    pread="dd if=$disk iflag=skip_bytes,count_bytes bs=64k skip=\$4 \
           count=\$3 status=none" \
    pwrite="dd of=$disk conv=notrunc oflag=seek_bytes iflag=fullblock \
            bs=64k seek=\$4 status=none"
}

# Bytes that disk.img takes on its file system.
space_of_disk ()
{
  echo $(($(stat -c '%b * %B' disk.img)))
}

@test "zeroes and trims of the primary give space back on the disk" {
  truncate -s 8M disk.img
  start_nbdkit --filter=replication file disk.img "${secondary[@]}"
  qemu_io "$uri" "write -P 1 0 8M" flush
  [ "$(space_of_disk)" -ge $((8 << 20)) ]
  qemu_io "$uri" "write -z -u 0 2M" "discard 2M 2M" flush "read -P 0 0 2M"
  [ "$(space_of_disk)" -le $((4 << 20)) ]
  # A zero request that may not trim does not.
  qemu_io "$uri" "write -z 4M 4M" flush "read -P 0 4M 4M"
  [ "$(space_of_disk)" -ge $((4 << 20)) ]
}

@test "a read-only plugin cannot be a side of a replication" {
  local plugin=(eval get_size="echo 1M" pread="head -c \$3 /dev/zero")
  refused "read-only" -- "${plugin[@]}" "${secondary[@]}"
  refused "read-only" -- "${plugin[@]}" replication-mode=primary \
          replication-remote=nbd://localhost
}

# nbdkit serialises the guest's requests, but not the failover's job.  Each
# call takes its time, and notes when it meets another one.
@test "calls to a plugin that is not parallel do not overlap" {
  local disk=$tmp/disk.img begin cluster writes=()
  truncate -s 1M "$disk"
  begin="mkdir $tmp/busy || touch $tmp/overlap; sleep 0.02; "
  start_nbdkit --filter=replication eval get_size="echo 1M" \
    pread="$begin dd if=$disk iflag=skip_bytes,count_bytes bs=64k skip=\$4 \
           count=\$3 status=none; rmdir $tmp/busy" \
    pwrite="$begin dd of=$disk conv=notrunc oflag=seek_bytes \
            iflag=fullblock bs=64k seek=\$4 status=none; rmdir $tmp/busy" \
    "${secondary[@]}" replication-start=true \
    replication-control=secondary.ctl
  for cluster in 0 2 4 6 8 10 12 14; do
    writes+=("write -P 7 $((cluster * 64))k 64k")
  done
  local guest="nbd+unix:///guest?socket=$sock"
  qemu_io "$guest" "${writes[@]}"
  blkctl secondary.ctl replication-stop failover=true
  while stage_is secondary.ctl failover; do
    qemu_io "$guest" "read -P 7 0 64k" "read -P 0 64k 64k" "read -P 0 960k 64k"
  done
  stage_is secondary.ctl "done"
  assert_not_exists overlap
}
