# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# qed-img map, measure, resize, rebase, commit and empty, the first five
# beside qemu-img; the cases are explained in qed-img-functions.bash.

load ../lib/qed-img-functions

# ---- map

@test "map: who has what" {
  make_files
  make_chain
  cases <<'TABLE'
same | map base.qed
same | map --output=json base.qed
same | map --output=human base.qed
same | map zero.qed
same | map --output=json zero.qed
same | map small.qed
same | map --output=json small.qed
same | map over-raw.qed
0, not 0: QEMU rounds the length of the raw file up | map --output=json over-raw.qed
same | map d/absolute.qed
same | map mid.qed
same | map --output=json mid.qed
same | map top.qed
same | map --output=json top.qed
same | map --output=json upper.qed
same | map --output=json short.qed
same | map --output=json untouched.qed
same | map other.qed
same | map --output=json other.qed
same | map -U top.qed
same | map -s 50M base.qed
same | map -s 50M --output=json base.qed
same | map -l 50M --output=json base.qed
same | map --start-offset=50M --max-length=60M --output=json base.qed
same | map -s 100 -l 1000 --output=json base.qed
same | map -s 512 -l 65536 base.qed
same | map -s 5G base.qed
same | map -s 5G --output=json base.qed
same | map -s 1k over-raw.qed
same | map -s 100k -l 300k --output=json top.qed
same | map -l 0 base.qed
same | map -l 0 --output=json base.qed
TABLE
}

@test "map: mistakes" {
  make_files
  make_damaged_files
  cases <<'TABLE'
same | map
same | map base.qed zero.qed
same | map -s x base.qed
same | map -l x base.qed
same | map -s -1 base.qed
same | map -l 9E base.qed
same | map -q base.qed
same | map -p base.qed
same | map --output=xml base.qed
status | map raw.img
status | map gone.qed
status | map foreign.qcow2
status | map over-gone.qed
status | map loop1.qed
status | map unknown.qed
status | map bad-table-size.qed
status | map outside.qed
TABLE
}

@test "map: a hole in the file does not hide that the image has a cluster" {
  make_files
  fallocate -p -o "$(image l2 files/base.qed 3)" -l 65536 files/base.qed
  cases <<'TABLE'
same | map base.qed
same | map --output=json base.qed
TABLE
}

@test "map: images and backing images in NBD exports" {
  local base
  make_files
  make_chain
  start_qemu_nbd base -f raw files/low.raw
  base=$qemu_uri
  qemu-img create -q -f qed -b "$base" -F raw files/remote.qed
  diff -u <(qemu-img map -f qed --output=json files/remote.qed |
              jq -S 'map (del (.compressed))') \
          <(qed-img map --output=json files/remote.qed | jq -S .)
  assert_equal "$(qed-img map --output=json files/remote.qed | jq length)" 4
  run -0 qed-img map files/remote.qed
  assert_line --regexp "^0x200000 +0x10000 +0x200000 +nbd\+unix:"

  start_qemu_nbd image -f raw files/base.qed
  diff -u <(qemu-img map -f qed --output=json "$qemu_uri" |
              jq -S 'map (del (.compressed))') \
          <(qed-img map --output=json "$qemu_uri" | jq -S .)
}

# ---- measure

@test "measure: raw, and mistakes" {
  make_files
  make_chain
  cases <<'TABLE'
same | measure -O raw --size 1G
same | measure -O raw --size 1000
same | measure -O raw --size 0
same | measure -O raw --output=json --size 1.5M
same | measure -O raw -f qed base.qed
same | measure -O raw -f qed --output=json top.qed
same | measure -O raw -f raw raw.img
same | measure -O raw -f qed -U base.qed
same | measure
same | measure -O raw
same | measure -O raw --size x
same | measure -O raw --size ''
same | measure -O raw --size -1
same | measure -O raw --size 9E
same | measure -O raw --size 1G base.qed
same | measure -O raw -f qed base.qed zero.qed
same | measure -f qed --size 1G
same | measure --output=xml --size 1G
same | measure -O raw -l x --size 1G
status | measure -O raw -o cluster_size=4k --size 1G
status | measure -O raw -l x -f qed base.qed
status | measure -O bogus --size 1G
status | measure -O raw -f qed gone.qed
status | measure -O raw -f qed raw.img
status | measure -O raw -f qed over-gone.qed
1, not 0: QED and raw images only | measure -O qcow2 --size 1G
0, not 1: qemu-img cannot measure QED images | measure -O qed --size 1G
0, not 1: qemu-img cannot measure QED images | measure -O qed -o cluster_size=4k --size 1G
0, not 1: qemu-img cannot measure QED images | measure -O qed -f qed base.qed
1, not 1: too large for the geometry | measure -O qed --size 65T
1, not 1: no such cluster size | measure -O qed -o cluster_size=5000 --size 1G
1, not 1: no such option | measure -O qed -o bogus=1 --size 1G
1, not 1: no size | measure -O qed -o cluster_size=
TABLE
  # qemu-img 7.2 measures all the same.
  run -1 qed-img measure -q -O raw --size 1G
  assert_line --partial "unrecognized option '-q'"
}

