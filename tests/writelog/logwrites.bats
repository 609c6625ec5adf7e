# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# logwrites: what a log holds, replaying it as the kernel project's
# replay-log does, checking a disk by it, and a picture of it.  The judges
# are the states that replay-log itself made of a kernel's log, QEMU's own
# log of what it wrote, and a second reader in Python.

load ../lib/qed-functions

MiB=$((1024 * 1024))

# The second reader, which also makes logs.
model ()
{
  "$python" "$tests/logwrites-model.py" "$@"
}

setup ()
{
  setup_test
  xz -dc "$tests/data/kernel-ext4.log.xz" >kernel.log
}

replay ()
{
  logwrites replay "$@"
}

# zeroes FILE SIZE: a disk of zeroes, without blocks.
zeroes ()
{
  rm -f "$1"
  truncate -s "$2" "$1"
}

# noise FILE SIZE: a disk whose every byte is something.
noise ()
{
  "$python" -c '
import random, sys
sys.stdout.buffer.write(random.Random(7).randbytes(int(sys.argv[1])))' \
    "$2" >"$1"
}

hash_of ()
{
  sha256sum "$1" | cut -d' ' -f1
}

# Kilobytes on the disk.
blocks_of ()
{
  du -k "$1" | cut -f1
}

assert_same ()
{
  run cmp "$1" "$2"
  assert_success
}

# refused MESSAGE OPTION...: replay fails with status 1 and one message,
# which matches, and does not touch disk.img.
refused ()
{
  local message=$1 before
  shift
  [ -e disk.img ] || noise disk.img $MiB
  before=$(hash_of disk.img)
  run -1 --separate-stderr logwrites replay "$@"
  assert_equal "$output" ""
  assert_equal "${#stderr_lines[@]}" 1
  [[ ${stderr_lines[0]} =~ $message ]] || fail "another message: $stderr"
  assert_equal "$(hash_of disk.img)" "$before"
}

# The same for mistakes in the command line, which are told in two lines.
misused ()
{
  local message=$1
  shift
  run -1 --separate-stderr logwrites "$@"
  assert_equal "$output" ""
  [[ ${stderr_lines[0]} =~ $message ]] || fail "another message: $stderr"
  assert_regex "${stderr_lines[1]}" "Try 'logwrites --help'"
}

# ---- The kernel's log

@test "the kernel's log: replay --limit gives every listed state" {
  local n hash
  while read -r n hash; do
    zeroes disk.img 32M
    replay --log kernel.log --replay disk.img --limit "$n"
    assert_equal "$n $(hash_of disk.img)" "$n $hash"
  done <"$tests/data/kernel-ext4.states"
  assert_equal "$hash" ""
  assert_equal "$(wc -l <"$tests/data/kernel-ext4.states")" 21
}

@test "the kernel's log: info and list are those of the second reader" {
  assert_equal "$(logwrites info --output=json kernel.log | jq -S .)" \
               "$(model info kernel.log | jq -S .)"
  assert_equal "$(logwrites list --output=json kernel.log | jq -S -c '.[]')" \
               "$(model list kernel.log | jq -S -c '.[]')"
  assert_equal "$(logwrites info --output=json kernel.log | jq -r 'keys[]' |
                    sort | xargs)" \
    "bytes discards entries flushes fuas highest-sector marks sector-size writes"
}

@test "the kernel's log: its marks are found, and end a replay" {
  local n name hash nr=0
  while read -r n name; do
    nr=$((nr + 1))
    run -0 replay --log kernel.log --find --end-mark "$name"
    assert_equal "${output%@*}" "$n"
    assert_equal "${output#*@}" \
                 "$(model list kernel.log | jq ".[$n].offset / 512 + 1")"
    hash=$(sed -n "s/^$n //p" "$tests/data/kernel-ext4.states")
    zeroes disk.img 32M
    replay --log kernel.log --replay disk.img --end-mark "$name"
    if [ "$hash" ]; then
      assert_equal "$name $(hash_of disk.img)" "$name $hash"
    fi
  done < <(model info kernel.log | jq -r '.marks[] | "\(.entry) \(.name)"')
  assert_equal "$nr" 7
}

@test "info and list for people" {
  run -0 logwrites info kernel.log
  assert_line "entries: 636"
  assert_line "sector size: 512"
  assert_line "flushes: 59"
  assert_line --regexp "^length: .*7790080 bytes"
  assert_line --regexp "^highest sector: 65535"
  assert_line --regexp "^marks: 7$"
  assert_line --regexp "^ +346  step-20$"

  run -0 logwrites list kernel.log
  assert_equal "${#lines[@]}" 636
  assert_line --index 91 --regexp "^ +91 @6716416 .* mark mkfs$"
  assert_line --index 92 --regexp "^ +92 @6716928 +2 \+2 +fua$"

  # Control characters of a mark do not reach the terminal.
  model marks m.log 'a\x1b[1mb\nc\\'
  run -0 logwrites list m.log
  assert_line --index 1 --partial 'mark a\x1b[1mb\x0ac\x5c'
}

