# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The blklogwrites filter: what is in the log, and when, and what happens
# when something fails.  The judge of a log is tests/lib/writelog_format.py.

load ../lib/functions


teardown ()
{
  end_servers
  end_devices
  if [ -d "$tmp/small" ]; then
    umount "$tmp/small" || true
  fi
  teardown_test
}

# clients WHAT...: tests/blklogwrites.py
clients ()
{
  run "$python" "$tests/blklogwrites.py" "$@"
  assert_success
}

# client URI CODE: Python with a connection h.
client ()
{
  run nbdsh -u "$1" -c "$2"
  assert_success
}

# The log's entries, one a line: sector, sectors, flags.
entries ()
{
  "$python" -c '
import sys, writelog_format as wf
for e in wf.read_log(sys.argv[1])[1]:
    print(e.sector, e.nr, e.flags, (e.mark or b"").decode())' "${1:-log}" |
    sed 's/ *$//'
}

nr_entries ()
{
  entries "$@" | wc -l
}

# replays_to BASE DISK [LOG]: base plus log is the disk, byte for byte.
replays_to ()
{
  run "$python" -c '
import sys, writelog_format as wf
base, disk, log = sys.argv[1:]
replayed = bytearray(wf.load(base))
top, entries = wf.read_log(log)
wf.replay(entries, replayed, top.sector_size)
sys.exit(replayed != wf.load(disk))' "$1" "$2" "${3:-log}"
  assert_success
  # Our own tools agree.
  run logwrites verify "${3:-log}" "$2" --base "$1"
  assert_success
}

# refused EXPRESSION [ARGUMENT...]: the server must not start.
refused ()
{
  local expression=$1
  shift
  run timeout -k 5 30 nbdkit -U - --filter=blklogwrites "$@" --run true
  assert_failure 1
  assert_output --regexp "$expression"
}

# What the tests have said about a log's failure.
nr_failures ()
{
  grep -c "nothing more can be logged" "$log"
}

@test "random requests: base plus log is the disk (sectors of 512 bytes)" {
  clients random 512
}

@test "random requests: base plus log is the disk (sectors of 4096 bytes)" {
  clients random 4096
}

@test "random requests: base plus log is the disk (sectors of 65536 bytes)" {
  clients random 65536
}

@test "random requests: base plus log is the disk (sectors of 32 bytes)" {
  clients random 32
}

@test "random requests in the order of durability: base plus log is the disk" {
  clients random 512 log-order=durability
  clients random 4096 log-order=durability
}

@test "a log that is copied while it is written has whole entries only" {
  clients copies
}

@test "after kill -9 the log holds what was flushed, and can be continued" {
  clients killed
}

@test "what is held back does not fill memory, and comes back from a file" {
  clients held
}

@test "many small held writes take bounded memory" {
  clients many
}

@test "a log on an NBD export replays too" {
  truncate -s 1M disk base
  start_nbdkit memory 8M
  local log_uri=$uri
  start_nbdkit --filter=blklogwrites file disk "log=$log_uri" \
               log-sector-size=4096
  client "$uri" '
for i in range(50):
    h.pwrite(bytes([i + 1]) * 3000, i * 5000)
h.zero(100000, 50000)
h.trim(70000, 3000)
h.flush()'
  stop_nbdkit
  nbdcopy "$log_uri" log
  [ "$(nr_entries)" -ge 53 ]
  replays_to base disk
}

@test "a log on a block device replays too, and is started anew" {
  truncate -s 1M disk base
  truncate -s 8M storage
  local device
  device=$(losetup -f --show "$tmp/storage")
  # What was there before must not show through.
  head -c 7M /dev/urandom | dd of="$device" seek=1 bs=64k status=none
  local i
  for i in 1 2; do
    start_nbdkit --filter=blklogwrites file disk "log=$device"
    client "$uri" '
h.pwrite(b"a" * 300000, 1000)
h.zero(200000, 50000)
h.trim(100000, 3000)
h.flush()'
    stop_nbdkit || true
    head -c 8M "$device" >log
    run replays_to base disk
    if [ "$i" -eq 2 ]; then losetup -d "$device"; fi
    assert_success
    [ "$(nr_entries)" -le 5 ]
    truncate -s 0 disk
    truncate -s 1M disk
  done
}

@test "a log on an NBD server with large blocks replays too" {
  truncate -s 1M disk base
  start_nbdkit --filter=blocksize-policy memory 8M \
               blocksize-minimum=4096 blocksize-error-policy=error
  local log_uri=$uri
  start_nbdkit --filter=blklogwrites file disk "log=$log_uri"
  client "$uri" '
for i in range(50):
    h.pwrite(bytes([i + 1]) * 3000, i * 5000)'
  stop_nbdkit
  nbdcopy "$log_uri" log
  replays_to base disk
}