# measured FIELD ARGUMENT...
measured ()
{
  local field=$1
  shift
  qed-img measure --output=json "$@" | jq ".[\"$field\"]"
}

# convert OPTION... SOURCE TARGET: QEMU's way to make the image that was
# measured.
convert ()
{
  qemu-img convert -n --target-is-zero -S 64k "${@:1:$#-2}" -O qed "${@: -2}"
}

# length FILE [BYTES]: of an image, with the table of so many bytes that
# would be kept free if it were in storage of fixed size.
length ()
{
  echo "$(($(stat -c %s "$1") + ${2:-256 * 1024}))"
}

# table OPTIONS: bytes of a table.
table ()
{
  local cluster=64K tables=4
  if [[ $1 =~ cluster_size=([0-9a-zA-Z]+) ]]; then
    cluster=${BASH_REMATCH[1]}
  fi
  if [[ $1 =~ table_size=([0-9]+) ]]; then
    tables=${BASH_REMATCH[1]}
  fi
  echo "$((tables * $(numfmt --from=iec "${cluster^^}")))"
}

# A new image is as long as it was measured before.  Sources have no zeroes
# among their data, which QEMU would find and a look at the mappings cannot.
@test "measure: the required size is that of the image that QEMU makes" {
  local size options
  make_files
  make_chain
  for size in 0 512 1M 5G 64T; do
    qemu-img create -q -f qed new.qed "$size"
    assert_equal "$(measured required --size "$size")" "$(length new.qed)"
  done
  for options in cluster_size=4k cluster_size=4k,table_size=2 \
                 cluster_size=1M table_size=16; do
    qemu-img create -q -f qed -o "$options" new.qed 1G
    assert_equal "$(measured required -o "$options" --size 1G)" \
                 "$(length new.qed "$(table "$options")")"
    qemu-img create -q -f qed -o "$options" new.qed 4G
    convert -f qed files/base.qed new.qed
    assert_equal "$(measured required -o "$options" files/base.qed)" \
                 "$(length new.qed "$(table "$options")")"
  done

  qemu-img create -q -f qed new.qed 6M
  convert -f qed files/upper.qed new.qed
  assert_equal "$(measured required files/upper.qed)" "$(length new.qed)"
  qemu-img create -q -f qed new.qed 3M
  convert -f raw files/low.raw new.qed
  assert_equal "$(measured required -f raw files/low.raw)" \
               "$(length new.qed)"
}

@test "measure: the fully allocated size is that of a full image" {
  local options
  for options in cluster_size=64k,table_size=4 cluster_size=4k,table_size=2; do
    nbdkit -U - pattern 40M --run "
      qemu-img create -q -f qed -o $options full.qed 40M
      qemu-img convert -n -f raw -O qed \"\$uri\" full.qed"
    assert_equal "$(measured fully-allocated -o "$options" --size 40M)" \
                 "$(length full.qed "$(table "$options")")"
    assert_equal "$(measured required -o "$options" full.qed)" \
                 "$(length full.qed "$(table "$options")")"
  done
}

@test "measure: human output, and help for -o" {
  run -0 qed-img measure --size 1G
  assert_output - <<'END'
required size: 589824
fully allocated size: 1074593792
END
  diff <(qed-img measure -o help) <(qed-img create -o help)
}

