#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Build the fuzz targets with their corpora, as OSS-Fuzz does it: CC, CFLAGS,
# LIB_FUZZING_ENGINE, OUT and SRC or the folder of this tree are given by the
# environment.  Without them, as "make fuzz" runs it, clang's libFuzzer with
# the address and undefined behaviour sanitizers, into ./fuzz-out.

set -eu

tree=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-$PWD}            # where config.h is
export OUT=${OUT:-$PWD/fuzz-out}
cc=${CC:-clang}
flags=${CFLAGS:--g -O1 -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined}
engine=${LIB_FUZZING_ENGINE:--fsanitize=fuzzer,address,undefined}

mkdir -p "$OUT/objects"
includes="-I$build -I$tree/common -I$tree"
libraries=$(pkg-config --cflags --libs libnbd jansson)

# What the library of the tree is made of.
sources=$(cd "$tree" && ls common/{utils,request,node,control}/*.c \
  common/qed/*.c common/qed/*/*.c common/writelog/*.c \
  common/writelog/{record,moments,explore}/*.c &&
  sed -n '/^filters_replication_libreplication_la_SOURCES/,/[^\\]$/p' \
      filters/local.mk | grep -o '[^[:space:]]*\.c\>')

# An object of before a header has changed may know other structs.
newest=$(cd "$tree" && find "$build/config.h" common filters tests -name '*.h' \
           -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)

# shellcheck disable=SC2086 # lists of words
compile ()
{
  local object
  object=$OUT/objects/$(tr / _ <<<"${1%.c}").o
  if [ ! "$object" -nt "$tree/$1" ] ||
     [ ! "$object" -nt "$(cd "$tree" && realpath "$newest")" ]; then
    $cc $flags -std=gnu11 -DHAVE_CONFIG_H -w $includes $libraries \
        -c "$tree/$1" -o "$object"
  fi
  echo "$object"
}

objects=
for source in $sources; do
  objects+=" $(compile "$source")"
done

for target in "$tree"/tests/fuzz/fuzz-*.c; do
  name=$(basename "$target" .c)
  # shellcheck disable=SC2086 # lists of words
  $cc $flags $engine -std=gnu11 -w $includes "$target" $objects \
      $libraries -pthread -lm -o "$OUT/$name"
  corpus=$tree/tests/fuzz/corpus/${name#fuzz-}
  if command -v zip >/dev/null; then
    (cd "$corpus" && zip -qr "$OUT/${name}_seed_corpus.zip" .)
  fi
done