@test "the order of durability is the kernel's" {
  # Requests on sectors 3 and on a flush wait until the test lets them go.
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites eval thread_model='echo parallel' \
    get_size="echo 1M" can_write='exit 0' can_flush='exit 0' \
    can_fua='echo native' \
    pwrite="cat >/dev/null
            if [ \$4 -eq 1536 ]; then
              touch $tmp/w3
              while ! [ -e $tmp/go3 ]; do sleep 0.02; done
            fi" \
    flush="touch $tmp/flushing
           while ! [ -e $tmp/go ]; do sleep 0.02; done" \
    pread="head -c \$3 /dev/zero" \
    log=log log-order=durability
  client "$uri" "
import os, time
def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.02)
def finish(cookie):
    while not h.aio_command_completed(cookie):
        h.poll(-1)
h.pwrite(b'1' * 512, 512)
h.pwrite(b'2' * 512, 1024, nbd.CMD_FLAG_FUA)
w3 = h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'3' * 512)), 1536)
wait_for('w3')
flush = h.aio_flush()
wait_for('flushing')
open('go3', 'w').close()
finish(w3)
open('go', 'w').close()
finish(flush)"
  run entries
  assert_output "2 1 2
1 1 0
0 0 1"
  stop_nbdkit
  run entries
  assert_output "2 1 2
1 1 0
0 0 1
3 1 0"
}

@test "a FUA write takes its sectors out of what is held" {
  truncate -s 1M disk base
  start_nbdkit --filter=blklogwrites file disk log=log log-order=durability
  client "$uri" '
h.pwrite(b"a" * 4096, 0)
h.zero(2048, 1024, nbd.CMD_FLAG_NO_HOLE)
h.trim(2048, 8192)
h.pwrite(b"f" * 512, 1536, nbd.CMD_FLAG_FUA)
h.pwrite(b"g" * 512, 8704, nbd.CMD_FLAG_FUA)
h.pwrite(b"b" * 512, 1536)'
  stop_nbdkit
  run entries
  assert_output "3 1 2
17 1 2
0 3 0
4 4 0
2 1 0
4 2 0
16 1 4
18 2 4
3 1 0"
  replays_to base disk
}

@test "FUA is a flag of the entry, a flush an entry without data" {
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites file disk log=log
  client "$uri" '
h.pwrite(b"a" * 1024, 512)
h.pwrite(b"a" * 1024, 1024, nbd.CMD_FLAG_FUA)
h.zero(512, 0, nbd.CMD_FLAG_FUA)
h.trim(512, 512, nbd.CMD_FLAG_FUA)
h.flush()
h.pread(512, 0)'
  run entries
  assert_output "1 2 0
2 2 2
0 1 2
1 1 6
0 0 1"
}

@test "trims that leave data behind are not logged as discards" {
  qemu-img create -q -f qed disk.qed 1M
  truncate -s 1M base
  start_nbdkit --filter=blklogwrites qed disk.qed trim=ignore log=log
  client "$uri" '
h.pwrite(b"a" * 300000, 1000)
h.trim(200000, 10000)
h.trim(20000, 500000)'
  nbdcopy "$uri" disk.raw
  stop_nbdkit
  entries | grep "977 38 4"
  replays_to base disk.raw
}

@test "the same on a disk without block status" {
  qemu-img create -q -f qed disk.qed 1M
  truncate -s 1M base
  start_nbdkit --filter=blklogwrites --filter=noextents qed disk.qed \
               trim=ignore log=log log-sector-size=4096
  client "$uri" '
h.pwrite(b"a" * 300000, 1000)
h.trim(200000, 10000)
h.trim(20000, 500000)'
  nbdcopy "$uri" disk.raw
  stop_nbdkit
  replays_to base disk.raw
}

@test "the same on a disk whose block status fails" {
  head -c 1M /dev/urandom >disk
  cp disk base
  start_nbdkit --filter=blklogwrites --filter=error file disk log=log \
    error-extents-rate=100%
  client "$uri" '
h.trim(300000, 1000)
h.pwrite(b"a" * 5000, 5000)'
  stop_nbdkit
  replays_to base disk
}

@test "a write that fails half-way on the disk is logged as it is" {
  truncate -s 1M disk base
  start_nbdkit --filter=blklogwrites eval get_size="echo 1M" \
    can_write='exit 0' can_flush='exit 0' flush='exit 0' \
    pwrite="if [ \$4 -eq 4096 ]; then
              dd of=$tmp/disk bs=1 seek=\$4 count=700 conv=notrunc status=none
              echo EIO half a write >&2; exit 1
            else
              dd of=$tmp/disk bs=1 seek=\$4 conv=notrunc status=none
            fi" \
    pread="dd if=$tmp/disk skip=\$4 count=\$3 \
              iflag=count_bytes,skip_bytes status=none" log=log
  client "$uri" '
h.pwrite(b"a" * 1024, 0)
try:
    h.pwrite(b"b" * 2048, 4096)
    assert False
except nbd.Error as e:
    assert e.errno == "EIO", e
h.pwrite(b"c" * 1024, 8192)'
  stop_nbdkit
  replays_to base disk
  # Nothing is wrong with the log.
  run nr_failures
  assert_output 0
}

