# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# What the tests of qed-img share: it does what qemu-img does with -f qed,
# side by side on the same files, case by case from tables.
#
# A line of a table is one case, EXPECTED | COMMAND ARGUMENTS, where
# EXPECTED is one of
#
#   same        exit status, standard output, messages, and the resulting
#               files are qemu-img's
#   status      the same, but for the words of the messages
#   reads       the same, but for where in the files the data are, and
#               for the words of the messages
#   A, not B: WHY
#               we exit with A where qemu-img exits with B, on purpose
#
# Each case starts with fresh copies of the files that make_files makes, one
# copy for each program.  Ours is called by the name of qemu-img, too.

load ../lib/qed-functions

# from_store FUNCTION: the files that it makes in the current folder, copied
# into the folder "files".  It is run once for all tests of a file of tests.
from_store ()
{
  local store=$BATS_FILE_TMPDIR/$1
  if ! [ -d "$store" ]; then
    mkdir "$store.new"
    cd "$store.new" || return
    "$1"
    cd "$OLDPWD" || return
    mv "$store.new" "$store"
  fi
  mkdir -p files
  cp -a "$store/." files
}

make_files ()
{
  from_store plain_files
  qemu-img create -q -f qed -b "$PWD/files/base.qed" -F qed \
           files/d/absolute.qed
}

plain_files ()
{
  mkdir d
  head -c 10000 /dev/urandom >raw.img
  qemu-img create -q -f qcow2 foreign.qcow2 1M
  : >empty.img

  qemu-img create -q -f qed base.qed 4G
  qemu_io_qed base.qed "write -P 1 0 1M" "write -P 2 100M 64k" \
              "write -P 3 300M 64k" "write -P 4 200M 64k" >/dev/null
  qemu-img create -q -f qed zero.qed 0
  qemu-img create -q -f qed -o cluster_size=4k,table_size=2 small.qed 1M
  qemu_io_qed small.qed "write -P 5 0 128k" "write -z 256k 64k" >/dev/null

  qemu-img create -q -f qed -b raw.img -F raw over-raw.qed
  qemu-img create -q -f qed -b over-raw.qed -F qed over.qed 2G
  qemu-img create -q -f qed -b ../over.qed -F qed d/over.qed
  qemu-img create -q -f qed -b foreign.qcow2 -F qcow2 over-foreign.qed
  qemu-img create -q -f qed -u -b gone.img -F qed over-gone.qed 2G
  qemu-img create -q -f qed -u -b gone.img -F raw over-gone-raw.qed 2G
  qemu-img create -q -f qed -u -b loop2.qed -F qed loop1.qed 2G
  qemu-img create -q -f qed -u -b loop1.qed -F qed loop2.qed 2G
  qemu-img create -q -f qed -u -b nbd://127.0.0.1:1 -F raw over-nbd.qed 2G
  qemu-img create -q -f qed -u -b http://h/x -F raw over-http.qed 2G
  qemu-img create -q -f qed -u -b nbd:unix:/tmp/x -F raw over-old-nbd.qed 2G
  qemu-img create -q -f qed -u -b 'json:{"driver":"null-co"}' -F raw \
           d/over-json.qed 2G
  qemu-img create -q -f qed -u -b file:raw.img -F raw d/over-file.qed 1M
  qemu-img create -q -f qed -u -b 'a "b"' -F raw quoted.qed 1M
  qemu-img create -q -f qed -u -b $'ünl\377ike' -F raw bytes.qed 1M
}

# Images over each other, with data in each of them, zero clusters that hide
# data, and disks that end before and behind those below:
#
#   low.raw <- mid.qed <- top.qed     and other.qed, other.raw besides
#
# What stands at the same place of two of them is the same here and there.
make_chain ()
{
  from_store chain_files
}

