# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Each parameter of nbdkit-qed-plugin does what the manual says, and what
# the export tells its clients is true.

load ../lib/qed-functions

# The number of data clusters of an image, by QEMU's count.
allocated_clusters ()
{
  qemu-img check -f qed --output=json "$1" | jq '."allocated-clusters" // 0'
}

overlay ()
{
  head -c 4M /dev/urandom >base.raw
  create 4M -b base.raw -F raw
}

# What nbdinfo says about the export.
export_info ()
{
  nbdinfo --json "$uri" | jq -r ".exports[0].$1"
}

@test "file= may be written out or left out, and must be there once" {
  create 1M
  start_nbdkit qed file=disk.qed
  stop_nbdkit
  start_nbdkit qed disk.qed
  stop_nbdkit
  refused "image.*missing|file=" --
  refused "." -- disk.qed file=disk.qed
}

@test "an unknown parameter is refused and named" {
  create 1M
  refused "colour" -- disk.qed colour=red
}

@test "a value that a parameter does not have is refused" {
  local setting
  create 1M
  for setting in backing-format=qcow2 backing-format= repair=sometimes \
                 repair= l2-cache-size=much l2-cache-size=-1 \
                 l2-cache-size= trim=maybe detect-zeroes=true \
                 copy-on-read=perhaps lock=perhaps; do
    # nbdkit's own parsers of sizes and booleans name the value only.
    refused "error: .*${setting%%=*}\\b" -- disk.qed "$setting"
  done
}

@test "backing=none reads unallocated areas as zeroes and opens nothing" {
  create 4M
  image backing disk.qed missing.raw
  start_nbdkit -r qed disk.qed backing=none
  qemu_io "$uri" "read -P 0 0 4M"
}

@test "backing=IMAGE takes the place of the one in the header" {
  overlay
  head -c 4M /dev/urandom >other.raw
  mkdir sub
  mv disk.qed sub
  # The user's names are relative to where the user is.
  start_nbdkit qed sub/disk.qed backing=other.raw
  nbdcopy "$uri" served.raw
  assert_same other.raw served.raw
  stop_nbdkit
  create 4M
  start_nbdkit qed disk.qed backing=other.raw
  nbdcopy "$uri" served.raw
  assert_same other.raw served.raw
  stop_nbdkit
  start_nbdkit -r file other.raw
  start_nbdkit qed disk.qed backing="$uri"
  nbdcopy "$uri" served.raw
  assert_same other.raw served.raw
}

@test "backing=IMAGE that is missing is refused" {
  create 1M
  refused "missing.raw" "No such file" -- disk.qed backing=missing.raw
}

@test "backing-format decides how the backing image is read" {
  qemu-img create -q -f qed inner.qed 4M
  qemu_io_qed inner.qed "write -P 3 0 1M"
  qemu-img convert -f qed -O raw inner.qed inner.raw
  create 4M -b inner.qed -F qed
  start_nbdkit -r qed disk.qed backing-format=qed
  nbdcopy "$uri" served.raw
  assert_same inner.raw served.raw
  stop_nbdkit
  start_nbdkit -r qed disk.qed backing-format=raw
  nbdcopy "$uri" served.raw
  run cmp -n "$(stat -c %s inner.qed)" inner.qed served.raw
  assert_success
  stop_nbdkit
  head -c 1M /dev/urandom >base.raw
  refused "base.raw" -- disk.qed backing=base.raw backing-format=qed
}

@test "repair=auto, always and never" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 1M"
  local value
  for value in auto always never; do
    start_nbdkit qed disk.qed repair=$value
    qemu_io "$uri" "read -P 1 0 1M" "write -P 1 0 1M"
    stop_nbdkit
    assert_clean disk.qed
  done
}

@test "a tiny L2 cache is only slower" {
  local size
  create 40M -o cluster_size=4096,table_size=2
  head -c 40M /dev/urandom >random
  for size in 0 1 4096 10000 1M; do
    # Whatever is too small to work with must be refused, not be ignored.
    if ! start_nbdkit qed disk.qed l2-cache-size=$size; then
      [ "$size" = 0 ] || [ "$size" = 1 ]
      run cat "$log"
      assert_output --partial l2-cache-size
      continue
    fi
    nbdcopy random "$uri"
    nbdcopy "$uri" served.raw
    assert_same random served.raw
    stop_nbdkit
    assert_clean disk.qed
  done
}

@test "tables outside a small l2-cache-size are read again" {
  # 512 MiB of 4 KiB clusters have 1 MiB of L2 entries, each in use.
  create 512M -o cluster_size=4096,table_size=16
  start_nbdkit qed disk.qed l2-cache-size=64k
  nbdsh -u "$uri" -c '
for at in range(0, 512 << 20, 65536):
    h.pwrite(b"x" * 512, at)'
  stop_nbdkit
  assert_clean disk.qed
}