# A trim is done, and what it has left cannot be read until the file goes.
trim_unreadable ()
{
  head -c 1M /dev/urandom >disk
  cp disk base
  touch fail
  start_nbdkit --filter=blklogwrites --filter=error file disk log=log \
    error-pread-rate=100% error-pread-file="$tmp/fail" "$@"
  client "$uri" '
import os
try:
    h.trim(65536, 4096)
    assert False
except nbd.Error as e:
    assert e.errno == "EIO", e
h.flush()
os.unlink("fail")
'"$then"
  run cat "$log"
  assert_output --partial "the log lacks what a request has left on the disk \
at offset 4096, count 65536"
  stop_nbdkit
  replays_to base disk
}

@test "what a request left on a disk that cannot be read is logged later" {
  then='h.flush()' trim_unreadable
  then='h.pwrite(b"a" * 512, 0)' trim_unreadable log-order=durability
  then='h.pwrite(b"a" * 512, 8192)' trim_unreadable
}

@test "the client gets the error that the disk gave" {
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites --filter=error file disk log=log \
    error=ENOSPC error-rate=100% error-file="$tmp/fail"
  touch fail
  client "$uri" '
def refused(what, *args, **kw):
    try:
        what(*args, **kw)
    except nbd.Error as e:
        assert e.errno == "ENOSPC", e
    else:
        assert False
refused(h.pwrite, b"a" * 512, 0)
refused(h.pwrite, b"a" * 10, 100)
refused(h.zero, 512, 0)
refused(h.trim, 512, 0)'
}

@test "a flush of the disk that failed is not followed by one that succeeds" {
  start_nbdkit --filter=blklogwrites eval log=log get_size="echo 1M" \
    can_write="exit 0" can_flush="exit 0" pwrite="cat >/dev/null" \
    pread="dd if=/dev/zero count=\$3 iflag=count_bytes status=none" \
    flush="if [ -e '$tmp/fail' ]; then rm '$tmp/fail'; echo EIO >&2; exit 1; \
fi"
  touch fail
  client "$uri" '
h.pwrite(b"a" * 512, 0)
for i in range(2):
    try:
        h.flush()
    except nbd.Error as e:
        assert e.errno == "EIO", e
    else:
        assert False'
  # Another connection is told the same.
  for ((i = 0; i < 2; i++)); do
    run nbdsh -u "$uri" -c 'h.flush()'
    assert_failure
    assert_output --partial "Input/output error"
  done
  stop_nbdkit
  run -0 logwrites list --flags=flush log
  assert_output ""
}

@test "a fast zero that would be slow is refused as such, and not logged" {
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites --filter=nozero file disk log=log \
    zeromode=plugin fastzeromode=slow
  client "$uri" '
assert h.can_fast_zero()
try:
    h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert False
except nbd.Error as e:
    assert e.errno in ("ENOTSUP", "EOPNOTSUPP"), e
h.zero(4096, 0)'
  stop_nbdkit
  run entries
  assert_output "0 8 0"
}

@test "a long write that is held makes several entries" {
  truncate -s 32M disk base
  start_nbdkit --filter=blklogwrites file disk log=log log-order=durability
  client "$uri" '
import random
h.pwrite(random.Random(1).randbytes(9 << 20), 700)
h.pwrite(random.Random(2).randbytes(9 << 20), 16 << 20, nbd.CMD_FLAG_FUA)
h.flush()'
  stop_nbdkit
  run entries
  assert_output "32768 18432 2
1 8192 0
8193 8192 0
16385 2049 0
0 0 1"
  replays_to base disk
}

# Write until the log is full, then see what is left.
fill_log ()
{
  client "$uri" '
n = 0
try:
    while n < 4000:
        h.pwrite(bytes([n % 255 + 1]) * 4096, n % 200 * 4096)
        n += 1
    assert False, "it is never full"
except nbd.Error as e:
    assert e.errno == "ENOSPC", e
open("acknowledged", "w").write(str(n))
before = h.pread(512, 4096)
for request in (lambda: h.pwrite(b"x" * 512, 4096),
                lambda: h.zero(512, 4096), lambda: h.trim(512, 4096),
                lambda: h.flush()):
    try:
        request()
        assert False, "nothing may succeed"
    except nbd.Error as e:
        assert e.errno == "ENOSPC", e
assert h.pread(512, 4096) == before'
  run nr_failures
  assert_output 1
  # A mark would name a state without the write that failed.
  run blkctl control log-mark name=after
  assert_failure 1
  assert_output --partial "No space left"
  # The flush has failed, but what could be saved is counted.
  kill -KILL "$pid"
  wait_until 60 process_ended "$pid"
}

@test "a log that is full is whole up to there, and reads go on" {
  truncate -s 1M disk
  start_nbdkit memory 1M
  local log_uri=$uri memory=$pid
  start_nbdkit --filter=blklogwrites file disk "log=$log_uri" \
               log-control=control
  fill_log
  nbdcopy "$log_uri" log
  stop_nbdkit "$memory"
  [ "$(nr_entries)" -eq "$(cat acknowledged)" ]
  run cat "$log"
  assert_output --regexp \
    "entry $(cat acknowledged) at offset [0-9]+ does not fit: the log is full"

  # On a file system that fills up.
  mkdir small
  mount -t tmpfs -o size=1m tmpfs small
  start_nbdkit --filter=blklogwrites file disk log=small/log \
               log-control=control
  fill_log
  [ "$(nr_entries small/log)" -eq "$(cat acknowledged)" ]
}

