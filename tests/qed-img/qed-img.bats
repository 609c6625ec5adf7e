# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# qed-img create, info and check do what qemu-img does with -f qed; the cases
# are explained in qed-img-functions.bash.

load ../lib/qed-img-functions

# ---- create

@test "create: sizes" {
  make_files
  cases <<'TABLE'
same | create new.qed 1G
same | create -q new.qed 1G
same | create new.qed 0
same | create new.qed 512
same | create new.qed 1000
same | create new.qed 1b
same | create new.qed 1K
same | create new.qed 1.5G
same | create new.qed 64T
same | create new.qed 0x1000
same | create new.qed 010
same | create new.qed +1M
same | create new.qed ' 1M'
same | create -o size=1G new.qed
same | create -o size=1G -o size=2G new.qed
same | create -o size=1.5k new.qed
same | create new.qed
same | create new.qed ''
same | create new.qed 1x
same | create new.qed 1e3
same | create new.qed 1Mb
same | create new.qed 1.5
same | create new.qed 1M5
same | create new.qed -- -5
same | create new.qed 8E
same | create new.qed 99999999999999999999
same | create -o size=1G new.qed 2G
same | create -o size=17E new.qed
status | create new.qed 1P
status | create new.qed 70368744178176
# qemu-img says 2^64 and then fails in another way.
status | create -o size=1z new.qed
status | create -o size= new.qed
status | create -o size=-1 new.qed
TABLE
}

@test "create: through a link that leads to nothing" {
  ln -s target link.qed
  run -0 qed-img create -q link.qed 1M
  assert_clean target
  assert_link_exists link.qed
}

@test "create: cluster and table sizes" {
  make_files
  cases <<'TABLE'
same | create -o cluster_size=4k new.qed 1G
same | create -o cluster_size=4096,table_size=2 new.qed 1G
same | create -o cluster_size=1M,table_size=8 new.qed 1G
0, not 1: qemu-img computes a limit of 0 bytes | create -o cluster_size=2M,table_size=16 new.qed 1G
same | create -o table_size=1 new.qed 1G
same | create -o table_size=8 new.qed 1G
same | create -o cluster_size=4k -o table_size=2 new.qed 1G
same | create -o cluster_size=4k -o cluster_size=8k new.qed 1G
same | create -o cluster_size=4k,table_size=1 new.qed 1G
status | create -o cluster_size=4k,table_size=1 new.qed 1025M
status | create -o cluster_size=1k new.qed 1G
status | create -o cluster_size=5000 new.qed 1G
status | create -o cluster_size=128M new.qed 1G
status | create -o cluster_size=0 new.qed 1G
status | create -o cluster_size=8G new.qed 1G
status | create -o table_size=3 new.qed 1G
status | create -o table_size=0 new.qed 1G
status | create -o table_size=32 new.qed 1G
status | create -o table_size=4k new.qed 1G
status | create -o table_size=8G new.qed 1G
status | create -o cluster_size=xx new.qed 1G
status | create -o cluster_size= new.qed 1G
status | create -o cluster_size new.qed 1G
status | create -o cluster_size=-1 new.qed 1G
status | create -o table_size=xx new.qed 1G
0, not 1: qemu-img computes a limit of 0 bytes | create -o cluster_size=64M new.qed 1G
TABLE
}

@test "create: lists of options, and mistakes" {
  make_files
  cases <<'TABLE'
same | create -o bogus=1 new.qed 1G
same | create -o bogus new.qed 1G
same | create -o =4 new.qed 1G
same | create -o '' new.qed 1G
same | create -o cluster_size=4k, new.qed 1G
same | create -o ,cluster_size=4k new.qed 1G
same | create -o cluster_size=4k -o , new.qed 1G
same | create
same | create new.qed 1G more
same | create -b
same | create -Z new.qed 1G
same | create --bogus new.qed 1G
same | create --output=json new.qed 1G
same | create -p new.qed 1G
0, not 1: objects are ignored | create --object secret,id=x,data=y,bogus=z new.qed 1G
status | create nowhere/new.qed 1G
status | create . 1G
status | create '' 1G
same | create "with space, and 'quotes'.qed" 1M
1, not 0: qed-img makes QED images only | create -f raw new.img 1G
TABLE
}