@test "l2-cache-size may be more than there is memory" {
  local size
  create 1G
  for size in 128T 1E; do
    start_nbdkit qed disk.qed l2-cache-size="$size"
    qemu_io "$uri" "write -P 1 0 64k" "read -P 1 0 64k"
    stop_nbdkit
  done
  assert_clean disk.qed
}

@test "an image can grow up to a limit of the length of files" {
  create 64M
  (ulimit -f 3072; nbdkit -U - qed disk.qed \
     --run 'qemu-io -f raw -c "write -P 1 0 2M" "$uri"') >out.txt 2>&1
  grep -F "wrote 2097152/2097152" out.txt
  run -0 qemu_io_qed disk.qed "read -P 1 0 2M"
}

@test "trim=unmap gives space back, trim=ignore does not" {
  local before after
  create 64M
  qemu_io_qed disk.qed "write -P 1 0 32M"
  before=$(space_of disk.qed)
  start_nbdkit qed disk.qed trim=ignore
  qemu_io "$uri" "discard 0 16M" "flush"
  assert_equal "$(space_of disk.qed)" "$before"
  stop_nbdkit
  [ $((before - $(space_of disk.qed))) -lt $((1 << 20)) ]

  start_nbdkit qed disk.qed trim=unmap
  nbdsh -u "$uri" -c 'h.trim(16 << 20, 0)' -c 'h.flush()'
  after=$(space_of disk.qed)
  [ $((before - after)) -ge $((15 << 20)) ]
  qemu_io "$uri" "read -P 1 16M 16M" "write -P 2 1M 1M"
  qemu_io "$uri" "read -P 2 1M 1M"
  stop_nbdkit
  assert_clean disk.qed
  qemu_io_qed disk.qed "read -P 1 16M 16M" "read -P 2 1M 1M"

  # The default.
  start_nbdkit qed disk.qed
  nbdsh -u "$uri" -c 'h.trim(16 << 20, 16 << 20)'
  [ $((after - $(space_of disk.qed))) -ge $((13 << 20)) ]
}

@test "detect-zeroes decides what written zeroes become" {
  create 4M
  start_nbdkit qed disk.qed detect-zeroes=off
  qemu_io "$uri" "write -P 0 0 1M"
  stop_nbdkit
  assert_equal "$(allocated_clusters disk.qed)" 16

  local value
  for value in on unmap; do
    create 4M
    start_nbdkit qed disk.qed detect-zeroes=$value
    # 14 whole clusters, two halves.
    qemu_io "$uri" "write -P 0 32k 960k" "read -P 0 0 4M"
    stop_nbdkit
    run allocated_clusters disk.qed
    [ "$output" -le 2 ]
  done
}

@test "detect-zeroes=unmap gives the space of zeroed clusters back" {
  local before
  create 32M
  qemu_io_qed disk.qed "write -P 1 0 32M"
  before=$(space_of disk.qed)
  start_nbdkit qed disk.qed detect-zeroes=unmap
  qemu_io "$uri" "write -P 0 0 16M" "flush" "read -P 0 0 16M" \
          "read -P 1 16M 16M"
  [ $((before - $(space_of disk.qed))) -ge $((15 << 20)) ]
  stop_nbdkit
  assert_clean disk.qed
}

@test "detect-zeroes hides the backing image where zeroes are written" {
  overlay
  start_nbdkit qed disk.qed detect-zeroes=unmap
  qemu_io "$uri" "write -P 0 0 1M" "read -P 0 0 1M"
  stop_nbdkit
  qemu_io_qed disk.qed "read -P 0 0 1M"
}

@test "copy-on-read keeps what was read, and changes no byte of it" {
  overlay
  start_nbdkit qed disk.qed copy-on-read=true
  nbdsh -u "$uri" -c 'h.pread(1 << 20, 100000)'
  nbdcopy "$uri" served.raw
  assert_same base.raw served.raw
  stop_nbdkit
  assert_clean disk.qed
  assert_equal "$(allocated_clusters disk.qed)" 64
  rm base.raw
  start_nbdkit -r qed disk.qed backing=none
  nbdcopy "$uri" alone.raw
  assert_same alone.raw served.raw
}

@test "copy-on-read is off by default, and refused with -r" {
  overlay
  start_nbdkit qed disk.qed
  nbdcopy "$uri" served.raw
  stop_nbdkit
  assert_equal "$(allocated_clusters disk.qed)" 0
  local before
  before=$(hash_of disk.qed)
  refused -r "copy-on-read" -- disk.qed copy-on-read=true
  assert_equal "$(hash_of disk.qed)" "$before"
}

@test "zeroes written over clusters that exist keep the image consistent" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 4M"
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -z 0 1M" "write -z -u 1M 1M" "read -P 0 0 2M" \
          "read -P 1 2M 2M"
  stop_nbdkit
  assert_clean disk.qed
  qemu_io_qed disk.qed "read -P 0 0 2M" "read -P 1 2M 2M"
}