@test "a mark is refused after a write was, in the order of durability" {
  truncate -s 1M disk
  start_nbdkit memory 1M
  start_nbdkit --filter=blklogwrites file disk "log=$uri" \
               log-order=durability log-control=control
  client "$uri" '
n = 0
try:
    while n < 4000:
        h.pwrite(bytes([n % 255 + 1]) * 4096, n % 200 * 4096)
        n += 1
    assert False, "it is never full"
except nbd.Error as e:
    assert e.errno == "ENOSPC", e'
  run blkctl control log-mark name=after
  assert_failure 1
  assert_output --partial "No space left"
}

@test "a log server that stands still: the status is told, and the end comes" {
  truncate -s 1M disk
  start_nbdkit memory 1M
  local log_uri=$uri log_pid=$pid
  start_nbdkit --filter=blklogwrites file disk "log=$log_uri" \
               log-control=control -D blklogwrites.patience=1
  client "$uri" 'h.pwrite(b"a" * 1024, 0)'
  kill -STOP "$log_pid"
  nbdsh -u "$uri" -c 'h.pwrite(b"b" * 1024, 0)' 2>/dev/null 3>&- &
  remember $!
  blkctl control log-mark name=never >mark.out 2>&1 3>&- &
  remember $!
  # While these wait, this does not.
  run timeout 20 blkctl control query-log
  assert_success
  assert_output --partial '"entries": 1'
  kill -TERM "$pid"
  wait_until 60 process_ended "$pid"
  kill -CONT "$log_pid"
  run cat "$log"
  assert_output --partial "its server is cut off"
}

@test "a trim is one of whole sectors, and what reads as zeroes a discard" {
  truncate -s 1M disk base
  start_nbdkit --filter=blklogwrites --filter=noextents file disk log=log
  client "$uri" '
h.pwrite(b"a" * 65536, 0)
h.pwrite(b"b" * 65536, 0, nbd.CMD_FLAG_FUA)
h.trim(1000, 100)
h.trim(400, 600)
h.trim(10000, 10000)'
  stop_nbdkit
  run entries
  assert_output "0 128 0
0 128 2
1 1 4
20 19 4"
  replays_to base disk

  # The disk gives back a part of what it was asked for.
  truncate -s 1M disk2
  rm log
  start_nbdkit --filter=blklogwrites eval get_size="echo 1M" \
    can_write='exit 0' can_trim='exit 0' can_flush='exit 0' flush='exit 0' \
    pwrite="dd of=$tmp/disk2 bs=1 seek=\$4 conv=notrunc status=none" \
    trim="head -c 4096 /dev/zero |
          dd of=$tmp/disk2 bs=1 seek=12288 conv=notrunc status=none" \
    pread="dd if=$tmp/disk2 skip=\$4 count=\$3 \
              iflag=count_bytes,skip_bytes status=none" log=log
  client "$uri" '
h.pwrite(b"a" * 32768, 0)
h.trim(16384, 4096)'
  stop_nbdkit
  run entries
  assert_output "0 64 0
8 16 0
24 8 4
32 8 0"
  replays_to base disk2
}

@test "a size that is none names its parameter" {
  refused "log-sector-size=junk" memory 1M log=log log-sector-size=junk
  refused "log-append=junk" memory 1M log=log log-append=junk
  refused "log-super-update-interval" memory 1M log=log \
          log-super-update-interval=junk
}

