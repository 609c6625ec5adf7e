#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Are the checks worth anything?  Each patch of this folder plants a fault in
# a copy of the built tree (the current folder), and chaos must find it within
# PLANTED_SECONDS (300), but nothing without it.  "make check-the-checks";
# arguments are names of patches, else all.

set -u

here=$(cd "$(dirname "$0")" && pwd)
build=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
missed=0

if [ $# -eq 0 ]; then
  set -- "$here"/*.patch
fi

# A copy of the tree in which objects count as built, without what other tests
# have made in it.
mkdir "$work/tree"
tar -C "$build" --exclude=./.git --exclude=./fuzz-out --exclude=./sanitized-\* \
    -cf - . | tar -C "$work/tree" -xf -
cd "$work/tree" || exit 1

# chaos SUBJECT SECONDS: does it find something?  What, is in chaos.txt.
chaos ()
{
  make -s tests/chaos/chaos >"$work/make.txt" 2>&1 || {
    cat "$work/make.txt"
    exit 1
  }
  SECONDS=0
  CHAOS_SECONDS=$2 tests/chaos/chaos --subject="$1" --quick \
                   >"$work/chaos.txt" 2>&1
  [ $? -eq 1 ] && grep -q "^# $1: seed [0-9]* failed" "$work/chaos.txt"
}

declare -A sound
for patch; do
  name=$(basename "$patch" .patch)
  patch=$here/$name.patch
  subject=$(grep -o 'chaos of [a-z]*' "$patch" | head -n 1)
  subject=${subject##* }
  if [ -z "${sound[$subject]-}" ] && chaos "$subject" 10; then
    echo "found without a planted fault, by chaos of $subject:"
    cat "$work/chaos.txt"
    exit 1
  fi
  sound[$subject]=yes
  patch -s -p1 <"$patch" || exit 1
  if chaos "$subject" "${PLANTED_SECONDS:-300}"; then
    echo "found in $SECONDS seconds by chaos of $subject: $name" \
         "($(grep -v '^#' "$work/chaos.txt" | grep -m 1 .))"
  else
    echo "not found in $SECONDS seconds: $name"
    missed=1
  fi
  patch -s -R -p1 <"$patch" || exit 1
done
exit "$missed"
