# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# logwrites explore: the disk as crashes may leave it, a command that says
# which of these are bad, and the least that makes them so.

load ../lib/qed-functions

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
    return pack_entry(sector, nr, flags, data.ljust(nr * size, b"-"), size)
def mark(text):
    return pack_entry(flags=MARK, data=text, sector_size=size)
open(sys.argv[1], "wb").write(
    make_log(eval("[" + ",".join(sys.argv[3:]) + "]"), size))
END
}

# A program that writes a record to sector 8 and then says in sector 0 that it
# is there.  With "flush" it flushes in between; without it does not.
commit_log ()
{
  local between=()
  if [ "$2" = flush ]; then between=('entry(flags=FLUSH)'); fi
  make_log "$1" 'entry(0, 1, 0, b"old")' 'entry(flags=FLUSH)' \
           'entry(30, 1, 0, b"x")' 'entry(8, 2, METADATA, b"record")' \
           'entry(31, 1, 0, b"y")' "${between[@]}" \
           'entry(0, 1, FUA, b"new")' 'mark(b"committed")' \
           'entry(32, 1, 0, b"z")'
}

# The check that goes with it.
check='disk=$(nbdcopy "$uri" - | tr -d "\0")
case $disk in new*record* | old*) ;; new*) echo "the record is gone"; exit 4 ;;
  *) test "$entry" -lt 2 ;; esac'

# explore STATUS ARGUMENT...: with a temporary folder of its own, in which
# nothing may be left, nor may a process.
explore ()
{
  local wanted=$1
  shift
  mkdir -p "$tmp/t"
  TMPDIR=$tmp/t run "-$wanted" timeout 60 logwrites explore "$@"
  nothing_is_left
}

nothing_is_left ()
{
  assert_equal "$(ls "$tmp/t")" ""
  ! grep -lzs "^TMPDIR=$tmp/t\$" /proc/[0-9]*/environ
}

@test "the states are those of a model, in sectors of 512 and of 4096" {
  local size
  for size in 512 4096; do
    for ((seed = ${SEED:-1}; seed < ${SEED:-1} + ${ROUNDS:-1}; seed++)); do
      rm -f log sums*
      "$python" "$tests/explore.py" $size "$seed"
    done
  done
}