# ---- resize

@test "resize: as qemu-img does" {
  make_files
  make_chain
  cases <<'TABLE'
same | resize base.qed 5G
same | resize base.qed +1G
same | resize base.qed +512
same | resize base.qed +0
same | resize base.qed 4G
same | resize -q base.qed 6G
same | resize base.qed 64T
same | resize base.qed 4294967808
same | resize --preallocation=off base.qed 5G
same | resize zero.qed 1M
same | resize small.qed +1.5M
same | resize --shrink base.qed 5G
same | resize over-raw.qed +1M
same | resize top.qed 100M
same | resize mid.qed 100M
same | resize d/absolute.qed 5G
TABLE
}

@test "resize: mistakes" {
  make_files
  make_chain
  make_damaged_files
  cases <<'TABLE'
status | resize
same | resize base.qed
same | resize 1G
same | resize base.qed 1G 2G
same | resize base.qed 0
same | resize base.qed -1G
same | resize -q base.qed -- -1G
same | resize base.qed -5G
same | resize base.qed 1G
same | resize --shrink base.qed 1G
same | resize --shrink base.qed -1G
same | resize --preallocation=full base.qed +1G
same | resize --preallocation=bogus base.qed +1G
same | resize --bogus base.qed +1G
status | resize base.qed x
status | resize base.qed ''
status | resize base.qed +
status | resize base.qed +-1
status | resize base.qed 8E
status | resize base.qed +7E
status | resize base.qed +1000
status | resize base.qed 5000000001
status | resize base.qed 65T
status | resize base.qed 70368744178176
status | resize small.qed 2T
status | resize gone.qed 1G
status | resize raw.img 1G
status | resize over-gone.qed 3G
status | resize unknown.qed 5G
status | resize bad-size.qed 5G
status | resize loop1.qed 5G
0, not 1: the new part is made to read as zeroes | resize short.qed 2M
1, not 0: QED images only | resize -f raw raw.img 1G
1, not 0: a damaged image is repaired first | resize shared.qed 5G
TABLE
}

@test "resize: what is new reads as zeroes over a longer backing image too" {
  make_files
  make_chain
  for size in 1536k 2560k 10M; do
    run -0 qed-img resize files/short.qed "$size"
    assert_output "Image resized."
  done
  qemu_io_qed files/short.qed "read -P 5 0 4k" "read -P 1 4k 60k" \
    "read -P 3 64k 64k" "read -P 1 128k 128k" "read -P 0 256k 128k" \
    "read -P 1 384k 640k" "read -P 0 1M 9M" >/dev/null
  assert_clean files/short.qed
}

@test "resize: refuses an image in use" {
  make_files
  start_qemu_nbd server -f qed files/base.qed
  run -1 qed-img resize files/base.qed 5G
  assert_output --partial base.qed
  end_process "$qemu_pid"
  run -0 qed-img resize files/base.qed 5G
}

# ---- rebase

@test "rebase: safe" {
  make_files
  make_chain
  cases <<'TABLE'
reads | rebase -b other.qed -F qed top.qed
reads | rebase -b other.raw -F raw top.qed
reads | rebase -b low.raw -F raw top.qed
reads | rebase -b mid.qed -F qed top.qed
reads | rebase -b low.raw -F raw upper.qed
reads | rebase -b other.qed -F qed mid.qed
reads | rebase -b other.raw -F raw short.qed
reads | rebase -b '' top.qed
reads | rebase -b '' mid.qed
reads | rebase -b '' upper.qed
reads | rebase -b '' short.qed
reads | rebase -b '' untouched.qed
reads | rebase -b '' over-raw.qed
reads | rebase -b '' base.qed
reads | rebase -b other.qed -F qed base.qed
reads | rebase -b other.qed -F qed other.raw
reads | rebase -q -b other.qed -F qed top.qed
reads | rebase -U -b other.qed -F qed top.qed
reads | rebase -b "$tmp/files/other.qed" -F qed top.qed
reads | rebase -t writeback -T writethrough -b other.qed -F qed top.qed
reads | rebase -t unsafe -T unsafe -b other.qed -F qed top.qed
reads | rebase -b other.qed -F raw top.qed
reads | rebase -b ../base.qed -F qed d/over.qed
TABLE
}

