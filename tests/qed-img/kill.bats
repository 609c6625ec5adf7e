# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# kill -9 at random moments of each operation that changes an image: it is
# as before or as afterwards, and running the command again completes it.
# SEED and ROUNDS choose how long it is tried: the suite kills each 12 times.

load ../lib/qed-functions

killed ()
{
  mkdir kill
  run "$python" "$tests/kill.py" "$1" "$tmp/kill"
  assert_success
  echo "# $output" >&3
}

@test "kill -9 in commit" {
  killed commit
}

@test "kill -9 in commit to a raw image that grows" {
  killed commit-raw
}

@test "kill -9 in rebase" {
  killed rebase
}

@test "kill -9 in rebase to no backing image" {
  killed flatten
}

@test "kill -9 in resize" {
  killed resize
}

@test "kill -9 in create" {
  killed create
}

@test "kill -9 in create over an image" {
  killed create-over
}

@test "kill -9 in check -r all" {
  killed repair
}

@test "kill -9 in empty" {
  killed empty
}

@test "kill -9 at each write of check -r all" {
  mkdir kill
  run "$python" "$tests/repair-kill.py" "$tmp/kill"
  assert_success
  echo "# $output" >&3
}
