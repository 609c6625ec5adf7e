# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Scripts of the shape of those that use replay-log: the helpers that
# xfstests have for it, two of their tests, and what the project of the log
# itself does.  Only the name of the program is another.

load ../lib/functions

setup ()
{
  setup_test
  model random r.log 2048
  model states r.log $((1 << 20)) >states
  truncate -s 1M dev
}

model ()
{
  "$python" "$tests/logwrites-model.py" "$@"
}

replay_log ()
{
  logwrites replay "$@"
}

# ---- The helpers: each is given what theirs are.

replay_to_mark ()
{
  replay_log --log r.log --replay "$2" --end-mark "$1" >>full 2>&1
}

replay_range ()
{
  local entry=$1 dev=$2
  replay_log -v --log r.log --replay "$dev" --limit "$entry" >>full 2>&1
}

mark_to_entry ()
{
  local ret
  ret=$(replay_log --find --log r.log --end-mark "$1" 2>>full)
  [ -n "$ret" ] || return 1
  cut -f 1 -d @ <<<"$ret"
}

find_next_fua ()
{
  local start=${1:-0} ret
  ret=$(replay_log --find --log r.log --next-fua --start-entry "$start" \
          2>>full)
  [ -n "$ret" ] || return 1
  cut -f 1 -d @ <<<"$ret"
}

# ---- What is expected

# The hash of the disk after N entries, by the second reader.
after ()
{
  sed -n "s/^$1 //p" states
}

hash_of ()
{
  sha256sum <"$1" | cut -d' ' -f1
}

entries ()
{
  model list r.log | jq -r ".[] | select($1) | .entry"
}

@test "replay to a mark, and from FUA to FUA in steps (as generic/482)" {
  local prev cur count=0
  replay_to_mark m39 dev
  prev=$(mark_to_entry m39)
  assert_equal "$(hash_of dev)" "$(after "$prev")"
  cur=$(find_next_fua "$prev")
  while [ -n "$cur" ]; do
    replay_range $((cur + 1)) dev
    assert_equal "$cur $(hash_of dev)" "$cur $(after $((cur + 1)))"
    count=$((count + 1))
    prev=$((cur + 1))
    cur=$(find_next_fua "$prev") || break
  done
  assert_equal "$count" \
    "$(entries '.entry > 39 and (.flags | index("fua"))' | wc -l)"
  # A mark that is not there is an empty answer, and nothing is replayed.
  run -1 mark_to_entry nothing
  assert_output ""
  run -1 replay_to_mark nothing dev
}

@test "from flush to flush by what --find prints (as btrfs/291)" {
  local entry=0 found start at count=0
  truncate -s 1M whole
  # All entries up to a flush are one step, which begins behind the last.
  while found=$(replay_log --log r.log --find --next-flush \
                  --start-entry "$entry" 2>>full); do
    at=${found%@*}
    replay_log --log r.log --replay dev --start-entry "$entry" --next-flush
    assert_equal "$at $(hash_of dev)" "$at $(after $((at + 1)))"
    # What --find prints is a limit from the start: up to before that entry.
    start=$entry
    entry=$((at + 1))
    count=$((count + 1))
    [ "$entry" -lt 200 ] || break
    # Finding with a target named writes nothing to it.
    if [ "$start" -lt 100 ]; then
      replay_log --log r.log --find --replay whole --next-flush \
        --start-entry "$entry" >>full || true
    fi
  done
  cmp whole <(head -c 1M /dev/zero)
  assert_equal "$count" "$(entries '.flags | index("flush")' | wc -l)"
  found=$(replay_log --log r.log --find --end-mark m39)
  [[ $found == *@* ]]
  replay_log --log r.log --replay whole --limit "$found"
  assert_equal "$(hash_of whole)" "$(after "${found%@*}")"
}

@test "each entry with its check, and the options by hand" {
  local super
  # Alone, the log tells of itself.
  super=$(replay_log --log r.log)
  [[ $super == *"ersion 1"*512*200 ]]
  assert_equal "$(replay_log --log r.log --num-entries)" 200
  # One at a time, the number in hex.
  local i
  for ((i = 0; i < 20; i++)); do
    replay_log --log r.log --replay dev --limit 1 \
      --start-entry "$(printf 0x%x $i)"
    assert_equal "$i $(hash_of dev)" "$i $(after $((i + 1)))"
  done
  # The first of the two ends it, whichever that is.
  local mark=39 flush
  flush=$(entries '.flags | index("flush")' | head -n 1)
  run -0 replay_log --log r.log --find --end-mark m39 --next-flush
  assert_equal "${output%@*}" $((flush < mark ? flush : mark))
  # Checks say how many they were, and none is no success.
  local kind
  for kind in flush fua discard; do
    run -0 replay_log --log r.log --replay dev --check $kind --fsck true
    assert_output --partial "$(entries ".flags | index(\"$kind\")" | wc -l) \
checks passed"
  done
  run -1 replay_log --log r.log --replay dev --check 201 --fsck true
  assert_output --partial "never ran"
}

@test "a check sees a target to which all has been flushed" {
  # The server notes what it is asked to do, and the check what it has noted.
  start_nbdkit --filter=log memory 1M logfile="$tmp/requests"
  run -0 replay_log --log r.log --replay "$uri" --check 7 --fsck "
    grep -Eo ' (Write|Zero|Trim|Flush) ' '$tmp/requests' | tail -n 1"
  assert_line --index 0 --partial Flush
  assert_equal "$(grep -c Flush <<<"$output")" 28
  refute_output --regexp 'Write|Zero|Trim'
  assert_output --partial "28 checks passed"
}

@test "info --output=json of a million marks takes little memory" {
  "$python" - <<'END'
from writelog_format import *
mark = pack_entry(flags=MARK, data=b"mark", sector_size=64)
with open("marks", "wb") as f:
    f.write(make_log([], 64, 1000000))
    for _ in range(1000):
        f.write(mark * 1000)
END
  run "$python" -c '
import resource, subprocess
with open("marks.json", "w") as out:
    subprocess.run(["logwrites", "info", "--output=json", "marks"],
                   stdout=out, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)'
  assert_success
  # KiB.  As one value they take 499 MB.
  is_sanitized || [ "$output" -lt 150000 ]
  assert_equal "$(grep -c '"name": "mark"' marks.json)" 1000000
}