@test "rebase: unsafe" {
  make_files
  make_chain
  make_damaged_files
  cases <<'TABLE'
same | rebase -u -b other.qed -F qed top.qed
same | rebase -u -b other.raw -F raw top.qed
same | rebase -u -b gone.img -F qed top.qed
same | rebase -u -b gone.img -F raw top.qed
same | rebase -u -b raw.img -F raw over-gone.qed
same | rebase -u -b '' top.qed
same | rebase -u top.qed
same | rebase -u -b '' base.qed
same | rebase -u -b '' compat.qed
same | rebase -b '' compat.qed
same | rebase -u -b nbd://127.0.0.1:1 -F raw top.qed
same | rebase -u -b nbd:unix:/tmp/x -F raw top.qed
same | rebase -u -b http://h/x -F raw top.qed
same | rebase -u -b "$(printf %01023d 0)" -F raw top.qed
same | rebase -u -b 'with space' -F raw top.qed
same | rebase -u -b low.raw -F raw loop1.qed
0, not 1: the format is optional | rebase -u -b other.qed top.qed
1, not 0: it would be its own backing image | rebase -u -b top.qed -F qed top.qed
1, not 0: it would be its own backing image | rebase -u -b link.qed -F qed top.qed
status | rebase -u -b foreign.qcow2 -F qcow2 top.qed
1, not 0: QEMU cannot open the image that it makes then | rebase -u -b "$(printf %04100d 0)" -F raw top.qed
TABLE
}

@test "rebase: mistakes" {
  make_files
  make_chain
  make_damaged_files
  image set files/mid.qed compat_features=64
  cases <<'TABLE'
same | rebase
same | rebase top.qed
same | rebase -b other.qed -F qed
same | rebase -b other.qed -F qed top.qed mid.qed
status | rebase -c -b other.qed -F qed top.qed
same | rebase -t bogus -b other.qed -F qed top.qed
same | rebase -T bogus -b other.qed -F qed top.qed
same | rebase --output=json -b other.qed top.qed
status | rebase -b other.qed -F bogus top.qed
status | rebase -u -b other.qed -F bogus top.qed
status | rebase -b gone.img -F raw top.qed
status | rebase -b raw.img -F qed top.qed
status | rebase -b top.qed -F qed top.qed
status | rebase -b link.qed -F qed top.qed
status | rebase -b upper.qed -F qed top.qed
status | rebase -b other.qed -F qed gone.qed
status | rebase -b other.qed -F qed raw.img
status | rebase -b other.qed -F qed over-gone.qed
status | rebase -b over-gone.qed -F qed top.qed
status | rebase -b other.qed -F qed unknown.qed
status | rebase -u -b "$(printf %065536d 0)" -F raw top.qed
status | rebase -u -b other.qed -F qed mid.qed
0, not 1: the format is optional | rebase -b other.qed top.qed
1, not 0: no driver of ours can read it | rebase -b foreign.qcow2 -F qcow2 top.qed
1, not 1: QED images only | rebase -f raw -b '' raw.img
1, not 0: a damaged image is repaired first | rebase -b other.qed -F qed shared.qed
TABLE
}

@test "rebase: copies only what differs" {
  make_files
  make_chain
  qemu-img create -q -f qed -b files/low.raw -F raw same.qed
  cp files/low.raw copy.raw
  run -0 qed-img rebase -b copy.raw -F raw same.qed
  assert_output ""
  assert_equal "$(qed-img check --output=json same.qed |
                  jq '.["allocated-clusters"]')" null
  assert_equal "$(qed-img info --output=json same.qed |
                  jq -r '.["backing-filename"]')" copy.raw
}

@test "rebase: an image in use is left alone, -U is for the others" {
  make_files
  make_chain
  cp files/top.qed before.qed
  start_qemu_nbd server -f qed files/top.qed
  run -1 qed-img rebase -b other.qed -F qed files/top.qed
  run -1 qed-img rebase -U -b other.qed -F qed files/top.qed
  run -1 qed-img rebase -u -b other.qed -F qed files/top.qed
  assert_output --partial top.qed
  end_process "$qemu_pid"
  assert_same files/top.qed before.qed

  start_qemu_nbd server2 -f qed files/other.qed
  run -1 qed-img rebase -b other.qed -F qed files/top.qed
  assert_output --partial other.qed
  assert_same files/top.qed before.qed
  run -0 qed-img rebase -U -b other.qed -F qed files/top.qed
}