@test "create: backing images" {
  make_files
  cases <<'TABLE'
same | create -b raw.img -F raw new.qed
same | create -b raw.img -F raw new.qed 1G
same | create -b raw.img -F raw new.qed 512
same | create -b raw.img -F raw -u new.qed 1G
same | create -b base.qed -F qed new.qed
same | create -b base.qed -F qed new.qed 2G
same | create -b base.qed -F raw new.qed
same | create -b over.qed -F qed -o cluster_size=4k new.qed
same | create -b ../raw.img -F raw d/new.qed
same | create -b "$PWD/raw.img" -F raw d/new.qed
same | create -b gone.img -F raw -u new.qed 1G
same | create -b foreign.qcow2 -F raw new.qed
same | create -u -b http://h/x -F raw new.qed 1G
same | create -u -b nbd:unix:/tmp/x -F raw d/new.qed 1G
status | create -b nbd:unix:/tmp/x -F raw new.qed 1G
same | create -F raw new.qed 1G
same | create -u new.qed 1G
same | create -o backing_file=raw.img,backing_fmt=raw new.qed
same | create -o backing_file=raw.img -F raw new.qed
same | create -o backing_file=gone.img -b raw.img -F raw new.qed
same | create -o backing_fmt=raw -b base.qed -F qed new.qed
same | create -o 'backing_file=b,,c,backing_fmt=raw' -u new.qed 1G
same | create -o 'backing_file=b,,,,,backing_fmt=raw' -u new.qed 1G
same | create -u -b "$(printf %01023d 0)" -F raw new.qed 1G
same | create -b '' -F raw new.qed 1G
same | create -b '' new.qed
same | create -u -b gone.img -F raw new.qed
same | create -b base.qed -F qed base.qed
same | create -u -b base.qed -F qed base.qed 1G
status | create -b gone.img -F raw new.qed
status | create -b gone.img -F raw new.qed 1G
status | create -b raw.img -F raw d/new.qed
status | create -b raw.img -F qed new.qed
status | create -b raw.img -F bogus new.qed
status | create -b over-gone.qed -F qed new.qed
status | create -b loop1.qed -F qed new.qed
0, not 1: the format is optional | create -b raw.img new.qed
0, not 1: the format is optional | create -b base.qed new.qed
0, not 1: the format is optional | create -u -b gone.img new.qed 1G
status | create -b foreign.qcow2 -F qcow2 new.qed
1, not 1: no driver of ours can read it | create -b foreign.qcow2 new.qed
1, not 0: QEMU cannot open the image that it makes then | create -u -b "$(printf %04100d 0)" -F raw new.qed 1G
1, not 0: it would be its own backing image | create -b ./base.qed -F qed base.qed
1, not 0: it would be its own backing image | create -b over.qed -F qed over-raw.qed
TABLE
}

@test "create: what is there already" {
  make_files
  truncate -s 16M files/zeroes.img
  truncate -s 4M files/late.img
  printf x | dd of=files/late.img bs=1 seek=3M conv=notrunc status=none
  cases <<'TABLE'
same | create base.qed 2G
same | create empty.img 1G
same | create zeroes.img 1G
1, not 0: only QED images and empty files are overwritten | create late.img 1G
1, not 0: only QED images and empty files are overwritten | create raw.img 1G
1, not 0: only QED images and empty files are overwritten | create foreign.qcow2 1G
TABLE
  cmp files/raw.img ours/raw.img
  qed-img create -q files/base.qed 1M
  run ! qed-img create files/raw.img 1M
  run ! qed-img create files/foreign.qcow2 1M
  cp files/late.img before.img
  run -1 qed-img create files/late.img 1M
  assert_output --partial "no QED image"
  assert_same files/late.img before.img
  cmp files/raw.img ours/raw.img
  cmp files/foreign.qcow2 ours/foreign.qcow2
}

@test "create: a probed format is recorded, so that raw stays raw" {
  make_files
  cd files || return
  run qed-img create -b raw.img new.qed
  assert_success
  assert_output "Formatting 'new.qed', fmt=qed size=10240 backing_file=raw.img backing_fmt=raw cluster_size=65536"
  assert_equal "$(image get new.qed features)" 5
  run qed-img create -b base.qed new.qed
  assert_success
  assert_output --partial "backing_fmt=qed"
  assert_equal "$(image get new.qed features)" 1
  run -1 qed-img create -b foreign.qcow2 new.qed
  assert_output --partial "foreign.qcow2"
}