@test "the log knows how large the disk is, and is continued by no other one" {
  noted () { "$python" -c '
import struct, sys
log = open("log", "rb").read(512)
print(log[256:264].decode(), *struct.unpack("<Q", log[264:272]))
assert not any(log[28:256]) and not any(log[416:])'; }

  truncate -s 1000001 disk
  truncate -s 2M disk2
  start_nbdkit --filter=blklogwrites file disk log=log
  client "$uri" 'h.pwrite(b"a" * 1024, 0)'
  stop_nbdkit
  run noted
  assert_output "nbdkitwl 1000001"

  start_nbdkit --filter=blklogwrites file disk2 log=log log-append=true
  run nbdinfo "$uri"
  assert_failure
  run cat "$log"
  assert_output --partial "log of another disk: it says that the disk has \
1000001 bytes, but this one has 2097152"
  stop_nbdkit
  start_nbdkit --filter=blklogwrites file disk log=log log-append=true
  client "$uri" 'h.pwrite(b"b" * 1024, 0)'
  stop_nbdkit
  [ "$(nr_entries)" -eq 2 ]
  run noted
  assert_output "nbdkitwl 1000001"
}

@test "what is held back fits in the log when it is full" {
  start_nbdkit memory 2M
  clients full "$uri"
  # Held from the start on, with larger sectors.
  start_nbdkit memory 600K
  clients full "$uri" log-sector-size=4096

  # On a file system that fills up.
  mkdir small
  mount -t tmpfs -o size=2m tmpfs small
  clients full small/log
  [ "$(stat -c %s small/log)" -eq "$(logwrites info --output=json small/log |
                                     jq .bytes)" ]
}

@test "held zeroes fit in a full log, and long ones are a hole in the end" {
  mkdir small
  mount -t tmpfs -o size=4m tmpfs small
  truncate -s 64M disk base
  start_nbdkit --filter=blklogwrites file disk log=small/log \
               log-order=durability
  # There is no space for these zeroes, and none is needed.
  client "$uri" '
h.pwrite(b"a" * 300000, 1000)
h.zero(40 << 20, 5000, nbd.CMD_FLAG_NO_HOLE)
h.pwrite(b"b" * 1000000, 200000)
h.pwrite(b"f" * 512, 60 << 20, nbd.CMD_FLAG_FUA)
h.zero(8 << 20, 45 << 20, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)
h.pwrite(b"c" * 1000000, 30 << 20)
h.flush()'
  stop_nbdkit
  replays_to base disk small/log
  [ "$(du -k small/log | cut -f1)" -lt 3000 ]

  # Where there is plenty they are held like all else.
  truncate -s 0 disk base
  truncate -s 16M disk base
  start_nbdkit --filter=blklogwrites file disk log=log log-order=durability
  client "$uri" '
h.pwrite(b"a" * 4096, 0)
h.zero(8 << 20, 1 << 20, nbd.CMD_FLAG_NO_HOLE)
h.pwrite(b"b" * 4096, 16384)
h.pwrite(b"f" * 512, (2 << 20), nbd.CMD_FLAG_FUA)'
  run entries
  assert_output "4096 1 2"
  client "$uri" 'h.flush()'
  run entries
  assert_output "4096 1 2
0 8 0
2048 2048 0
4097 14335 0
32 8 0
0 0 1"
  stop_nbdkit
  replays_to base disk
  [ "$(du -k log | cut -f1)" -lt 1000 ]
}

@test "the space that a killed server had for held writes does no harm" {
  truncate -s 1M disk base
  start_nbdkit --filter=blklogwrites file disk log=log log-order=durability
  client "$uri" '
h.pwrite(b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
h.pwrite(b"a" * 700000, 8192)
h.pwrite(b"f" * 4096, 4096, nbd.CMD_FLAG_FUA)'
  kill -KILL "$pid"
  wait_until 60 process_ended "$pid"
  # It has been allocated.
  [ "$(du -k log | cut -f1)" -gt 700 ]
  run entries
  assert_output "0 8 2
8 8 2"
  run logwrites info --output=json log
  assert_success
  assert_equal "$(jq -c '[.entries, .fuas]' <<<"$output")" '[2,2]'

  cp disk base
  nbdkit -U - --filter=blklogwrites file disk log=log log-append=true \
         --run 'qemu-io -f raw -c "write -P 3 10k 4k" "$uri"'
  [ "$(stat -c %s log)" -eq "$(logwrites info --output=json log | jq .bytes)" ]
  [ "$(du -k log | cut -f1)" -lt 100 ]
  replays_to base disk
}

@test "held requests for which there is no room end writing" {
  mkdir small
  mount -t tmpfs -o size=2m tmpfs small
  truncate -s 64M disk base
  TMPDIR=$tmp/small start_nbdkit --filter=blklogwrites file disk log=log \
        log-order=durability
  # The first byte that may differ is that of the write that failed.
  client "$uri" '
n = 0
try:
    while n < 60:
        h.pwrite(bytes([n + 1]) * (1 << 20), n << 20)
        n += 1
    assert False, "there is room for all"
except nbd.Error as e:
    assert e.errno == "ENOSPC", e
assert 16 <= n <= 18, n
for request in (lambda: h.pwrite(b"x" * 512, 0, nbd.CMD_FLAG_FUA),
                lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        request()
        assert False, "nothing may succeed"
    except nbd.Error as e:
        assert e.errno == "ENOSPC", e
h.flush()
open("acknowledged", "w").write(str(n))'
  run nr_failures
  assert_output 1
  stop_nbdkit
  [ "$(nr_entries)" -eq $(($(cat acknowledged) + 1)) ]
  truncate -s "$(cat acknowledged)M" disk
  truncate -s 64M disk
  replays_to base disk
}

@test "a log's server that dies ends writing, with one message" {
  truncate -s 1M disk
  truncate -s 8M log
  start_nbdkit file log
  local log_uri=$uri log_pid=$pid
  start_nbdkit --filter=blklogwrites file disk "log=$log_uri"
  client "$uri" '
import os, signal
h.pwrite(b"a" * 512, 0)
h.flush()
h.pwrite(b"b" * 512, 512)
os.kill('"$log_pid"', signal.SIGKILL)
for i in range(3):
    try:
        h.pwrite(b"c" * 512, 1024)
        assert False
    except nbd.Error as e:
        pass
assert h.pread(1, 0) == b"a"'
  run nr_failures
  assert_output 1
  stop_nbdkit || true
  run entries
  assert_output "0 1 0
0 0 1"
}

@test "QEMU continues our log, and we continue QEMU's" {
  truncate -s 1M disk base
  local options=driver=blklogwrites,file.driver=file,file.filename=disk
  options+=,log.driver=file,log.filename=log,log-append=on
  nbdkit -U - --filter=blklogwrites file disk log=log --run \
    'qemu-io -f raw -c "write -P 1 0 4k" -c flush "$uri"'
  qemu-io --image-opts "$options" -c "write -P 2 8k 4k" -c flush
  nbdkit -U - --filter=blklogwrites file disk log=log log-append=true --run \
    'qemu-io -f raw -c "write -P 3 10k 4k" -c "write -z 2k 1k" "$uri"'
  qemu-io --image-opts "$options" -c "write -P 4 20k 4k"
  entries | grep "^40 8 "
  replays_to base disk
}

@test "the kernel's log can be continued" {
  xz -dc "$tests/data/kernel-ext4.log.xz" >log
  local before
  before=$(nr_entries)
  truncate -s 32M disk
  start_nbdkit --filter=blklogwrites file disk log=log log-append=true \
               log-control=control
  [ "$(blkctl control query-log | jq -r '."last-mark"')" = dm-log-writes-end ]
  client "$uri" 'h.pwrite(b"a" * 512, 0)'
  stop_nbdkit
  [ "$(nr_entries)" -eq $((before + 1)) ]
}

@test "marks and status on the control socket" {
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites file disk log=log log-control=control
  status () { blkctl control query-log | jq -cS .; }
  run status
  assert_output '{"bytes":512,"entries":0,"error":null,"last-mark":null,'\
'"sector-size":512,"sectors":1}'
  client "$uri" 'h.pwrite(b"a" * 1024, 0)'
  blkctl control log-mark name=here
  # It is in the log when the command returns.
  run entries
  assert_output "0 2 0
0 0 8 here"
  run status
  assert_output '{"bytes":2560,"entries":2,"error":null,"last-mark":"here",'\
'"sector-size":512,"sectors":5}'
  run blkctl control log-mark name=
  assert_failure 1
  assert_output --partial "empty"
  local name
  name=$(printf 'm%0480d' 1)
  run blkctl control log-mark "name=$name"
  assert_failure 1
  assert_output --partial "at most 480"
  run "$python" "$lib/control-ask.py" control \
      <<<'{"execute": "log-mark", "arguments": {"name": "a\u0000b"}}'
  assert_output --partial '"error"'
  blkctl control log-mark "name=${name%1}"
  [ "$(nr_entries)" -eq 3 ]
}

@test "a control socket can have a short name in a folder with a long one" {
  local folder
  folder=$(printf 'd%0120d' 1)
  mkdir "$folder"
  cd "$folder"
  nbdkit -U "$tmp/socket" -P "$tmp/pid" --filter=blklogwrites memory 1M \
         log=log log-control=control
  remember "$(cat "$tmp/pid")"
  run blkctl control log-mark name=here
  assert_success
  # It is removed at the end, although nbdkit has left the folder.
  kill "$(cat "$tmp/pid")"
  wait_until 30 process_ended "$(cat "$tmp/pid")"
  [ ! -e control ]
  [ "$(entries)" = "0 0 8 here" ]
}

@test "a run without writes leaves a log of no entries" {
  truncate -s 1M disk
  nbdkit -U - --filter=blklogwrites file disk log=log --run true
  [ "$(nr_entries)" -eq 0 ]
  [ "$(stat -c %s log)" -eq 512 ]
  # So does a disk that is read only.
  nbdkit -r -U - --filter=blklogwrites file disk log=log2 \
         log-sector-size=4096 --run 'qemu-io -r -f raw -c "read 0 4k" "$uri"'
  [ "$(nr_entries log2)" -eq 0 ]
  [ "$(stat -c %s log2)" -eq 4096 ]
}

@test "what is zero at its beginning is an empty log, a log is started anew" {
  truncate -s 1M disk
  truncate -s 300 empty
  local log
  for log in empty missing; do
    nbdkit -U - --filter=blklogwrites file disk "log=$log" log-append=true \
           --run 'qemu-io -f raw -c "write 0 4k" "$uri"'
    [ "$(nr_entries "$log")" -ge 1 ]
  done
  nbdkit -U - --filter=blklogwrites file disk log=missing \
         log-sector-size=4096 --run true
  [ "$(nr_entries missing)" -eq 0 ]
  [ "$(stat -c %s missing)" -eq 4096 ]
}

# What a client is told, without the block sizes.
properties ()
{
  nbdkit -U - "$@" --run 'nbdinfo --json --no-content "$uri"' |
    jq '.exports[0] | del (.uri, .block_size_minimum,
                           .block_size_preferred, .block_size_maximum)'
}

@test "all but the preferred block size is as without the filter" {
  truncate -s 1M disk
  local plugin
  for plugin in "file disk" "memory 1M" "--filter=nozero file disk" \
                "--filter=nocache --filter=noextents --filter=fua file disk" \
                "--filter=noparallel memory 1M" "-r file disk"; do
    # shellcheck disable=SC2086
    run diff <(properties $plugin) \
        <(properties --filter=blklogwrites $plugin log=log)
    assert_success
  done
  start_nbdkit --filter=blklogwrites file disk log=log log-sector-size=64k
  client "$uri" '
assert h.get_block_size(nbd.SIZE_PREFERRED) == 65536
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1'
}

@test "a disk that takes no long requests gets none" {
  start_nbdkit --filter=blklogwrites --filter=blocksize-policy memory 1M \
    log=log log-sector-size=64k blocksize-minimum=512 \
    blocksize-preferred=4k blocksize-maximum=8k blocksize-error-policy=error
  client "$uri" '
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 8192
h.pwrite(b"a" * 8192, 512)'
  stop_nbdkit
  run entries
  assert_output "0 1 0"
}

@test "a disk that wants larger blocks than the log has is refused" {
  start_nbdkit --filter=blklogwrites --filter=blocksize-policy memory 1M \
               log=log log-sector-size=512 blocksize-minimum=4096
  run nbdinfo "$uri"
  assert_failure
  run cat "$log"
  assert_output --partial \
    "smaller than the disk's minimum block size of 4096 bytes"
}

# A log of four entries, of which one is a mark.
old_log ()
{
  nbdkit -U - --filter=blklogwrites file disk log=log log-control=control \
    --run 'qemu-io -f raw -c "write 0 4k" -c "write 8k 4k" -c flush "$uri"
           blkctl control log-mark name=old'
  [ "$(nr_entries)" -ge 4 ]
  cp log old
}

# The filter over a disk whose blocks are larger than the log's sectors.
start_large_blocks ()
{
  start_nbdkit --filter=blklogwrites --filter=blocksize-policy memory 1M \
               blocksize-minimum=4096 log=log log-control=control "$@"
}

# queried: entries, sectors and the last mark on the control socket.
queried ()
{
  blkctl control query-log |
    jq -c '[.entries, .sectors, ."sector-size", ."last-mark"]'
}

@test "a run that refuses its connections leaves the old log as it was" {
  truncate -s 1M disk
  old_log
  start_large_blocks
  run nbdinfo "$uri"
  assert_failure
  # The new log has nothing, but the old one is still there.
  [ "$(queried)" = '[0,1,512,null]' ]
  cmp log old
  run nbdinfo "$uri"
  assert_failure
  stop_nbdkit
  cmp log old

  # A mark is wanted: that is the new log's.
  start_large_blocks
  run nbdinfo "$uri"
  assert_failure
  blkctl control log-mark name=new
  run entries
  assert_output "0 0 8 new"
  [ "$(queried)" = '[1,2,512,"new"]' ]
  stop_nbdkit
  run entries
  assert_output "0 0 8 new"
}

@test "a run whose disk is not there leaves the old log as it was" {
  truncate -s 1M disk
  old_log
  start_nbdkit --filter=blklogwrites nbd socket="$tmp/none" log=log
  run nbdinfo "$uri"
  assert_failure
  stop_nbdkit
  cmp log old

  # Or has no size.
  cat >no-size.sh <<'EOF'
#!/bin/sh
case $1 in open) exit 0;; get_size) exit 1;; *) exit 2;; esac
EOF
  chmod +x no-size.sh
  start_nbdkit --filter=blklogwrites sh no-size.sh log=log
  run nbdinfo "$uri"
  assert_failure
  stop_nbdkit
  cmp log old

  # Or has no partitions, which a layer finds after it was opened.
  start_nbdkit --filter=blklogwrites --filter=partition file disk \
               partition=1 log=log
  run nbdinfo "$uri"
  assert_failure
  stop_nbdkit
  cmp log old
}

