# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# nbdkit-logreplay-plugin serves the disk of a write log as it was at any
# moment, and what it may be after a power loss.

load ../lib/qed-functions

data=$tests/data

# The kernel's log, unpacked.
kernel_log ()
{
  xz -dkc "$data/kernel-ext4.log.xz" >disk.log
}

# make_log FILE [SECTOR-SIZE] EXPRESSION...: a log of these entries, in Python:
# entry(sector, nr, flags, data) and mark(text).
make_log ()
{
  local file=$1 size=512
  shift
  if [[ $1 =~ ^[0-9]+$ ]]; then
    size=$1
    shift
  fi
  "$python" - "$file" "$size" "$@" <<'END'
import sys
from writelog_format import *
size = int(sys.argv[2])
def entry(sector=0, nr=0, flags=0, data=b""):
    return pack_entry(sector, nr, flags, data, size)
def mark(text):
    return pack_entry(flags=MARK, data=text, sector_size=size)
open(sys.argv[1], "wb").write(
    make_log(eval("[" + ",".join(sys.argv[3:]) + "]"), size))
END
}

# Three sectors of a, the second of them later b, the third later gone.
small_log ()
{
  make_log small.log 'entry(0, 3, 0, b"a" * 1536)' 'entry(flags=FLUSH)' \
           'entry(1, 1, FUA, b"b" * 512)' 'mark(b"there")' \
           'entry(2, 1, DISCARD)'
}

# The URI of a moment on the newest server.
at ()
{
  echo "nbd+unix:///$1?socket=$sock"
}

# holds MOMENT EXPRESSION: the whole disk is these bytes.
holds ()
{
  nbdsh -u "$(at "$1")" -c "assert h.pread(h.get_size(), 0) == $2"
}

hash_at ()
{
  nbdcopy "$(at "$1")" - | sha256sum | cut -d' ' -f1
}

# moment_refused NAME EXPRESSION...: there is no such moment, and the server
# says what there is.
moment_refused ()
{
  local expression
  run nbdinfo "$(at "$1")"
  assert_failure
  run cat "$log"
  assert_output --partial "there is no moment '$1'"
  shift
  for expression; do
    assert_output --regexp "$expression"
  done
}

start_logreplay ()
{
  timeout -k 5 30 nbdkit -U - logreplay "$@" --run true
}

# log_refused EXPRESSION... -- PARAMETER...
log_refused ()
{
  must_refuse start_logreplay "$@"
  # One message an error; QEMU's about a lock has two lines.
  assert_equal "$(grep -c 'error: ' <<<"$output")" 1
}

model ()
{
  "$python" "$tests/logreplay.py" "$@"
}

@test "each state of the kernel's log is what the kernel's tool makes" {
  local n hash last
  kernel_log
  start_nbdkit logreplay disk.log
  while read -r n hash; do
    assert_equal "$n $(hash_at "entry/$n")" "$n $hash"
    last=$hash
  done <"$data/kernel-ext4.states"
  assert_equal "$(hash_at '')" "$last"
}

@test "each flush, FUA write and mark is where a second reader has it" {
  run model names "$data/kernel-ext4.log.xz"
  assert_success
  assert_output "59 flushes, 95 FUA writes, 7 marks"
}

@test "random logs over random bases, at each moment" {
  run model random .
  assert_success
}

@test "a power loss keeps what the manual says, and changes nothing else" {
  run model crashes "$data/kernel-ext4.log.xz"
  assert_success
}

@test "over many seeds each write is lost, is kept, and is torn" {
  run model occurs "$data/kernel-ext4.log.xz"
  assert_success
}

@test "what was not acknowledged, and a flush's own data, may be lost or torn" {
  local name same
  run model inflight torn.log
  assert_success
  # What such a state lacks can be told, and asked for by that name.
  start_nbdkit logreplay torn.log
  for name in cut/0/{1..8} cut/1/{1..8}; do
    run logwrites list --output=json --lost="$name" torn.log
    assert_success
    same=$(jq -r --arg name "$name" '."same-state" // $name' <<<"$output")
    assert_equal "$name $(hash_at "$same")" "$name $(hash_at "$name")"
  done
  assert_equal "$(hash_at cut/1/0)" "$(hash_at flush/1)"
}