@test "create: the list of options is qemu-img's" {
  local arguments
  for arguments in '-o help' '-o ?' '-o cluster_size=4k,help' \
                   '-b gone.img -o help'; do
    # shellcheck disable=SC2086
    qed-img create $arguments >ours.out
    # shellcheck disable=SC2086
    qemu-img create -f qed $arguments >qemu.out
    diff -u qemu.out ours.out
  done
  assert_file_not_empty ours.out
}

@test "create: an image in use is left alone" {
  make_files
  start_qemu_nbd server -f qed files/base.qed
  cp files/base.qed before.qed
  run -1 qed-img create files/base.qed 1G
  assert_output --partial "base.qed"
  assert_same files/base.qed before.qed

  # But one may be made on top of it.
  run -0 qed-img create -b base.qed files/new.qed
}

@test "create, info and check take an NBD URI" {
  local tool
  make_files
  truncate -s 100M export.img
  start_qemu_nbd server -f raw export.img

  run -0 qed-img create -b "$PWD/files/raw.img" "$qemu_uri" 5M
  assert_output --partial "Formatting '$qemu_uri', fmt=qed size=5242880"
  run -0 qed-img check "$qemu_uri"

  for tool in qemu-img qed-img; do
    "$tool" info -f qed --output=json "$qemu_uri" |
      jq -S 'del(.filename, .children)' >$tool.json
  done
  diff -u qemu-img.json qed-img.json
  assert_equal "$(jq '.["virtual-size"]' qed-img.json)" 5242880
  assert_equal "$(qed-img info --output=json "$qemu_uri" | jq -r .filename)" \
               "$qemu_uri"

  qed-img create -q -b "$qemu_uri" -F qed over.qed
  run -0 qed-img info --backing-chain over.qed
  assert_line "image: $qemu_uri"
  assert_line "image: $PWD/files/raw.img"
  assert_line "disk size: unavailable"

  # What is no image and not empty is not taken over.
  end_process "$qemu_pid"
  head -c 1M /dev/urandom >other.img
  cp other.img before.img
  start_qemu_nbd server2 -f raw other.img
  run -1 qed-img create "$qemu_uri" 1M
  assert_output --partial "$qemu_uri"
  end_process "$qemu_pid"
  assert_same other.img before.img
}

# ---- info

@test "info: images and chains" {
  make_files
  make_damaged_files
  cases <<'TABLE'
same | info base.qed
same | info --output=json base.qed
same | info --output=human base.qed
same | info zero.qed
same | info --output=json zero.qed
same | info --output=json small.qed
same | info over-raw.qed
same | info --output=json over-raw.qed
same | info d/over.qed
same | info --output=json d/over.qed
same | info d/absolute.qed
same | info --output=json d/absolute.qed
same | info over-gone.qed
same | info --output=json over-gone.qed
same | info over-nbd.qed
same | info over-http.qed
same | info --output=json over-http.qed
same | info d/over-json.qed
same | info --output=json d/over-json.qed
same | info over-old-nbd.qed
same | info d/over-file.qed
same | info --output=json --backing-chain d/over-file.qed
same | info loop1.qed
same | info quoted.qed
same | info --output=json quoted.qed
same | info bytes.qed
same | info --output=json bytes.qed
same | info -U base.qed
same | info --force-share base.qed
same | info --format=qed base.qed
same | info --backing-chain base.qed
same | info --backing-chain --output=json base.qed
same | info --backing-chain d/over.qed
same | info --backing-chain --output=json d/over.qed
same | info --backing-chain --output=json d/absolute.qed
same | info --backing-chain loop1.qed
same | info --backing-chain --output=json -U d/over.qed
status | info --backing-chain over-gone.qed
status | info --backing-chain --output=json over-gone-raw.qed
status | info --backing-chain over-nbd.qed
status | info --backing-chain over-old-nbd.qed
1, not 0: no driver of ours can read the qcow2 image | info --backing-chain over-foreign.qed
same | info outside.qed
same | info --output=json leaked.qed
same | info compat.qed
same | info autoclear.qed
status | info unknown.qed
status | info bad-l1-offset.qed
status | info bad-cluster-size.qed
status | info bad-table-size.qed
status | info bad-size.qed
TABLE
}

