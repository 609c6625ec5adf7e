#!/usr/bin/env bash
# nbdkit-blockdrivers
# Copyright the nbdkit-blockdrivers authors
# SPDX-License-Identifier: BSD-3-Clause

# The demo of ./bootstrap demo: a QED disk over a real file system is served
# over NBD, a virtual machine writes files into it, and the base below stays
# what it was.  Every command is printed before it is run; in a shell at the
# top of the tree they do the same.  Everything is made in one folder, which
# is removed at the end.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say ()
{
  printf '\n# %s\n' "$1"
}

show ()
{
  printf '$ %s\n' "$1"
  eval "$1"
}

clean_up ()
{
  if [ "${demo:-}" ]; then
    if [ -s "$demo/pid" ]; then
      kill "$(cat "$demo/pid")" 2>/dev/null || true
    fi
    rm -rf "$demo"
  fi
}
trap clean_up EXIT

say "A folder for the demo; libguestfs's machines run by QEMU itself."
show 'demo=$(mktemp -d /tmp/qed-demo.XXXXXX)'
show '. tests/lib/guestfs.bash'

say "The base: a file system with this project's documents."
show 'mkdir "$demo/documents"'
show 'cp README LICENSE man/*.pod "$demo/documents"'
show 'mke2fs -q -t ext4 -L documents -d "$demo/documents" "$demo/base.img" 64M'
show 'sha256sum "$demo/base.img" | tee "$demo/base.sum"'

say "A QED image over it, which has nothing of its own yet."
show './run qed-img create -b base.img -F raw "$demo/disk.qed"'

say "Serve it.  nbdkit goes to the background when it is ready."
show './run nbdkit -U "$demo/sock" -P "$demo/pid" qed "$demo/disk.qed"'
show 'uri="nbd+unix:///?socket=$demo/sock"'

say "A virtual machine mounts the disk and copies a folder into it."
show 'guestfish --format=raw -a "nbd:///?socket=$demo/sock" -m /dev/sda \
    mkdir /sources : copy-in common /sources : ls / : ls /sources/common'

say "Which parts of the disk hold data now, in the image or in the base."
show 'nbdinfo --map --totals "$uri"'
show 'nbdinfo --map "$uri" | sed -n 1,12p'

say "End the server.  Then look at the image: clean, and small."
show 'kill "$(cat "$demo/pid")"'
show 'while kill -0 "$(cat "$demo/pid")" 2>/dev/null; do sleep 0.1; done'
show './run qed-img info "$demo/disk.qed"'
show './run qed-img check "$demo/disk.qed"'

say "QEMU agrees, and reads the same files from the image without us."
show 'qemu-img check -f qed "$demo/disk.qed"'
show 'guestfish --ro --format=qed -a "$demo/disk.qed" -m /dev/sda \
    ls /sources/common : cat /sources/common/local.mk | sed -n 1,8p'

say "The base is untouched."
show 'sha256sum -c "$demo/base.sum"'

say "Done; the folder $demo is removed.  See README for more."