# ---- commit

@test "commit: into the backing image" {
  make_files
  make_chain
  cases <<'TABLE'
reads | commit top.qed
reads | commit mid.qed
reads | commit upper.qed
reads | commit -q top.qed
reads | commit -d top.qed
reads | commit -t writeback top.qed
reads | commit -t writethrough -q top.qed
reads | commit -t unsafe top.qed
reads | commit untouched.qed
reads | commit d/absolute.qed
reads | commit over-raw.qed
reads | commit -b mid.qed top.qed
reads | commit -b mid.qed upper.qed
reads | commit -b low.raw upper.qed
reads | commit -b low.raw top.qed
reads | commit -b top.qed upper.qed
reads | commit -d -b mid.qed top.qed
reads | commit -b "$PWD/mid.qed" upper.qed
TABLE
}

@test "commit: a base is found under any name, relative to the image too" {
  make_files
  cd files/d
  qemu-img create -q -f qed base.qed 1M
  ln -s base.qed link.qed
  qemu-img create -q -f qed -b ./base.qed -F qed mid.qed
  qemu-img create -q -f qed -b mid.qed -F qed top.qed
  qemu_io_qed top.qed "write -P 1 0 100k" >/dev/null
  cd ../..
  cases <<'TABLE'
reads | commit -b base.qed d/mid.qed
reads | commit -b base.qed d/top.qed
reads | commit -b link.qed d/top.qed
reads | commit -b ../d/mid.qed d/top.qed
0, not 1: QEMU takes no names relative to the current folder | commit -b d/base.qed d/top.qed
TABLE
}

@test "commit: mistakes" {
  make_files
  make_chain
  make_damaged_files
  cases <<'TABLE'
same | commit
same | commit top.qed mid.qed
status | commit base.qed
status | commit zero.qed
status | commit -b other.qed top.qed
status | commit -b top.qed top.qed
status | commit -b gone.qed top.qed
status | commit -b '' top.qed
same | commit -t bogus top.qed
same | commit -r x top.qed
same | commit --output=json top.qed
same | commit -Z top.qed
status | commit gone.qed
status | commit raw.img
status | commit over-gone.qed
status | commit over-gone-raw.qed
status | commit unknown.qed
1, not 1: QED images only | commit -f raw raw.img
TABLE
}

# allocated IMAGE: clusters that this layer has
allocated ()
{
  qed-img check --output=json "$1" | jq '.["allocated-clusters"] // 0'
}

@test "commit: empties the image, but not with -d or -b" {
  make_files
  make_chain
  cp -a files kept
  run -0 qed-img commit files/top.qed
  assert_output "Image committed."
  assert_equal "$(allocated files/top.qed)" 0
  run -0 qed-img commit -d kept/top.qed
  assert_not_equal "$(allocated kept/top.qed)" 0
  run -0 qed-img commit -b low.raw kept/upper.qed
  assert_not_equal "$(allocated kept/upper.qed)" 0
  assert_clean files/top.qed
}

@test "commit: into an NBD export" {
  make_files
  make_chain
  qemu-img convert -f qed -O raw files/mid.qed files/before.raw
  start_qemu_nbd server -f raw files/low.raw
  qed-img rebase -u -b "$qemu_uri" -F raw files/mid.qed
  qed-img resize -q files/mid.qed +0

  # An export cannot grow, and the disk of 5 MiB does not fit into 3 MiB.
  run -1 qed-img commit files/mid.qed
  assert_output --partial "$qemu_uri"
  qemu-img compare -f qed -F raw files/mid.qed files/before.raw

  qemu-img create -q -f qed -b "$qemu_uri" -F raw files/fits.qed
  qemu_io_qed files/fits.qed "write -P 9 1M 200k" >/dev/null
  run -0 qed-img commit files/fits.qed
  end_process "$qemu_pid"
  qemu_io files/low.raw "read -P 1 0 1M" "read -P 9 1M 200k" \
          "read -P 2 2M 64k" >/dev/null
}

