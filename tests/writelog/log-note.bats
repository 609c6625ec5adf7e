# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What a log knows of its disk: no other one is taken for it, and its size is
# known to all that read the log.

load ../lib/qed-functions

# record DISK CODE [PARAMETER...]: Python with a connection h, in log.
record ()
{
  local disk=$1 code=$2
  shift 2
  start_nbdkit --filter=blklogwrites file "$disk" log=log "$@"
  nbdsh -u "$uri" -c "$code"
  stop_nbdkit
}

# continue_on DISK...: the log is continued by a writer; $status is that of
# the connection.
continue_on ()
{
  start_nbdkit --filter=blklogwrites file "$1" log=log log-append=true
  run nbdsh -u "$uri" -c 'h.pwrite(b"z" * 512, 1 << 19)'
  run_status=$status
  stop_nbdkit
  status=$run_status output=$(cat "$log")
}

# Whatever they do it to, it changes.
work='
h.pwrite(bytes(4096), 8192)
h.trim(8192, 65536)
h.pwrite(b"a" * 1000, 300)
h.pwrite(b"b" * 4096, 4096)
h.pwrite(b"c" * 512, 4096)
h.zero(4096, 131072)
h.flush()'

make_noise ()
{
  "$python" -c 'import random, sys
sys.stdout.buffer.write(random.Random(sys.argv[1]).randbytes(1 << 20))' "$2" >"$1"
}

@test "the disk as it was after the recording is no base" {
  local size order
  for size in 512 4096; do
    for order in completion durability; do
      rm -f log
      make_noise base 1
      cp base disk
      record disk "$work" log-sector-size=$size log-order=$order
      logwrites verify --base base log disk
      run -1 logwrites verify --base disk log disk
      assert_output --regexp "disk: this is not what the disk was before the \
log log began: sector [0-9]+ was another one then"
      start_nbdkit logreplay log base=base
      stop_nbdkit
      must_refuse refused_base "disk: this is not what the disk was" -- disk
      run -1 logwrites explore --base disk log -- true
      assert_output --partial "disk: this is not what the disk was before"
      # Nor is any other one.
      make_noise other 2
      must_refuse refused_base "other: this is not what" -- other
      # Without a base there would be zeroes.
      start_nbdkit logreplay log
      run cat "$log"
      assert_output --partial "the disk was not all zeroes before the log"
      stop_nbdkit
    done
  done
}

refused_base ()
{
  timeout -k 5 30 nbdkit -U - logreplay log base="$1" --run true
}

@test "a disk of zeroes needs no base, and is told from what became of it" {
  truncate -s 1M disk
  record disk "$work"
  start_nbdkit logreplay log
  [ ! -s "$log" ]
  nbdcopy "$uri" - | cmp - disk
  stop_nbdkit
  must_refuse refused_base "disk: this is not what the disk was" -- disk
}

@test "places are found behind many writes that change nothing" {
  truncate -s 1M disk
  record disk '
for i in range(200):
    h.pwrite(bytes(512), i * 512)
h.pwrite(b"a" * 512, 0)
h.pwrite(b"a" * 512, 1 << 18)'
  must_refuse refused_base "disk: .* sector 512 was another one" -- disk
}

@test "a log is not continued on another disk" {
  make_noise disk 1
  cp disk base
  record disk "$work" log-control="$tmp/ctl"
  make_noise other 2
  truncate -s 1M zeroes
  for other in other zeroes base; do
    cp log before.log
    continue_on "$other"
    assert [ "$status" -ne 0 ]
    assert_output --regexp "log of another disk, or the disk has been changed \
since: it has not what entry [0-9]+ at offset [0-9]+ wrote to sector [0-9]+"
    cmp log before.log
  done
  # On its own it is, again and again.
  continue_on disk
  assert_equal "$status" 0
  continue_on disk
  assert_equal "$status" 0
  logwrites verify --base base log disk

  # One that was changed without the log is another one.
  nbdkit -U - file disk --run \
         'qemu-io -f raw -c "write -P 9 512k 512" "$uri"'
  continue_on disk
  assert [ "$status" -ne 0 ]
}

@test "a log that was not ended is continued, since its disk may be ahead" {
  truncate -s 1M disk
  record disk "$work"
  continue_on disk
  start_nbdkit --filter=blklogwrites file disk log=log log-append=true
  nbdsh -u "$uri" -c 'h.pwrite(b"y" * 512, 1 << 19)'
  kill -KILL "$pid"
  wait_until 20 process_ended "$pid"
  # Neither the entry nor the end of the one before is counted.
  assert_equal "$(od -A n -t u8 -j 272 -N 8 log | tr -d ' ')" 0
  continue_on disk
  assert_equal "$status" 0
  # From now on nothing can be told any more.
  truncate -s 0 disk
  truncate -s 1M disk
  continue_on disk
  assert_equal "$status" 0
}

@test "logs of others are continued and read as ever" {
  truncate -s 32M disk
  xz -dc "$tests/data/kernel-ext4.log.xz" >log
  continue_on disk
  assert_equal "$status" 0

  # QEMU takes our note for nothing, and drops it.
  truncate -s 1M base
  cp base disk
  rm log
  record disk "$work"
  local options=driver=blklogwrites,file.driver=file,file.filename=disk
  options+=,log.driver=file,log.filename=log,log-append=on
  qemu-io --image-opts "$options" -c "write -P 2 8k 4k" -c flush
  start_nbdkit logreplay log base=disk
  stop_nbdkit
  continue_on base
  assert_equal "$status" 0
  logwrites info log
}

@test "all that read a log know its disk's size" {
  truncate -s 1000001 disk small
  record disk "$work"
  # The log ends before the disk does.
  cp log before.log
  logwrites verify log disk
  cp disk small
  truncate -s 999999 small
  run -2 logwrites verify log small
  assert_output --partial "The disk ends there, at byte 999999"
  truncate -s 1000002 disk
  run -2 logwrites verify log disk
  assert_output --partial "The logged disk ends there, at byte 1000001"
  logwrites verify --size 1000002 log disk
  run -1 logwrites verify --size junk log disk
  assert_output --partial "--size: 'junk' is not a size"
  truncate -s 1000001 disk

  # A file gets the size, whatever of the log is replayed.
  : >target
  logwrites replay --log log --replay target
  cmp target disk
  : >target
  logwrites replay --log log --replay target --limit 1
  assert_equal "$(stat -c %s target)" 1000001
  # A larger one keeps its own.
  truncate -s 2M target
  logwrites replay --log log --replay target
  assert_equal "$(stat -c %s target)" 2097152
  # What cannot grow may do, if the entries fit.
  start_nbdkit memory 512K
  run -0 logwrites replay --log log --replay "$uri"
  assert_output --partial "it has 524288 bytes, but the disk of the log has \
1000001"
  stop_nbdkit
  start_nbdkit memory 4K
  run -1 logwrites replay --log log --replay "$uri"
  assert_output --partial "4096 bytes are too few"
}
