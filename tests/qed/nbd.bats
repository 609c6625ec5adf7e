# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# An image may lie in storage of fixed size: an NBD export or a block
# device.

load ../lib/qed-functions

teardown ()
{
  end_servers
  end_devices
  teardown_test
}

model ()
{
  mkdir model
  run "$python" "$tests/model.py" "$1" "$tmp/model"
  assert_success
}

@test "an image on an NBD export behaves like plain bytes" {
  model nbd
}

@test "an image on an NBD export of aligned requests does the same" {
  model nbd-aligned
}

@test "an image on a block device behaves like plain bytes" {
  model block
}

# In storage that cannot zero every range fast, fast zeroes of any alignment
# are done or refused as a whole.
all_or_nothing ()
{
  qed-img create "$1" 16M
  start_nbdkit qed "$1"
  run nbdsh -u "$uri" -c '
import nbd
# Neighbours on the disk are to be apart in the file.
for at in range((1 << 20) - 65536, -1, -65536):
    h.pwrite(b"x" * 65536, at)
for offset, count in [(0, 262144), (100, 262144), (65536, 200000),
                      (65000, 300000), (131072, 512), (131073, 511),
                      (65636, 131072), (65536, 131172)]:
    h.pwrite(b"x" * (1 << 20), 0)
    try:
        h.zero(count, offset, flags=nbd.CMD_FLAG_FAST_ZERO)
        wanted = b"x" * offset + bytes(count)
    except nbd.Error as error:
        assert error.errno in ("ENOTSUP", "EOPNOTSUPP"), error
        wanted = b""
    wanted += b"x" * ((1 << 20) - len(wanted))
    assert h.pread(1 << 20, 0) == wanted, (offset, count)'
  assert_success
  stop_nbdkit
}

@test "a refused fast zero changes nothing on a block device" {
  truncate -s 64M storage
  all_or_nothing "$(losetup -f --show "$tmp/storage")"
}

@test "a refused fast zero changes nothing on an NBD export" {
  start_nbdkit memory 64M
  all_or_nothing "$uri"
  # One without fast zeroes.
  start_nbdkit --filter=fua --filter=nozero memory 64M zeromode=emulate
  all_or_nothing "$uri"
  # One that takes aligned requests only.
  start_nbdkit --filter=blocksize-policy memory 64M \
               blocksize-minimum=4096 blocksize-error-policy=error
  all_or_nothing "$uri"
}

@test "QEMU reads an image on an NBD export that we have written" {
  start_nbdkit memory 64M
  local storage_sock=$sock storage_uri=$uri
  qed-img create "$storage_uri" 32M
  start_nbdkit qed "$storage_uri"
  qemu_io "$uri" "write -P 1 100k 3M" "write -z 1M 512k" "write -P 2 20M 1M"
  nbdcopy "$uri" served.raw
  stop_nbdkit
  qemu-img convert -O raw --image-opts \
           "driver=qed,file.driver=nbd,file.path=$storage_sock" qemu.raw
  assert_same qemu.raw served.raw
  qemu_io qemu.raw "read -P 0 0 100k" "read -P 1 100k 924k" \
          "read -P 0 1M 512k" "read -P 1 1536k 1636k" "read -P 2 20M 1M"
}

@test "we read an image on an NBD export that QEMU has written" {
  create 32M
  qemu_io_qed disk.qed "write -P 1 100k 3M" "write -P 2 20M 1M"
  truncate -s 64M disk.qed
  qemu-img convert -f qed -O raw disk.qed qemu.raw
  start_nbdkit file disk.qed
  start_nbdkit qed "$uri"
  nbdcopy "$uri" served.raw
  assert_same qemu.raw served.raw
  # The next cluster goes behind the last one, not over it and not behind
  # the end.
  qemu_io "$uri" "write -P 3 25M 1M" "read -P 1 100k 3M" "read -P 2 20M 1M"
  stop_nbdkit
  qemu_io_qed disk.qed "read -P 3 25M 1M" "read -P 1 100k 3M" \
              "read -P 2 20M 1M"
}