@test "a disk is what its clients make of it, and the next one is new" {
  require_tool qemu-img qemu-io nbdinfo
  commit_log disk.log flush
  explore 0 --size=1000001 --limit=4 disk.log -- "$python" \
          "$tests/explore.py" disk
  # Other clients agree: the old handshake, lists, and QEMU.
  explore 0 --size=1M --limit=2 disk.log -- '
    nbdinfo --list "$uri" | grep -F "export=\"$exportname\":" &&
    nbdinfo --map "$uri" && nbdinfo --can multi-conn "$uri" &&
    nbdinfo --no-content --json "nbd+unix:///any?socket=$unixsocket" &&
    qemu-img convert -n -f raw -O null-co "$uri" null-co:// &&
    qemu-io -f raw -c "write -P 3 5k 64k" -c "write -z 8k 8k" -c flush \
            -c "read -P 3 5k 3k" -c "read -P 0 8k 8k" "$uri" | grep -c read &&
    '"$python"' -c "
import os, socket
s = socket.socket(socket.AF_UNIX)
s.connect(os.environ[\"unixsocket\"])
assert s.recv(18, socket.MSG_WAITALL).startswith(b\"NBDMAGICIHAVEOPT\")
s.send(bytes(4) + b\"IHAVEOPT\" + bytes([0, 0, 0, 1, 0, 0, 0, 0]))
assert len(s.recv(134, socket.MSG_WAITALL)) == 134
s.send(b\"nonsense\" * 4)
assert s.recv(1) == b\"\"
"'
}

@test "a missing flush is found, and what is lost is the record alone" {
  commit_log disk.log none
  explore 2 --size=64k disk.log -- "$check"
  assert_line --regexp '^finding 1: [1-9][0-9]* bad states, the first is '
  refute_line --partial "finding 2"
  assert_line "lost: entry 3, a write (metadata): sectors 8+2, 1024 bytes"
  assert_equal "$(grep -c '^lost:' <<<"$output")" 1
  assert_line "    | the record is gone"

  # The line that repeats it does, also for a check in a file of its own.
  local repeat
  repeat=$(sed -n 's/^repeat: //p' <<<"$output")
  run -4 bash -c "$repeat"
  assert_output "the record is gone"
  printf '#!/bin/sh\n%s\n' "$check" >check
  chmod +x check
  explore 2 --size=64k disk.log -- ./check
  run -4 bash -c "$(sed -n 's/^repeat: //p' <<<"$output")"
}

@test "parts that were lost are told as such only where they matter" {
  commit_log disk.log none
  explore 2 --size=64k --states=random:40 disk.log -- "$check"
  assert_line "lost: entry 3, a write (metadata): sectors 8+2, 1024 bytes"
  assert_equal "$(grep -c '^lost:' <<<"$output")" 1

  # A record that is right only if both its sectors are of one kind.
  make_log torn.log 'entry(9, 2, 0, b"a" * 1024)' 'entry(flags=FLUSH)' \
           'entry(9, 2, FUA, b"b" * 1024)' 'entry(flags=FLUSH)'
  explore 2 --size=64k torn.log -- '
    kinds=$(nbdcopy "$uri" - | tr -d "\0" | fold -w 512 | cut -c 1 | sort -u)
    test "$(echo $kinds)" != "a b"'
  assert_line "lost: entry 2, a write (fua): of its sectors 9+2 10+1, 512 bytes"
  assert_line "lost: entry 2, a write (fua): of its sectors 9+2 9+1, 512 bytes"
  assert_equal "$(grep -c '^lost:' <<<"$output")" 2
  explore 0 --size=64k --tear=entry torn.log -- '
    kinds=$(nbdcopy "$uri" - | tr -d "\0" | fold -w 512 | cut -c 1 | sort -u)
    test "$(echo $kinds)" != "a b"'
}

@test "with the flush all states are good" {
  commit_log disk.log flush
  explore 0 --size=64k disk.log -- "$check"
  assert_line --regexp '^[0-9]+ states, [0-9]+ distinct: [0-9]+ good, 0 bad$'
}

@test "of states without losses the first bad entry is found" {
  make_log disk.log 'entry(0, 1, 0, b"good")' 'entry(flags=FLUSH)' \
           'entry(1, 1)' 'entry(2, 1)' 'entry(0, 1, 0, b"bad")' 'entry(3, 1)' \
           'entry(flags=FLUSH)' 'entry(4, 1)' 'entry(flags=FLUSH)'
  explore 2 --states=flush disk.log -- 'nbdcopy "$uri" - | grep -q ^good'
  assert_line "finding 1: 2 bad states, the first is flush/2 (flush)"
  assert_line "entry 4 is the first with which it is bad, with all before it\
 there"
  assert_line --partial "repeat: nbdkit -U - -e entry/5 "
}

@test "what the command is told" {
  make_log disk.log 'entry(0, 4, 0, b"a")' 'mark(b"one")' \
           'entry(flags=FLUSH)' 'entry(1, 1, 0, b"b")' 'mark(b"two three")' \
           'entry(2, 1, 0, b"c")' 'entry(flags=FLUSH)'
  explore 0 --states=flush,single,mark --jobs=1 disk.log -- '
    echo "$exportname $entry $flush $mark" >>told
    test "$uri" = "nbd+unix:///$exportname?socket=$unixsocket" &&
    nbdinfo --can connect "$uri" && ! test -e "$disk" && ! read x'
  assert_equal "$(sort told)" "$(sort <<'END'
entry/2 2 0 one
flush/2 7 2 two three
entry/5 5 1 two three
lost/2/0 2 0 one
lost/6/3 6 1 two three
END
)"
}

@test "several words are a command with arguments, one is for the shell" {
  make_log disk.log 'entry(0, 1)' 'entry(flags=FLUSH)'
  explore 0 --states=flush disk.log -- printf '%s|' '$entry' '${flush}x' \
          '$HOME' "it's" '"' '$uris' --states
  explore 2 --states=flush disk.log -- sh -c 'echo "$0 $entry $flush"; exit 3' \
          '$HOME * $entry'
  assert_line '    | $HOME * 0 0 0'
}

@test "a terminal shows how far it is and how long it will take" {
  commit_log disk.log flush
  TMPDIR=$tmp run -0 script -qec \
    'logwrites explore --size=64k --states=entry disk.log -- sleep 0.1' \
    /dev/null
  assert_output --regexp '[0-9]+ of [0-9]+ states, 0 bad, 0:00:0[0-9] to go'
  explore 0 --size=64k --states=entry disk.log -- true
  refute_output --partial "to go"
}

@test "what cannot be told is neither good nor bad" {
  commit_log disk.log flush
  explore 1 disk.log -- exit 125
  assert_line --partial "skipped; so nothing was checked"
  explore 1 disk.log -- no-such-command
  assert_line --regexp "cannot be run.*no-such-command.*not found"
  explore 1 --states=mark --from=flush/2 disk.log -- 'kill -9 $PPID; sleep 60'
  assert_line --partial "could not be tried: its server was killed by signal 9"
  explore 1 --states=fua --to=entry/1 disk.log -- true
  assert_output --partial "there are no such states, so nothing was tried"
}

@test "no room for what is written is no bad state" {
  commit_log disk.log flush
  ulimit -f 100
  explore 1 --size=1M --states=flush disk.log -- '
    nbdcopy --destination-is-zero -- /dev/null null: ;
    qemu-io -f raw -c "write -P 1 0 512k" "$uri"; exit 1'
  assert_line --partial "could not be tried: its server had a failure"
}

@test "whatever a command leaves is ended, and what takes too long" {
  commit_log disk.log flush
  explore 0 --states=flush disk.log -- '
    sleep 60 & setsid sleep 60 & (setsid sh -c "sleep 60; sleep 60" &) ; :'
  explore 2 --states=flush --limit=1 --timeout=0.2 disk.log -- '
    trap "" TERM; sleep 60; sleep 60'
  assert_line "not done after 0.2 seconds"
  explore 2 --states=flush --limit=1 disk.log -- 'kill -SEGV $$'
  assert_line --partial "killed by signal 11"
}

# A signal when the third state runs.
signalled ()
{
  local signal=$1 wanted=$2 status=0 pid
  shift 2
  mkdir -p "$tmp/t"
  rm -f ready
  # Under nohup it would be right to go on.
  TMPDIR=$tmp/t env --default-signal=HUP \
    logwrites explore --jobs=2 "$@" disk.log -- '
    if [ $entry -eq "${HOLD:--1}" ]; then sleep 60; fi
    if [ $entry -ge 3 ]; then >ready; sleep 60; fi' >said 2>&1 3>&- &
  pid=$!
  remember $pid
  wait_until 60 test -e ready
  kill "-$signal" $pid
  wait $pid || status=$?
  assert_equal "$status" "$wanted"
}

@test "a signal ends it with what has been found so far" {
  commit_log disk.log flush
  local signal pid status
  for signal in INT TERM HUP; do
    signalled $signal 1 --states=entry
    grep -E 'tried before it was interrupted: [1-9] good, 0 bad' said
    nothing_is_left
  done
  # Also of states behind one that has not ended.
  HOLD=0 signalled INT 1 --states=entry --output=json
  sed -i '/warning/d' said
  jq -e '.summary.complete == false and (.states | length) > 0 and
         (.states | length) == .summary.good' said
  signalled INT 1 --states=entry --output=tap --disk
  grep '^Bail out! interrupted$' said
  nothing_is_left
  # The bad states that were found are told of.
  commit_log disk.log none
  rm -f ready
  TMPDIR=$tmp/t logwrites explore --size=64k --states=single --jobs=1 \
        disk.log -- '
    if [ -e ready ]; then >busy; sleep 60; fi
    if [ "$exportname" = lost/8/3 ]; then >ready; echo gone; exit 3; fi' \
    >said 2>&1 3>&- &
  pid=$!
  remember $pid
  wait_until 60 test -e busy
  kill -INT $pid
  status=0
  wait $pid || status=$?
  assert_equal "$status" 2
  grep '^lost: entry 3' said
  grep 'perhaps not the least' said
  nothing_is_left
}

@test "it can be ended when the log's server does not answer" {
  commit_log disk.log flush
  start_nbdkit file disk.log
  local server=$pid status=0 log_uri=$uri
  mkdir t
  TMPDIR=$tmp/t logwrites explore --size=64k --states=entry "$log_uri" -- '
    if [ $entry -ge 3 ]; then
      touch ready
      until [ -e stopped ]; do sleep 0.05; done
      nbdcopy "$uri" null:
    fi' 3>&- &
  pid=$!
  remember $pid
  wait_until 60 test -e ready
  kill -STOP $server
  touch stopped
  wait_until 60 pgrep -x nbdcopy
  kill -INT $pid
  wait $pid || status=$?
  kill -CONT $server
  assert_equal "$status" 1
  nothing_is_left
}

nothing_is_mounted ()
{
  ! grep "$tmp" /proc/mounts
}

@test "nothing is left by one that was killed" {
  commit_log disk.log flush
  signalled KILL 137 --states=entry --disk
  wait_until 60 nothing_is_left
  wait_until 60 nothing_is_mounted
}

@test "json and tap" {
  commit_log disk.log none
  explore 2 --size=64k --output=json disk.log -- "$check"
  jq -e '.findings | length == 1 and .[0].lost == [{
           "entry": 3, "flags": ["metadata"], "sector": 8, "nr-sectors": 2,
           "bytes": 1024, "name": null }] and
         .[0].least and (.[0].output == "the record is gone")' <<<"$output"
  jq -e '(.states | map (select (.result == "bad")) | length) ==
         .summary.bad and .summary.complete' <<<"$output"

  explore 2 --size=64k --output=tap disk.log -- "$check"
  assert_line --index 0 "TAP version 13"
  local nr
  nr=$(grep -cE '^(not )?ok [0-9]+ - ' <<<"$output")
  assert_line --index 1 "1..$nr"
  refute_line --regexp '^[^#onT1]'
  echo "$output" >out.tap
  run prove --exec cat out.tap
  assert_failure
  refute_output --partial "Parse errors"
}

@test "the disk as a file, with FUSE and without" {
  require_tool nbdfuse fusermount3
  commit_log disk.log flush
  local check='head -c 3 "$disk" | grep -E "old|new" || test "$entry" -lt 2;
    printf "gone" | dd of="$disk" conv=notrunc 2>/dev/null; sync "$disk";
    head -c 4 "$disk" | grep gone'
  explore 0 --disk --size=64k disk.log -- "$check"
  assert_line "\$disk is a file of nbdfuse"
  refute_line --partial "copy"

  # It is repeated on a copy, which does not stay.
  explore 2 --disk --size=64k --states=fua disk.log -- \
          'head -c 3 "$disk"; ! head -c 3 "$disk" | grep -q new'
  TMPDIR=$tmp/t run -1 bash -c "$(sed -n 's/^repeat: //p' <<<"$output")"
  assert_output new
  assert_equal "$(ls t)" ""

  mkdir bin
  printf '#!/bin/sh\necho "no FUSE here" >&2\nexit 1\n' >bin/nbdfuse
  chmod +x bin/nbdfuse
  PATH=$PWD/bin:$PATH explore 0 --disk --size=64k disk.log -- "$check"
  assert_line --partial "\$disk is a copy of each state"
  assert_line --partial "no FUSE here"
}

@test "the log and the base may be NBD servers, and two may explore at once" {
  commit_log disk.log none
  head -c 65536 /dev/zero | tr '\0' b >base.img
  start_nbdkit file disk.log
  local log_uri=$uri first=0 second=0
  start_nbdkit -r file base.img
  mkdir t
  export TMPDIR=$tmp/t
  logwrites explore --base="$uri" "$log_uri" -- "$check" >one 3>&- &
  logwrites explore --base=base.img disk.log -- "$check" >two || second=$?
  wait $! || first=$?
  assert_equal "$first $second" "2 2"
  assert_equal "$(tail -n 1 one)" "$(tail -n 1 two)"
  grep "^lost: entry 3" one two
}

@test "a log that grows is explored up to where it was" {
  commit_log disk.log none
  commit_log more.log none
  local figures
  explore 2 --size=64k --jobs=1 disk.log -- "$check"
  figures=${lines[-1]}
  explore 2 --size=64k --jobs=1 disk.log -- "
    if ! [ -e grown ]; then
      >grown
      tail -c +513 more.log >>disk.log
      printf '\\020' | dd of=disk.log bs=1 seek=16 conv=notrunc 2>/dev/null
    fi
    $check"
  assert_line "$figures"
  logwrites info disk.log | grep -E '^entries: *16'
}

@test "a loss too long for the name of an export is shrunk, too" {
  "$python" - <<'END'
from writelog_format import *
e = [pack_entry(2 * i, 2, 0, bytes([65 + i % 26]) * 1024)
     for i in range(3000)]
e.insert(2000, pack_entry(flags=MARK, data=b"here"))
open("disk.log", "wb").write(make_log(e))
END
  explore 2 --states=random:1 disk.log -- '
    nbdcopy "$uri" - | tail -c +1024001 | head -c 1 | grep -q M'
  assert_line --regexp '^lost: entry 1000, a write: '
  refute_line --partial "perhaps not the least"
}

@test "a sample, bounds and a list" {
  commit_log disk.log none
  explore 0 --list --size=64k disk.log
  assert_line "flush/1 flush"
  assert_line "lost/8/3 single"
  assert_line "lost/4/3:1-1 torn"
  local all=${#lines[@]}
  explore 0 --list --size=64k --output=json disk.log
  assert_equal "$(jq length <<<"$output")" "$all"
  explore 0 --list --from=mark/committed disk.log
  refute_line --regexp '^(flush|lost/[1-5]/)'
  explore 0 --list --to=flush/1 disk.log
  refute_line --regexp '^lost/[3-9]/'
  explore 0 --limit=2 disk.log -- true
  assert_line --regexp "distinct of which 2 were to be tried: 2 good, 0 bad"
  explore 0 --list --tear=entry disk.log
  refute_line --partial torn
}

@test "a command line that makes no sense is refused" {
  commit_log disk.log none
  local bad
  for bad in --states=flushes --states=random --states=random:0 --limit=0 \
             --jobs=0 --timeout=x --tear=100 --from=flush/9 --from=nonsense \
             --to=crash/1/1 --output=xml --shrink=-1 --base=missing.img; do
    explore 1 "$bad" disk.log -- true
  done
  explore 1 missing.log -- true
  explore 1 disk.log
  explore 1 --from=flush/1 --to=entry/0 disk.log -- true
}

@test "strange names of folders, of logs and in the environment" {
  mkdir "a b%41'c" "a b%41'c/t"
  cd "a b%41'c"
  commit_log "x=y 'z.log" none
  TMPDIR=t disk=/etc/passwd run -2 logwrites explore --size=64k "x=y 'z.log" \
         -- "test -z \"\$disk\" || exit 0; cd /; $check"
  assert_line "lost: entry 3, a write (metadata): sectors 8+2, 1024 bytes"
  assert_equal "$(ls t)" ""
  run -4 bash -c "$(sed -n 's/^repeat: //p' <<<"$output")"
  TMPDIR=$tmp/missing run -1 logwrites explore --size=64k "x=y 'z.log" -- true
  assert_line --partial "missing: temporary folder: No such file"
}

@test "what stands in the sectors that were lost is asked for" {
  commit_log disk.log none
  explore 2 --size=64k --name='echo "file of $sector ($sectors) at $offset, \
$(nbdcopy "$uri" - | dd bs=1 skip=$offset count=6 2>/dev/null)"' \
          disk.log -- "$check"
  assert_line --regexp '^ +file of 8 \(2\) at 4096, record$'
}

# Before mkfs is done there is no file system, so many states are bad.  The
# suite tries a sample; with ROUNDS all of them are.
@test "the kernel's log: the same figures and findings in each run" {
  require_tool e2fsck nbdfuse
  xz -dc "$tests/data/kernel-ext4.log.xz" >disk.log
  local jobs sample=(--limit=90) figures=' of which 90 were to be tried'
  figures+=': [0-9]+ good, [1-9][0-9]* bad; [0-9]+ runs to shrink losses'
  if [ "${ROUNDS:-1}" -gt 1 ]; then
    sample=(--shrink=0)
    figures=': 1937 good, 352 bad'
  fi
  for jobs in 1 3; do
    run -2 timeout 600 logwrites explore --size=32M "${sample[@]}" \
        --jobs=$jobs --disk disk.log -- '
      e2fsck -p "$disk" >/dev/null; e2fsck -fn "$disk" >/dev/null 2>&1'
    echo "$output" >said.$jobs
  done
  assert_line --regexp "^2513 states, 2289 distinct$figures\$"
  run diff said.1 said.3
  assert_output ""
  # A sector of 512 bytes may tear a super block.
  explore 0 --size=32M --limit=30 --from=mark/mkfs --tear=4k --disk disk.log -- '
    e2fsck -p "$disk" >/dev/null; e2fsck -fn "$disk"'
}

@test "a report is a page that needs nothing else" {
  require_tool gnuplot
  commit_log disk.log none
  local more='echo "<b>"; exit 4'
  explore 2 --size=64k --report=out --name='echo "<i>$sector"' disk.log -- \
          "${check/exit 4/"$more"}"
  assert_equal "$(ls out | tr '\n' ' ')" "finding-1.txt index.html "
  grep '^the record is gone$' out/finding-1.txt
  "$python" - <<'END'
from html.parser import HTMLParser
class Page(HTMLParser):
    open, text, tags = [], "", []
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert tag not in ("script", "b", "i", "link", "img"), tag
        assert not dict(attrs).get("href", "f").startswith("http"), attrs
        if tag != "meta":
            self.open.append(tag)
    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag
    def handle_data(self, data):
        self.text += data
page = Page(convert_charrefs=True)
page.feed(open("out/index.html", encoding="utf-8").read())
assert not page.open and page.tags.count("svg") == 1
for words in ("sectors 8+2, 1024 bytes", "<b>", "<i>8", "nbdkit -U - -e lost/",
              "entry 3, a write (metadata)"):
    assert words in page.text, words
END
  # The moments are drawn: more lines than without them.
  logwrites plot disk.log -o plain.svg
  grep -qi d40055 out/index.html
  run ! grep -qi d40055 plain.svg

  # What is in the way is told before anything runs.
  touch file
  explore 1 --report=file disk.log -- touch ran
  explore 1 --report=missing/out disk.log -- touch ran
  assert_file_not_exist ran
}

# Each of these took minutes when its cost grew with the square of the length
# of an interval; now they are done at once.
@test "a long interval takes no longer than what is listed of it" {
  make_log long.log 32 '*[entry(2 * i, 1) for i in range(300000)]'
  seq 0 299999 | sed 's|.*|lost/300000/& single|' >wanted
  timeout 30 logwrites explore --list --size=1G --states=single \
          long.log >got
  cmp wanted got
  { echo "entry/1 only"; echo "lost/2/0 only"
    seq 1 299998 | awk '{ print "lost/" $1 + 2 "/0-" $1 " only" }'; } >wanted
  timeout 30 logwrites explore --list --size=1G --states=only \
          long.log >got
  cmp wanted got
}

@test "entries over each other take no longer than as many apart" {
  make_log same.log 32 '*[entry(i % 3, 2) for i in range(300000)]'
  timeout 30 logwrites explore --list --size=1G --states=only \
          same.log | tail -n 1 >got
  assert_equal "$(cat got)" "lost/300000/0-299998 only"
  make_log nested.log 32 \
    '*[pack_entry(i, 2 * (60000 - i), DISCARD, b"", 32) for i in range(60000)]'
  timeout 30 logwrites explore --list --size=1G nested.log |
    tail -n 1 >got
  assert_equal "$(cat got)" "cut/0/4 random"
}

@test "a seed takes no longer where marks are many" {
  make_log marks.log 32 'entry(0, 1)' '*[mark(b"")] * 300000'
  timeout 30 logwrites explore --list --size=1G \
          --states=random:400000 marks.log >got
  assert_equal "$(cut -d/ -f1,2 got | sort -u)" "cut/0"
  assert_equal "$(wc -l <got)" 2
}

@test "what a seed has lost of a long interval is told at once" {
  make_log long.log 32 '*[entry(2 * i, 1) for i in range(150000)]'
  timeout 30 logwrites list --lost=cut/0/5 long.log >got
  sed -i '/^the same state: /d' got
  sort -n -c -u got
  assert [ "$(wc -l <got)" -gt 10000 ]
  run awk '$3 != 2 * $1 "+1" || $5 != $3' got
  assert_output ""
}
