# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Whatever is in a file, the server neither crashes nor hangs nor takes
# memory out of proportion.  A header that breaks a rule of the format is
# refused with a message that says which; damage in tables costs the places
# that it touches and nothing else; what is refused is not changed.

load ../lib/qed-functions

# Serve an image (a spoiled one of "image good") and look at it: $output
# says what happened.
attempt ()
{
  run "$python" "$tests/try-image.py" "$@"
  assert_success
}

# refuses EXPRESSION [FILE]: the image is refused, writable and read-only,
# the message names the file and matches, and the file does not change.
refuses ()
{
  local option
  for option in -w -r; do
    attempt $option disk.qed
    assert_line refused
    assert_output --partial "${2:-disk.qed}"
    assert_output --regexp "$1"
  done
}

# A good image with header fields changed is refused.
# header_refused EXPRESSION FIELD=VALUE...
header_refused ()
{
  local expression=$1
  shift
  image good disk.qed
  image set disk.qed "$@"
  refuses "$expression"
}

# What the clusters of the good image are, but for the numbers given:
# the places that damage must not touch.
assert_others_good ()
{
  local table k number
  for table in 0 1 2; do
    for k in 0 1 2 3; do
      number=$((1024 * table + k))
      if [[ " $* " == *" $number "* ]]; then continue; fi
      case $k in
        0|1) assert_line "cluster $number: $((16 * table + k + 1))" ;;
        *)   assert_line "cluster $number: 0" ;;
      esac
    done
  done
}

# damaged CLUSTER...: a writable open serves the image read-only and says
# why; these clusters fail to read, the others do not, the file does not
# change.  The same with -r.
damaged ()
{
  local before cluster
  before=$(hash_of disk.qed)
  for option in -w -r; do
    attempt $option disk.qed
    assert_line "served read-only"
    for cluster; do
      assert_line "cluster $cluster: EIO"
    done
    assert_others_good "$@"
    # Somebody has to say it, at the open or at the first read.
    assert_output --partial "disk.qed"
    assert_equal "$(hash_of disk.qed)" "$before"
  done
  attempt -w disk.qed repair=never
  assert_line "served read-only"
  assert_equal "$(hash_of disk.qed)" "$before"
}

# repair=always makes a damaged image whole: it is served for writing, and
# nobody finds corruption afterwards.  The other clusters keep their data.
repairable ()
{
  attempt disk.qed repair=always
  assert_line "served writable"
  assert_others_good "$@"
  assert_not_corrupt disk.qed
  attempt disk.qed
  assert_line "served writable"
  assert_others_good "$@"
}

@test "the good image is served and not changed by reading" {
  image good disk.qed
  local before
  before=$(hash_of disk.qed)
  attempt -r disk.qed
  assert_line "served read-only"
  assert_others_good
  attempt disk.qed
  assert_line "served writable"
  assert_others_good
  assert_equal "$(hash_of disk.qed)" "$before"
}

@test "a wrong magic is refused" {
  header_refused "not in QED format" "magic=0"
  header_refused "not in QED format" "magic=0x01444551"
}

@test "a cluster size that is no power of two from 4K to 64M is refused" {
  local value
  for value in 0 1 512 2048 4097 65535 98304 134217728 2147483648 4294967295
  do
    header_refused "cluster.size" "cluster_size=$value"
  done
}

@test "a table size that is no power of two from 1 to 16 is refused" {
  local value
  for value in 0 3 15 17 32 2147483648 4294967295; do
    header_refused "table.size" "table_size=$value"
  done
}

@test "a header that does not fit in 32 bits is refused" {
  local value
  for value in 0x100000 0x80000000 0xffffffff; do
    header_refused "header.size" "header_size=$value"
  done
}

@test "unknown features are refused" {
  local value
  for value in 8 16 0x80000000 0x100000000 0x8000000000000000; do
    header_refused "feature" "features=$value"
    header_refused "feature" "features=$value|2"
  done
}

@test "unknown compatible features are ignored and kept" {
  image good disk.qed
  image set disk.qed "compat_features=0x8000000000000005"
  attempt -w disk.qed
  assert_line "served writable"
  # 0x8000000000000005
  assert_equal "$(image get disk.qed compat_features)" 9223372036854775813
  assert_clean disk.qed
}

