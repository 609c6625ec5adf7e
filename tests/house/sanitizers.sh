#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The unit tests again, built with the address and undefined-behaviour
# sanitizers and then with the thread sanitizer.  Each unit test is one test
# here, which fails on any report; the tools must build, too.  Prints TAP.
#
# Run it by hand as:  ./run bash tests/house/sanitizers.sh

. "$(dirname "$0")/../lib/answers.bash"

builddir=$(cd "$(dirname "$(type -P nbdkit)")/../.." && pwd)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/bd.XXXXXX") || exit 1
trap 'chmod -R u+w "$tmp"; rm -rf "$tmp"' EXIT

count=0

# report ok|"not ok" NAME [LOG]: print one result, with the log if bad.
report ()
{
  count=$((count + 1))
  echo "$1 $count - $2"
  if [ "$1" != ok ]; then
    sed 's/^/# /' "$3"
  fi
}

# The thread sanitizer cannot work with highly randomised addresses.
without_randomisation ()
{
  if setarch -R true 2>/dev/null; then
    setarch -R "$@"
  else
    "$@"
  fi
}

# run_test TEST: leaves TEST.out, and TEST.ok if it passes.
run_test ()
{
  if ( cd "$dir" && without_randomisation timeout 900 "$1" ) >"$1.out" 2>&1
  then
    touch "$1.ok"
  fi
}

# These make one request after the other, thousands of times: the thread
# sanitizer needs minutes for them, and sees nothing that it does not see in
# the others.  SANITIZE_ALL=1 runs them, too.
one_at_a_time=" test-align test-qed-faults test-qed-operations
  test-qed-powerloss test-replication-crash test-replication-faults
  test-replication-meeting test-utils test-writelog-index
  test-writelog-reader "

is_wanted ()
{
  [ "$sanitizers" != thread ] || [ "${SANITIZE_ALL:-}" ] ||
    [[ ! $one_at_a_time =~ [[:space:]]${1##*/}[[:space:]] ]]
}

# What configure asks the compiler is the same everywhere, a small shell is
# quicker, in libtool, too, and a report needs lines, but no variables.
configure ()
{
  CONFIG_SITE=$tmp/config.site CONFIG_SHELL=/bin/sh "$tmp/source/configure" \
    --disable-dependency-tracking CFLAGS="-g1 -O1" "$@"
}

# check_with SANITIZERS TARGET...: make these in a tree of the sources, and run
# its unit tests, two at a time: many wait for something most of the time.
check_with ()
{
  local sanitizers=$1 dir=$tmp/$1 log=$tmp/$1.log test tests=()
  shift
  mkdir "$dir"
  if ( cd "$dir" && configure --enable-sanitizers="$sanitizers" &&
         for target; do make -j2 "$target" || exit; done ) >"$log" 2>&1
  then
    report ok "$sanitizers: what is tested builds"
  else
    report "not ok" "$sanitizers: what is tested builds" "$log"
    return
  fi

  for test in "$dir"/tests/unit/test-*; do
    if [ -f "$test" ] && [ -x "$test" ] && is_wanted "$test"; then
      tests+=("$test")
    fi
  done
  for test in "${tests[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
    run_test "$test" &
  done
  wait
  for test in "${tests[@]}"; do
    if [ -e "$test.ok" ]; then
      report ok "$sanitizers: ${test##*/}"
    else
      report "not ok" "$sanitizers: ${test##*/}" "$test.out"
    fi
  done
}

# A copy of the sources, because those of a build in the source tree cannot
# be built a second time elsewhere.
if ! make -C "$builddir" distdir distdir="$tmp/source" >"$tmp/log" 2>&1; then
  report "not ok" "the sources can be copied" "$tmp/log"
else
  answers "$builddir" >"$tmp/config.site"
  check_with address,undefined all unit-tests
  check_with thread unit-tests
fi
echo "1..$count"
