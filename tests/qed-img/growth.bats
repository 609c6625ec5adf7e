# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The cost of a command grows with what it is given, not with its square:
# four times the work takes about four times the calls or instructions.

load ../lib/qed-img-functions

# calls COMMAND...: how many system calls it makes.
calls ()
{
  strace -f -c -o calls "$@" >/dev/null 2>messages || true
  awk '$NF == "total" { print $4 }' calls
}

# instructions COMMAND...: how many it carries out.
instructions ()
{
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$@" \
           >/dev/null 2>messages || true
  sed -n 's/^.*Collected : //p' messages
}

# make_image KIND NAME N
make_image ()
{
  "$python" "$tests/growth.py" "$@"
}

# assert_linear ONCE FOUR-TIMES: with some room for what grows by a little
# more, like a search.
assert_linear ()
{
  echo "$1, and $2 for four times the work"
  (($1 > 0 && $2 < 6 * $1))
}

@test "check -r leaks: tables are moved together in so many steps" {
  local n
  for n in 50 200; do
    make_image gaps $n.qed $n
    cp $n.qed $n-before.qed
    qed-img check -q -r leaks $n.qed
    qemu-img check -q -f qed $n.qed
    qemu-img compare -q -f qed -F qed $n.qed $n-before.qed
    # All that was leaked is gone.
    assert_equal "$(stat -c %s $n.qed)" $(((3 + 3 * n) * 4096))
  done
  assert_linear "$(calls qed-img check -r leaks 50-before.qed)" \
                "$(calls qed-img check -r leaks 200-before.qed)"
}

@test "check -r all: entries are compared with each other in so many steps" {
  make_image overlaps once.qed 2000
  make_image overlaps four.qed 8000
  assert_linear "$(instructions qed-img check -r all once.qed)" \
                "$(instructions qed-img check -r all four.qed)"
  # It is refused as the smaller one is.
  run -1 qed-img check -r all four.qed
  assert_output --partial "far more clusters are shared than the file has"
}

@test "map: tables that are holes are not read" {
  local n begin
  # A sanitizer begins with calls of its own.
  begin=$(calls qed-img --version)
  for n in 100 400; do
    make_image holes $n.qed $n
    run -0 qed-img map $n.qed
    # QEMU 7.2 fails an assertion here.
    assert_output --regexp '^Offset +Length +Mapped to +File$'
    # A table is 1 MiB, which is read in pieces of 4 KiB.
    (($(calls qed-img map $n.qed) < begin + 200 + n))
  done
}