@test "a start that is refused leaves no new log behind" {
  truncate -s 1M disk
  run -1 nbdkit -U - --filter=blklogwrites file disk log=log \
                log-control=none/control --run true
  [ ! -e log ]
  TMPDIR=$tmp/none run -1 nbdkit -U - --filter=blklogwrites file disk \
                log=log log-order=durability --run true
  [ ! -e log ]
  # A log that is there stays.
  old_log
  run -1 nbdkit -U - --filter=blklogwrites file disk log=log \
                log-control=none/control --run true
  cmp log old
}

@test "the largest disk there is, whose last sector is padded" {
  start_nbdkit --filter=blklogwrites memory $((0x7fffffffffffffff)) log=log
  client "$uri" 'size = h.get_size()
h.pwrite(b"last", size - 4)
h.trim(65536, size - 65536 - 4)'
  stop_nbdkit
  [ "$(nr_entries)" -ge 2 ]
  logwrites info log
  start_nbdkit logreplay log
  client "$uri" 'assert h.get_size() == 2 ** 63 - 1
assert h.pread(6, h.get_size() - 6) == b"\0\0last"'
}

@test "a log is started anew when a connection is accepted, or at the end" {
  truncate -s 1M disk
  old_log
  start_large_blocks log-sector-size=4096
  cmp log old
  [ "$(queried)" = '[0,1,4096,null]' ]
  client "$uri" 'h.pread(4096, 0)'
  [ "$(nr_entries)" -eq 0 ]
  stop_nbdkit
  [ "$(stat -c %s log)" -eq 4096 ]

  cp old log
  start_large_blocks
  stop_nbdkit
  [ "$(nr_entries)" -eq 0 ]
  [ "$(stat -c %s log)" -eq 512 ]

  # Many connections at once start it once.
  cp old log
  start_nbdkit --filter=blklogwrites file disk log=log
  "$python" -c '
import sys, threading, nbd
def run(number):
    h = nbd.NBD()
    h.connect_unix(sys.argv[1])
    h.pwrite(bytes(512), number * 512)
    h.flush()
threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
for t in threads: t.start()
for t in threads: t.join()' "$sock"
  [ "$(entries | grep -c " 1 0")" -eq 16 ]
}