@test "info: a backing name that is relative to an NBD export" {
  local tool
  qemu-img create -q -f qed -u -b gone.img -F raw disk.qed 1M
  start_qemu_nbd server -f raw disk.qed
  for tool in qemu-img qed-img; do
    "$tool" info -f qed "$qemu_uri" | grep -v ^image: | in_old_words >$tool.txt
    "$tool" info -f qed --output=json "$qemu_uri" |
      jq -S 'del(.filename, .children)' >$tool.json
  done
  diff -u qemu-img.txt qed-img.txt
  diff -u qemu-img.json qed-img.json
  grep -F "gone.img (cannot determine actual path)" qed-img.txt
  run -1 qed-img info --backing-chain "$qemu_uri"
  assert_output --partial "gone.img"
}

@test "info: mistakes" {
  make_files
  cases <<'TABLE'
same | info
same | info base.qed zero.qed
same | info --output=xml base.qed
same | info --output
same | info -q base.qed
same | info -r leaks base.qed
same | info raw.img
same | info foreign.qcow2
same | info empty.img
status | info gone.qed
status | info d
status | info -f bogus base.qed
status | info --object bogus base.qed
status | info --image-opts driver=qed,file.filename=base.qed
1, not 0: qed-img reads QED images only | info -f raw base.qed
TABLE
}

@test "info: says that an image was not closed cleanly" {
  # On purpose: qemu-img opens the image before it looks, and shows the
  # flag as false.
  make_files
  make_damaged_files
  run -0 qed-img info files/dirty.qed
  assert_line "cleanly shut down: no"
  assert_equal "$(qed-img info --output=json files/dirty.qed |
                  jq '.["dirty-flag"]')" true
  assert_equal "$(qemu-img info -f qed --output=json files/dirty.qed |
                  jq '.["dirty-flag"]')" false
  diff -u <(qemu-img info -f qed files/dirty.qed | in_old_words) \
          <(qed-img info files/dirty.qed | grep -v '^cleanly')
}

@test "info, check: an image in use needs -U" {
  local command
  make_files
  start_qemu_nbd server -f qed files/base.qed
  for command in info check; do
    run -1 qed-img "$command" files/base.qed
    assert_output --partial "base.qed"
    run -0 qed-img "$command" -U files/base.qed
    run -0 qed-img "$command" --force-share files/base.qed
  done
}

# ---- check

@test "check: good images" {
  make_files
  make_damaged_files
  cases <<'TABLE'
same | check base.qed
same | check --output=json base.qed
same | check --output=human base.qed
same | check -q base.qed
same | check -q --output=json base.qed
same | check -r leaks base.qed
same | check -r all base.qed
same | check --repair=all --output=json base.qed
same | check -U base.qed
same | check -T writeback base.qed
same | check -T writethrough base.qed
same | check -T unsafe base.qed
same | check --format=qed base.qed
same | check zero.qed
same | check --output=json zero.qed
same | check small.qed
same | check --output=json small.qed
same | check over.qed
same | check --output=json d/over.qed
same | check dirty.qed
same | check --output=json dirty.qed
same | check -r leaks dirty.qed
same | check -r all --output=json dirty.qed
same | check compat.qed
same | check autoclear.qed
same | check -r all autoclear.qed
0, not 1: the chain below is not looked at | check over-gone.qed
0, not 1: the chain below is not looked at | check loop1.qed
TABLE
}

@test "check: mistakes, and what cannot be checked" {
  make_files
  make_damaged_files
  cases <<'TABLE'
same | check
same | check base.qed zero.qed
same | check -r
same | check -r bogus base.qed
same | check -T bogus base.qed
same | check --output=xml base.qed
same | check -p base.qed
status | check -U -r all base.qed
status | check -U -r leaks base.qed
status | check -f bogus base.qed
status | check --object bogus base.qed
status | check gone.qed
same | check raw.img
status | check -r all raw.img
same | check foreign.qcow2
same | check empty.img
status | check d
status | check unknown.qed
status | check -r all unknown.qed
status | check bad-l1-offset.qed
status | check -r all bad-cluster-size.qed
status | check bad-table-size.qed
status | check --output=json bad-size.qed
status | check --image-opts driver=qed,file.filename=base.qed
1, not 63: there is only one format | check -f raw raw.img
TABLE
}