@test "the same name is the same disk, also on another server" {
  local first name
  kernel_log
  start_nbdkit logreplay disk.log
  local names=(crash/0/1 crash/20/7 crash/59/18446744073709551615
               cut/0/1 cut/20/7)
  for name in "${names[@]}"; do
    first+=" $(hash_at "$name")"
  done
  stop_nbdkit
  start_nbdkit logreplay disk.log
  for name in "${names[@]}"; do
    second+=" $(hash_at "$name")"
  done
  assert_equal "$second" "$first"
  # These are in somebody's notes: they must never change.
  assert_equal "$(hash_at crash/20/7)" \
    72d143880557bec72668ddff3a4f43a5dc83cd55c7e4b7f03ef3ff25cd316a94
  assert_equal "$(hash_at cut/12/5)" \
    5aed43995b4988f3f9e2ac3bb78b50883116ff06edbe4893abf221e1c887371c
  assert_equal "$(hash_at crash/20/0)" "$(hash_at flush/20)"
}

@test "a moment that does not exist is refused, and what exists is named" {
  local name
  small_log
  start_nbdkit logreplay small.log
  for name in entry/6 entry/-1 entry/x flush/0 flush/2 fua/2 mark/here \
              crash/2/0 crash/0 crash/0/ nonsense; do
    moment_refused "$name" 'entry/0 to entry/5' 'flush/N up to 1' \
                   'fua/N up to 1' 'crash/N/SEED from 0 up to 1' \
                   '1 marks [(]there[)]'
  done
  # The server lives on.
  assert_equal "$(hash_at entry/1)" \
               "$(printf 'a%.0s' {1..1536} | sha256sum | cut -d' ' -f1)"
}

@test "nbdinfo --list shows marks and flushes" {
  kernel_log
  start_nbdkit logreplay disk.log
  run bash -c "nbdinfo --list --json '$uri' |
    jq -r '.exports[] | .\"export-name\" + \" \" + .description'"
  assert_success
  assert_line --index 0 " after the last entry"
  assert_line "mark/mkfs the same as entry/91"
  assert_line "mark/dm-log-writes-end the same as entry/635"
  assert_line "flush/1 the same as entry/$(first_flush)"
  assert_equal "${#lines[@]}" $((1 + 7 + 59))
}

# The number of entries up to the first flush of disk.log.
first_flush ()
{
  "$python" -c '
from writelog_format import *
print(next(i + 1 for i, e in enumerate(read_log("disk.log")[1])
           if e.flags & FLUSH))'
}

@test "marks may have any text, and the first of a name counts" {
  local long
  long=$(printf 'l%.0s' {1..4060})
  make_log marks.log 8192 'mark(b"twice")' 'entry(0, 1, 0, b"x" * 8192)' \
           'mark(b"twice")' 'mark(b"with / and blank")' \
           'mark("umläut".encode())' 'mark(b"\xff\xfe")' 'mark(b"")' \
           'mark(b"l" * 4060)' 'mark(b"m" * 8000)' 'mark(b"a\nb")'
  start_nbdkit logreplay marks.log
  assert_equal "$(hash_at mark/twice)" "$(hash_at entry/1)"
  assert_equal "$(hash_at mark/with%20/%20and%20blank)" "$(hash_at entry/2)"
  assert_equal "$(hash_at mark/uml%C3%A4ut)" "$(hash_at entry/2)"
  assert_equal "$(hash_at mark/%FF%FE)" "$(hash_at entry/2)"
  assert_equal "$(hash_at mark/a%0Ab)" "$(hash_at entry/2)"
  assert_equal "$(hash_at mark/)" "$(hash_at entry/2)"
  assert_equal "$(hash_at "mark/$long")" "$(hash_at entry/2)"
  run nbdinfo --list "$uri"
  assert_success
  assert_equal "$(grep -c '^export="mark/twice"' <<<"$output")" 1
  assert_output --partial 'export="mark/with / and blank"'
}

