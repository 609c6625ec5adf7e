# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# A base whose format was guessed to be raw stays raw: what a guest writes
# does not become the header of another image, which the next one would
# follow.

load ../lib/qed-functions

# overlay SIZE [FORMAT]: over.qed over a base.raw of SIZE whose format the
# header does not say, unless FORMAT is given.
overlay ()
{
  rm -f base.raw over.qed
  truncate -s "$1" base.raw
  cp base.raw before.raw
  qed-img create -q -b base.raw -F raw over.qed "$((($1 + 511) / 512 * 512))"
  if [ $# -eq 1 ]; then
    qed-img rebase -u -b base.raw over.qed
  fi
}

# put OFFSET BYTES: what the guest writes; BYTES as printf takes them.
put ()
{
  printf '%b' "$2" >bytes
  nbdkit -U - qed over.qed --run "'$python' -c \"
import nbd
h = nbd.NBD()
h.connect_uri('\$uri')
h.pwrite(open('bytes', 'rb').read(), $1)\""
}

# The base is not touched and the disk reads as before.
refused ()
{
  run -1 qed-img commit over.qed
  assert_line --partial "base.raw: write of"
  assert_line --partial "-F raw"
  cmp base.raw before.raw
}

@test "a commit does not make a guessed raw base an image of another format" {
  local table='
0      QED\0
0      QFI\xfb
0      KDMV
0      conectix
64     \x7f\x10\xda\xbe
1048064 conectix
1048064 koly'
  local offset bytes
  while read -r offset bytes; do
    if [ -n "$offset" ]; then
      overlay 1048576
      put "$offset" "$bytes"
      refused
      put "$offset" 'harmless'
      qed-img commit over.qed
    fi
  done <<<"$table"
}

@test "zeroes and a new length can complete a magic, too" {
  overlay 65536
  printf 'QEDx' | dd of=base.raw conv=notrunc status=none
  cp base.raw before.raw
  put 3 '\0'
  refused

  # 100 bytes more, and the footer is where one is looked for.
  overlay 1000448
  truncate -s 1000348 base.raw
  printf 'conectix' | dd of=base.raw bs=1 seek=999936 conv=notrunc status=none
  cp base.raw before.raw
  put 1000400 'x'
  refused
}

@test "a base whose format is named takes what the guest writes" {
  overlay 1048576 raw
  put 0 'QED\0'
  qed-img commit over.qed
  run -0 qemu-io -f raw -r -c 'read -P 0x51 0 1' base.raw
}

@test "QEMU refuses the same" {
  overlay 1048576
  put 0 'QED\0'
  run qemu-img commit -f qed over.qed
  assert_failure
  refused
}

# format FILE: what the header says of the backing image, raw or null.
format ()
{
  qemu-img info --output=json "$1" | jq -r '.["backing-filename-format"]'
}

@test "a rebase keeps a raw disk raw that a guest has made look otherwise" {
  local magic
  overlay 1048576 raw
  for magic in 'QED\0' 'QFI\xfb'; do
    printf '%b' "$magic" | dd of=base.raw conv=notrunc status=none
    run -1 qed-img rebase -u -b base.raw over.qed
    assert_output --partial "looks like one in"
    assert_output --partial "-F"
    assert_equal "$(format over.qed)" raw
  done
  run -0 qed-img rebase -u -b base.raw -F raw over.qed
  assert_output ""
  assert_equal "$(format over.qed)" raw
  # The user knows better: it was converted.
  qemu-img create -q -f qed new.qed 1M
  run -1 qed-img rebase -u -b new.qed over.qed
  run -0 qed-img rebase -u -b new.qed -F qed over.qed
  assert_output ""
  assert_equal "$(format over.qed)" null
  # Then nothing that was raw is lost.
  run -0 qed-img rebase -u -b base.raw over.qed
  assert_output ""
}

@test "a rebase warns when the header says raw no more" {
  overlay 1048576 raw
  run -0 qed-img rebase -u -b base.raw over.qed
  assert_output --partial "with -F raw it does"
  assert_equal "$(format over.qed)" null
  overlay 1048576 raw
  run -0 qed-img rebase -u -b gone.raw over.qed
  assert_output --partial "with -F raw it does"
}

@test "a rebase that looks at a raw image records that it is raw, as create does" {
  overlay 1048576
  cp base.raw other.raw
  assert_equal "$(format over.qed)" null
  run -0 qed-img rebase -b other.raw over.qed
  assert_output ""
  assert_equal "$(format over.qed)" raw
  qemu-img create -q -f qed new.qed 1M
  qed-img rebase -b new.qed over.qed
  assert_equal "$(format over.qed)" null
}