@test "an export other than the recorded one can only be read" {
  mkdir disks
  truncate -s 1M disks/one disks/two
  start_nbdkit --filter=blklogwrites file dir=disks log=log
  "$python" -c '
import sys, nbd
def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(sys.argv[1])
    return h
one, two = connect("one"), connect("two")
one.pwrite(b"1" * 512, 0)
try:
    two.pwrite(b"2" * 512, 0)
    sys.exit("two disks in one log")
except nbd.Error:
    pass
assert connect("two").is_read_only()
connect("one").pwrite(b"1" * 512, 512)' "$sock"
  stop_nbdkit
  [ "$(nr_entries)" -eq 2 ]
}

@test "bad parameters are refused" {
  truncate -s 1M disk
  refused "name of a log is missing" file disk
  refused "cannot be given together" file disk log=log log-append=true \
          log-sector-size=512
  local size
  for size in 16 31 33 1000 16M 0; do
    refused "power of two from 32 to 8388608" file disk log=log \
            log-sector-size=$size
  done
  refused "at least 1" file disk log=log log-super-update-interval=0
  refused "completion or durability" file disk log=log log-order=random
  refused "log was given twice" file disk log=log log=log2
  refused "log is empty" file disk log=
  assert_file_not_exist log
}

@test "a log that is removed is missed at the next flush" {
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites file disk log=log
  client "$uri" 'h.pwrite(b"1" * 512, 0); h.flush()'
  rm log
  run nbdsh -u "$uri" -c '
h.pwrite(b"2" * 512, 512)
for request in h.flush, lambda: h.pwrite(b"3" * 512, 1024), h.flush:
    try:
        request()
        print("done")
    except nbd.Error as e:
        print(e.errno)'
  assert_output "$(printf 'EIO\nEIO\nEIO')"
  assert_equal "$(dd if=disk bs=512 skip=2 count=1 status=none | tr -d '\0')" ""
}

