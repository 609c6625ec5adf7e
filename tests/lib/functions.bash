# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the .bats files share.  A file opens with
#
#     load ../lib/functions
#
# and then has, in each test:
#
#   $srcdir, $builddir   the top of the source tree and of the build tree
#   $tests, $lib         the folder of the file, and that of what tests share
#   $python              the Python that libnbd's module is installed for; it
#                        finds the modules in $lib
#   $tmp                 a directory of the test's own, which is the working
#                        directory; its path is short enough for sockets
#   nbdkit, qed-img ...  the in-tree ones
#
# Run one file by hand as:  ./run bats tests/ROOM/NAME.bats
#
# A file with a setup or teardown of its own calls setup_test or
# teardown_test in it.

bats_require_minimum_version 1.5.0

# What the libraries of bats define, without their long comments: each test
# reads it anew.  Made once for a file of tests.
helpers=$BATS_RUN_TMPDIR/helpers.bash
make_helpers ()
{
  local before
  before=$(compgen -A function | sort)
  bats_load_library bats-support
  bats_load_library bats-assert
  bats_load_library bats-file
  compgen -A function | sort | comm -13 <(echo "$before") - >"$helpers.names"
  mapfile -t before <"$helpers.names"
  declare -f "${before[@]}"
}
if ! [ -e "$helpers" ]; then
  (make_helpers) >"$helpers.new"
  mv "$helpers.new" "$helpers"
fi
# shellcheck source=/dev/null
. "$helpers"

srcdir=$(cd "$BATS_TEST_DIRNAME/../.." && pwd)
tests=$BATS_TEST_DIRNAME
lib=$srcdir/tests/lib
python=/usr/bin/python3
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$lib

. "$lib/guestfs.bash"

setup_test ()
{
  tmp=$(mktemp -d "${TMPDIR:-/tmp}/bd.XXXXXX")
  cd "$tmp" || return 1
  started=()
  find_builddir
}

