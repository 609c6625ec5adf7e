#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# How many states a second logwrites explore tries, and the memory that takes:
#
#     make bench            or: ./run bash tests/bench/explore.sh
#
# Logs of 1,000 to 100,000 writes of 4 KiB to random places, each hundredth a
# flush.  Of each, 1,000 states of the default kinds:
#
# true      with a command that does nothing
# connect   with one that connects and asks for the size
# replay    the same number of entries replayed onto a new file, as who has
#           only replay-log does it: copying, and of prefixes only
# memory    of all processes together, in bytes an entry beyond 8 MiB a job
#           (what they share is counted once)
#
# Rates are states a second and job, with a job a processor.

. "$(dirname "${BASH_SOURCE[0]}")/functions.bash"

lib=$(cd "$(dirname "${BASH_SOURCE[0]}")/../lib" && pwd)
python=/usr/bin/python3
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$lib

need logwrites nbdinfo
make_folder explore-bench
cd "$dir"
export TMPDIR=$dir
jobs=$(nproc)
states=1000
copies=5

# make_log ENTRIES
make_log ()
{
  "$python" - "$1" <<'EOP'
import random
import sys

import writelog_format as wl

count = int(sys.argv[1])
random.seed(1)
data = [random.randbytes(4096) for _ in range(16)]
with open("log", "wb") as f:
    f.write(wl.make_log([], 512, count))
    for i in range(count):
        f.write(wl.pack_entry(random.randrange(count) * 8, 8,
                              wl.FLUSH if i % 100 == 99 else 0,
                              data[i % 16]))
EOP
}

# seconds COMMAND...: how long it takes.
seconds ()
{
  local start=$EPOCHREALTIME
  "$@" >said 2>&1
  awk "BEGIN { print $EPOCHREALTIME - $start }"
}

# rate STATES SECONDS
rate ()
{
  awk "BEGIN { printf \"%.0f\", $1 / $2 / $jobs }"
}

explore ()
{
  logwrites explore --limit=$states --jobs="$jobs" --size=1G log -- "$1"
}

# What all processes take that belong to us, in bytes, when the last but one
# state is tried: each page is counted for its share.
measure_memory ()
{
  # shellcheck disable=SC2016
  explore 'parent=$(awk "/^PPid/ { print \$2 }" /proc/$PPID/status)
    for pid in $parent $(cat /proc/$parent/task/*/children); do
      cat /proc/$pid/smaps_rollup; done |
    awk "/^Pss:/ { sum += \$2 } END { print sum * 1024 }" >>memory' \
          >/dev/null 2>&1
  sort -n memory | tail -n 1
  rm memory
}

an_entry ()
{
  awk "BEGIN { printf \"%.0f\", ($taken - $jobs * 8 * 1048576) / $1 }"
}

replay_some ()
{
  local i
  for ((i = 1; i <= copies; i++)); do
    rm -f disk.img
    truncate -s 1G disk.img
    logwrites replay --log log --replay disk.img --limit $((i * $1 / copies))
  done
}

printf '\nstates a second and job (%s jobs), and bytes an entry\n\n' "$jobs"
printf '%-10s %10s %10s %10s %10s\n' entries true connect replay memory
for entries in 1000 10000 100000; do
  make_log $entries
  # The list has to be made whatever is tried of it.
  list=$(seconds logwrites explore --list --size=1G log)
  nothing=$(seconds explore true)
  # shellcheck disable=SC2016
  connecting=$(seconds explore 'nbdinfo --size "$uri" >/dev/null')
  copying=$(seconds replay_some $entries)
  taken=$(measure_memory)
  printf '%-10s %10s %10s %10s %10s   (list: %s s)\n' $entries \
         "$(rate $states "$nothing")" "$(rate $states "$connecting")" \
         "$(awk "BEGIN { printf \"%.1f\", $copies / $copying }")" \
         "$(an_entry $entries)" "$list"
done
printf '\ntargets: true at 100 or more, memory below 500 bytes an entry\n'
echo
tell_memory "logwrites explore of $entries entries, $jobs jobs" \
            $((${taken%.*} >> 20)) $((10 + entries * 500 / 1048576 + 8 * jobs))
