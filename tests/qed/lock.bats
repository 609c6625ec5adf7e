# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Nobody else can change an image while it is served: we and QEMU keep each
# other out, by the same locks.

load ../lib/qed-functions

# The bytes of a file that are locked, by anybody.
held ()
{
  awk -v "inode=:$(stat -c %i "$1")" '
    substr ($6, length ($6) - length (inode) + 1) == inode {
      for (i = $7; i <= ($8 == "EOF" ? $7 : $8); i++) print i
    }' /proc/locks | sort -nu | paste -sd' '
}

in_use="(in use|lock)"

# Does QEMU refuse it, because of a lock?
locked_out ()
{
  run "$@"
  assert_failure
  assert_output --partial "lock"
}

@test "QEMU is locked out of an image that is served for writing" {
  create 4M
  start_nbdkit qed disk.qed
  locked_out qemu-img info disk.qed
  locked_out qemu-img check -f qed disk.qed
  locked_out qemu-img resize -f qed disk.qed 8M
  locked_out qemu-io -f qed -c "write 0 4k" disk.qed
  locked_out qemu-io -r -f qed -c "read 0 4k" disk.qed
  locked_out qemu-nbd -f qed -k "$tmp/sock" disk.qed
  locked_out qemu-nbd -r -f qed -k "$tmp/sock" disk.qed
  stop_nbdkit
  qemu_io_qed disk.qed "write 0 4k"
}

@test "an image that is served read-only can be read by QEMU, not written" {
  create 4M
  start_nbdkit -r qed disk.qed
  qemu-img info disk.qed
  qemu-io -r -f qed -c "read 0 4k" disk.qed
  locked_out qemu-io -f qed -c "write 0 4k" disk.qed
}

@test "an image that QEMU writes to is refused, also for reading" {
  create 4M
  start_qemu_nbd other -f qed disk.qed
  local before
  before=$(hash_of disk.qed)
  refused "disk.qed" "$in_use" -- disk.qed
  refused -r "disk.qed" "$in_use" -- disk.qed
  assert_equal "$(hash_of disk.qed)" "$before"
}

@test "an image that QEMU reads can be read, not written" {
  create 4M
  start_qemu_nbd other -r -f qed disk.qed
  refused "disk.qed" "$in_use" -- disk.qed
  start_nbdkit -r qed disk.qed
  qemu_io "$uri" "read -P 0 0 4M"
}

@test "an image has one writing server" {
  create 4M
  start_nbdkit qed disk.qed
  refused "disk.qed" "$in_use" -- disk.qed
  refused -r "disk.qed" "$in_use" -- disk.qed
  stop_nbdkit
  start_nbdkit qed disk.qed
}

@test "an image may have several reading servers, and then no writing one" {
  create 4M
  start_nbdkit -r qed disk.qed
  start_nbdkit -r qed disk.qed
  qemu_io "$uri" "read -P 0 0 4M"
  refused "disk.qed" "$in_use" -- disk.qed
}

@test "lock=false takes no locks and heeds none" {
  create 4M
  start_nbdkit qed disk.qed
  refused "disk.qed" "$in_use" -- disk.qed lock=true
  start_nbdkit -r qed disk.qed lock=false
  qemu_io "$uri" "read -P 0 0 4M"
  stop_nbdkit
  start_nbdkit qed disk.qed lock=no
  stop_nbdkit

  rm disk.qed
  create 4M
  start_nbdkit qed disk.qed lock=false
  assert_equal "$(held disk.qed)" ""
  qemu-img info disk.qed
}

@test "the locks are gone when the server is killed" {
  create 4M
  start_nbdkit qed disk.qed
  kill -KILL "$pid"
  wait "$pid" || true
  assert_equal "$(held disk.qed)" ""
  start_nbdkit qed disk.qed
}

@test "a server in the background keeps the locks" {
  # Record locks of the traditional kind would be lost in the fork.
  create 4M
  nbdkit -U "$tmp/background.sock" -P "$tmp/background.pid" qed disk.qed 3>&-
  remember "$(cat background.pid)"
  assert_equal "$(held disk.qed)" "100 101 103 201 203"
  locked_out qemu-img info disk.qed
}

# same_locks [-r] FILE...: QEMU, then we, serve disk.qed; the same bytes of
# the files are locked.
same_locks ()
{
  local option=() file expected=()
  if [ "$1" = -r ]; then
    option=(-r)
    shift
  fi
  start_qemu_nbd judge "${option[@]}" -f qed disk.qed
  for file; do
    expected+=("$file: $(held "$file")")
  done
  end_process "$qemu_pid"
  rm -f judge.pid
  start_nbdkit "${option[@]}" qed disk.qed
  for file; do
    assert_equal "$file: $(held "$file")" "${expected[0]}"
    expected=("${expected[@]:1}")
  done
  stop_nbdkit
}

@test "a writer holds the locks that QEMU holds" {
  create 4M
  same_locks disk.qed
  start_nbdkit qed disk.qed
  assert_equal "$(held disk.qed)" "100 101 103 201 203"
}

@test "a reader holds the locks that QEMU holds" {
  create 4M
  same_locks -r disk.qed
  start_nbdkit -r qed disk.qed
  assert_equal "$(held disk.qed)" "100 201 203"
}

@test "a raw backing file is locked as QEMU locks it" {
  qemu-img create -q -f raw base.raw 4M
  create 4M -b base.raw -F raw
  same_locks disk.qed base.raw
  same_locks -r disk.qed base.raw
}

@test "a QED backing image is locked as QEMU locks it" {
  qemu-img create -q -f raw base.raw 4M
  qemu-img create -q -f qed -b base.raw -F raw middle.qed 4M
  create 4M -b middle.qed -F qed
  same_locks disk.qed middle.qed base.raw
  same_locks -r disk.qed middle.qed base.raw
}

@test "a QED image below another one cannot be written to by QEMU" {
  qemu-img create -q -f qed base.qed 4M
  create 4M -b base.qed -F qed
  start_nbdkit qed disk.qed
  locked_out qemu-io -f qed -c "write 0 4k" base.qed
  qemu-img info base.qed
}

@test "two overlays over one image can be served for writing" {
  qemu-img create -q -f qed base.qed 4M
  create 4M -b base.qed -F qed
  qemu-img create -q -f qed -b base.qed -F qed other.qed 4M
  start_nbdkit qed disk.qed
  start_nbdkit qed other.qed
  qemu_io "$uri" "write -P 3 0 64k"
}

@test "an overlay over an image that is being written is refused" {
  qemu-img create -q -f qed base.qed 4M
  create 4M -b base.qed -F qed
  start_qemu_nbd other -f qed base.qed
  # QEMU's own verdict first.
  locked_out qemu-img convert -f qed -O raw disk.qed out.raw
  refused "base.qed" "$in_use" -- disk.qed
}
