#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Builds by other compilers, with other options and for other processors:
# "make builds".  In a root folder of Debian each is configured with
# --enable-werror, built, and its unit tests and the tools over the data of
# the tests are run, under qemu-user where the processor is another one.  qed-img
# is compared with qemu-img, and logwrites with what the kernel's tool made of
# a log.  Prints a line for each:
#
#     build         compiler            unit tests         data
#     gcc -O2       gcc 14.2.0          347 ok             9 ok
#
# Needs root, and mmdebstrap.  Variables:
#
#     BUILDS        which, as "gcc -O0,s390x"                  (all of them)
#     BUILDS_SUITE  the release of Debian                       (trixie)
#     BUILDS_TESTS  the unit tests that are run                 (all of them)
#     MATRIX_DIR    where the root folder and logs are kept; see matrix.sh
#
# Exit status 0 if nothing failed.

set -euo pipefail

srcdir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${MATRIX_DIR:-/var/tmp/nbdkit-blockdrivers-matrix}

. "$srcdir/tests/lib/roots.bash"

# Name, compiler, its options, those of the linker.
hardening='-O2 -D_FORTIFY_SOURCE=3 -fstack-protector-strong -fcf-protection'
relro='-Wl,-z,relro,-z,now'
native="
gcc -O0      | gcc   | -O0
gcc -O1      | gcc   | -O1
gcc -O2      | gcc   | -O2
gcc -O3      | gcc   | -O3
gcc LTO      | gcc   | -O2 -flto=auto        | -flto=auto
gcc hard     | gcc   | $hardening            | $relro
gcc LFS      | gcc   | -O2 -D_FILE_OFFSET_BITS=64
clang -O0    | clang | -O0
clang -O1    | clang | -O1
clang -O2    | clang | -O2
clang -O3    | clang | -O3
clang LTO    | clang | -O2 -flto             | -flto -fuse-ld=lld
clang hard   | clang | $hardening            | $relro
"
# Name, how Debian calls the processor, its programs, and its libraries.
foreign='
i386         | i386  | i686-linux-gnu      | i386-linux-gnu
armhf        | armhf | arm-linux-gnueabihf | arm-linux-gnueabihf
arm64        | arm64 | aarch64-linux-gnu   | aarch64-linux-gnu
s390x        | s390x | s390x-linux-gnu     | s390x-linux-gnu
'

# row NAME: split its line of the tables into fields.
row ()
{
  local line
  line=$(grep "^$1 *|" <<<"$native$foreign") || die "no build is called '$1'"
  IFS='|' read -ra fields <<<"$line"
  for i in "${!fields[@]}"; do
    read -r "fields[i]" <<<"${fields[i]}"
  done
}

is_foreign ()
{
  grep -q "^$1 *|" <<<"$foreign"
}

# ---- In the root folder

# Tools, and the libraries of the processors in folders of their own, since
# not all of them can be installed side by side.  The archive may lack
# packages of a processor for a time, so others of its releases are tried.
prepare ()
{
  local name arch suite site release rest
  apt-get -q update
  apt-get -q install -y --no-install-recommends \
    autoconf automake clang gcc gcc-aarch64-linux-gnu gcc-arm-linux-gnueabihf \
    gcc-i686-linux-gnu gcc-s390x-linux-gnu libc6-dev libcmocka-dev \
    libjansson-dev libnbd-dev libtool lld llvm make mmdebstrap nbdkit \
    nbdkit-plugin-dev perl pkg-config qemu-user qemu-utils xz-utils
  read -r _ site release rest < <(cat /etc/apt/sources.list)
  while IFS='|' read -r name arch rest; do
    read -r arch <<<"$arch"
    if [ -z "$arch" ]; then continue; fi
    for suite in "$release" trixie bookworm sid; do
      rm -rf "/cross/$arch"
      mkdir -p /cross
      if mmdebstrap --quiet --variant=extract --architectures="$arch" \
           --include=libc6-dev,libcmocka-dev,libjansson-dev,libnbd-dev,nbdkit-plugin-dev \
           "$suite" "/cross/$arch" "$site"; then
        ln -sfn usr/lib "/cross/$arch/lib"
        break
      fi
    done
  done <<<"$foreign"
  touch /prepared
}

# setup NAME: how it is configured, and how its programs are run.
setup ()
{
  row "$1"
  emulator=()
  configure=(--enable-werror --disable-dependency-tracking)
  if is_foreign "$1"; then
    local arch=${fields[1]} host=${fields[2]} root=/cross/${fields[1]}
    local lib=$root/usr/lib/${fields[3]}
    export PKG_CONFIG=pkg-config PKG_CONFIG_SYSROOT_DIR=$root
    export PKG_CONFIG_LIBDIR=$lib/pkgconfig
    compiler="$host-gcc"
    configure+=(--build="$(gcc -dumpmachine)" --host="$host"
                CC="$compiler --sysroot=$root" CFLAGS="-g -O2"
                LDFLAGS="-Wl,-rpath-link=$lib")
    case $arch in
      i386)  emulator=("$lib/ld-linux.so.2" --library-path "$lib") ;;
      armhf) emulator=(qemu-arm -L "$root") ;;
      arm64) emulator=(qemu-aarch64 -L "$root") ;;
      *)     emulator=("qemu-$arch" -L "$root") ;;
    esac
  else
    compiler=${fields[1]}
    configure+=(CC="$compiler" CFLAGS="-g ${fields[2]}"
                LDFLAGS="${fields[3]:-}")
    if [[ ${fields[2]} = *-flto* ]]; then
      case $compiler in
        gcc)   configure+=(AR=gcc-ar NM=gcc-nm RANLIB=gcc-ranlib) ;;
        clang) configure+=(AR=llvm-ar NM=llvm-nm RANLIB=llvm-ranlib) ;;
      esac
    fi
  fi
}