@test "list: some flags, some entries" {
  local all
  all=$(model list kernel.log)
  assert_equal \
    "$(logwrites list --output=json --flags=flush,discard kernel.log |
         jq -c 'map(.entry)')" \
    "$(jq -c 'map(select(.flags - (.flags - ["flush", "discard"]) != []) |
              .entry)' <<<"$all")"
  assert_equal \
    "$(logwrites list --output=json --start 100 --end 200 kernel.log |
         jq -S -c .)" "$(jq -S -c '.[100:200]' <<<"$all")"
  assert_equal "$(logwrites list --output=json --start 636 kernel.log)" "[]"
  assert_equal "$(logwrites list --start 0 --end 1 kernel.log | wc -l)" 1

  run -1 logwrites list --end 637 kernel.log
  assert_output --partial "kernel.log: there are no entries 0 to 637"
  run -1 logwrites list --start 2 --end 1 kernel.log
  misused "--flags: 'bogus'" list --flags=flush,bogus kernel.log
  misused "--flags: ''" list --flags= kernel.log
  misused "not a number" list --start -1 kernel.log
}

# ---- What scripts do with replay-log

# The functions of xfstests' common/dmlogwrites in short.
mark_to_entry_number ()
{
  logwrites replay --find --log r.log --end-mark "$1" 2>/dev/null |
    cut -f1 -d@
}

find_next_fua ()
{
  logwrites replay --find --log r.log --next-fua --start-entry "$1" \
    2>/dev/null | cut -f1 -d@
}

# A log of 200 entries for a disk of 1 MiB, and in "states" the hashes of the
# disk after each of them.
make_random_log ()
{
  model random r.log 2048
  model states r.log $MiB >states
  zeroes disk.img $MiB
}

# entries FILTER: the numbers of the entries that jq selects.
entries ()
{
  model list r.log | jq -r ".[] | select($1) | .entry"
}