@test "commit: refuses an image in use, and one with a base in use" {
  local name
  make_files
  make_chain
  cp -a files before
  for name in top.qed mid.qed; do
    start_qemu_nbd "$name" -f qed "files/$name"
    run -1 qed-img commit files/top.qed
    assert_output --partial "$name"
    end_process "$qemu_pid"
  done
  diff -r before files
}

# ---- empty

@test "empty: what is below shows again, or zeroes" {
  make_files
  make_chain
  run -0 qed-img empty files/top.qed
  assert_output "Image emptied."
  assert_equal "$(allocated files/top.qed)" 0
  assert_clean files/top.qed
  run -0 qemu-img compare -f qed -F qed files/top.qed files/mid.qed

  run -0 qed-img empty -q files/base.qed
  assert_output ""
  qemu_io_qed files/base.qed "read -P 0 0 400M" >/dev/null
  assert_clean files/base.qed
  qemu-img create -q -f qed new.qed 4G
  assert [ "$(space_of files/base.qed)" -le "$(space_of new.qed)" ]
  run -0 qed-img info --output=json files/base.qed
  assert_equal "$(jq '.["virtual-size"]' <<<"$output")" 4294967296
}

@test "empty: takes damaged images, and those of a chain that is gone" {
  local name
  make_files
  make_damaged_files
  for name in outside shared l1-shared in-l1 cut leaked dirty over-gone; do
    run -0 qed-img empty "files/$name.qed"
    run -0 qed-img check "files/$name.qed"
    no_need_check "files/$name.qed"
  done
}

@test "empty: takes an NBD URI" {
  make_files
  # An export cannot grow, and a second table of 256 KiB is needed meanwhile.
  truncate -s +256k files/base.qed
  start_qemu_nbd server -f raw files/base.qed
  run -0 qed-img empty "$qemu_uri"
  end_process "$qemu_pid"
  qemu_io_qed files/base.qed "read -P 0 0 400M" >/dev/null
  assert_not_corrupt files/base.qed
}

@test "empty: mistakes" {
  local arguments
  make_files
  make_damaged_files
  cp -a files before
  for arguments in "" "base.qed zero.qed" -Z "-p base.qed" raw.img gone.qed \
                   foreign.qcow2 unknown.qed bad-size.qed "-f raw base.qed" \
                   empty.img d; do
    # shellcheck disable=SC2086
    cd files && run -1 qed-img empty $arguments && cd ..
    assert_output --regexp '^qed-img: .'
  done
  start_qemu_nbd server -f qed files/base.qed
  run -1 qed-img empty files/base.qed
  assert_output --partial base.qed
  end_process "$qemu_pid"
  diff -r before files
}

# ---- No space

# limited FILE COMMAND...: run it when no file can grow beyond this one's
# length.
limited ()
{
  local length
  length=$(stat -c %s "$1")
  shift
  (
    ulimit -f $((length / 1024))
    exec "$@"
  )
}

@test "what is refused is not changed by a byte" {
  local command
  truncate -s 1M base.raw
  qemu-img create -q -f qed -b base.raw -F raw disk.qed 2M
  qemu-img create -q -f qed -u -b gone.img -F raw orphan.qed 2M
  qemu-img create -q -f qcow2 foreign.qcow2 1M
  image set disk.qed 'features=features | 2' autoclear_features=64
  image set orphan.qed 'features=features | 2' autoclear_features=64
  cp disk.qed disk.before
  cp orphan.qed orphan.before
  for command in 'commit orphan.qed' 'commit -b nope disk.qed' \
                 'rebase -b nope disk.qed' 'rebase -b foreign.qcow2 disk.qed' \
                 'resize disk.qed 1M' 'resize disk.qed 1P' \
                 'resize --shrink disk.qed 1M' 'resize disk.qed 2097153'; do
    # shellcheck disable=SC2086
    run -1 qed-img $command
    assert_same disk.qed disk.before
    assert_same orphan.qed orphan.before
  done
  start_qemu_nbd server -f raw base.raw
  run -1 qed-img commit disk.qed
  assert_same disk.qed disk.before
}