@test "a list of exports ends where nbdkit ends it" {
  make_log long.log 'mark(b"here")' '*[entry(flags=FLUSH)] * 9000' \
           '*[mark(b"m%d" % i) for i in range(6000)]'
  start_nbdkit logreplay long.log
  run nbdsh -c 'h.set_opt_mode(True)' -u "$uri" -c '
names = []
h.opt_list(lambda name, description: names.append(name))
print(len(names), "mark/here" in names, "mark/m4998" in names,
      "flush/4998" in names, "flush/4999" in names)'
  assert_success
  assert_output "9999 True True True False"
  nbdinfo "$(at flush/9000)"
  nbdinfo "$(at mark/m5999)"
}

@test "what the export tells its clients" {
  kernel_log
  start_nbdkit logreplay disk.log
  run nbdinfo --json "$(at flush/20)"
  assert_success
  jq -e '.exports[0] | .is_read_only and .can_multi_conn and .can_cache and
         .["export-size"] == 33554432 and .block_size_minimum == 1 and
         .block_size_preferred == 4096' <<<"$output"
  run nbdsh -u "$(at flush/20)" -c 'h.pwrite(b"x" * 512, 0)'
  assert_failure
  assert_equal "$(nbdkit --dump-plugin logreplay |
                  sed -n 's/^\(max_\)\?thread_model=//p' | sort -u)" parallel
}

@test "extents: data of the log, discards, and what the base says" {
  truncate -s 1M base.img
  printf 'c%.0s' {1..4096} | dd of=base.img bs=4096 seek=16 conv=notrunc
  make_log map.log 4096 'entry(0, 2, 0, bytes(8192))' \
           'entry(8, 4, 0, b"d" * 16384)' 'entry(9, 1, DISCARD)'
  start_nbdkit logreplay map.log base=base.img
  run nbdinfo --map "$uri"
  assert_success
  assert_line --regexp '^ *0 +8192 +0 +data'
  assert_line --regexp '^ *8192 +24576 +3 +hole,zero'
  assert_line --regexp '^ *32768 +4096 +0 +data'
  assert_line --regexp '^ *36864 +4096 +3 +hole,zero'
  assert_line --regexp '^ *40960 +8192 +0 +data'
  assert_line --regexp '^ *49152 +16384 +3 +hole,zero'
  assert_line --regexp '^ *65536 +4096 +0 +data'
  assert_line --regexp '^ *69632 +978944 +3 +hole,zero'
  run nbdinfo --map "$(at entry/2)"
  assert_line --regexp '^ *32768 +16384 +0 +data'
}

@test "the cow filter makes a moment writable" {
  small_log
  start_nbdkit --filter=cow logreplay small.log
  nbdsh -u "$(at flush/1)" -c 'h.pwrite(b"z" * 512, 512)' \
        -c 'assert h.pread(1024, 0) == b"a" * 512 + b"z" * 512'
}

@test "log and base on NBD servers" {
  kernel_log
  start_nbdkit file disk.log
  local log_uri=$uri
  start_nbdkit -r memory 32M
  start_nbdkit logreplay "$log_uri" base="$uri"
  local n hash
  read -r n hash < <(tail -n 1 "$data/kernel-ext4.states")
  assert_equal "$(hash_at '')" "$hash"
  read -r n hash < <(sed -n 10p "$data/kernel-ext4.states")
  assert_equal "$(hash_at "entry/$n")" "$hash"
}

@test "size= cuts the disk or makes it longer" {
  small_log
  start_nbdkit logreplay small.log
  assert_equal "$(nbdinfo --size "$uri")" 1536
  stop_nbdkit
  start_nbdkit logreplay small.log size=700
  assert_equal "$(nbdinfo --size "$uri")" 700
  holds entry/3 'b"a" * 512 + b"b" * 188'
  stop_nbdkit
  start_nbdkit logreplay small.log size=1M
  assert_equal "$(nbdinfo --size "$uri")" 1048576
  holds '' 'b"a" * 512 + b"b" * 512 + bytes((1 << 20) - 1024)'
}

@test "a base that is too short is refused, unless size= is given" {
  small_log
  printf 'c%.0s' {1..1024} >short.img
  log_refused "short.img.*1024 bytes.*entry 0 .*byte 1536.*size=" -- \
              small.log base=short.img
  start_nbdkit logreplay small.log base=short.img size=2048
  holds entry/0 'b"c" * 1024 + bytes(1024)'
  holds entry/1 'b"a" * 1536 + bytes(512)'
  stop_nbdkit
  # A disk that ends within its last sector.
  printf 'c%.0s' {1..1100} >odd.img
  start_nbdkit logreplay small.log base=odd.img
  holds '' 'b"a" * 512 + b"b" * 512 + bytes(76)'
}

