# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# qed-img on a disk that loses its power: the image lies on an NBD export
# whose writes are logged, and is looked at as it may be after a power loss
# behind each flush.  qemu-img tells what these images are worth.

load ../lib/qed-functions

STORAGE=8                       # MiB

# store IMAGE: put it on storage that is full of something else, and log what
# happens to it from now on.  Sets $uri.
store ()
{
  head -c "${STORAGE}M" /dev/zero | tr '\0' '\356' >before
  dd if="$1" of=before bs=64k conv=notrunc status=none
  cp before storage
  start_nbdkit --filter=blklogwrites file storage log=log
}

# judge_states JUDGE: end the server; call JUDGE with each possible image.
judge_states ()
{
  local flushes n seed states=0
  stop_nbdkit
  flushes=$(logwrites info --output=json log | jq .flushes)
  assert [ "$flushes" -ge 3 ]
  start_nbdkit -r logreplay log=log base=before
  for ((n = 0; n <= flushes; n++)); do
    for seed in 1 2 3 4; do
      rm -f state.qed
      nbdcopy "nbd+unix:///crash%2F$n%2F$seed?socket=$sock" state.qed
      "$1" || fail "after flush $n, seed $seed"
      states=$((states + 1))
    done
  done
  stop_nbdkit
  echo "# $states states" >&3
}

# The image reads as this raw file.
reads ()
{
  qemu-img compare -q -f qed -F raw state.qed "$1"
}

# No errors (but leaks) by QEMU's word.
is_sound ()
{
  local status=0
  qemu-img check -q -f qed state.qed || status=$?
  [ "$status" -eq 0 ] || [ "$status" -eq 3 ]
}

make_image ()
{
  local name i
  for name in old new; do
    head -c 4M /dev/urandom >$name.raw
  done
  create 4M -o cluster_size=4k,table_size=2 -b "$tmp/old.raw" -F raw
  for i in 1 2 3 4 5 6; do
    qemu_io_qed disk.qed "write -P $i $((i * 600))k 20k"
  done
  qemu-img convert -f qed -O raw disk.qed content.raw
}

same_content ()
{
  is_sound && reads content.raw
}

@test "power loss in rebase" {
  make_image
  store disk.qed
  run -0 qed-img rebase -b "$tmp/new.raw" -F raw "$uri"
  judge_states same_content
  run -0 qemu-img info -f qed state.qed
  assert_output --partial "$tmp/new.raw"
}

@test "power loss in rebase to no backing image" {
  make_image
  store disk.qed
  run -0 qed-img rebase -b '' "$uri"
  judge_states same_content
}

# What is new does not show the longer backing image.
old_or_new_size ()
{
  local size
  size=$(image get state.qed image_size)
  is_sound || return
  case $size in
    $((4 << 20))) reads content.raw ;;
    $((64 << 20))) reads longer.raw ;;
    *) false ;;
  esac
}

@test "power loss in resize" {
  make_image
  head -c 64M /dev/urandom >old.raw
  qemu-img convert -f qed -O raw disk.qed content.raw
  cp content.raw longer.raw
  truncate -s 64M longer.raw
  store disk.qed
  run -0 qed-img resize "$uri" 64M
  judge_states old_or_new_size
}

old_or_empty ()
{
  is_sound && { reads content.raw || reads old.raw; }
}

@test "power loss in empty" {
  make_image
  store disk.qed
  run -0 qed-img empty -q "$uri"
  judge_states old_or_empty
}

@test "power loss in commit: the image reads as before" {
  make_image
  store disk.qed
  run -0 qed-img commit -q "$uri"
  judge_states same_content
  run cmp old.raw content.raw
  assert_success
}

repaired_again ()
{
  qed-img check -q -r all state.qed 2>/dev/null && is_sound &&
    reads repaired.raw
}

@test "power loss in check -r all" {
  make_image
  image l2 disk.qed 1 'l2(150)'
  image l2 disk.qed 2 'l2(300)'
  image l2 disk.qed 3 'l1(0)'
  image l2 disk.qed 4 'l1(0)'
  image l2 disk.qed 5 $((1 << 40))
  cp disk.qed repaired.qed
  run -0 qed-img check -q -r all repaired.qed
  qemu-img convert -f qed -O raw repaired.qed repaired.raw
  store disk.qed
  run -0 qed-img check -q -r all "$uri"
  judge_states repaired_again
}