@test "check, empty: a backing name with a zero byte in it" {
  local offset command
  qemu-img create -q -f qed -u -b gone.img -F raw disk.qed 1M
  offset=$(image get disk.qed backing_filename_offset)
  cp disk.qed nul.qed
  printf '\0' | dd of=nul.qed bs=1 seek=$((offset + 2)) conv=notrunc status=none
  cp disk.qed zero.qed
  image set zero.qed backing_filename_offset=0
  for command in check 'check -r all' empty; do
    # shellcheck disable=SC2086
    run -1 qed-img $command nul.qed
    assert_output --partial "backing name at offset $offset"
    # shellcheck disable=SC2086
    run -1 qed-img $command zero.qed
    assert_output --partial "backing name at offset 0"
  done
}

@test "check: damaged images" {
  make_files
  make_damaged_files
  cases <<'TABLE'
status | check lost.qed
status | check --output=json lost.qed
status | check -q lost.qed
status | check zeroed.qed
status | check unlinked.qed
status | check --output=json unlinked.qed
status | check leaked.qed
status | check --output=json leaked.qed
status | check outside.qed
status | check --output=json outside.qed
status | check -q outside.qed
status | check --output=json -q outside.qed
status | check unaligned.qed
status | check --output=json unaligned.qed
status | check in-l1.qed
status | check --output=json in-l1.qed
status | check in-l2.qed
status | check l1-outside.qed
status | check --output=json l1-outside.qed
status | check l1-unaligned.qed
status | check cut.qed
status | check --output=json cut.qed
status | check --output=json outside-leaked.qed
status | check shared.qed
status | check --output=json shared.qed
2, not 2: QEMU counts clusters of the table, we count entries | check l1-shared.qed
TABLE
}

@test "check -r: what QEMU repairs too, equally" {
  make_files
  make_damaged_files
  cases <<'TABLE'
status | check -r all l1-outside.qed
status | check -r all --output=json l1-outside.qed
status | check -q -r all l1-outside.qed
status | check -r all l1-unaligned.qed
status | check -r all cut.qed
status | check -r all --output=json cut.qed
TABLE
}

@test "check -r: what QEMU does not repair" {
  make_files
  make_damaged_files
  cases <<'TABLE'
0, not 3: leaked clusters are given back | check -r leaks lost.qed
0, not 3: leaked clusters are given back | check -r all lost.qed
0, not 3: leaked clusters are given back | check -q -r leaks leaked.qed
0, not 3: leaked clusters are given back | check -r leaks unlinked.qed
0, not 3: also the cluster that the entry lost | check -r all outside.qed
0, not 3: also the cluster that the entry lost | check -r all unaligned.qed
0, not 3: leaked clusters are given back | check -r all outside-leaked.qed
2, not 3: -r leaks changes no mapping | check -r leaks outside.qed
2, not 0: -r leaks changes no mapping | check -r leaks l1-outside.qed
0, not 2: the entry is cleared | check -r all in-l1.qed
0, not 2: the entry gets a cluster of its own | check -r all in-l2.qed
0, not 2: each mapping gets a cluster of its own | check -r all shared.qed
0, not 2: each entry gets a table of its own | check -r all l1-shared.qed
TABLE
}

# repaired NAME: nothing is left to be found, and what was not damaged reads
# as before.  QEMU counts holes inside of the file as leaked.
repaired ()
{
  run -0 qed-img check -r all "files/$1"
  cp "files/$1" repaired.qed
  run -0 qed-img check "files/$1"
  run -0 qed-img check -r all "files/$1"
  assert_same "files/$1" repaired.qed
  assert_not_corrupt "files/$1"
  qemu_io_qed "files/$1" \
    "read -P 1 64k 128k" "read -P 1 256k 768k" "read -P 2 100M 64k" \
    "read -P 3 300M 64k" "read -P 4 200M 64k" >/dev/null
}

@test "check -r all: nothing is left to repair, and data are there" {
  local name
  make_files
  make_damaged_files
  for name in lost zeroed leaked outside unaligned in-l1 in-l2 shared \
              l1-shared l1-outside l1-unaligned outside-leaked dirty; do
    echo "$name"
    repaired "$name.qed"
  done
  for name in leaked l1-outside l1-unaligned dirty; do
    assert_clean "files/$name.qed"
  done

  # Those that shared a cluster, or a table, all read what they read before.
  qemu_io_qed files/shared.qed "read -P 1 0 1M" >/dev/null
  qemu_io_qed files/l1-shared.qed \
    "read -P 1 0 1M" "read -P 1 2G 1M" "read -P 2 2148M 64k" >/dev/null
}