@test "a loop over all FUA writes, as xfstests have it" {
  local cur fuas=()
  make_random_log
  cur=$(find_next_fua "$(mark_to_entry_number m39)")
  while [ "$cur" ]; do
    fuas+=("$cur")
    replay --log r.log --replay disk.img --limit $((cur + 1))
    echo "$((cur + 1)) $(hash_of disk.img)" >>hashes
    cur=$(find_next_fua $((cur + 1)))
  done
  assert [ ${#fuas[@]} -gt 10 ]
  assert_equal "$(printf '%s\n' "${fuas[@]}")" \
               "$(entries '.entry > 39 and (.flags | index("fua"))')"
  run -1 grep -vxFf states hashes
  assert_equal "$output" ""
  assert_equal "$(mark_to_entry_number nothing)" ""
}

@test "replay --fsck --check: runs at every flush, FUA write or N entries" {
  local check filter n
  make_random_log
  while read -r check filter; do
    for n in $(entries "$filter"); do
      sed -n "s/^$((n + 1)) //p" states
    done >expected
    assert [ -s expected ]
    zeroes disk.img $MiB
    run -0 replay --log r.log --replay disk.img --check "$check" \
        --fsck "sha256sum <disk.img"
    assert_equal "$(cut -d' ' -f1 <<<"$output")" \
                 "$(cat expected; wc -l <expected)"
  done <<'END'
flush .flags | index("flush")
fua .flags | index("fua")
10 .entry % 10 == 9
1 true
END

  # The count begins where the replay begins.
  run -0 replay --log r.log --replay disk.img --start-entry 53 \
      --limit 25 --check 10 --fsck "echo checked"
  assert_equal "$output" $'checked\nchecked\n2 checks passed'
}

@test "replay --fsck: a check that never ran has not passed" {
  make_random_log
  zeroes disk.img $MiB
  run -1 replay --log r.log --replay disk.img --check 1000 --fsck true
  assert_output --partial "never ran"
  run -1 replay --log r.log --replay disk.img --limit 1 --check fua --fsck true
  assert_output --partial "never ran"
}

@test "replay: what scripts write for replay-log" {
  local n mark
  make_random_log
  # Find wins, and writes nothing.
  zeroes empty.img $MiB
  cp empty.img disk.img
  run -0 replay --log r.log --replay disk.img --find --end-mark m39
  n=$output
  cmp disk.img empty.img
  # What it prints is taken.
  mark=${n%@*}
  replay --log r.log --replay disk.img --limit "$n"
  assert_equal "$mark $(hash_of disk.img)" "$(grep "^$mark " states)"
  # In hex too, and the super block alone.
  cp empty.img disk.img
  replay --log r.log --replay disk.img --limit "0x$(printf %x "$mark")"
  assert_equal "$mark $(hash_of disk.img)" "$(grep "^$mark " states)"
  run -0 replay --log r.log
  assert_output "Log version 1, sector size 512, entries 200"
  # Discards can be checked, too.
  run -0 replay --log r.log --replay disk.img --check discard --fsck true
  assert_output "$(entries '.flags | index("discard")' | wc -l) checks passed"
  # Only some sectors of the disk.
  cp empty.img disk.img
  replay --log r.log --replay whole.img 2>/dev/null || cp empty.img whole.img
  replay --log r.log --replay whole.img
  replay --log r.log --replay disk.img --start-sector 10 --end-sector 0x20
  cp empty.img expected.img
  dd if=whole.img of=expected.img bs=512 skip=10 seek=10 count=23 \
     conv=notrunc status=none
  cmp disk.img expected.img
}

@test "replay keeps its hands off an image that QEMU writes" {
  make_random_log
  start_qemu_nbd writer -f raw disk.img
  run -1 replay --log r.log --replay disk.img
  assert_output --partial "Failed to get"
  end_process "$qemu_pid"
  replay --log r.log --replay disk.img
}

@test "bytes behind an entry that are not zero are named" {
  make_random_log
  printf x | dd of=r.log bs=1 seek=$((512 + 300)) conv=notrunc status=none
  run -1 logwrites info r.log
  assert_output --regexp "entry 0 at offset 512: bytes behind it .* not zero"
}

@test "replay --fsck: its failure stops the replay and names the entry" {
  local n offset
  make_random_log
  run -1 --separate-stderr replay --log r.log --replay disk.img \
      --check fua --fsck 'echo x >>count; test $(wc -l <count) != 3'
  assert_equal "$(wc -l <count)" 3
  n=$(entries '.flags | index("fua")' | sed -n 3p)
  offset=$(model list r.log | jq ".[$n].offset")
  assert_equal "$stderr" "logwrites: r.log: after entry $n at offset \
$offset the command of --fsck failed with exit status 1: \
echo x >>count; test \$(wc -l <count) != 3"
  assert_equal "$(hash_of disk.img)" "$(sed -n "s/^$((n + 1)) //p" states)"

  run -1 replay --log r.log --replay disk.img --check 1 --fsck 'kill $$'
  assert_output --partial "after entry 0 at offset 512"
  assert_output --partial "ended by signal 15"
}

@test "replay --fsck: the kernel's ext4 is whole at every FUA write" {
  zeroes disk.img 32M
  replay --log kernel.log --replay disk.img --end-mark mkfs
  run -0 replay --log kernel.log --replay disk.img \
      --start-mark mkfs --check fua --fsck '
        echo checked
        cp --sparse=always disk.img copy.img
        e2fsck -p copy.img >/dev/null 2>&1
        e2fsck -fn copy.img'
  assert_equal "$(grep -c checked <<<"$output")" \
    "$(model list kernel.log |
         jq 'map(select(.entry > 91 and (.flags | index("fua")))) | length')"

  # Without replaying its journal it is not.
  run -1 replay --log kernel.log --replay disk.img --check fua \
      --fsck 'e2fsck -fn disk.img'
}

@test "replay: where to begin and where to stop" {
  local options first end
  while IFS='|' read -r options first end; do
    noise disk.img $((32 * MiB))
    cp disk.img expected.img
    # shellcheck disable=SC2086
    replay --log kernel.log --replay disk.img $options
    # shellcheck disable=SC2086
    model replay kernel.log expected.img $first $end
    run cmp disk.img expected.img
    assert_equal "$options: $output" "$options: "
  done <<'END'
--start-entry 50|50|636
--start-entry 50 --limit 30|50|80
--limit 0|0|0
--start-mark mkfs|92|636
--start-mark mkfs --limit 10|92|102
--start-mark mkfs --end-mark step-10|92|231
--start-mark mkfs --end-mark step-10 --limit 5|92|97
--next-flush|0|1
--next-flush --start-entry 1|1|89
--next-fua --start-mark mkfs|92|93
--next-fua --start-entry 93|93|104
--next-fua --next-flush --start-entry 90|90|91
--end-mark step-0 --next-fua|0|93
--end-mark step-0 --no-discard|0|116 --no-discard
--no-discard|0|636 --no-discard
END
}

@test "replay --find: what comes first" {
  find_is ()
  {
    local expected=$1
    shift
    run -0 replay --log kernel.log --find "$@"
    assert_equal "${output%@*}" "$expected"
  }
  find_is 91 --end-mark mkfs
  find_is 0 --next-flush
  find_is 88 --next-flush --start-entry 1
  find_is 92 --next-fua
  find_is 92 --next-fua --start-entry 92
  find_is 103 --next-fua --start-entry 93
  find_is 103 --next-fua --next-flush --start-entry 93
  find_is 231 --start-mark mkfs --end-mark step-10
  find_is 92 --next-fua --limit 93
  # The limit is met first.
  find_is 91 --next-fua --limit 92
  find_is 49 --end-mark mkfs --limit 50
  find_is 104 --limit 5 --start-entry 100
  run -0 replay --log kernel.log --find --end-mark mkfs --output=json
  assert_equal "$(jq -c . <<<"$output")" '{"entry":91,"offset":6716416,"sector":13119}'

  refused "no FUA write from entry 634 on" \
          --log kernel.log --find --next-fua --start-entry 634
  refused "no 5 entries from entry 632 on" \
          --log kernel.log --find --start-entry 632 --limit 5
  refused "no mark 'mkfs' from entry 92 on" \
          --log kernel.log --find --start-entry 92 --end-mark mkfs
  refused "no mark 'mkfs' from entry 92 on" \
          --log kernel.log --find --start-mark mkfs --end-mark mkfs
  run -0 replay --log kernel.log --num-entries
  assert_equal "$output" 636
  run -0 replay --log kernel.log --num-entries --output=json
  assert_equal "$(jq -c . <<<"$output")" '{"entries":636}'
}

@test "replay -v prints what it replays" {
  zeroes disk.img 32M
  run -0 replay --log kernel.log --replay disk.img --start-entry 90 --limit 3 -v
  assert_equal "$output" "$(logwrites list kernel.log --start 90 --end 93)"
}

@test "replay -v with streams closed prints nothing onto the disk" {
  zeroes disk.img 32M
  run -1 bash -c 'logwrites replay --log kernel.log --replay disk.img -v <&- >&-'
  assert_output --partial "cannot write to standard output"
  logwrites verify kernel.log disk.img
}

@test "replay shows how far it is, on a terminal only" {
  zeroes disk.img 32M
  run -0 replay --log kernel.log --replay disk.img
  assert_equal "$output" ""
  run -0 "$python" -c '
import pty, sys
sys.exit(pty.spawn(sys.argv[1:]))' \
      logwrites replay --log kernel.log --replay disk.img
  assert_output --partial "(0.00/100%)"
  assert_output --partial "(100.00/100%)"
}

# ---- Mistakes

@test "replay: what does not exist is an error before anything is written" {
  local log=(--log kernel.log --replay disk.img)
  noise disk.img $((32 * MiB))
  refused "kernel.log: there is no mark 'nothing' from entry 0 on" \
          "${log[@]}" --end-mark nothing
  refused "there is no mark 'nothing'" "${log[@]}" --start-mark nothing
  refused "there is no mark 'nothing'" "${log[@]}" --end-mark nothing --limit 5
  refused "there is no mark 'nothing'" "${log[@]}" --end-mark nothing --next-fua
  refused "there is no mark 'mkfs' from entry 100" \
          "${log[@]}" --start-entry 100 --end-mark mkfs
  refused "there is no entry 636: the log has 636" "${log[@]}" --start-entry 636
  refused "there is no entry 18446744073709551615" \
          "${log[@]}" --start-entry 18446744073709551615
  refused "there are no 637 entries from entry 0 on: the log has 636" \
          "${log[@]}" --limit 637
  refused "there are no 2 entries from entry 635 on" \
          "${log[@]}" --start-entry 635 --limit 2
  refused "there is no FUA write from entry 634 on" \
          "${log[@]}" --start-entry 634 --next-fua
  refused "there is no flush from entry 634 on" \
          "${log[@]}" --start-entry 634 --next-flush
}

@test "replay: a damaged log is an error before anything is written" {
  noise disk.img $((32 * MiB))
  cp kernel.log good.log

  model set kernel.log 630 flags 64
  refused "kernel.log: entry 630 at offset [0-9]+: unknown flags" \
          --log kernel.log --replay disk.img
  refused "entry 630 at offset" --log kernel.log --find --end-mark nothing
  refused "entry 630 at offset" --log kernel.log --num-entries
  # What comes before the damage can be had.
  replay --log kernel.log --replay disk.img --limit 500

  cp good.log kernel.log
  truncate -s -1 kernel.log
  refused "entry 635 at offset 7789568: the log ends before it" \
          --log kernel.log --replay disk.img
  cp good.log kernel.log
  model set kernel.log 600 nr 0x7fffffff
  refused "entry 600 at offset [0-9]+: the log ends inside it" \
          --log kernel.log --replay disk.img
  cp good.log kernel.log
  model set kernel.log 600 nr 0xffffffffffffffff
  refused "entry 600 at offset [0-9]+: a range of sectors that goes beyond" \
          --log kernel.log --replay disk.img
  cp good.log kernel.log
  model set kernel.log -1 nr_entries 637
  refused "entry 636 at offset 7790080: the log ends before it" \
          --log kernel.log --replay disk.img

  refused "good.txt: not a write log: .* the magic number is wrong" \
          --log good.txt --replay disk.img < <(seq 1000 >good.txt)
  : >empty.log
  refused "empty.log: not a write log: .* it is empty" \
          --log empty.log --replay disk.img
  refused "Could not open 'missing.log': No such file" \
          --log missing.log --replay disk.img
}

@test "replay: targets that cannot be" {
  noise disk.img $((32 * MiB))
  refused "Could not open 'missing.img': No such file" \
          --log kernel.log --replay missing.img
  assert_not_exist missing.img
  refused "Is a directory" --log kernel.log --replay .
  refused "this is the log" --log kernel.log --replay kernel.log
  ln kernel.log other-name
  refused "this is the log" --log kernel.log --replay other-name
  assert_equal "$(hash_of kernel.log)" \
    "$(xz -dc "$tests/data/kernel-ext4.log.xz" | sha256sum |
         cut -d' ' -f1)"
}