@test "an image on a read-only NBD export is read and not written" {
  create 32M
  qemu_io_qed disk.qed "write -P 1 100k 3M"
  start_nbdkit -r file disk.qed
  local storage_uri=$uri
  start_nbdkit -r qed "$storage_uri"
  qemu_io "$uri" "read -P 1 100k 3M"
}

@test "an image on a read-only block device is read and not written" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 100k 3M"
  local device
  device=$(losetup -r -f --show "$tmp/disk.qed")
  refused "Could not open '$device': the block device is read-only" -- \
          "$device"
  run -1 qed-img check -r all "$device"
  assert_output --partial "is read-only"
  run -1 qed-img create "$device" 1M
  assert_output --partial "is read-only"
  start_nbdkit -r qed "$device"
  qemu_io "$uri" "read -P 1 100k 3M"
}

@test "a flush of the export that failed is not followed by one that succeeds" {
  # Storage that drops what it could not write, as a kernel does.
  qed-img create -o cluster_size=4096,table_size=2 storage 4M
  truncate -s 8M storage
  start_nbdkit eval get_size="stat -c %s '$tmp/storage'" \
    can_write="exit 0" can_flush="exit 0" \
    pread="dd if='$tmp/storage' skip=\$4 count=\$3 iflag=skip_bytes,count_bytes \
status=none" \
    pwrite="dd of='$tmp/storage' seek=\$4 oflag=seek_bytes conv=notrunc \
status=none" \
    flush="if [ -e '$tmp/fail' ]; then rm '$tmp/fail'; echo EIO >&2; exit 1; \
fi"
  start_nbdkit qed "$uri"
  run -0 nbdsh -u "$uri" -c '
h.pwrite(b"A" * 4096, 0)
open("fail", "w").close()
for i in range(3):
    try:
        h.flush()
    except nbd.Error as e:
        assert e.errno == "EIO", e
    else:
        assert False, "a flush succeeded"
import os
assert not os.path.exists("fail")
assert h.pread(4096, 0) == b"A" * 4096'
  run cat "$log"
  assert_output --partial "an earlier flush failed"
}

# Storage that does one write, at the offset that the file "lies" names, and
# says that it failed.
start_liar ()
{
  truncate -s 8M storage
  start_nbdkit eval get_size="stat -c %s '$tmp/storage'" \
    can_write="exit 0" can_flush="exit 0" flush="exit 0" \
    pread="dd if='$tmp/storage' skip=\$4 count=\$3 iflag=skip_bytes,count_bytes \
status=none" \
    pwrite="dd of='$tmp/storage' seek=\$4 oflag=seek_bytes conv=notrunc \
status=none; if [ \"\$(cat '$tmp/lies')\" = \"\$4\" ]; then : >'$tmp/lies'; \
echo EIO >&2; exit 1; fi"
}

# lie COMMAND OPTION...: a write whose L2 entry reaches the storage fails; then
# COMMAND makes the same place read as zeroes, with success.
lie ()
{
  local command=$1
  shift
  rm -f storage
  qed-img create -q -o cluster_size=4096,table_size=2 storage 4M
  : >lies
  start_liar
  local storage_uri=$uri
  start_nbdkit qed "$storage_uri" "$@"
  run -0 nbdsh -u "$uri" -c "
import struct
h.pwrite(b'A' * 4096, 0)
f = open('storage', 'rb')
f.seek(40)
f.seek(*struct.unpack('<Q', f.read(8)))
open('lies', 'w').write(str(*struct.unpack('<Q', f.read(8))))
try:
    h.pwrite(b'B' * 4096, 8192)
except nbd.Error as e:
    assert e.errno == 'EIO', e
else:
    assert False, 'the write succeeded'
assert open('lies').read() == ''
$command
h.flush()
assert h.pread(4096, 8192) == bytes(4096)"
  # Also for whoever opens it next, and for QEMU.
  stop_nbdkit
  start_nbdkit qed "$storage_uri"
  qemu_io "$uri" 'read -P 0x41 0 4096' 'read -P 0 4096 1M'
  stop_nbdkit
  qemu-io -r -f qed -c 'read -P 0 4096 1M' "$storage_uri" >qemu.out
  run -1 grep -i 'verification failed' qemu.out
}

