# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A file system that fills up in the middle of allocating writes costs the
# writes that did not fit, and nothing else.

load ../lib/qed-functions

setup ()
{
  setup_test
  mkdir small
  mount -t tmpfs -o size=4m tmpfs small
  cd small
}

teardown ()
{
  cd "$tmp"
  end_servers
  umount small
  teardown_test
}

fill_up ()
{
  run "$python" "$tests/full-disk.py" "$@"
  assert_success
}

# fill_and_free IMAGE BALLAST
fill_and_free ()
{
  start_nbdkit qed disk.qed
  fill_up fill "$sock" acknowledged
  kill -0 "$pid"
  fill_up verify "$sock" acknowledged

  # The same writes do not fit a second time either.
  fill_up fill "$sock" acknowledged
  fill_up verify "$sock" acknowledged

  rm ballast
  fill_up write "$sock" acknowledged
  fill_up verify "$sock" acknowledged
  stop_nbdkit
  assert_not_corrupt disk.qed
  no_need_check disk.qed

  start_nbdkit -r qed disk.qed
  fill_up verify "$sock" acknowledged
}

@test "a full disk loses nothing that was acknowledged, and recovers" {
  head -c 2M /dev/zero >ballast
  create 16M
  fill_and_free
}

@test "a full disk under an image with small clusters does the same" {
  head -c 2M /dev/zero >ballast
  create 16M -o cluster_size=4096,table_size=2
  fill_and_free
}

@test "a full disk under an overlay does the same" {
  head -c 16M /dev/urandom >"$tmp/base.raw"
  head -c 2M /dev/zero >ballast
  create 16M -b "$tmp/base.raw" -F raw
  fill_and_free
}

# Small clusters, so that the run that does not fit has thousands of them.
@test "clusters of a write that did not fit are not leaked" {
  head -c 1M /dev/zero >ballast
  create 64M -o cluster_size=4096,table_size=2
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -P 1 0 1M"
  run -1 qemu_io "$uri" "write -P 2 1M 30M"
  assert_output --partial "No space left on device"
  rm ballast
  qemu_io "$uri" "write -P 3 32M 1M" "write -P 4 40M 4k"
  run -1 qemu_io "$uri" "write -P 2 1M 30M"
  qemu_io "$uri" "read -P 1 0 1M" "read -P 3 32M 1M" "read -P 4 40M 4k"
  stop_nbdkit
  run -0 qemu-img check -f qed disk.qed
}

@test "a server that is killed with a full disk leaves a good image" {
  create 16M
  start_nbdkit qed disk.qed
  fill_up fill "$sock" acknowledged
  kill -KILL "$pid"
  wait "$pid" || true
  cp disk.qed "$tmp/copy.qed"
  assert_not_corrupt "$tmp/copy.qed"
  start_nbdkit -r qed disk.qed
  fill_up verify "$sock" acknowledged
}

# Here a file can be longer than anywhere else: an entry points behind a hole
# of 2^60 bytes.  The time limit is for the hour that it would take to look
# for leaked clusters in it.
@test "a hole without end does not keep the server from starting" {
  image good disk.qed
  truncate -s $((1 << 60)) disk.qed
  image l2 disk.qed 1 $(((1 << 60) - 4096))
  image set disk.qed "features=features | 2"
  run -0 timeout 60 nbdkit -U - qed disk.qed \
      --run 'qemu-io -r -f raw -c "read -P 1 0 4k" "$uri"'
  refute_output --partial failed
  no_need_check disk.qed
}