@test "check -r all: the file grows by what was copied, no more" {
  local before
  make_files
  make_damaged_files
  before=$(stat -c %s files/base.qed)

  # One cluster, which takes the place of the one that nothing refers to.
  run -0 --separate-stderr qed-img check -r all --output=json files/shared.qed
  assert_equal "$(jq -c '[.["corruptions-fixed"], .["leaks-fixed"]]' \
                     <<<"$output")" "[1,1]"
  (( $(stat -c %s files/shared.qed) <= before + 65536 ))

  # One table, and a copy of each of the 19 clusters it maps.
  run -0 qed-img check -r all files/l1-shared.qed
  (( $(stat -c %s files/l1-shared.qed) <= before + (4 + 19) * 65536 ))
}

@test "check -r leaks: the file is cut and has its space back" {
  local before
  make_files
  make_damaged_files
  before=$(stat -c %s files/base.qed)

  run -0 --separate-stderr qed-img check -r leaks files/leaked.qed
  assert_output - <<'END'
The following inconsistencies were found and repaired:

    3 leaked clusters
    0 corruptions

Double checking the fixed image now...
No errors were found on the image.
19/65536 = 0.03% allocated, 15.79% fragmented, 0.00% compressed clusters
END
  assert_equal "$(stat -c %s files/leaked.qed)" "$before"
  assert_same files/leaked.qed files/base.qed
}

@test "check -r: JSON counts what was repaired" {
  make_files
  make_damaged_files
  image l1 files/leaked.qed 1 0x100000000
  qed-img check -r all --output=json files/leaked.qed >ours.json
  assert_equal "$(jq -c '[.["corruptions-fixed"], .["leaks-fixed"],
                          .["check-errors"], .corruptions, .leaks]' \
                     ours.json)" "[1,3,0,null,null]"
}

# ends_within WHAT LENGTH CLUSTER=VALUE: an image with one L2 table at offset
# 12288, behind it its cluster, is cut to that length.
ends_within ()
{
  image build cut.qed 1048576 4096 2 "$3"
  truncate -s "$2" cut.qed
  run -2 --separate-stderr qed-img check cut.qed
  [[ $stderr == *"ends within the $1 there"* ]]
  run -0 --separate-stderr qed-img check -r all --output=json cut.qed
  [[ $stderr == *"ends within the $1 there"* ]]
  assert_equal "$(jq '.["corruptions-fixed"]' <<<"$output")" 1
  assert_clean cut.qed
  run -0 --separate-stderr qed-img check -r all --output=json cut.qed
  assert_equal "$(jq '.["corruptions-fixed"]' <<<"$output")" null
}

@test "check -r all: tells and counts what the file has lost at its end" {
  ends_within "data cluster" 24000 1=7
  qemu_io_qed cut.qed "read -P 7 4k 2k" >/dev/null
  ends_within "L2 table" 16384 1=zero
  ends_within "L2 table" 13000 1=zero
}

@test "check: findings name places, on standard error" {
  make_files
  make_damaged_files
  run -2 --separate-stderr qed-img check files/outside.qed
  [[ $stderr == *0x90000000* || $stderr == *2415919104* ]]
  run -2 --separate-stderr qed-img check --output=json files/outside.qed
  assert [ -n "$stderr" ]
  jq . <<<"$output" >/dev/null
}

@test "check: a table that cannot be read is status 1" {
  local table
  make_files
  table=$(image l1 files/base.qed 0)
  start_nbdkit --filter=error file files/base.qed error-rate=0 \
               error-pread-rate=100% error-file="$tmp/fail"
  run -0 qed-img check "$uri"
  touch fail
  run -1 qed-img check "$uri"
  rm fail
  stop_nbdkit

  # Only the L2 table fails.
  start_nbdkit eval get_size="stat -c %s $tmp/files/base.qed" \
    pread="if [ \$4 -ge $table ] && [ \$4 -lt $((table + 262144)) ]; then
             echo EIO medium error >&2; exit 1
           fi
           dd if=$tmp/files/base.qed iflag=skip_bytes,count_bytes \
              skip=\$4 count=\$3 status=none"
  run -1 qed-img check "$uri"
  run -1 qemu-img check -f qed "$uri"
  stop_nbdkit
}