chain_files ()
{
  truncate -s 3M low.raw
  qemu_io low.raw "write -P 1 0 1M" "write -P 2 2M 64k" >/dev/null
  qemu-img create -q -f qed -b low.raw -F raw mid.qed 5M
  qemu_io_qed mid.qed "write -P 3 64k 64k" "write -z 256k 128k" \
              "write -P 4 4M 100k" >/dev/null
  qemu-img create -q -f qed -b mid.qed -F qed top.qed 6M
  qemu_io_qed top.qed "write -P 5 128k 64k" "write -P 5 320k 4k" \
              "write -z 512k 64k" "write -P 6 5M 512k" >/dev/null
  qemu-img create -q -f qed -b top.qed -F qed upper.qed
  qemu_io_qed upper.qed "write -P 7 1M 64k" >/dev/null

  qemu-img create -q -f qed -o cluster_size=16k,table_size=2 other.qed 4M
  qemu_io_qed other.qed "write -P 1 0 512k" "write -P 8 2M 64k" >/dev/null
  truncate -s 2M other.raw
  qemu_io other.raw "write -P 1 0 64k" "write -P 9 1M 16k" >/dev/null
  qemu-img create -q -f qed -b mid.qed -F qed short.qed 1M
  qemu_io_qed short.qed "write -P 5 0 4k" >/dev/null
  qemu-img create -q -f qed -b low.raw -F raw untouched.qed
  ln top.qed link.qed
}

# damaged NAME COMMAND...: a copy of base.qed, spoilt by qed-image.py.
damaged ()
{
  local name=$1 command=$2
  shift 2
  cp base.qed "$name"
  image "$command" "$name" "$@"
}

# Those of them that a case does not name are not there in it.
make_damaged_files ()
{
  from_store damaged_files
  damaged_images=$(ls "$BATS_FILE_TMPDIR/damaged_files")
}

damaged_files ()
{
  cp "$BATS_FILE_TMPDIR/plain_files/base.qed" .
  damaged dirty.qed set 'features=features | 2'
  damaged autoclear.qed set autoclear_features=64
  damaged compat.qed set compat_features=64
  damaged unknown.qed set features=64
  damaged bad-l1-offset.qed set l1_table_offset=4096
  damaged bad-cluster-size.qed set cluster_size=65535
  damaged bad-table-size.qed set table_size=3
  damaged bad-size.qed set image_size=513
  damaged lost.qed l2 3 0
  damaged zeroed.qed l2 3 1
  damaged unlinked.qed l1 0 0
  damaged outside.qed l2 0 0x90000000
  damaged unaligned.qed l2 0 'l2(3) + 512'
  damaged shared.qed l2 0 'l2(3)'
  damaged in-l1.qed l2 0 'l1_table_offset'
  damaged in-l2.qed l2 0 'l1(0)'
  damaged l1-shared.qed l1 1 'l1(0)'
  damaged l1-outside.qed l1 1 0x100000000
  damaged l1-unaligned.qed l1 1 'l2(3) + 512'

  cp base.qed leaked.qed
  head -c 196608 /dev/urandom >>leaked.qed
  cp base.qed cut.qed
  truncate -s -65536 cut.qed
  cp outside.qed outside-leaked.qed
  head -c 131072 /dev/urandom >>outside-leaked.qed
  rm base.qed
}