@test "data of a write that failed do not come back after zeroes" {
  lie 'h.zero(4096, 8192)'
  lie 'h.pwrite(bytes(4096), 8192)' detect-zeroes=on
  lie 'h.pwrite(bytes(4096), 8192)' detect-zeroes=unmap
}

@test "an NBD server that dies costs errors, not the server and no hang" {
  # storage_pid is killed while requests are in flight.
  truncate -s 64M storage
  start_nbdkit --filter=delay file storage delay-write=100ms
  local storage_pid=$pid storage_uri=$uri
  qed-img create "$storage_uri" 32M
  start_nbdkit qed "$storage_uri"
  local qed_pid=$pid
  run "$python" - "$sock" "$storage_pid" "$lib" <<'EOF'
import os, signal, sys
sys.path.insert(0, sys.argv[3])
import nbd
from qed_server import Pipeline, Request
handle = nbd.NBD()
handle.connect_unix(sys.argv[1])
handle.pwrite(b"1" * 4096, 0)
pipeline = Pipeline([handle])
requests = [Request("write", at << 20, 65536, b"2" * 65536)
            for at in range(1, 20)]
for request in requests:
    pipeline.send(request, 0)
os.kill(int(sys.argv[2]), signal.SIGKILL)
while pipeline.in_flight():
    pipeline.wait(30)
for request in [Request("write", 5 << 20, 4096, b"3" * 4096),
                Request("flush", 0, 0), Request("read", 0, 4096)]:
    pipeline.run([request])
    requests.append(request)
failed = [r for r in requests if r.error is not None]
wrong = [str(r) for r in failed if r.error.errno == "ENOTCONN"]
assert requests[-1] in failed and requests[-2] in failed, "flush and read"
assert not wrong, wrong
print(len(failed), "failed")
EOF
  assert_success
  kill -0 "$qed_pid"
  run cat "$log"
  assert_output --partial "$storage_uri"
  # It ends, whatever its exit status is.
  kill -TERM "$qed_pid"
  wait_until 30 process_ended "$qed_pid"
}

@test "an NBD server that is not there is refused and named" {
  refused "gone.sock" -- "nbd+unix:///?socket=$tmp/gone.sock"
}

@test "a full NBD export gives ENOSPC, and keeps what was acknowledged" {
  start_nbdkit memory 4M
  local storage_uri=$uri
  qed-img create "$storage_uri" 16M
  start_nbdkit qed "$storage_uri"
  mkdir in
  cd in
  run "$python" "$tests/full-disk.py" fill "$sock" acknowledged
  assert_success
  run "$python" "$tests/full-disk.py" verify "$sock" acknowledged
  assert_success
  stop_nbdkit
  start_nbdkit qed "$storage_uri"
  run "$python" "$tests/full-disk.py" verify "$sock" acknowledged
  assert_success
  stop_nbdkit
  nbdcopy "$storage_uri" copy.qed
  assert_not_corrupt copy.qed
}

@test "a chain may mix files and NBD exports" {
  head -c 8M /dev/urandom >base.raw
  start_nbdkit -r file base.raw
  local base_uri=$uri
  start_nbdkit memory 32M
  local storage_uri=$uri
  qed-img create -u -b "$base_uri" -F raw "$storage_uri" 8M
  create 8M -u -b "$storage_uri" -F qed
  start_nbdkit qed "$storage_uri"
  qemu_io "$uri" "write -P 4 1M 64k"
  stop_nbdkit
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -P 5 2M 64k"
  nbdcopy "$uri" served.raw
  qemu_io base.raw "write -P 4 1M 64k" "write -P 5 2M 64k"
  assert_same base.raw served.raw
}

# start_storage [OPTION...]: serve base.raw at ./storage.sock.
start_storage ()
{
  rm -f storage.sock storage.pid
  nbdkit -f -r -U storage.sock -P storage.pid "$@" file base.raw \
         </dev/null 3>&- &
  storage_pid=$!
  remember "$storage_pid"
  wait_until 120 test -s storage.pid
}