@test "output that cannot be written is one message" {
  local command
  for command in "info" "list" "list --output=json" "info --output=json"; do
    # shellcheck disable=SC2016 # the inner shell's
    run -1 bash -c 'logwrites $1 kernel.log >/dev/full' - "$command"
    assert_output \
      "logwrites: cannot write to standard output: No space left on device"
  done
}

@test "mistakes in the command line" {
  misused "before --start-sector" \
          replay --log kernel.log --replay d --start-sector 5 --end-sector 4
  misused "--log is missing" replay --replay disk.img
  misused "goes with neither --replay nor --find" \
          replay --log kernel.log --find --next-fua --num-entries
  misused "--find needs" replay --log kernel.log --find
  misused "--limit 0" replay --log kernel.log --find --next-fua --limit 0
  misused "need each other" \
          replay --log kernel.log --replay disk.img --fsck true
  misused "need each other" \
          replay --log kernel.log --replay disk.img --check fua
  misused "--check: give a number above 0" \
          replay --log kernel.log --replay disk.img --fsck true --check 0
  misused "--check: 'often' is not a number" \
          replay --log kernel.log --replay disk.img --fsck true --check often
  misused "'1x' is not a number" \
          replay --log kernel.log --replay disk.img --limit 1x
  misused "'99999999999999999999' is not a number" \
          replay --log kernel.log --replay d --limit 99999999999999999999
  misused "unrecognized option '--bogus'" replay --bogus
  misused "missing argument for option '--log'" replay --log
  misused "Unexpected argument: x" \
          replay --log kernel.log --replay disk.img x
  misused "Expecting one log" info
  misused "Expecting one log" info a b
  misused "Expecting a log and a disk" verify kernel.log
  misused "Command not found: x" x
}