# run_tool NAME PROGRAM CASE: run it in a copy of the files, which becomes the
# folder NAME.  Leaves NAME.status, .out and .err.  QEMU opens backing images
# that loop until it has no descriptors left, so it gets few.
run_tool ()
{
  local name=$1 program=$2 command=${3%% *} status=0
  local arguments=${3#"$command"}
  rm -rf "$name"
  leave_out "$3"
  mkdir here
  (
    GLOBIGNORE=$(IFS=:; echo "${left_out[*]/#/files/}")
    cp -a files/* here
  )
  (
    cd here || exit
    ulimit -n 64
    if [[ $command != measure && $command != convert ]]; then
      arguments=" -f qed$arguments"
    fi
    eval "timeout 60 $program $command $arguments" 3>&-
  ) >"$name.out" 2>"$name.err" </dev/null || status=$?
  echo "$status" >"$name.status"
  mv here "$name"
}

# leave_out CASE: sets left_out to the damaged images that it does not name.
leave_out ()
{
  local name
  left_out=()
  for name in $damaged_images; do
    if [[ $1 != *"$name"* ]]; then
      left_out+=("$name")
    fi
  done
}

# What follows an "Invalid ... specified" since ever.
suffixes='You may use k, M, G, T, P or E suffixes for\
qemu-img: kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.'

# in_old_words: what newer versions of qemu-img say otherwise than 7.2, and what
# they say besides (of the files below an image, of compression), as that says
# it.
in_old_words ()
{
  awk '
    hidden { if ($0 ~ "^" indent "\\],?$") hidden = 0; next }
    /^ *"children": \[$/ {
      indent = $0
      sub (/".*/, "", indent)
      hidden = 1
      next
    }
    /^Child node / { child = 1; next }
    child && /^    / { next }
    { child = 0; gsub (/, "compressed": false/, ""); print }' |
    sed -e "
/^qemu-img: --output expects /{
N
s/.*/qemu-img: --output must be used with human or json as argument./
}
s/^\(qemu-img: Invalid number of coroutines\) specified[:.].*/\1. Allowed number \
of coroutines is between 1 and 16/
s/^\(qemu-img: Invalid [a-z ]* specified\): '.*'\.*$/\1. $suffixes/
s/^\(Try 'qe[md]u*-img\) [a-z]* \(--help' for more info\(rmation\)*\)$/\1 \2/
s/^\(Try 'qe[md]u*-img --help' for more info\)$/\1rmation/
s/^qemu-img[a-z ]*: \(unrecognized option\)/qemu-img: \1/
s/^qemu-img[a-z ]*: invalid option -- '\(.\)'/qemu-img: unrecognized option '-\1'/
s/^qemu-img [a-z]*: option requires an argument -- '\(.\)'/qemu-img: missing \
argument for option '-\1'/
s/^qemu-img [a-z]*: option '\(.*\)' requires an argument/qemu-img: missing \
argument for option '\1'/
s/^\(qemu-img: \)--repair (-r) expects \(.*[^,]\),* not '\(.*\)'$/\1Unknown option \
value for -r (expecting \2): \3/
s/^\(qemu-img: \)Extra argument(s) in command line/\1Expecting image file name \
and size/"
}

# That an image is formatted we say when nothing speaks against it any more.
same_output ()
{
  if [ "${1%% *}" = create ] && [ "$(<ours.status)" -ne 0 ]; then
    sed -i '/^Formatting /d' qemu.out
  fi
  diff -u <(in_old_words <qemu.out) ours.out
}

same_messages ()
{
  if [[ $(qemu-img --version) = *" version 7."* ]]; then
    diff -u qemu.err ours.err
    return
  fi
  # What is below the range is no number for us, but out of range there.
  diff -u <(in_old_words <qemu.err) ours.err ||
    diff -u <(in_old_words <qemu.err | sed "
s/ specified\. Must be between 0 and 9223372036854775807\.$/ specified. $suffixes/
") ours.err
}

# An error has a message of ours, and nothing says that we crashed.
message_is_there ()
{
  if [ "$(<ours.status)" -eq 1 ] && ! grep -q '^qemu-img: .' ours.err; then
    echo "no message"
    return 1
  fi
}

# describe DIRECTORY NAME: all that must be the same when both programs made
# or changed an image.  QEMU opens no image with tables of one cluster; of
# these, what the header says before the place of the L1 table.
describe ()
{
  (
    cd "$1" || exit
    head -c 40 "$2" | od -An -tx4
    if [ "$(od -An -tu4 -j8 -N4 "$2")" -ne 1 ]; then
      qemu-img info -f qed --output=json "$2" | jq -S 'del(.["actual-size"], .children)'
      ulimit -n 64
      qemu-img check -f qed --output=json "$2" 2>/dev/null | jq -S .
    fi
  )
}

# same_file NAME: both programs made the same of it.  What it reads is
# compared where QEMU reads it.
same_file ()
{
  if cmp -s "qemu/$1" "ours/$1"; then
    return
  elif ! [ -e "ours/$1" ] || ! [ -e "qemu/$1" ]; then
    echo "$1: made by one of the two only"
    return 1
  fi
  diff -u <(describe qemu "$1") <(describe ours "$1") || return 1
  if qemu-img check -q -f qed "qemu/$1" 2>/dev/null; then
    qemu-img compare -q -f qed -F qed "qemu/$1" "ours/$1"
  fi
}

# reads_same NAME: what both programs made of an image reads the same, is as
# sound, and has the same header.
reads_same ()
{
  if cmp -s "qemu/$1" "ours/$1"; then
    return
  elif ! [ -e "ours/$1" ] || ! [ -e "qemu/$1" ]; then
    echo "$1: made by one of the two only"
    return 1
  elif [[ $1 != *.qed ]]; then
    qemu-img compare -q -f raw -F raw "qemu/$1" "ours/$1"
    return
  fi
  diff -u <(describe_header qemu "$1") <(describe_header ours "$1") &&
    qemu-img check -q -f qed "ours/$1" &&
    "$python" "$lib/qed-image.py" check "ours/$1" &&
    qemu-img compare -q -f qed -F qed "qemu/$1" "ours/$1"
}

describe_header ()
{
  qemu-img info -f qed --output=json "$1/$2" |
    jq -S 'del(.["actual-size"], .filename, .["full-backing-filename"],
               .children)'
}