@test "unknown autoclear features are cleared by a write, not by reading" {
  image good disk.qed
  image set disk.qed "autoclear_features=0x80000005"
  attempt -r disk.qed
  assert_line "served read-only"
  assert_equal "$(image get disk.qed autoclear_features)" $((0x80000005))
  start_nbdkit qed disk.qed
  qemu_io "$uri" "write -P 1 1M 64k"
  assert_equal "$(image get disk.qed autoclear_features)" 0
  stop_nbdkit
  assert_equal "$(image get disk.qed autoclear_features)" 0
  assert_clean disk.qed
}

@test "an L1 table outside the file, unaligned or in the header is refused" {
  local value
  for value in 0 512 4097 8191 file_size file_size-4096 0x7fffffffffffe000 \
               0xfffffffffffff000 0xffffffffffffffff; do
    header_refused "[Ll]1" "l1_table_offset=$value"
  done
}

@test "an image size that the format cannot have is refused" {
  local value
  # 1024 * 1024 * 4096 is what the tables can map.
  for value in 1 511 12582913 4294967808 0x8000000000000000 \
               0xfffffffffffffe00 0xffffffffffffffff; do
    header_refused "size" "image_size=$value"
  done
}

@test "an image as large as its tables can map is served, in little memory" {
  image good disk.qed
  image set disk.qed image_size=4294967296
  attempt -r disk.qed
  assert_line "served read-only"
  # The largest tables that a header can ask for, in a sparse file.
  image build disk.qed 512 1048576 16
  image set disk.qed "image_size=1 << 62"
  attempt -r disk.qed
  assert_line "served read-only"
  attempt disk.qed
  assert_line "served writable"
}

# Little data, a long hole, and many entries of one cluster, of which each is
# to have a copy.
@test "a repair does not fill the disk with copies" {
  image build disk.qed $((64 << 20)) 1048576 1 0=1
  truncate -s $((1 << 40)) disk.qed
  "$python" - "$(image l1 disk.qed 0)" "$(image l2 disk.qed 0)" <<'END'
import struct, sys
table, cluster = map(int, sys.argv[1:])
with open("disk.qed", "r+b") as f:
    f.seek(table)
    f.write(struct.pack("<Q", cluster) * 400)
END
  image set disk.qed "features=features | 2" "image_size=1 << 30"
  run -0 nbdkit -U - qed disk.qed --run true
  assert_output --partial "far more clusters"
  run -1 qed-img check -r all disk.qed
  assert_output --partial "far more clusters"
  assert_equal "$(stat -c %s disk.qed)" $((1 << 40))
  [ "$(space_of disk.qed)" -lt 4000000 ]
}

@test "a backing name outside the header, too long or with NUL is refused" {
  image good disk.qed
  image backing disk.qed "base"
  local value
  for value in 4096 4093 0x7fffffff 0xffffffff 0xfffffffc; do
    image set disk.qed "backing_filename_offset=$value"
    refuses "backing"
  done
  for value in 4033 4096 65536 0xffffffff 0xffffffc0; do
    image set disk.qed backing_filename_offset=64 \
          "backing_filename_size=$value"
    refuses "backing"
  done
  image backing disk.qed 'a\0b'
  refuses "backing"
}

@test "a backing name of 4096 bytes is refused even where it would fit" {
  image build disk.qed 1048576 65536 2
  image backing disk.qed "$(printf 'x%.0s' $(seq 4096))"
  refuses "backing"
}

@test "a backing name of nearly 4096 bytes is looked for" {
  image build disk.qed 1048576 65536 2
  image backing disk.qed "$(printf './%.0s' $(seq 1990))base."
  head -c 1M /dev/urandom >base.
  start_nbdkit -r qed disk.qed
  nbdcopy "$uri" served.raw
  assert_same base. served.raw
}

@test "a file cut anywhere in header or L1 table is refused" {
  local length
  for length in 0 1 3 4 63 64 65 4095 4096 4097 8192 12287; do
    image good disk.qed
    truncate -s $length disk.qed
    attempt -r disk.qed
    assert_line refused
    attempt -w disk.qed
    assert_line refused
  done
}

@test "a file cut behind its L1 table loses what was cut and nothing else" {
  local length lost k
  # L2 tables are at 12288, 28672 and 45056, each followed by the two
  # clusters that it maps.
  for length in 61439 57344 53248 49152 45056 41000 36864 30000 28672 24576; do
    image good disk.qed
    truncate -s $length disk.qed
    lost=()
    for table in 0 1 2; do
      for k in 0 1 2 3; do
        if (( length < 20480 + 16384 * table )) ||
           (( k < 2 && length < 20480 + 16384 * table + 4096 * (k + 1) ))
        then
          lost+=($((1024 * table + k)))
        fi
      done
    done
    damaged "${lost[@]}"
    repairable "${lost[@]}"
  done
}