# The newest first, as a server with a client of its own would wait for it.
end_servers ()
{
  local i
  for ((i = ${#started[@]} - 1; i >= 0; i--)); do
    end_process "${started[i]}" || true
  done
}

# A test that failed, or was ended by force, may have left block devices
# behind.
end_devices ()
{
  local device file
  while read -r device file; do
    if [[ $file == "$tmp"/* ]]; then
      losetup -d "$device"
    fi
  done < <(losetup -n -O NAME,BACK-FILE)
}

# Called also when setup failed.  Prints what the servers said, which bats
# shows if the test failed.
teardown_test ()
{
  local log
  end_servers
  for log in "$tmp"/nbdkit*.log; do
    if [ -s "$log" ]; then
      echo "--- ${log##*/}"
      tail -n 100 "$log"
    fi
  done
  cd /
  if [ -n "$tmp" ]; then
    rm -rf "$tmp"
  fi
}

setup ()
{
  setup_test
}

teardown ()
{
  teardown_test
}

# Modules and tools that are tested are those that `run` finds first.
find_builddir ()
{
  local nbdkit
  nbdkit=$(type -P nbdkit) || nbdkit=
  builddir=$(cd "${nbdkit%/*}/../.." && pwd)
  if ! [ -e "$builddir/build-aux/bin/nbdkit" ] || ! [ -e "$builddir/run" ]; then
    fail "nbdkit is not the in-tree one: start bats by ./run"
  fi
}

# require_tool NAME...: fail unless these commands exist.  A missing tool is
# a failure, never a reason to skip.
require_tool ()
{
  local tool
  for tool in "$@"; do
    if ! type -P "$tool" >/dev/null; then
      fail "$tool is missing: run ./bootstrap check, which installs it"
    fi
  done
}

# is_sanitized: do the programs run with a sanitizer?
is_sanitized ()
{
  [ -e "$builddir/build-aux/host/runtime" ]
}

# limit_memory KIB: of what this shell starts.  A sanitizer reserves terabytes
# of addresses, so with one there is no limit.
limit_memory ()
{
  is_sanitized || ulimit -v "$1"
}

# The shell of libnbd.
nbdsh ()
{
  "$python" -m nbd "$@"
}

# must_refuse COMMAND EXPRESSION... -- ARGUMENT...: a command (or a function)
# that starts a server, with these arguments, must end by itself, with exit
# status 1 and without a crash, and print something that matches every
# expression.  It sees to its time limit.
must_refuse ()
{
  local command=$1 expressions=() expression
  shift
  while [ "$1" != -- ]; do
    expressions+=("$1")
    shift
  done
  shift
  run "$command" "$@"
  if [ "$status" -ne 1 ]; then
    fail "exit status $status of a server that should refuse: $output"
  fi
  for expression in "${expressions[@]}"; do
    assert_output --regexp "$expression"
  done
}

# wait_until SECONDS COMMAND...: run the command until it succeeds.  Fails
# after that many seconds, so choose many.
wait_until ()
{
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "gave up waiting for: $*" >&2
      return 1
    fi
    sleep 0.05
  done
}

process_ended ()
{
  ! kill -0 "$1" 2>/dev/null
}

# remember PID: teardown ends this process, which the test started in the
# background (with 3>&-, or bats waits for it for ever).
remember ()
{
  started+=("$1")
}

# End a process by TERM, then by KILL, and reap it if it is a child.
# Returns its exit status.
end_process ()
{
  local other others=()
  for other in "${started[@]}"; do
    if [ "$other" != "$1" ]; then others+=("$other"); fi
  done
  started=("${others[@]}")

  kill -TERM "$1" 2>/dev/null || true
  if ! wait_until 60 process_ended "$1" 2>/dev/null; then
    kill -KILL "$1" 2>/dev/null || true
  fi
  wait "$1" 2>/dev/null
}

# start_nbdkit [ARGUMENT...]: start the in-tree nbdkit with these arguments
# in the background on a socket of its own, and wait until it is ready.
# Sets $pid, $sock and $uri (of the default export).  Several may run at a
# time; what they print is in $tmp/nbdkit1.log and so on, the newest in
# $log.  Fails, after showing what it printed, if it ends before it is
# ready.
start_nbdkit ()
{
  local n=1
  while [ -e "$tmp/nbdkit$n.log" ]; do
    n=$((n + 1))
  done
  log=$tmp/nbdkit$n.log
  sock=$tmp/nbdkit$n.sock
  # The commas and colons of a path need no escapes here, mktemp uses none.
  uri="nbd+unix:///?socket=$sock"

  nbdkit -f -U "$sock" -P "$tmp/nbdkit$n.pid" "$@" \
         </dev/null >"$log" 2>&1 3>&- &
  pid=$!
  remember "$pid"

  if ! wait_until 120 nbdkit_ready_or_ended "$tmp/nbdkit$n.pid" "$pid" ||
     ! [ -s "$tmp/nbdkit$n.pid" ]; then
    cat "$log" >&2
    echo "nbdkit did not start: $*" >&2
    return 1
  fi
}

# nbdkit writes its pid file when it accepts connections.
nbdkit_ready_or_ended ()
{
  [ -s "$1" ] || process_ended "$2"
}

# stop_nbdkit [PID]: ask the server (the newest one by default) to end, wait
# for it, and return its exit status.
stop_nbdkit ()
{
  end_process "${1:-$pid}"
}

# start_daemon [ARGUMENT...]: as start_nbdkit, but it goes into the
# background by itself, where "/" is its current directory and what it
# prints goes nowhere.  One at a time.
start_daemon ()
{
  sock=$tmp/daemon.sock
  uri="nbd+unix:///?socket=$sock"
  rm -f "$sock" "$tmp/daemon.pid"
  nbdkit -U "$sock" -P "$tmp/daemon.pid" "$@" </dev/null 3>&-
  wait_until 120 test -s "$tmp/daemon.pid"
  pid=$(cat "$tmp/daemon.pid")
  remember "$pid"
}