# same_files COMMAND [HOW]: where qemu-img fails to create an image it leaves an
# empty file, we leave nothing.
same_files ()
{
  local name result=0
  if [ "$1" = create ] && [ "$(<ours.status)" -ne 0 ]; then
    diff -r "${left_out[@]/#/--exclude=}" files ours
    return
  fi
  # Mostly all of them are the same, which one process sees, not one a file.
  if diff -rq qemu ours >/dev/null; then
    return
  fi
  while read -r name; do
    "${2:-same_file}" "$name" || result=1
  done < <(find qemu ours -type f -printf '%P\n' | sort -u)
  return "$result"
}

# one_case EXPECTED CASE
one_case ()
{
  local ours qemu
  run_tool qemu qemu-img "$2"
  run_tool ours "$tmp/bin/qemu-img" "$2"
  ours=$(<ours.status)
  qemu=$(<qemu.status)
  message_is_there || return 1

  case $1 in
    same | status)
      if [ "$ours" -ne "$qemu" ]; then
        echo "status $ours, qemu-img $qemu"
        return 1
      fi
      same_output "$2" || return 1
      same_files "${2%% *}" || return 1
      [ "$1" = status ] || same_messages
      ;;
    reads)
      if [ "$ours" -ne "$qemu" ]; then
        echo "status $ours, qemu-img $qemu"
        return 1
      fi
      same_output "$2" || return 1
      same_files "${2%% *}" reads_same
      ;;
    [0-9]*,\ not\ [0-9]*:\ *)
      # A later QEMU may have come to do as we do.
      if [ "${1%%:*}" != "$ours, not $qemu" ] &&
           { [ "${1%%,*}" != "$ours" ] || [ "$ours" -ne "$qemu" ] ||
               [[ $(qemu-img --version) = *" version 7."* ]]; }; then
        echo "$ours, not $qemu"
        return 1
      fi
      ;;
    *)
      echo "the table is wrong"
      return 1
      ;;
  esac
}

# Run the cases of the table on standard input, all of them, then fail if
# one failed.
cases ()
{
  local expected case failed=0 n=0 report
  mkdir -p "$tmp/bin"
  ln -sf "$(type -P qed-img)" "$tmp/bin/qemu-img"
  while IFS='|' read -r expected case; do
    read -r expected <<<"$expected"
    case=${case# }
    if [ -z "$expected" ] || [[ $expected = \#* ]]; then
      continue
    fi
    n=$((n + 1))
    if ! report=$(one_case "$expected" "$case" 2>&1); then
      failed=$((failed + 1))
      printf '%s | %s\n%s\n' "$expected" "$case" "$report"
      echo "qemu-img said:"
      cat qemu.out qemu.err
      echo "qed-img said:"
      cat ours.out ours.err
    fi
  done
  echo "$n cases, $failed failed"
  [ "$n" -gt 0 ] && [ "$failed" -eq 0 ]
}