# There nobody sees what is leaked, and an L1 table of zeroes is one with
# which nothing is wrong.  And what else the storage holds is not the
# image's, though an entry be one bit away from it.
@test "check: storage of fixed size, with room behind the image" {
  create 16M -o cluster_size=4k,table_size=2
  qemu_io_qed disk.qed 'write -P 5 0 64k' 'write -P 6 8M 64k'
  image l2 disk.qed 2049 'l2(0)'          # of 8M + 4K
  image l2 disk.qed 2064 $((12 << 20 | 512))
  start_nbdkit memory 16M
  qemu_io "$uri" 'write -P 7 12M 4M'
  nbdcopy disk.qed "$uri"
  run -0 qed-img check -r all "$uri"
  nbdcopy "$uri" repaired.qed
  stop_nbdkit
  run -0 qemu-io -f qed -c 'read -P 5 0 64k' -c 'read -P 6 8M 4k' \
      -c 'read -P 5 8196k 4k' -c 'read -P 6 8200k 56k' \
      -c 'read -P 0 8256k 4k' repaired.qed
  refute_output --partial failed
  assert_not_corrupt repaired.qed
}

# L2 tables as data, data of zeroes as tables: through an L1 table a bit away
# from the right one nothing is wrong, and more seems to be in use.
@test "check -r all: the place of the L1 table is not taken for wrong" {
  local i
  image build disk.qed $((32 << 20)) 4096 8 0=0 8100=0
  for i in 1 2 3 4; do
    qemu_io_qed disk.qed "write -P 0 $((i * 4))k 4k" \
                "write -P 0 $((30784 + i * 28))k 28k"
  done
  image l1 disk.qed 0 $((12 << 20 | 512))
  cp disk.qed damaged.qed
  start_nbdkit file disk.qed
  run -0 qed-img check -r all "$uri"
  stop_nbdkit
  assert_equal "$(image get disk.qed l1_table_offset)" 4096
  assert_equal "$(image l1 disk.qed 1)" "$(image l1 damaged.qed 1)"
}

# Where the image ends at 32 KiB, a table of an earlier one is a bit away from
# one of its own, which an entry takes for data.
@test "check -r all: tables that an earlier image has left are not used" {
  image build disk.qed $((4 << 20)) 4096 2 0=1 1=2 2=3
  assert_equal "$(image l1 disk.qed 0)" $((0x3000))
  image l2 disk.qed 2 'l1(0)'
  truncate -s 1M disk.qed
  printf '\0\0\2' | dd of=disk.qed bs=1 seek=$((0xb000 + 40)) conv=notrunc
  start_nbdkit file disk.qed
  run -0 qed-img check -r all "$uri"
  stop_nbdkit
  run -0 qemu-io -f qed -c 'read -P 1 0 4k' -c 'read -P 2 4k 4k' \
      -c 'read -P 0 12k 64k' disk.qed
  refute_output --partial failed
}

# A header that cannot be used, and a fault besides: the header that is meant
# is not the one with which nothing is wrong.
@test "check -r all: a header and an entry are damaged" {
  local field storage failed=0
  create 64M -o cluster_size=4k,table_size=4
  qemu_io_qed disk.qed 'write -P 1 0 48k' 'write -P 2 11M 48k' \
              'write -P 3 40M 48k'
  image l2 disk.qed $((11 * 256)) $((1 << 40 | 512))
  for field in table_size=5 header_size=3 header_size=5 l1_table_offset=0 \
               image_size=$((1 << 26 | 1)) cluster_size=12288 magic=$((0x444550)); do
    for storage in file fixed; do
      cp disk.qed "$storage.qed"
      image set "$storage.qed" "$field"
    done
    truncate -s +300K fixed.qed
    start_nbdkit file fixed.qed
    qed-img check -r all "$uri" >/dev/null || failed=1
    stop_nbdkit
    qed-img check -r all file.qed >/dev/null || failed=1
    for storage in file fixed; do
      run -0 qemu-io -f qed -c 'read -P 1 0 48k' -c 'read -P 0 11M 4k' \
          -c 'read -P 2 11268k 44k' -c 'read -P 3 40M 48k' "$storage.qed"
      if [[ $output = *failed* ]]; then
        echo "$storage, $field"
        failed=1
      fi
    done
  done
  assert_equal "$failed" 0
}