@test "every option is in the table, in the help and in the manual page" {
  local command option
  while IFS='|' read -r command option; do
    if [ -z "$option" ]; then continue; fi
    # shellcheck disable=SC2086
    logwrites $command --help | grep -qE -- "(^|[ ,])$option([ =,]|\$)" ||
      fail "logwrites $command --help does not tell of $option"
    grep -qE -- "B<$option([> =]|\$)" "$srcdir/man/logwrites.pod" ||
      fail "the manual page does not tell of $option"
  done < <(logwrites --completions | cut -f 1,2 | tr '\t' '|')
  for option in log replay limit next-flush next-fua start-entry start-mark \
                end-mark find num-entries no-discard fsck check; do
    logwrites --completions | grep -q "^replay	--$option	" ||
      fail "--$option of replay-log is missing"
  done
}

# ---- The target

@test "replay: a regular file grows, a disk of the log's last sector does not" {
  # A disk of 100 sectors and a half.
  model random r.log 101
  : >disk.img
  replay --log r.log --replay disk.img
  zeroes expected.img $((101 * 512))
  model replay r.log expected.img
  truncate -s "$(stat -c %s disk.img)" expected.img
  assert_same disk.img expected.img

  zeroes disk.img $((100 * 512 + 200))
  replay --log r.log --replay disk.img
  assert_equal "$(stat -c %s disk.img)" $((100 * 512 + 200))
  truncate -s $((100 * 512 + 200)) expected.img
  assert_same disk.img expected.img

  # A discard that is skipped needs no room.
  "$python" - <<END
import sys
sys.path.insert(0, "$lib")
import writelog_format as wf
open("d.log", "wb").write(wf.make_log([wf.pack_entry(5, 1, 0, b"x" * 512),
                                       wf.pack_entry(100, 9, wf.DISCARD)]))
END
  : >disk.img
  replay --log d.log --replay disk.img --no-discard
  assert_equal "$(stat -c %s disk.img)" $((6 * 512))
  replay --log d.log --replay disk.img
  assert_equal "$(stat -c %s disk.img)" $((109 * 512))

  # What is behind the log's sectors stays.
  noise disk.img $MiB
  cp disk.img expected.img
  replay --log r.log --replay disk.img
  model replay r.log expected.img
  assert_same disk.img expected.img
}

@test "replay onto an NBD export" {
  start_nbdkit memory 32M
  replay --log kernel.log --replay "$uri"
  nbdcopy "$uri" disk.img
  assert_equal "$(hash_of disk.img)" \
    "$(sed -n 's/^636 //p' "$tests/data/kernel-ext4.states")"
  logwrites verify kernel.log "$uri"
}

@test "replay onto an NBD export that can neither trim nor zero" {
  noise data.img $((32 * MiB))
  cp data.img expected.img
  model replay kernel.log expected.img
  start_nbdkit --filter=blocksize-policy --filter=nozero file data.img \
               blocksize-minimum=4096 blocksize-error-policy=error
  replay --log kernel.log --replay "$uri"
  stop_nbdkit
  assert_same data.img expected.img
}

@test "replay onto an NBD export that is too small is refused" {
  noise data.img $MiB
  cp data.img before.img
  start_nbdkit file data.img
  refused "1048576 bytes are too few: entry 2 at offset [0-9]+ of the log goes \
up to 33554432" --log kernel.log --replay "$uri"
  stop_nbdkit
  assert_same data.img before.img
}

@test "logs can be read from an NBD export" {
  start_nbdkit --filter=blocksize-policy file kernel.log \
               blocksize-minimum=512 blocksize-error-policy=error
  assert_equal "$(logwrites info --output=json "$uri" | jq -S .)" \
               "$(model info kernel.log | jq -S .)"
  zeroes disk.img 32M
  replay --log "$uri" --replay disk.img
  assert_equal "$(hash_of disk.img)" \
    "$(sed -n 's/^636 //p' "$tests/data/kernel-ext4.states")"
  logwrites verify "$uri" disk.img
  logwrites plot "$uri" -o kernel.svg
  stop_nbdkit

  # One that is shorter than a sector.
  head -c 100 kernel.log >short.log
  start_nbdkit file short.log
  run -1 logwrites info "$uri"
  assert_output --partial "super block at offset 0: the log ends inside it"
  start_nbdkit null 0
  run -1 logwrites info "$uri"
  assert_output --partial "super block at offset 0: it is empty"
}