@test "a place for held writes is needed at the start" {
  truncate -s 1M disk
  export TMPDIR=$tmp/missing
  refused "missing: a temporary file for held writes: No such file" \
          file disk log=log log-order=durability
  nbdkit -U - --filter=blklogwrites file disk log=log --run true
}

@test "what is no log is not overwritten" {
  truncate -s 1M disk
  printf 'precious' >short
  head -c 100000 /dev/urandom >long
  cp long before
  refused "neither empty nor a write log" file disk log=short
  refused "neither empty nor a write log" file disk log=long
  refused "neither empty nor a write log" file disk log=long log-append=true
  ln -s long link
  refused "neither empty nor a write log" file disk log=link
  run cmp long before
  assert_success
  mkdir folder
  refused "folder" file disk log=folder
  refused "neither a regular file nor a block device" file disk log=/dev/null
  refused "No such file" file disk log=missing/log
  start_nbdkit memory 1000
  refused "does not fit" file disk "log=$uri" log-sector-size=4096
}

@test "the disk is not its own log" {
  truncate -s 1M disk
  head -c 1000 /dev/urandom | dd of=disk seek=2 conv=notrunc status=none
  cp disk before
  ln disk hardlink
  refused "cannot be the log, since it is also file=disk" file disk log=disk
  refused "cannot be the log, since it is also file=disk" \
          file log=disk file=disk
  refused "cannot be the log, since it is also file=./disk" \
          file ./disk log=hardlink
  refused "cannot be the log, since it is also logfile=disk" --filter=log \
          null size=1M logfile=disk log=hardlink
  run cmp disk before
  assert_success
}

@test "a damaged log is not continued, and names entry and offset" {
  truncate -s 1M disk
  nbdkit -U - --filter=blklogwrites file disk log=log --run \
    'qemu-io -f raw -c "write 0 4k" -c "write 8k 4k" "$uri"'
  cp log good
  printf '\x40' | dd of=log bs=1 seek=$((5120 + 16)) conv=notrunc status=none
  refused "entry 1 at offset 5120: unknown flags" file disk log=log \
          log-append=true
  head -c 6000 good >log
  refused "entry 1 at offset 5120: the log ends inside it" file disk log=log \
          log-append=true
  [ "$(stat -c %s log)" -eq 6000 ]
}

@test "two filters cannot write one log, nor QEMU ours" {
  truncate -s 1M disk
  start_nbdkit --filter=blklogwrites file disk log=log
  client "$uri" 'h.pwrite(b"a", 0); h.flush()'
  refused "Failed to get" file disk log=log
  refused "Failed to get" file disk log=log log-append=true
  local options=driver=blklogwrites,file.driver=file,file.filename=disk
  run qemu-io --image-opts \
      "$options,log.driver=file,log.filename=log" -c "write 0 4k"
  assert_failure
  assert_output --partial "lock"
  [ "$(nr_entries)" -eq 2 ]
}