@test "L1 entries outside, unaligned or in the header cost one table" {
  local value
  for value in file_size file_size-4096 4096000 0xfffffffffffff000 \
               0x7fffffffffffe000 l1\(1\)+512 1 0xffffffffffffffff 0x1001; do
    image good disk.qed
    image l1 disk.qed 1 "$value"
    damaged 1024 1025 1026 1027
    repairable 1024 1025 1026 1027
  done
}

@test "an L1 entry in the L1 table costs one table" {
  local value
  for value in l1_table_offset l1_table_offset+4096; do
    image good disk.qed
    image l1 disk.qed 1 "$value"
    damaged 1024 1025 1026 1027
    repairable 1024 1025 1026 1027
  done
}

@test "L2 entries outside, unaligned or in metadata cost one cluster" {
  local value
  for value in file_size 4096000 0xfffffffffffff000 0x7fffffffffffe000 \
               'l2(0)+512' 'l2(0)+1' 2 0xffffffffffffffff \
               l1_table_offset l1_table_offset+4096 'l1(0)' 'l1(2)+4096'; do
    image good disk.qed
    image l2 disk.qed 1025 "$value"
    damaged 1025
    repairable 1025
  done
}

@test "an image with two entries for one cluster is not written to" {
  image good disk.qed
  image l2 disk.qed 1025 'l2(0)'
  local before
  before=$(hash_of disk.qed)
  attempt -w disk.qed
  assert_line "served read-only"
  assert_output --partial disk.qed
  assert_others_good 0 1025
  assert_equal "$(hash_of disk.qed)" "$before"
  repairable 0 1025
}

@test "an image with two entries for one L2 table is not written to" {
  image good disk.qed
  image l1 disk.qed 2 'l1(0)'
  local before
  before=$(hash_of disk.qed)
  attempt -w disk.qed
  assert_line "served read-only"
  assert_output --partial disk.qed
  assert_others_good 0 1 2 3 2048 2049 2050 2051
  assert_equal "$(hash_of disk.qed)" "$before"
  repairable 0 1 2 3 2048 2049 2050 2051
}

@test "L2 tables that overlap are not written to" {
  image good disk.qed
  image l1 disk.qed 2 'l1(1)+4096'
  local before
  before=$(hash_of disk.qed)
  attempt -w disk.qed
  assert_line "served read-only"
  assert_others_good 1024 1025 1026 1027 2048 2049 2050 2051
  assert_equal "$(hash_of disk.qed)" "$before"
  repairable 1024 1025 1026 1027 2048 2049 2050 2051
}

@test "a damaged image that says so is repaired, unless told not to" {
  image good disk.qed
  image l2 disk.qed 1025 file_size
  image set disk.qed features=2
  local before
  before=$(hash_of disk.qed)
  attempt -w disk.qed repair=never
  assert_line "served read-only"
  assert_equal "$(hash_of disk.qed)" "$before"
  attempt -r disk.qed
  assert_line "cluster 1025: EIO"
  assert_others_good 1025
  attempt disk.qed
  assert_line "served writable"
  assert_others_good 1025
  assert_not_corrupt disk.qed
  no_need_check disk.qed
}

# named_once EXPRESSION OFFSET...: reads at these offsets of the disk fail.
# The open may have named the place, the reads name it once altogether.
named_once ()
{
  local expression=$1 offset
  shift
  start_nbdkit -r qed disk.qed
  local before
  before=$(grep -cE "disk.qed.*($expression)" "$log" || true)
  for offset; do
    run qemu_io "$uri" "read $offset 512"
    assert_failure
  done
  stop_nbdkit
  assert_equal "$(grep -cE "disk.qed.*($expression)" "$log")" $((before + 1))
}

@test "reads of a damaged L2 entry name it once, with file and offset" {
  image good disk.qed
  image l2 disk.qed 1025 4096000
  named_once "4096000|0x3e8000" 4198400 4198400 4200448 4198400
}

@test "reads of a damaged L1 entry name it once, with file and offset" {
  image good disk.qed
  image l1 disk.qed 1 4096000
  named_once "4096000|0x3e8000" 4194304 4194304 5242880 8388096
}

