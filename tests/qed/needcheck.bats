# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The life of NEED_CHECK: set before an update that could leave the image
# inconsistent, cleared when all is well on the medium.

load ../lib/qed-functions

set_need_check ()
{
  image set disk.qed "features=features | 2"
}

@test "NEED_CHECK is set by an allocating write, not by opening or reading" {
  create 4M
  start_nbdkit qed disk.qed
  qemu_io "$uri" "read -P 0 0 4M" "flush"
  no_need_check disk.qed
  qemu_io "$uri" "write -P 1 0 4k"
  need_check disk.qed
}

@test "NEED_CHECK is cleared about 5 seconds after the last allocating write" {
  create 4M
  start_nbdkit qed disk.qed
  local begin=$SECONDS
  qemu_io "$uri" "write -P 1 0 4k"
  need_check disk.qed
  wait_until 60 no_need_check disk.qed
  # Whole seconds are counted, so 5 may look like 4.
  [ $((SECONDS - begin)) -ge 4 ]
  # What was written is there, the file is whole, and the server still
  # has it open: look at a copy.
  cp disk.qed copy.qed
  assert_not_corrupt copy.qed
  qemu_io_qed copy.qed "read -P 1 0 4k"
  # And again.
  qemu_io "$uri" "write -P 2 1M 4k"
  need_check disk.qed
}

@test "NEED_CHECK stays while allocating writes go on" {
  create 16M
  start_nbdkit qed disk.qed
  local i begin=$SECONDS
  for ((i = 0; SECONDS < begin + 7; i++)); do
    qemu_io "$uri" "write -P 1 $((i % 250 * 65536)) 4k" >/dev/null
    if (( i < 250 )); then need_check disk.qed; fi
    sleep 0.2
  done
}

@test "NEED_CHECK is cleared on close" {
  create 4M
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -P 1 0 4k"
  need_check disk.qed
  stop_nbdkit
  no_need_check disk.qed
  assert_clean disk.qed
}

@test "writes in place do not set NEED_CHECK" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 1M"
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -P 2 100k 300k" "flush"
  no_need_check disk.qed
}

@test "a killed server leaves NEED_CHECK, the next one clears it" {
  create 4M
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -P 1 0 4k"
  kill -KILL "$pid"
  wait "$pid" || true
  need_check disk.qed
  start_nbdkit qed disk.qed
  no_need_check disk.qed
  qemu_io "$uri" "read -P 1 0 4k"
  stop_nbdkit
  assert_not_corrupt disk.qed
}

@test "an image that needs a check is left alone by a read-only server" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 1M"
  set_need_check
  local before
  before=$(hash_of disk.qed)
  start_nbdkit -r qed disk.qed
  qemu_io "$uri" "read -P 1 0 1M"
  stop_nbdkit
  assert_equal "$(hash_of disk.qed)" "$before"
}

# nbdkit takes its options from anywhere on the command line.
@test "a server is read-only wherever its command line says so" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 1M"
  set_need_check
  local before option
  before=$(hash_of disk.qed)
  for option in -r --readonly --read-only --filter=cow; do
    run -0 nbdkit -U - "$option" qed disk.qed --run true
    run -0 nbdkit -U - qed "$option" disk.qed --run true
    run -0 nbdkit qed disk.qed --run true -U - "$option"
    assert_equal "$(hash_of disk.qed)" "$before"
  done
  # Here it is the argument of another option.
  run -0 nbdkit qed disk.qed -U - -e -r --run true
  assert [ "$(hash_of disk.qed)" != "$before" ]
}

@test "repair=auto checks an image that asks for it, and clears the flag" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 1M"
  set_need_check
  start_nbdkit qed disk.qed repair=auto
  qemu_io "$uri" "read -P 1 0 1M" "write -P 2 2M 64k"
  stop_nbdkit
  no_need_check disk.qed
  assert_clean disk.qed
}

@test "repair=never serves an undamaged image that asks for a check" {
  create 4M
  qemu_io_qed disk.qed "write -P 1 0 1M"
  set_need_check
  local before
  before=$(hash_of disk.qed)
  start_nbdkit qed disk.qed repair=never
  qemu_io "$uri" "read -P 1 0 1M"
  stop_nbdkit
  assert_not_corrupt disk.qed
}

@test "what QEMU left open is taken over" {
  create 16M
  start_qemu_nbd other -f qed disk.qed
  local i
  for i in 1 2 3 4 5; do
    qemu_io "$qemu_uri" "write -P $i ${i}M 64k" "flush" >/dev/null
  done
  kill -KILL "$qemu_pid"
  wait "$qemu_pid" || true
  start_nbdkit qed disk.qed
  for i in 1 2 3 4 5; do
    qemu_io "$uri" "read -P $i ${i}M 64k"
  done
  stop_nbdkit
  no_need_check disk.qed
  assert_not_corrupt disk.qed
}