@test "no space: an error, and the disk is as before" {
  local name
  make_files
  make_chain
  for name in top base; do
    qemu-img convert -f qed -O raw "files/$name.qed" "$name.raw"
  done
  cd files || return

  run -1 limited top.qed qed-img rebase -b other.qed -F qed top.qed
  assert_output --partial top.qed
  run -1 limited top.qed qed-img rebase -b '' top.qed
  run -1 limited mid.qed qed-img commit top.qed
  assert_output --partial mid.qed
  run -1 limited low.raw qed-img commit mid.qed
  assert_output --partial low.raw
  run -1 limited base.qed qed-img empty base.qed
  assert_output --partial base.qed
  run -1 limited zero.qed qed-img create -o cluster_size=1M new.qed 1G
  assert_output --partial new.qed
  assert_file_not_exist new.qed

  assert_not_corrupt mid.qed
  for name in top base; do
    assert_not_corrupt "$name.qed"
    qemu-img compare -f qed -F raw "$name.qed" "../$name.raw"
    assert_equal "$(image get "$name.qed" image_size)" \
                 "$(stat -c %s "../$name.raw")"
  done
  assert_equal "$(qed-img info --output=json top.qed |
                  jq -r '.["backing-filename"]')" mid.qed

  # With space, all goes on.
  run -0 qed-img rebase -b other.qed -F qed top.qed
  run -0 qed-img commit mid.qed
  run -0 qed-img empty base.qed
}

# ---- Progress

# A commit that takes a while: low.raw is behind a slow server.
make_slow_commit ()
{
  truncate -s 64M low.raw
  start_nbdkit --filter=delay --filter=noparallel file low.raw wdelay=50ms \
               serialize=requests
  qemu-img create -q -f qed -b "$uri" -F raw slow.qed
  qemu_io_qed slow.qed "write -P 1 0 64M" >/dev/null
}

# What progress looks like, each time in the place of the one before: it begins
# with 0, ends with 100, and goes up.
assert_progress ()
{
  awk '
    !/^    \([0-9]+\.[0-9][0-9]\/100%\)$/ { exit bad = 1 }
    {
      now = substr($1, 2) + 0
      if (NR == 1 ? now != 0 : now <= before) exit bad = 1
      before = now
    }
    END { exit bad || before != 100 }' <(tr '\r' '\n' <"$1" | grep /100%) ||
    fail "not what progress looks like: $(cat "$1")"
}

# Whoever reads it from a pipe waits for the carriage return.
@test "-p: from 0 to 100, also where there is no terminal" {
  make_slow_commit
  qed-img commit -p slow.qed >out
  assert_equal "$(tail -n 1 out)" "Image committed."
  assert [ "$(tr -cd '\r' <out | wc -c)" -gt 5 ]
  assert_progress out

  make_files
  make_chain
  cmp <(qed-img rebase -p -u -b gone -F raw files/top.qed) \
      <(qemu-img rebase -f qed -p -u -b gone -F raw files/other.qed)
  qed-img rebase -p -b '' files/short.qed >out
  assert_progress out
}

@test "-p: one line on a terminal" {
  make_files
  make_chain
  run -0 script -qec "qed-img commit -p files/top.qed" /dev/null
  assert_output --regexp $'^    \\(0\\.00/100%\\)\r.*    \\(100\\.00/100%\\)\r\r\nImage committed\.\r$'
}

@test "-q: nothing, also with -p" {
  make_files
  make_chain
  run -0 qed-img commit -q -p files/top.qed
  assert_output ""
  run -0 qed-img rebase -q -p -b '' files/top.qed
  assert_output ""
}

@test "SIGUSR1: asks for a line on standard error" {
  local commit
  make_slow_commit
  qed-img commit slow.qed >out 2>err 3>&- &
  commit=$!
  remember "$commit"
  wait_until 60 ask_for_progress "$commit"
  wait "$commit"
  assert_equal "$(cat out)" "Image committed."
  run -0 head -n 1 err
  assert_output --regexp '^    \([0-9]+\.[0-9][0-9]/100%\)$'
}

ask_for_progress ()
{
  # Before it listens, the signal would end it.
  if grep -q '^SigCgt:.*[2367abef]..$' "/proc/$1/status"; then
    kill -USR1 "$1"
  fi
  [ -s err ]
}
