# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the tests of the qed plugin share, besides functions.bash.

load ../lib/functions

# The tests' own maker and spoiler of images.
image ()
{
  "$python" "$lib/qed-image.py" "$@"
}

# create SIZE [OPTION...]: make disk.qed with qemu-img.
create ()
{
  local size=$1
  shift
  qemu-img create -q -f qed "$@" disk.qed "$size"
}

# qemu_io URI-OR-FILE COMMAND...: qemu-io on what a raw client sees; opened
# read-only if all that it does is to read.  It fails if a command does,
# "read -P" also if the bytes are others.
qemu_io ()
{
  local disk=$1 command args=() read_only=-r
  shift
  for command in "$@"; do
    args+=(-c "$command")
    if [[ $command != read* ]]; then read_only=; fi
  done
  qemu-io -f raw $read_only "${args[@]}" "$disk"
}

# The same on a QED file, by QEMU's own driver.
qemu_io_qed ()
{
  local disk=$1 command args=()
  shift
  for command in "$@"; do
    args+=(-c "$command")
  done
  qemu-io -f qed "${args[@]}" "$disk"
}

# start_qemu_nbd NAME [OPTION...] IMAGE: QEMU's server beside ours.  Sets
# $qemu_pid and $qemu_uri.
start_qemu_nbd ()
{
  local name=$1
  shift
  qemu-nbd -t -e 16 -k "$tmp/$name.sock" --pid-file="$tmp/$name.pid" "$@" \
           </dev/null >"$tmp/$name.log" 2>&1 3>&- &
  qemu_pid=$!
  qemu_uri="nbd+unix:///?socket=$tmp/$name.sock"
  remember "$qemu_pid"
  if ! wait_until 60 nbdkit_ready_or_ended "$tmp/$name.pid" "$qemu_pid" ||
     ! [ -s "$tmp/$name.pid" ]; then
    cat "$tmp/$name.log" >&2
    return 1
  fi
}

# refused [-r] EXPRESSION... -- IMAGE [PARAMETER...]: the server must not
# start, within a time limit and without a crash, and print something that
# matches every expression.
refused ()
{
  if [ "$1" = -r ]; then
    shift
    must_refuse start_qed_read_only "$@"
  else
    must_refuse start_qed "$@"
  fi
}

start_qed ()
{
  timeout -k 5 30 nbdkit -U - qed "$@" --run true
}

start_qed_read_only ()
{
  timeout -k 5 30 nbdkit -U - -r qed "$@" --run true
}

# Neither qemu-img check nor qed-image.py finds errors or leaks.  (QEMU 7.2
# invents a leak for each 4096 clusters of 4 KiB, so its word on leaks is
# asked for in small files only.)
assert_clean ()
{
  run image check "$1"
  assert_success
  if [ "$(stat -c %s "$1")" -lt 16000000 ]; then
    run qemu-img check -f qed "$1"
    assert_success
  else
    assert_not_corrupt "$1"
  fi
}

# qemu-img check finds no corruption; leaked clusters are allowed.
assert_not_corrupt ()
{
  run qemu-img check -f qed "$1"
  if [ "$status" -ne 0 ] && [ "$status" -ne 3 ]; then
    fail "qemu-img check: status $status: $output"
  fi
}

# Is NEED_CHECK set in the header?
need_check ()
{
  (( $(image get "$1" features) & 2 ))
}

no_need_check ()
{
  ! need_check "$1"
}

hash_of ()
{
  sha256sum <"$1"
}

# Bytes that a file takes on its file system.
space_of ()
{
  echo $(($(stat -c '%b * %B' "$1")))
}

# The same bytes, and the same length.
assert_same ()
{
  run cmp "$1" "$2"
  assert_success
}
