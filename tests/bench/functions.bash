# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the benches share, for those that source it: a folder in memory, a
# server at a time, fio, and medians.

set -e -o pipefail

seconds=${BENCH_SECONDS:-2}
rounds=${BENCH_ROUNDS:-5}
server_pid=
memory=0                        # MiB, the most that ours has taken
declare -A results

# need TOOL...: it ends here if one is missing.
need ()
{
  local tool
  for tool; do
    if ! type -P "$tool" >/dev/null; then
      echo "$0: $tool is missing" >&2
      exit 1
    fi
  done
}

# make_folder NAME: sets $dir, which is removed at the end.
make_folder ()
{
  dir=$(mktemp -d "/dev/shm/$1.XXXXXX")
  trap cleanup EXIT
}

cleanup ()
{
  if [ "$server_pid" ]; then
    kill -KILL "$server_pid" 2>/dev/null || true
  fi
  rm -rf "$dir"
}

# start NAME COMMAND...: start a server on $dir/sock, with a pid file
# $dir/pid, and wait until it accepts connections.
start ()
{
  local name=$1 i
  shift
  rm -f "$dir/pid" "$dir/sock"
  "$@" 2>"$dir/messages" &
  server_pid=$!
  for ((i = 0; i < 1000; i++)); do
    if [ -s "$dir/pid" ] && [ -S "$dir/sock" ]; then return; fi
    if ! kill -0 "$server_pid" 2>/dev/null; then break; fi
    sleep 0.02
  done
  cat "$dir/messages" >&2
  echo "$0: $name does not start" >&2
  exit 1
}

# start_nbdkit NAME ARGUMENT...
start_nbdkit ()
{
  local name=$1
  shift
  start "$name" nbdkit -f -U "$dir/sock" -P "$dir/pid" "$@"
}

# stop NAME: of the server called $ours the peak of its memory counts.  One
# that died after it had answered fio (nbdkit 1.32 may, when a client hangs
# up with requests in flight) has been measured all the same, but is worth a
# word.
stop ()
{
  local status=0 peak
  # Neither disk nor log is mapped, so all of this is the server's.
  peak=$(awk '/VmHWM/ { print int ($2 / 1024) }' \
             "/proc/$server_pid/status" 2>/dev/null) || true
  if [ "$1" = "$ours" ] && (( ${peak:-0} > memory )); then memory=$peak; fi
  kill "$server_pid" 2>/dev/null || true
  wait "$server_pid" || status=$?
  server_pid=
  if [ "$status" -ne 0 ]; then
    cat "$dir/messages" >&2
    echo "$0: $1 ended with status $status" >&2
  fi
}

# measure FIELD OPTION...: run fio, one connection, 16 requests deep; print
# a field of its report.
measure ()
{
  local field=$1
  shift
  fio --name=bench --ioengine=nbd --uri="nbd+unix:///?socket=$dir/sock" \
      --iodepth=16 --output-format=json --output="$dir/fio.json" \
      --randrepeat=0 "$@" >/dev/null
  # fio's engine prints lines of its own before the report.
  sed -n '/^{/,$p' "$dir/fio.json" | jq -r ".jobs[0].$field"
}

# each_cluster READ|WRITE NUMBER: a list for fio's read_iolog of 4 KiB in each
# of so many clusters of 64 KiB, in random order, which its own generators
# cannot do.
each_cluster ()
{
  echo "fio version 2 iolog"
  echo "nbd add"
  echo "nbd open"
  seq 0 $(($2 - 1)) | shuf |
    awk -v what="$1" '{ print "nbd", what, $1 * 65536, 4096 }'
  echo "nbd close"
}

# in_mib KEY: fio counts KiB/s.
in_mib ()
{
  results[$1]=$(tr ' ' '\n' <<<"${results[$1]}" |
                  awk '/./ { print $1 / 1024 }')
}

# peak COMMAND...: MiB of memory that it takes at most.
peak ()
{
  command time -q -f %M -o "$dir/peak" "$@" >/dev/null
  awk '{ printf "%.0f", $1 / 1024 }' "$dir/peak"
}

# tell_memory WHAT MIB BOUND: beside what the manual pages, in MEMORY, have as
# the most.
tell_memory ()
{
  echo "memory: $1 $2 MiB (the manual: at most $3)"
}

# median: of the numbers on standard input.
median ()
{
  tr ' ' '\n' | grep . | sort -g | awk '
    { v[NR] = $1 }
    END { print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'
}

# medians KEY COLUMN...: of results[KEY,COLUMN], in a line.
medians ()
{
  local key=$1 column
  shift
  for column; do
    median <<<"${results[$key,$column]}"
  done | paste -sd' '
}
