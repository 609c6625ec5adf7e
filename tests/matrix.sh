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

die ()
{
  echo "matrix: $*" >&2
  exit 1
}

# Print the mirror that Debian's main archive comes from here.
mirror ()
{
  local site
  # shellcheck disable=SC2016
  site=$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' \
           'Created-By: Packages' | awk '$2 == "Debian" && $3 == "Debian" {
                                           print $1; exit }')
  [ "$site" ] || die "apt-get knows no archive of Debian's here"
  echo "$site"
}

# make_root SUITE ROOT: a minimal Debian, whose apt is configured as ours.
make_root ()
{
  local packages=ca-certificates site
  site=$(mirror) || exit 1
  if type -P mmdebstrap >/dev/null; then
    mmdebstrap --quiet --variant=apt --include="$packages" "$1" "$2" \
               "$site"
  elif type -P debootstrap >/dev/null; then
    debootstrap --variant=minbase --include="$packages" "$1" "$2" "$site"
  else
    die "neither mmdebstrap nor debootstrap is in PATH"
  fi
  cp /etc/resolv.conf "$2/etc/resolv.conf" 2>/dev/null || true
}

# copy_tree FOLDER: the files of the checkout, with what is not yet committed;
# of an unpacked tarball all.
copy_tree ()
{
  rm -rf "$1"
  mkdir -p "$1"
  if ! git -C "$srcdir" rev-parse 2>/dev/null; then
    cp -a "$srcdir/." "$1"
    return
  fi
  (cd "$srcdir" &&
     git ls-files -z --cached --others --exclude-standard |
       while IFS= read -rd '' file; do
         if [ -e "$file" ]; then printf '%s\0' "$file"; fi
       done | tar --null -cf - --no-recursion -T -) | tar -C "$1" -xf -
}

# inside ROOT COMMAND...: with processes and mounts of its own, which end with
# the command.
inside ()
{
  # shellcheck disable=SC2016
  unshare --mount --pid --fork --kill-child --propagation private \
          bash -ec '
    root=$1
    shift
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    mount --rbind /dev "$root/dev"
    exec chroot "$root" env -i HOME=/root LANG=C.UTF-8 CI="$CI" \
         MAKEFLAGS="$MAKEFLAGS" DEBIAN_FRONTEND=noninteractive \
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
         "$@"' inside "$@"
}

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