@test "damage in a backing image costs the places that it touches" {
  image good base.qed
  image l2 base.qed 1025 file_size
  create 12M -b base.qed -F qed -o cluster_size=4096
  attempt disk.qed
  assert_line "served writable"
  assert_line "cluster 1025: EIO"
  assert_others_good 1025
  assert_output --partial base.qed
}

@test "a backing chain that loops is refused" {
  create 1M
  image backing disk.qed disk.qed
  refuses "loop|itself|cycle|comes back"

  create 1M
  image backing disk.qed b.qed
  cp disk.qed b.qed
  image backing b.qed disk.qed
  refuses "loop|itself|cycle|comes back"

  ln -s disk.qed symbolic.qed
  image backing b.qed symbolic.qed
  refuses "loop|itself|cycle|comes back"

  ln disk.qed hard.qed
  image backing b.qed hard.qed
  refuses "loop|itself|cycle|comes back"

  mkdir sub
  image backing b.qed sub/../disk.qed
  refuses "loop|itself|cycle|comes back"
}

@test "a missing backing image is refused and named" {
  create 1M
  image backing disk.qed missing.raw
  refuses "missing.raw.*No such file"
  qemu-img create -q -f qed middle.qed 1M
  image backing middle.qed missing.raw
  image backing disk.qed middle.qed
  refuses "missing.raw.*No such file"
}

@test "a backing image that is a folder is refused" {
  create 1M
  mkdir folder
  image backing disk.qed folder
  refuses "folder"
}

@test "a backing image of a foreign format is refused, raw by word is not" {
  local format
  for format in qcow2 vmdk vdi vhdx vpc luks; do
    if [ $format = luks ]; then
      # By hand: qemu-img measures the processor for it, and sometimes fails.
      { printf 'LUKS\272\276\0\1'; head -c 1048568 /dev/zero; } >foreign
    else
      qemu-img create -q -f $format foreign 1M
    fi
    create 64k
    image backing disk.qed foreign
    image set disk.qed "features=features & ~4"
    refuses "foreign"
    # The user is told what to do instead.
    assert_output --partial "backing="
    # Said to be raw, it is raw.
    image set disk.qed "features=features | 4"
    start_nbdkit -r qed disk.qed
    nbdcopy "$uri" served.raw
    stop_nbdkit
    run cmp -n $(($(stat -c %s foreign) < 65536 ?
                  $(stat -c %s foreign) : 65536)) foreign served.raw
    assert_success
    image set disk.qed "features=features & ~4"
    start_nbdkit -r qed disk.qed backing-format=raw
    stop_nbdkit
    rm foreign served.raw
  done
}

@test "NO_PROBE makes a QED image a raw one" {
  image good inner.qed
  create 12M
  image backing disk.qed inner.qed
  image set disk.qed "features=features | 4"
  start_nbdkit -r qed disk.qed
  nbdcopy "$uri" served.raw
  stop_nbdkit
  run cmp -n "$(stat -c %s inner.qed)" inner.qed served.raw
  assert_success
}

@test "what is no image at all is refused" {
  mkdir folder
  mkfifo fifo
  : >empty
  refused "folder" -- folder
  refused "fifo" -- fifo
  refused "empty" -- empty
  refused "missing" "No such file" -- missing
  refused "/dev/null" -- /dev/null
  refused "/dev/zero" -- /dev/zero
  refused "image.*missing|file=" --
}

@test "random damage is survived" {
  mkdir fuzz
  run "$python" "$tests/fuzz.py" "$tmp/fuzz"
  assert_success
}

# Each entry points to another 128 MiB of a file that is all holes: half a
# MiB of entries.
@test "entries that are far from each other take little memory" {
  "$python" - <<'END'
import struct
CLUSTER, TABLE, TABLES = 4096, 16 * 4096, 8
PER, FIRST = TABLE // 8, CLUSTER + TABLE
with open("disk.qed", "wb") as f:
    f.write(struct.pack("<4sIIIQQQQQII", b"QED\0", CLUSTER, 16, 1, 0, 0, 0,
                        CLUSTER, TABLES * PER * CLUSTER, 0, 0))
    f.seek(CLUSTER)
    for i in range(TABLES):
        f.write(struct.pack("<Q", FIRST + i * TABLE))
    f.seek(FIRST)
    for i in range(TABLES * PER):
        f.write(struct.pack("<Q", (i + 1) << 27))
    f.truncate((TABLES * PER + 2) << 27)
END
  (limit_memory 250000
   run -3 qed-img check disk.qed)
}
