#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# Make the Debian packages of a tarball, in a folder that is made:
#
#     make dist
#     build-aux/packaging/debian.sh nbdkit-blockdrivers-VERSION.tar.gz FOLDER

set -euo pipefail

if [ $# -ne 2 ]; then
  echo "usage: $0 TARBALL FOLDER" >&2
  exit 2
fi
name=$(basename "$1" .tar.gz)
mkdir -p "$2"
cp "$1" "$2/${name%-*}_${name##*-}.orig.tar.gz"
tar -C "$2" -xzf "$1"
cp -r "$2/$name/build-aux/packaging/debian" "$2/$name"
cd "$2/$name"
exec dpkg-buildpackage -us -uc