@test "discards punch holes" {
  noise disk.img $((32 * MiB))
  cp disk.img expected.img
  model replay kernel.log expected.img 0 3
  assert [ "$(blocks_of disk.img)" -ge $((32 * 1024)) ]
  # Entry 2 discards all of the disk.
  replay --log kernel.log --replay disk.img --limit 3
  assert_same disk.img expected.img
  assert [ "$(blocks_of disk.img)" -lt 1024 ]
}

@test "discards and writes of zeroes have no limit of size" {
  # 6 TiB of a disk, at once: in a file, and in an export whose commands have
  # 32 bits.
  "$python" - <<END
import sys
sys.path.insert(0, "$lib")
import writelog_format as wf
wf.write = open("huge.log", "wb").write(wf.make_log([
    wf.pack_entry(8, 1, 0, b"a" * 512),
    wf.pack_entry(1 << 33, 1, 0, b"b" * 512),
    wf.pack_entry(0, (6 << 40) // 512, wf.DISCARD),
    wf.pack_entry(1 << 32, 1, 0, b"c" * 512)]))
END
  zeroes disk.img 7T
  replay --log huge.log --replay disk.img
  assert [ "$(blocks_of disk.img)" -lt 100 ]
  run -0 qemu-io -r -f raw -c "read -P 0 4k 1k" -c "read -P 0 4T 512" \
      -c "read -P 99 2T 512" disk.img
  logwrites verify huge.log disk.img

  start_nbdkit file disk.img
  replay --log huge.log --replay "$uri"
  logwrites verify huge.log "$uri"

  # 8 GiB of zeroes were written, which are a hole in the log.
  "$python" - <<END
import sys
sys.path.insert(0, "$lib")
import writelog_format as wf
with open("zero.log", "wb") as f:
    f.write(wf.make_log([wf.pack_entry(0, (8 << 30) // 512)], nr_entries=2))
    f.seek(8 << 30, 1)
    f.write(wf.pack_entry(1, 1, 0, b"a" * 512))
END
  zeroes disk.img 8G
  replay --log zero.log --replay disk.img
  assert [ "$(blocks_of disk.img)" -lt 100 ]
  logwrites verify zero.log disk.img
}

# ---- QEMU's log

# qemu_log SECTOR-SIZE: write at random with qemu-io through QEMU's driver of
# the same name.  Makes disk.img, base.img and qemu.log.
qemu_log ()
{
  local i args=() offset count
  RANDOM=$1
  noise disk.img $((4 * MiB))
  cp disk.img base.img
  : >qemu.log
  for i in {1..100}; do
    offset=$((RANDOM % 1000 * 4096))
    count=$((RANDOM % 16 * 4096 + 4096))
    if ((offset + count > 4 * MiB)); then count=4096; fi
    case $((RANDOM % 8)) in
      0) args+=(-c flush) ;;
      1) args+=(-c "write -z $offset $count") ;;
      2) args+=(-c "write -f -P $i $offset $count") ;;
      *) args+=(-c "write -P $i $offset $count") ;;
    esac
  done
  run -0 qemu-io "${args[@]}" --image-opts \
"driver=blklogwrites,file.driver=file,file.filename=disk.img,\
log.driver=file,log.filename=qemu.log,log-sector-size=$1"
}

@test "QEMU's log of what it wrote replays to what it wrote" {
  local size
  for size in 512 4096; do
    qemu_log $size
    assert_equal "$(logwrites info --output=json qemu.log |
                      jq '."sector-size"')" $size
    assert_equal "$(logwrites list --output=json qemu.log | jq -S -c '.[]')" \
                 "$(model list qemu.log | jq -S -c '.[]')"
    cp base.img copy.img
    replay --log qemu.log --replay copy.img
    assert_same copy.img disk.img
    logwrites verify qemu.log disk.img --base base.img
  done
}

# ---- verify

# verify_says STATUS SECTOR ARGUMENT...: the first sector that differs is
# this one, for people and in JSON.
verify_says ()
{
  local status=$1 sector=$2
  shift 2
  run "-$status" logwrites verify "$@"
  if [ "$status" = 2 ]; then
    assert_line --index 0 --regexp "the first sector that differs is $sector$"
  fi
  run "-$status" logwrites verify --output=json "$@"
  if [ "$status" = 2 ]; then
    assert_equal "$(jq -c '[.equal, .sector]' <<<"$output")" "[false,$sector]"
  elif [ "$status" = 0 ]; then
    assert_equal "$(jq -c . <<<"$output")" '{"equal":true}'
  fi
}

# poke FILE BYTE: change this byte.
poke ()
{
  "$python" -c '
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]))
    c = f.read(1)
    f.seek(-1, 1)
    f.write(bytes([c[0] ^ 1]))' "$1" "$2"
}

