#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Run one test program and print what it reports as one TAP stream:
#
#     tests/tap.sh tests/ROOM/NAME.bats | tests/ROOM/NAME.sh | tests/unit/test-NAME
#
# What the program's exit status says is in the stream too, and a program
# that hangs is ended and fails.  Exit status 0 means that the stream says
# everything.

. "$(dirname "$0")/lib/guestfs.bash"

# No file of tests takes as long as this, in seconds, on any machine.  (There is
# a limit for each test in bats, too, but its countdown can outlive a short
# test, or one that failed, and then bats waits for it.)
limit=${TEST_FILE_TIMEOUT:-2400}
unset BATS_TEST_TIMEOUT

export CMOCKA_MESSAGE_OUTPUT=TAP

# Tests that run make do not take part in the make that runs them.
unset MAKEFLAGS MFLAGS MAKELEVEL

case $1 in
  *.bats) set -- bats --formatter tap "$1" ;;
  *.sh)   set -- bash "$1" ;;
esac

# A program of several cmocka groups prints a plan and numbers from 1 for
# each; the sum of the plans stands at the end instead.  A program that
# printed no plan, or died before it kept it, does not get away with it:
# the driver compares the plan with the tests that it saw.
{
  timeout --kill-after=30 "$limit" "$@"
  echo "exit status $?"
} | awk '
  { previous = line; line = $0 }
  NR > 1 { stream(previous) }
  END {
    status = line
    sub (/^exit status /, "", status)
    if (status == 124 || status == 137)
      result("not ok - the test program was ended after its time limit")
    else if (status != 0 && failed == 0)
      result("not ok - the test program ended with exit status " status)
    if (seen_plan || extra)
      print "1.." planned + extra
  }

  function stream(text) {
    if (text ~ /^1\.\.[0-9]+/) {
      sub (/^1\.\./, "", text)
      planned += text
      seen_plan = 1
    }
    else if (text ~ /^(not )?ok( |$)/) {
      count++
      if (text ~ /^not ok/)
        failed++
      print renumbered(text)
    }
    else
      print text
  }

  function renumbered(text,    verdict) {
    verdict = text ~ /^not/ ? "not ok" : "ok"
    sub (/^(not )?ok( +[0-9]+)?/, "", text)
    return verdict " " count text
  }

  function result(text) {
    count++
    extra++
    failed++
    print renumbered(text)
  }'