@test "--dump-plugin tells what the plugin can do" {
  run nbdkit --dump-plugin qed
  assert_success
  assert_line "name=qed"
  assert_line --regexp "^qed_[a-z0-9_]+=.+"
  assert_line "thread_model=parallel"
}

@test "--help names each parameter" {
  run nbdkit qed --help
  assert_success
  local key
  for key in file backing backing-format repair l2-cache-size trim \
             detect-zeroes copy-on-read lock; do
    assert_output --partial "$key="
  done
}

@test "-D qed.io=1 traces requests and -D qed.meta=1 updates of metadata" {
  local io="qed: write count=4096 offset=1048576"
  local meta="qed: header features=0x2" trace
  for trace in none io meta; do
    create 4M
    if [ $trace = none ]; then
      start_nbdkit -v qed disk.qed
    else
      start_nbdkit -v -D "qed.$trace=1" qed disk.qed
    fi
    qemu_io "$uri" "write -P 1 1M 4k"
    stop_nbdkit
    # What nbdkit itself says is not always the same.
    run grep -c "$io" "$log"
    assert_output "$([ $trace = io ] && echo 1 || echo 0)"
    run grep -c "$meta" "$log"
    assert_output "$([ $trace = meta ] && echo 1 || echo 0)"
  done
}

@test "-r serves read-only and changes nothing" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 64k"
  local before
  before=$(hash_of disk.qed)
  start_nbdkit -r qed disk.qed
  assert_equal "$(export_info is_read_only)" true
  run qemu_io "$uri" "write 0 4k"
  assert_failure
  run nbdsh -u "$uri" -c 'h.set_strict_mode(0)' -c 'h.pwrite(b"x", 0)'
  assert_failure
  assert_output --partial "Operation not permitted"
  qemu_io "$uri" "read -P 1 0 64k"
  stop_nbdkit
  assert_equal "$(hash_of disk.qed)" "$before"
}

@test "an option's argument that looks like -r makes nothing read-only" {
  local options=(-e -r)
  create 4M
  if nbdkit --long-options | grep -qx -- --name; then
    options+=(--name -r --timeout 60)
  fi
  start_nbdkit "${options[@]}" qed disk.qed
  assert_equal "$(export_info is_read_only)" false
  qemu_io "$uri" "write -P 1 0 4k"
}

@test "the export tells what it can do" {
  create 4M
  start_nbdkit qed disk.qed
  assert_equal "$(export_info is_read_only)" false
  assert_equal "$(export_info can_multi_conn)" true
  assert_equal "$(export_info can_flush)" true
  assert_equal "$(export_info can_fua)" true
  assert_equal "$(export_info can_trim)" true
  assert_equal "$(export_info can_zero)" true
  assert_equal "$(export_info can_fast_zero)" true
  assert_equal "$(export_info can_cache)" true
  assert_equal "$(export_info '"export-size"')" 4194304
  assert_equal "$(export_info 'contexts | index("base:allocation") != null')" \
               true
}

@test "the export says which requests it likes" {
  create 4M
  start_nbdkit qed disk.qed
  assert_equal "$(export_info block_size_minimum)" 1
  assert_equal "$(export_info block_size_preferred)" 65536
  [ "$(export_info block_size_maximum)" -ge 33554432 ]
}

@test "the export has a description that names the image" {
  create 4M
  start_nbdkit qed disk.qed
  run export_info description
  assert_output --partial disk.qed
}

@test "a size that is no multiple of the cluster is served to the byte" {
  create 4195840
  start_nbdkit qed disk.qed
  assert_equal "$(nbdinfo --size "$uri")" 4195840
  nbdsh -u "$uri" -c 'h.pwrite(b"end", 4195837)' \
        -c 'assert h.pread(3, 4195837) == b"end"'
  stop_nbdkit
  assert_clean disk.qed
}

@test "a flush on one connection covers writes of another" {
  create 4M
  start_nbdkit qed disk.qed
  nbdsh -c "
import nbd
g = nbd.NBD()
h.connect_unix('$sock'); g.connect_unix('$sock')
h.pwrite(b'a' * 512, 0)
assert g.pread(512, 0) == b'a' * 512
g.flush()
"
}

@test "a fast zero is fast or refused, and refused without a change" {
  create 4M
  start_nbdkit qed disk.qed
  nbdsh -u "$uri" -c '
import nbd
h.pwrite(b"x" * (1 << 20), 1 << 20)
for count, offset in [(1 << 20, 0), (1 << 20, 1 << 20), (100, 1 << 20),
                      (65536, 3 << 20), (70000, (3 << 20) + 100)]:
    old = h.pread(count, offset)
    try:
        h.zero(count, offset, flags=nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread(count, offset) == bytes(count)
    except nbd.Error as error:
        assert error.errno in ("ENOTSUP", "EOPNOTSUPP"), error
        assert h.pread(count, offset) == old
# Whole clusters that were never written cost an entry each.
h.zero(65536 * 4, 2 << 20, flags=nbd.CMD_FLAG_FAST_ZERO)'
}