@test "the disk is as large as the log says" {
  truncate -s 1000001 disk
  nbdkit -U - --filter=blklogwrites file disk log=noted.log \
         --run 'qemu-io -f raw -c "write -P 97 0 4k" "$uri"'
  start_nbdkit logreplay noted.log
  [ "$(nbdinfo --size "$uri")" -eq 1000001 ]
  run cat "$log"
  refute_output --partial "how large"
  start_nbdkit logreplay noted.log size=2M
  [ "$(nbdinfo --size "$uri")" -eq 2097152 ]
  # Another program's log does not say it.
  small_log
  start_nbdkit logreplay small.log
  nbdinfo --size "$uri"
  nbdinfo --size "$uri"
  [ "$(grep -c "how large the disk is" "$log")" -eq 1 ]
}

# Entries that do not overlap: what differs from the whole disk is what is
# lost, and nothing else.
@test "logwrites list --lost says what a state lacks" {
  make_log parts.log 'entry(0, 8, 0, b"a" * 4096)' \
           'entry(16, 8, 0, b"b" * 4096)' 'entry(flags=FLUSH)' \
           'entry(32, 16, 0, b"c" * 8192)' 'mark(b"m")' \
           'entry(64, 8, FUA, b"d" * 4096)' 'entry(80, 8, 0, b"e" * 4096)'
  local tear args name
  for tear in 512 4096 entry; do
    start_nbdkit logreplay parts.log tear=$tear
    for name in crash/1/1 crash/1/2 crash/1/3 crash/0/5 lost/7/3:2-5,0; do
      args=(--lost="$name" --tear="$tear")
      logwrites list "${args[@]}" --output=json parts.log >lost.json
      nbdcopy "$(at "$name")" state.img
      name=$(jq -r '."same-state" // ""' lost.json)
      if [ "$name" ]; then
        nbdcopy "$(at "$name")" same.img
        cmp state.img same.img
        run logwrites list "${args[@]}" parts.log
        assert_line "the same state: $name"
        nbdcopy "$(at "entry/$(cut -d/ -f2 <<<"$name")")" whole.img
        "$python" - <<'END'
import json
lost = {s for p in json.load(open("lost.json"))["lost"]
        for s in range(p["sector"], p["sector"] + p["nr-sectors"])}
state, whole = (open(f, "rb").read() for f in ("state.img", "whole.img"))
assert lost == {i for i in range(len(whole) // 512)
                if state[i * 512:][:512] != whole[i * 512:][:512]}, lost
END
      fi
    done
    stop_nbdkit
  done
  run logwrites list --lost=crash/1/0 parts.log
  assert_success
  assert_output ""
  run logwrites list --lost=crash/9/1 parts.log
  assert_failure
  run logwrites list --lost=crash/1/1 --tear=100 parts.log
  assert_failure
  run logwrites list --lost=crash/1/1 --start=1 parts.log
  assert_failure
}

@test "losses that cannot be are refused" {
  make_log bad.log 'entry(0, 2, 0, b"a" * 1024)' 'entry(0, 0, FLUSH)' \
           'mark(b"m")' 'entry(5, 1, DISCARD)'
  start_nbdkit logreplay bad.log
  local set
  for set in 4/1 4/2 4/4 4/0:0-2 4/0:1-0 4/0- '4/0,' 4/ 4/0,x 4/0-1 1/3 9/0 \
             4/0:0-18446744073709551616 4/18446744073709551615 4; do
    run nbdinfo --size "nbd+unix:///lost/$set?socket=$sock"
    assert_failure
  done
  run cat "$log"
  assert_output --partial "there is no moment 'lost/4/1', since entry 1 is not \
there, or cannot be lost"
  # As long as a name may be.
  set=$(printf '0,%.0s' {1..2000})0
  run nbdinfo --size "nbd+unix:///lost/4/$set?socket=$sock"
  assert_success
  run timeout 20 nbdkit -U - logreplay bad.log tear=100 --run true
  assert_failure
  assert_output --partial "tear=100"
  run timeout 20 nbdkit -U - logreplay bad.log tear=256 --run true
  assert_failure
  assert_output --partial "sectors have 512 bytes"
}

@test "QEMU and the plugin keep each other from changing the base" {
  small_log
  truncate -s 1M base.img
  start_qemu_nbd writer -f raw base.img
  must_refuse start_logreplay "base.img.*Failed to get" -- \
              small.log base=base.img
  end_process "$qemu_pid"
  # Readers do not lock each other out.
  start_nbdkit logreplay small.log base=base.img
  start_qemu_nbd reader -r -f raw base.img
  run qemu-io -f raw -c "write 0 512" base.img
  assert_failure
  assert_output --partial lock
}

@test "parameters that are wrong are refused" {
  small_log
  log_refused "log.*missing|missing.*log" --
  log_refused "log was given twice" -- small.log log=small.log
  log_refused "base is empty" -- small.log base=
  log_refused "colour" -- small.log colour=red
  log_refused "no.log.*No such file" -- no.log
  log_refused "no.img.*No such file" -- small.log base=no.img
  run nbdkit -U - logreplay small.log size=much --run true
  assert_failure
}

@test "what is no log, or a damaged one, is refused" {
  small_log
  head -c 4096 /dev/zero >zero.log
  head -c 4096 /dev/urandom >random.log
  : >empty.log
  log_refused "empty.log.*not a write log" -- empty.log
  log_refused "zero.log.*not a write log" -- zero.log
  log_refused "random.log.*not a write log" -- random.log
  # Cut at the end, within data, and within an entry.
  head -c 5119 small.log >cut.log
  log_refused "cut.log.*entry 4 at offset 4608" -- cut.log
  head -c 1000 small.log >cut.log
  log_refused "cut.log.*entry 0 at offset 512" -- cut.log
  head -c 3000 small.log >cut.log
  log_refused "cut.log.*entry 1 at offset 2560" -- cut.log
  # An unknown flag.
  cp small.log flag.log
  printf '\100' | dd of=flag.log bs=1 seek=$((2560 + 16)) conv=notrunc
  log_refused "flag.log.*entry 1 at offset 2560.*unknown flags" -- flag.log
}

@test "a log that grows is served as it was" {
  small_log
  start_nbdkit logreplay small.log
  make_log small.log 'entry(0, 3, 0, b"a" * 1536)' 'entry(flags=FLUSH)' \
           'entry(1, 1, FUA, b"b" * 512)' 'mark(b"there")' \
           'entry(2, 1, DISCARD)' 'entry(0, 1, FLUSH, b"n" * 512)'
  holds '' 'b"a" * 512 + b"b" * 512 + bytes(512)'
  moment_refused flush/2
  moment_refused entry/6
}

@test "a log that is cut while it is served fails the reads that need it" {
  small_log
  start_nbdkit logreplay small.log
  truncate -s 1024 small.log
  run nbdsh -u "$uri" -c 'h.pread(512, 0)'
  assert_failure
  assert_output --partial "Input/output error"
  nbdsh -u "$uri" -c 'assert h.pread(512, 1024) == bytes(512)'
  holds entry/0 'bytes(1536)'
}

# Everything is opened at the start, and each connection is nothing.
@test "a million entries take less than 180 bytes each, in any moment" {
  local empty peak n
  make_log none.log 32
  model many many.log
  start_nbdkit logreplay none.log
  empty=$(awk '/VmHWM/ { print $2 }' "/proc/$pid/status")
  stop_nbdkit
  start_nbdkit logreplay many.log
  for n in 1 1000 500000 999999 1000000; do
    # The newest entry before the moment that wrote sector 0.
    nbdsh -u "$(at "entry/$n")" -c "assert h.pread(32, 0) == b'%032d' % 0"
    nbdsh -u "$(at "crash/$((n / 100))/$n")" -c 'h.pread(1 << 20, 0)'
  done
  nbdsh -u "$(at flush/10000)" -c "
for n in range(0, 1000000, 997):
    if n % 100 != 99:
        assert h.pread(32, n * 7919 % 1000000 * 32) == b'%032d' % n"
  peak=$(awk '/VmHWM/ { print $2 }' "/proc/$pid/status")
  echo "$((peak - empty)) KiB"
  is_sanitized || [ $(((peak - empty) * 1024)) -lt 180000000 ]
}
