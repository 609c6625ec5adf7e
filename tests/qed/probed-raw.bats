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
