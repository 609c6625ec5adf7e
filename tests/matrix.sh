#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The whole suite on each release of Debian: "make matrix".  For each a root
# folder is made from the mirror that apt is configured with here; what the
# checkout has is copied in, and there ./bootstrap demo and ./bootstrap check
# run as they would on a fresh machine.  Prints a line for each:
#
#     suite      nbdkit   libnbd   qemu      passed  failed
#
# Needs root, and mmdebstrap or debootstrap; it takes a quarter of an hour and
# 4 GiB a suite.  Variables:
#
#     SUITES        which                      (bookworm trixie sid)
#     MATRIX_DIR    where root folders and logs are kept
#                                   (/var/tmp/nbdkit-blockdrivers-matrix)
#     MATRIX_FRESH  yes: make root folders anew that are there
#     MATRIX_TESTS  only these files of tests, from the top of the tree
#
# Exit status 0 if all tests passed on all of them.

set -euo pipefail

srcdir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${MATRIX_DIR:-/var/tmp/nbdkit-blockdrivers-matrix}
read -ra suites <<<"${SUITES:-bookworm trixie sid}"

. "$srcdir/tests/lib/roots.bash"

# version ROOT COMMAND...: the first number that the command prints there.
version ()
{
  chroot "$@" 2>/dev/null | grep -oEm1 '[0-9]+(\.[0-9]+)+' | head -n 1 ||
    echo '?'
}

# try SUITE: print its line, and fail unless all tests passed.
try ()
{
  local suite=$1 root=$dir/$1 log=$dir/$1.log passed=0 failed=0 status=0
  if [ "${MATRIX_FRESH:-}" = yes ] || ! [ -e "$root/etc/debian_version" ]; then
    rm -rf "$root"
    make_root "$suite" "$root" >"$log" 2>&1 ||
      die "no root folder for $suite: see $log"
  fi
  copy_tree "$root/src"
  {
    inside "$root" /src/bootstrap demo &&
      inside "$root" /src/bootstrap check
  } >"$log" 2>&1 </dev/null || status=1
  read -r passed failed < <(
    tail -n 1 "$log" | sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p'
    echo 0 0)
  printf '%-10s %-8s %-8s %-9s %6s  %6s\n' "$suite" \
         "$(version "$root" nbdkit --version)" \
         "$(version "$root" pkg-config --modversion libnbd)" \
         "$(version "$root" qemu-img --version)" "$passed" "$failed"
  return $status
}

if [ "$(id -u)" -ne 0 ]; then
  die "only root can make root folders"
fi
export CI=${CI:-} MAKEFLAGS=
if [ -n "${MATRIX_TESTS:-}" ]; then
  MAKEFLAGS="TESTS=${MATRIX_TESTS// /\\ }"
fi
mkdir -p "$dir"
result=0
printf '%-10s %-8s %-8s %-9s %6s  %6s\n' \
       suite nbdkit libnbd qemu passed failed
for suite in "${suites[@]}"; do
  try "$suite" || result=1
done
exit $result