@test "verify finds the first sector that differs" {
  local size byte
  for size in 512 4096; do
    model random r.log 1000 $size
    noise base.img $((1000 * size))
    cp base.img disk.img
    model replay r.log disk.img
    verify_says 0 - r.log disk.img --base base.img
    verify_says 0 - --base base.img r.log disk.img
    for byte in $((1000 * size - 1)) $((500 * size + 1)) $((7 * size)) 0; do
      poke disk.img "$byte"
      verify_says 2 $((byte / size)) r.log disk.img --base base.img
    done
  done
}

@test "verify tells which entry has to do with the difference" {
  local sector expected
  zeroes disk.img 32M
  replay --log kernel.log --replay disk.img
  verify_says 0 - kernel.log disk.img
  for sector in 2 32900 65535; do
    poke disk.img $((sector * 512 + 3))
    expected=$(model list kernel.log |
      jq -r "map(select(.sector <= $sector and
                        .sector + .\"nr-sectors\" > $sector)) | last |
             \"\\(.entry) at offset \\(.offset)\"")
    verify_says 2 $sector kernel.log disk.img
    run -2 logwrites verify kernel.log disk.img
    assert_line "The first byte that differs is at $((sector * 512 + 3))."
    assert_line "The last entry for this sector is $expected."
    poke disk.img $((sector * 512 + 3))
  done
}

@test "verify: without --base the disk was zeroes" {
  model random r.log 1000
  zeroes disk.img $((1000 * 512))
  model replay r.log disk.img
  verify_says 0 - r.log disk.img
  # A longer disk, as long as the rest is zeroes too.
  truncate -s $MiB disk.img
  verify_says 0 - r.log disk.img
  poke disk.img $((MiB - 1))
  verify_says 2 2047 r.log disk.img
  run -2 logwrites verify r.log disk.img
  assert_line "The log has no entry for this sector."
}

@test "verify: disks and bases of another size" {
  model random r.log 1000
  local end
  end=$(model info r.log | jq '."highest-sector" + 1')
  noise base.img $((end * 512))
  cp base.img disk.img
  model replay r.log disk.img

  # A disk that ends within the log's last sector.
  truncate -s $((end * 512 - 100)) disk.img base.img
  verify_says 0 - r.log disk.img --base base.img
  truncate -s $((end * 512)) base.img
  verify_says 2 $((end - 1)) r.log disk.img --base base.img
  run -2 logwrites verify r.log disk.img --base base.img
  assert_line "The disk ends there, at byte $((end * 512 - 100))."

  truncate -s $((end * 512 + 700)) disk.img
  run -2 logwrites verify r.log disk.img --base base.img

  zeroes short.img $((end * 512 - 512))
  run -1 logwrites verify r.log disk.img --base short.img
  assert_output --regexp "short.img: $((end * 512 - 512)) bytes are too few: \
entry [0-9]+ of the log r.log goes up to $((end * 512))$"
  zeroes disk.img $((end * 512))
  model replay r.log disk.img
  truncate -s $((end * 512 - 512)) disk.img
  verify_says 2 $((end - 1)) r.log disk.img
}

@test "verify: what cannot be compared is status 1" {
  zeroes disk.img 32M
  run -1 logwrites verify missing.log disk.img
  run -1 logwrites verify kernel.log missing.img
  assert_output --partial "Could not open 'missing.img': No such file"
  run -1 logwrites verify kernel.log disk.img --base missing.img
  model set kernel.log 600 flags 32
  run -1 logwrites verify kernel.log disk.img
  assert_output --regexp "^logwrites: kernel.log: entry 600 at offset [0-9]+: \
unknown flags$"
}

@test "verify: an image behind an NBD server, as disk and as base" {
  model random r.log 2000
  noise base.img $MiB
  cp base.img disk.img
  model replay r.log disk.img
  start_nbdkit file disk.img
  local disk_uri=$uri
  start_nbdkit --filter=blocksize-policy file base.img \
               blocksize-minimum=4096 blocksize-error-policy=error
  verify_says 0 - r.log "$disk_uri" --base "$uri"
  poke disk.img 5000
  verify_says 2 9 r.log "$disk_uri" --base "$uri"
}

@test "verify: memory and time do not grow with the disk" {
  model random r.log 1000
  zeroes disk.img 4T
  zeroes base.img 4T
  replay --log r.log --replay disk.img
  (
    limit_memory 300000
    logwrites verify r.log disk.img --base base.img
  )
  poke disk.img $((3 * 1024 * 1024 * MiB))
  verify_says 2 $((3 * 2 * 1024 * MiB)) r.log disk.img --base base.img
}

# ---- Hostile logs

# within_limits ARGUMENT...: logwrites with these, in little memory and time.
within_limits ()
{
  (
    limit_memory 300000
    exec timeout 20 logwrites "$@"
  )
}