tool ()
{
  "${emulator[@]}" "tools/$1/$1" "${@:2}"
}

hash_of ()
{
  sha256sum "$1" | cut -d' ' -f1
}

# Print "ok NAME" or "not ok NAME" of each comparison.
data ()
{
  local n hash image name
  rm -rf data
  mkdir data
  xz -dc /src/tests/writelog/data/kernel-ext4.log.xz >data/log
  while read -r n hash; do
    rm -f data/disk
    truncate -s 32M data/disk
    tool logwrites replay --log data/log --replay data/disk --limit "$n" \
         >/dev/null
    if [ "$(hash_of data/disk)" = "$hash" ]; then
      echo "ok the first $n entries of the log"
    else
      echo "not ok the first $n entries of the log"
    fi
  done < <(sed -n '1p;$p' /src/tests/writelog/data/kernel-ext4.states)

  for image in /src/tests/fuzz/corpus/qed/*.qed; do
    name=$(basename "$image")
    if ! qemu-img convert -f qed -O raw "$image" data/theirs 2>/dev/null; then
      continue
    fi
    if tool qed-img convert -f qed -O raw "$image" data/ours &&
       cmp data/theirs data/ours; then
      echo "ok $name"
    else
      echo "not ok $name"
    fi
  done

  if tool qed-img convert -f raw -O qed data/disk data/made.qed &&
     qemu-img check -q -f qed data/made.qed &&
     qemu-img compare -q -f raw -F qed data/disk data/made.qed &&
     tool qed-img check -q -f qed data/made.qed; then
    echo "ok an image that is made"
  else
    echo "not ok an image that is made"
  fi
}

# unit_test TEST: leaves TEST.tap.
unit_test ()
{
  local status=0
  CMOCKA_MESSAGE_OUTPUT=TAP timeout 1800 "${emulator[@]}" "$1" \
    >"$1.tap" 2>&1 </dev/null || status=$?
  if [ "$status" -ne 0 ] && ! grep -q '^not ok' "$1.tap"; then
    echo "not ok - $1: exit status $status" >>"$1.tap"
  fi
}

# counts FILE...: of their lines.
counts ()
{
  local ok bad
  ok=$(cat "$@" | grep -c '^ok' || true)
  bad=$(cat "$@" | grep -c '^not ok' || true)
  if [ "$bad" -gt 0 ] || [ "$ok" -eq 0 ]; then
    echo "$ok ok, $bad failed"
  else
    echo "$ok ok"
  fi
}

# build NAME: print what goes into its line.
build ()
{
  local tests test
  setup "$1"
  rm -rf "/b/$1"
  mkdir -p "/b/$1"
  cd "/b/$1"
  exec 3>&1 >log 2>&1
  if ! { /src/configure "${configure[@]}" && make -j"$(nproc)" &&
           make -j"$(nproc)" check TESTS= ; }; then
    echo "does not build" >&3
    return
  fi
  read -ra tests <<<"${BUILDS_TESTS:-$(
    sed -n '/^[a-z]*_unit_tests = /,/[^\\]$/p' Makefile |
      sed 's/^.*= *//' | tr -d '\\\n') $(cd tests/fuzz && printf 'tests/fuzz/%s ' fuzz-*[!o])}"
  for test in "${tests[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "$(nproc)" ]; do wait -n; done
    unit_test "$test" &
  done
  wait
  data >data.tap
  printf '%-20s %-18s %s\n' \
    "$compiler $("$compiler" -dumpfullversion 2>/dev/null ||
                   "$compiler" -dumpversion)" \
    "$(counts "${tests[@]/%/.tap}")" "$(counts data.tap)" >&3
}

case ${1:-} in
  --prepare) prepare; exit ;;
  --build)   build "$2"; exit ;;
esac

# ---- Outside of it

if [ "$(id -u)" -ne 0 ]; then
  die "only root can make root folders"
fi
root=$dir/builds
suite=${BUILDS_SUITE:-trixie}
export CI='' MAKEFLAGS=
mkdir -p "$dir"
if ! [ -e "$root/prepared" ]; then
  rm -rf "$root"
  make_root "$suite" "$root" >"$dir/builds.log" 2>&1 ||
    die "no root folder: see $dir/builds.log"
  cp -r "$srcdir/tests" "$root/tests"
  inside "$root" bash /tests/builds.sh --prepare \
         >>"$dir/builds.log" 2>&1 || die "see $dir/builds.log"
fi
copy_tree "$root/src"
inside "$root" sh -c 'cd /src && mkdir -p m4 && exec autoreconf -fi' \
       >"$dir/builds.log" 2>&1 || die "see $dir/builds.log"

if [ -n "${BUILDS:-}" ]; then
  mapfile -t names < <(tr ',' '\n' <<<"$BUILDS")
else
  mapfile -t names < <(sed -n 's/ *|.*//p' <<<"$native$foreign")
fi
result=0
printf '%-13s %-20s %-18s %s\n' build compiler "unit tests" data
for name in "${names[@]}"; do
  line=$(inside "$root" env BUILDS_TESTS="${BUILDS_TESTS:-}" \
                bash /src/tests/builds.sh --build "$name")
  printf '%-13s %s\n' "$name" "$line"
  if [[ $line = *failed* || $line != *ok* ]]; then result=1; fi
done
exit $result