# comes_back PARAMETER...: what a server in the background was told about
# storage.sock is still right when that has ended and was started again.
comes_back ()
{
  start_daemon qed disk.qed "$@"
  qemu_io "$uri" "read -P 4 1M 64k"
  # It would wait for its clients if it were asked to end.
  kill -KILL "$storage_pid"
  run -1 qemu_io "$uri" "read -P 4 1M 64k"
  start_storage "${options[@]}"
  wait_until 30 qemu_io "$uri" "read -P 4 1M 64k"
  # A daemon is no child, so it has no exit status.
  stop_nbdkit || true
}

# In the background the current directory is another one.
@test "relative paths in a URI hold in the background, too" {
  local storage_pid options=()
  truncate -s 8M base.raw
  qemu_io base.raw "write -P 4 1M 64k"
  mkdir 'a b&c'
  cd 'a b&c'
  cp ../base.raw .
  start_storage
  create 8M -b "nbd+unix:///?socket=storage.sock" -F raw
  comes_back
  end_process "$storage_pid"

  (printf guest: && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n') >keys
  options=(--tls=require --tls-psk=keys)
  start_storage "${options[@]}"
  comes_back \
    backing='nbds+unix://guest@/?tls-psk-file=keys&socket=storage.sock'
}

@test "a URI with a key file is for the command line, not for a header" {
  (printf guest: && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n') >keys
  truncate -s 16M storage.img
  start_nbdkit --tls=require --tls-psk="$tmp/keys" file storage.img
  local tls="nbds+unix://guest@/?socket=$sock&tls-psk-file=$tmp/keys" format
  qed-img create "$tls" 4M
  start_nbdkit qed "$tls"
  qemu_io "$uri" "write -P 7 0 1M"
  stop_nbdkit
  run -0 qed-img check "$tls"

  for format in '' '-F qed' '-F raw'; do
    # shellcheck disable=SC2086
    run -1 qed-img create -b "$tls" $format disk.qed 4M
    assert_output --partial "not allowed"
    assert_not_exists disk.qed
  done
  qed-img create -u -b "$tls" disk.qed 4M
  refused "not allowed" -- disk.qed
  run -1 qed-img info --backing-chain disk.qed
  start_nbdkit qed disk.qed backing="$tls"
  qemu_io "$uri" "read -P 7 0 1M" "read -P 0 1M 3M"
}

# Older ones pass over what they do not know.
@test "a URI of the command line may say which TLS it takes, with libnbd 1.24" {
  local tls refusals=0
  if pkg-config --atleast-version=1.24 libnbd; then refusals=1; fi
  (printf guest: && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n') >keys
  truncate -s 16M storage.img
  start_nbdkit --tls=require --tls-psk="$tmp/keys" file storage.img
  tls="nbds+unix://guest@/?socket=$sock&tls-psk-file=$tmp/keys&tls-priority="
  qed-img create "${tls}NORMAL%3A%2BECDHE-PSK%3A%2BDHE-PSK%3A%2BPSK" 4M
  run -$refusals qed-img check "${tls}NONSENSE"
  # Who wrote an image does not say how weak it may be.
  run -1 qed-img create -F raw \
      -b "nbds+unix://guest@/?socket=$sock&tls-priority=NORMAL" disk.qed 4M
  if [ $refusals = 1 ]; then assert_output --partial "tls-priority"; fi
}

# storage_fails BACKING-OPTION...: use an image on storage that fails now and then.
storage_fails ()
{
  local storage image=$tmp/storage.img
  truncate -s 64M "$image"
  start_nbdkit --filter=error file "$image" error=EIO \
    error-pwrite-rate=10% error-zero-rate=10% error-file="$tmp/trigger"
  storage=$uri
  qed-img create -q "$@" "$storage" 8M
  start_nbdkit qed "$storage"
  run "$python" "$tests/errors.py" "$uri" "$tmp/trigger"
  assert_success
  stop_nbdkit
  run qed-img check "$storage"
  assert_success
  run qemu-img check -f qed "$image"
  assert [ "$status" -eq 0 -o "$status" -eq 3 ]
}

@test "storage that fails now and then costs the requests that met it" {
  storage_fails
}

@test "storage that fails under an image with a backing file does the same" {
  head -c 8M /dev/zero | tr '\0' '\273' >base.raw
  storage_fails -b "$tmp/base.raw" -F raw
}