@test "a hostile log takes neither memory nor time" {
  zeroes hostile.log 8E 2>/dev/null || zeroes hostile.log 15T
  local size command
  for size in 32 512 8388608; do
    "$python" - hostile.log $size <<'END'
import struct
import sys
with open(sys.argv[1], "r+b") as f:
    f.write(struct.pack("<QQQI", 0x6a736677736872, 1, 2**64 - 1,
                        int(sys.argv[2])))
END
    zeroes disk.img 1M
    for command in "info" "list" "verify hostile.log disk.img" \
                   "plot -o x.png hostile.log" \
                   "replay --num-entries --log hostile.log" \
                   "replay --log hostile.log --replay disk.img"; do
      case $command in info|list) command+=" hostile.log" ;; esac
      # shellcheck disable=SC2086
      run -1 within_limits $command
      assert_line "logwrites: hostile.log: entry 0 at offset $size: nothing \
has been written there"
    done
  done
}

# ---- plot

is_png ()
{
  [ "$(head -c 8 "$1" | od -An -tx1 | tr -d ' \n')" = 89504e470d0a1a0a ]
}

# The texts in an SVG, which must be well-formed, one a line.
svg_texts ()
{
  "$python" -c '
import sys
import xml.etree.ElementTree as tree
for e in tree.parse(sys.argv[1]).iter():
    if e.text and e.text.strip() and e.tag.endswith(("}tspan", "}text")):
        print(e.text.strip())' "$1"
}

@test "plot: the kernel's log" {
  local name
  logwrites plot kernel.log -o kernel.svg
  logwrites plot -o kernel.png kernel.log
  is_png kernel.png
  run -0 svg_texts kernel.svg
  for name in mkfs step-0 step-10 step-20 step-30 unmounted \
              dm-log-writes-end write metadata FUA discard flush entry sector
  do
    assert_line "$name"
  done
  assert_equal "$(ls kernel.*)" $'kernel.log\nkernel.png\nkernel.svg'
  assert_equal "$(stat -c %a kernel.svg)" \
               "$(printf '%o' $((0666 & ~0$(umask))))"
}

@test "plot: a long log makes no larger file, and flushes do not hide it" {
  model many many.log 100000
  logwrites plot many.log -o many.svg
  logwrites plot many.log -o many.png
  is_png many.png
  assert [ "$(stat -c %s many.svg)" -lt $MiB ]
  assert [ "$(stat -c %s many.png)" -lt $MiB ]
  run -0 svg_texts many.svg
  assert_line flushes
  assert_line "mark 50"
}

@test "plot: logs with little in them" {
  model marks empty.log
  model marks one.log only
  logwrites plot empty.log -o empty.png
  logwrites plot empty.log -o empty.svg
  logwrites plot one.log -o one.svg
  run -0 svg_texts one.svg
  assert_line only
}

@test "plot: names of marks are text and nothing else" {
  model marks m.log "a'b" '`touch one`' '$(touch two)' 'new\nline' '@x %d' \
        '<b>&amp;' '\xff\xfe' EOD '' '{/Symbol a}^2' \
        '\\n\\101' '"; system("touch six")' "'. system('touch seven') .'" \
        long-long-long-long-long-long-long-long 'gr\xc3\xbc\xc3\x9fe' '\x00'
  logwrites plot m.log -o m.svg
  logwrites plot m.log -o m.png
  for name in one two six seven; do assert_not_exist $name; done
  run -0 svg_texts m.svg
  assert_line "a'b"
  assert_line '`touch one`'
  assert_line '$(touch two)'
  assert_line 'new?line'
  assert_line '@x %d'
  assert_line '<b>&amp;'
  assert_line '{/Symbol a}^2'
  assert_line '\n\101'
  assert_line 'EOD'
  assert_line 'grüße'
  assert_line '"; system("touch six")'
}

@test "plot: a strange name of a file is only a name" {
  logwrites plot kernel.log -o '|touch one;.svg'
  assert_exist '|touch one;.svg'
  logwrites plot kernel.log -o "a'b\"\$(touch one)\`touch one\`.png"
  is_png "a'b\"\$(touch one)\`touch one\`.png"
  assert_not_exist one
}

@test "plot: mistakes leave what was there" {
  misused "ends in .svg or .png" plot kernel.log -o kernel.pdf
  misused "Expecting -o" plot kernel.log
  run -1 logwrites plot kernel.log -o no/such/folder.png
  assert_output --partial "no/such/folder.png: create: No such file"

  echo old >old.svg
  cp kernel.log bad.log
  model set bad.log 600 flags 32
  run -1 logwrites plot bad.log -o old.svg
  assert_output --partial "entry 600 at offset"
  mkdir bin
  ln -s "$(type -P logwrites)" bin/
  run -1 env PATH="$PWD/bin" logwrites plot kernel.log -o old.svg
  assert_output "logwrites: cannot run gnuplot, which draws the picture: \
No such file or directory"
  printf '#!/bin/sh\nexit 3\n' >bin/gnuplot
  chmod +x bin/gnuplot
  run -1 env PATH="$PWD/bin" logwrites plot kernel.log -o old.svg
  assert_output "logwrites: gnuplot could not draw the picture"
  # No room.
  run -1 strace -o /dev/null -e inject=sendfile:error=ENOSPC \
      logwrites plot kernel.log -o old.svg
  assert_output "logwrites: old.svg: write: No space left on device"

  assert_equal "$(cat old.svg)" old
  assert_equal "$(ls old*)" old.svg
}