# Changes that need a journal, and one that needs a copy besides; the file is
# 52 KiB long, so 56 KiB are enough for the copy only.
@test "check -r all: without room for a journal" {
  create 1M -o cluster_size=4k,table_size=2
  qemu_io_qed disk.qed 'write -P 1 0 32k'
  assert_equal "$(stat -c %s disk.qed)" 53248
  image l2 disk.qed 0 $((12 << 20 | 512))
  image l2 disk.qed 200 $((12 << 20 | 512))
  cp disk.qed copy.qed
  image l2 copy.qed 1 'l2(2)'

  start_nbdkit file disk.qed
  run -0 qed-img check -r all "$uri"
  assert_output --partial "no room for a journal"
  stop_nbdkit
  (
    ulimit -f 56
    run -0 qed-img check -r all copy.qed
    assert_output --partial "no room for a journal"
  )
  for disk in disk.qed copy.qed; do
    run -0 qemu-io -f qed -c 'read -P 0 0 4k' -c 'read -P 1 4k 28k' \
        -c 'read -P 0 32k 992k' "$disk"
    refute_output --partial failed
    assert_not_corrupt "$disk"
    assert_equal "$(image get "$disk" autoclear_features)" 0
  done
}

# An image may come from anybody, and so may what looks like the record of a
# repair that was interrupted: 32 bytes at the end of the header's clusters.
@test "check: a journal that cannot be one is not followed" {
  image good disk.qed
  cp disk.qed good.qed
  image set disk.qed autoclear_features=1\<\<63
  # Its length, where its data begin, and two entries of a journal there.
  "$python" -c 'import struct, sys
with open("disk.qed", "r+b") as f:
    f.seek(4096 - 32)
    f.write(b"qedplan\n" + struct.pack("<QQQ", *map(int, sys.argv[1:])))
' "$(stat -c %s disk.qed)" "$(image l2 disk.qed 0)" 2
  cp disk.qed spoilt.qed
  run -0 qed-img check -r all disk.qed
  qemu-img compare -f qed -F qed good.qed disk.qed
  assert_equal "$(image get disk.qed autoclear_features)" 0
  nbdkit -U - qed spoilt.qed --run 'qemu-io -f raw -c "write 0 1" "$uri"'
}

# ---- The tool

@test "the tool: mistakes are told as by qemu-img" {
  local arguments
  for arguments in '' 'bogus' '--bogus' '-Z'; do
    # shellcheck disable=SC2086
    run ! qemu-img $arguments
    printf '%s\n' "$status" "$output" | in_old_words |
      sed 's/qemu-img/qed-img/g' >expected
    # shellcheck disable=SC2086
    run ! qed-img $arguments
    printf '%s\n' "$status" "$output" >ours
    diff -u expected ours
  done
}

@test "the tool: help and version" {
  local command
  run -0 qed-img --version
  assert_output --partial "qed-img"
  run -0 qed-img --help
  for command in create info check; do
    run -0 qed-img --help
    assert_line --regexp "^  $command "
    run -0 qed-img "$command" --help
    assert_line --partial "usage: qed-img $command"
    assert_line --partial "--format=qed"
    assert_equal "$(qed-img "$command" -h)" "$output"
  done
}

@test "the tool: output that cannot be written is an error" {
  make_files
  run -1 bash -c 'qed-img info files/base.qed >/dev/full'
  assert_output --partial "standard output: No space"
  run -1 bash -c 'qed-img commit -p files/over-raw.qed >/dev/full'
  assert_output --partial "standard output: No space"
  run -1 bash -c 'qed-img rebase -p -b "" files/over-raw.qed >/dev/full'
  assert_output --partial "standard output: No space"
  run -1 bash -c 'qed-img create new.qed 1M >/dev/full'
  assert_output --partial "standard output: No space"

  # More than a buffer of it, and still one message.
  local command
  qemu-img create -q -f qed -u -b "$(printf '%04000d' 0)" -F raw info.qed 1M
  # shellcheck disable=SC2046
  image build map.qed 4194304 4096 2 $(seq -f '%g=zero' 0 2 200)
  for command in info map; do
    run -1 bash -c "qed-img $command --output=json $command.qed >/dev/full"
    assert_output "qed-img: cannot write to standard output: No space left \
on device"
  done
}

@test "the tool: with streams closed, nothing is printed into the image" {
  make_files
  make_damaged_files
  local closed
  for closed in '2>&-' '<&- >&-' '<&- >&- 2>&-'; do
    cp files/outside.qed closed.qed
    run bash -c "qed-img check -r all closed.qed $closed"
    run -0 qemu-img check -f qed closed.qed
    assert_output --partial "No errors"
  done
}
